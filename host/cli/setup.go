package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/host/domain"
)

// setupCmds are the verbs that need no monitor and change this host.
func (a *app) setupCmds() []*cobra.Command {
	return []*cobra.Command{a.enrollCmd(), a.unenrollCmd(), a.playbookCmd()}
}

func (a *app) enrollCmd() *cobra.Command {
	var o domain.EnrollOptions
	var transport string
	cmd := a.command(&cobra.Command{
		Use:   "enroll DOMAIN",
		Short: "Give a domain a channel to the monitor and a one-time key",
		Long: `Provision a domain that is shut off: a channel for its agent, and a new one-time
key that only root in the guest can read (through QEMU's fw_cfg, from a file). It
gets <vmcoreinfo state='on'/> as well, by which its kernel says where it is in
memory: a capture of it opens in crash, drgn and Volatility. Then print what is left to do in the guest. It is done as root, with libvirtd
running; no monitor needs to run. Done again it only renews the key; with another
transport it takes the earlier channel out.

With serial nothing has to run beside QEMU, and the domain can be migrated and
snapshotted with its memory; the agent has to be told (the script does it), and a
guest whose agent falls silent cannot be asked past it.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeDomain,
	}, func(cmd *cobra.Command, args []string) error {
		p, err := a.paths()
		if err != nil {
			return err
		}
		c := domain.New(&domain.Options{Socket: p.Libvirt})
		defer func() { _ = c.Close() }()
		o.Transport = domain.Transport(transport)
		p.enrollInto(&o)
		e, err := c.Enroll(cmd.Context(), args[0], &o)
		if err != nil {
			return err
		}
		if warning, err := c.AppArmor(cmd.Context(), e); err != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", safe.Text(err.Error()))
		} else if warning != "" {
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s", safeLines(warning))
		}
		return a.printEnrolment(e)
	})
	f := cmd.Flags()
	f.StringVar(&transport, "transport", "", "`how` the agent reaches the host: vsock (the kernel's), vhost-user (vhost-device-vsock) or serial (a virtio-serial port); default: what the domain has, else vsock where /dev/vhost-vsock is and vhost-user elsewhere")
	f.StringVar(&o.User, "user", "", "the monitor's `user`, who may read the enrolment (default outguard)")
	f.StringVar(&o.QEMUUser, "qemu-user", "", "QEMU's `user`, who may read the key (default: whom libvirt runs QEMU as)")
	_ = cmd.RegisterFlagCompletionFunc("transport",
		cobra.FixedCompletions(transports(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func transports() (all []cobra.Completion) {
	for _, t := range domain.Transports {
		all = append(all, string(t))
	}
	return all
}

// enrollInto sets where things go.
func (p *paths) enrollInto(o *domain.EnrollOptions) {
	o.StateDir, o.RunDir, o.Sockets = p.State, p.Run, p.Listen.HybridDir
}

// enrolment is what is printed of one: not the key.
type enrolment struct {
	Name      string    `json:"name"`
	UUID      string    `json:"uuid"`
	Transport string    `json:"transport"`
	CID       uint32    `json:"cid"`    // 0: libvirt assigns one at each start
	Vhost     string    `json:"vhost"`  // "" with transport vsock
	Socket    string    `json:"socket"` // likewise; with transport serial that of the domain's port
	KeyFile   string    `json:"key_file"`
	Enrolled  time.Time `json:"enrolled"`
	Snippet   string    `json:"snippet"`
}

func (a *app) printEnrolment(e *domain.Enrolment) error {
	if a.json {
		return a.printJSON(enrolment{
			e.Name, e.UUID.String(), string(e.Transport), e.CID, e.Vhost, e.Socket, e.KeyFile, e.Enrolled, e.Snippet(),
		})
	}
	a.fact("enrolled", e.Name+" "+e.UUID.String())
	a.fact("transport", string(e.Transport))
	a.fact("key", e.KeyFile)
	next := 2
	if e.Transport == domain.VhostUser {
		next++
	}
	a.printf("\nWhat is left to do:\n")
	a.printf("1. The monitor runs: `systemctl start outguardd`, or `outguardd` where systemd does not.\n")
	if e.Transport == domain.VhostUser {
		a.printf("2. The process of its vsock device runs before the domain does, as QEMU's user and with the\n   umask 007, so that the monitor can ask a silent guest's kernel:\n   %s\n", backend(e))
	}
	a.printf("%d. The domain starts: virsh start %s\n", next, quote(e.Name))
	a.printf("%d. The agent runs in the guest; this installs it:\n\n%s\n", next+1, safeLines(e.Snippet()))
	a.printf("`outguard vms %s` then shows the agent.\n", quote(e.Name))
	return nil
}

// backend is the command that serves a vhost-user vsock device.
func backend(e *domain.Enrolment) string {
	return fmt.Sprintf("vhost-device-vsock --guest-cid %d --socket %s --uds-path %s", e.CID, quote(e.Vhost), quote(e.Socket))
}

// safeLines is text of several lines.
func safeLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = safe.Text(l)
	}
	return strings.Join(lines, "\n")
}

func (a *app) unenrollCmd() *cobra.Command {
	return a.command(&cobra.Command{
		Use:   "unenroll DOMAIN",
		Short: "Take out of a domain what enroll put in, and forget its key",
		Long: `Take the channel and the key out of a domain that is shut off, and remove its
enrolment. What was recorded of it stays.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeDomain,
	}, func(cmd *cobra.Command, args []string) error {
		p, err := a.paths()
		if err != nil {
			return err
		}
		c := domain.New(&domain.Options{Socket: p.Libvirt})
		defer func() { _ = c.Close() }()
		if err := c.Unenroll(cmd.Context(), args[0], &domain.EnrollOptions{StateDir: p.State, RunDir: p.Run}); err != nil {
			return err
		}
		if a.json {
			return a.printJSON(struct {
				Unenrolled string `json:"unenrolled"`
			}{args[0]})
		}
		a.printf("unenrolled: %s\n", quote(args[0]))
		return nil
	})
}

// completeDomain offers libvirt's domains: the monitor may not run yet.
func (a *app) completeDomain(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	p, err := a.paths()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c := domain.New(&domain.Options{Socket: p.Libvirt, DialTimeout: time.Second})
	defer func() { _ = c.Close() }()
	ctx, cancel := contextTimeout(cmd, time.Second)
	defer cancel()
	all, err := c.List(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, d := range all {
		names = append(names, d.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
