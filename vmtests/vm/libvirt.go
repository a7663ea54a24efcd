package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// userIDs is one that a process can be started as, with its groups.
type userIDs struct {
	uid, gid int
	groups   []uint32
}

func lookUp(name string) (userIDs, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return userIDs{}, err
	}
	groups, err := u.GroupIds()
	if err != nil {
		return userIDs{}, err
	}
	var n []int
	for _, s := range append([]string{u.Uid, u.Gid}, groups...) {
		i, err := strconv.Atoi(s)
		if err != nil {
			return userIDs{}, fmt.Errorf("user %s: %w", name, err)
		}
		n = append(n, i)
	}
	ids := userIDs{uid: n[0], gid: n[1]}
	for _, g := range n[2:] {
		ids.groups = append(ids.groups, uint32(g))
	}
	return ids, nil
}

// libvirtPIDs are where the two daemons write theirs.
var libvirtPIDs = []string{"/run/libvirtd.pid", "/run/virtlogd.pid"}

// EnsureLibvirt starts libvirtd where none answers. A daemon that runs is used
// as it is. The URI is Options.URI.
func EnsureLibvirt(ctx context.Context, uri string) (Choice, error) {
	if uri == "" {
		uri = (*Options)(nil).withDefaults().URI
	}
	c := Choice{What: "libvirt"}
	if _, err := virsh(ctx, uri, "uri"); err == nil {
		c.Name, c.Why = "running", "one answers at "+uri
		return c, nil
	}
	start := [][]string{{"virtlogd", "-d"}, {"libvirtd", "-d", "-f", libvirtdConf}}
	c.Name, c.Why = "started", "none answered, and there is no systemd: virtlogd -d, libvirtd -d -f "+libvirtdConf
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		start = [][]string{{"systemctl", "start", "libvirtd.service"}}
		c.Why = "none answered: systemctl start libvirtd"
	} else if err := writeLibvirtdConf(); err != nil {
		return c, err
	}
	for _, args := range start {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil && args[0] != "virtlogd" {
			return c, fmt.Errorf("start %s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
		}
	}
	return c, poll(ctx, 2*time.Minute, "libvirtd to answer", func() bool {
		_, err := virsh(ctx, uri, "uri")
		return err == nil
	})
}

// libvirtdConf lets group libvirt in by the socket's mode. Debian's default asks
// polkit, which asks the system bus, and without systemd there is none: then
// libvirtd refuses everybody but root.
const libvirtdConf = "/var/cache/outguard/libvirtd.conf"

func writeLibvirtdConf() error {
	const text = `unix_sock_group = "libvirt"
unix_sock_ro_perms = "0770"
unix_sock_rw_perms = "0770"
auth_unix_ro = "none"
auth_unix_rw = "none"
`
	if err := os.MkdirAll(filepath.Dir(libvirtdConf), 0o755); err != nil {
		return err
	}
	return os.WriteFile(libvirtdConf, []byte(text), 0o644)
}

// StopLibvirt ends the daemons that Open started. With domains left, somebody
// else's, it does nothing. The URI is Options.URI.
func StopLibvirt(ctx context.Context, uri string) error {
	if uri == "" {
		uri = (*Options)(nil).withDefaults().URI
	}
	left, err := virsh(ctx, uri, "list", "--name")
	if err != nil || left != "" {
		return err
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		return exec.CommandContext(ctx, "systemctl", "stop", "libvirtd.service").Run()
	}
	for _, path := range libvirtPIDs {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if err := stop(ctx, pid); err != nil {
			return err
		}
	}
	return nil
}

// poll asks until the answer is yes, for at most d.
func poll(ctx context.Context, d time.Duration, what string, yes func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !yes() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited for %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}
