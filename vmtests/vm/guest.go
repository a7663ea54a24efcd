package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/outguard/outguard/vmtests/image"
)

// Spec describes a guest. Zero values mean the defaults.
type Spec struct {
	Name      string // of the domain; begins with outguard-test- or outguard-demo-
	Image     *image.Image
	MemoryMiB int      // default 256
	CPUs      int      // default 2
	Cmdline   []string // words to add to the kernel's command line
	Root      bool     // let Root run commands in it
	Channel   bool     // give it a vsock of the lab's own; else enrolling does that
	Counted   bool     // one nanosecond of its time is one instruction of its only CPU, emulated
}

// Guest is one domain, defined by the lab.
type Guest struct {
	Name string
	Port int // on 127.0.0.1, leads to the guest's port 80

	lab     *Lab
	spec    Spec
	dir     string
	console string
	channel *Channel // served by a vhost-device-vsock; nil with the kernel's vsock, or none
}

// Channel is what a vhost-device-vsock is started with.
type Channel struct {
	CID     uint32 // the guest's address
	Control string // socket that QEMU connects to
	Socket  string // connections of the guest to port P of the host come to <Socket>_P
}

var nameOK = regexp.MustCompile(`^outguard-(test|demo)-[a-z0-9-]{1,40}$`)

// Define defines a domain and copies its disk, but does not start it.
func (l *Lab) Define(ctx context.Context, s Spec) (*Guest, error) {
	if !nameOK.MatchString(s.Name) {
		return nil, fmt.Errorf("guest %q: the name is not one of a lab's", s.Name)
	}
	if s.MemoryMiB == 0 {
		s.MemoryMiB = 256
	}
	if s.CPUs == 0 {
		s.CPUs = 2
	}
	if s.Counted {
		s.CPUs = 1
	}
	g := &Guest{Name: s.Name, lab: l, spec: s, dir: filepath.Join(l.o.Dir, "guests", s.Name)}
	g.console = filepath.Join(g.dir, "console.log")
	if err := g.define(ctx); err != nil {
		g.Remove(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("guest %s: %w", s.Name, err)
	}
	return g, nil
}

func (g *Guest) define(ctx context.Context) error {
	if err := g.Remove(ctx); err != nil { // what a run that was killed left
		return err
	}
	if err := os.MkdirAll(g.dir, 0o755); err != nil {
		return err
	}
	if err := roomAt(g.dir, needed); err != nil {
		return err
	}
	// vhost-device-vsock makes its control socket here, as QEMU's user.
	if err := os.Chown(g.dir, g.lab.qemu.uid, g.lab.qemu.gid); err != nil {
		return err
	}
	for from, to := range map[string]string{g.spec.Image.Kernel: "vmlinuz", g.spec.Image.Initrd: "initrd", g.spec.Image.Disk: "root.qcow2"} {
		if err := copyFile(from, filepath.Join(g.dir, to)); err != nil {
			return err
		}
	}
	var err error
	if g.Port, err = freePort(); err != nil {
		return err
	}
	if g.spec.Channel && g.lab.Vsock.Name == "vhost-device-vsock" {
		g.channel = &Channel{CID: 3, Control: filepath.Join(g.dir, "vhost.sock"), Socket: filepath.Join(g.dir, "vsock.sock")}
	}
	path := filepath.Join(g.dir, "domain.xml")
	if err := os.WriteFile(path, []byte(g.xml()), 0o644); err != nil {
		return err
	}
	_, err = g.lab.virsh(ctx, "define", path)
	return err
}

// needed is what a guest needs of the disk at most until it is up: twice what its files
// have.
const needed = 256 << 20

// roomAt refuses where a disk is as good as full. A guest's console is a file too: it
// would fall silent in the middle of the boot, and the guest stand a little later.
func roomAt(dir string, bytes uint64) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("room in %s: %w", dir, err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < bytes {
		return fmt.Errorf("%s has %d MB free, a guest needs %d: %w", dir, free/1e6, bytes/1e6, syscall.ENOSPC)
	}
	return nil
}

// Serve tells the guest's channel, which somebody else put into the domain: a
// vhost-device-vsock is started for it at the guest's next start. nil means
// that there is none to serve.
func (g *Guest) Serve(c *Channel) { g.channel = c }

// Hybrid is the socket of the guest's channel: what it connects to port P of the
// host comes to <Hybrid>_P. Empty where the channel is the kernel's, or another's.
func (g *Guest) Hybrid() string {
	if g.channel == nil {
		return ""
	}
	return g.channel.Socket
}

// Dir holds the guest's files.
func (g *Guest) Dir() string { return g.dir }

// Start boots the guest.
func (g *Guest) Start(ctx context.Context) error {
	if g.channel != nil {
		if err := g.startVsock(ctx); err != nil {
			return err
		}
	}
	if err := os.Remove(g.console); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, err := g.lab.virsh(ctx, "start", g.Name)
	return err
}

// State is libvirt's word for it: running, paused, shut off.
func (g *Guest) State(ctx context.Context) (string, error) {
	return g.lab.virsh(ctx, "domstate", g.Name)
}

// Console is what the guest has printed since it was started.
func (g *Guest) Console() (string, error) {
	b, err := os.ReadFile(g.console)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(bytes.ReplaceAll(b, []byte("\r"), nil)), err
}

// WaitConsole waits until the console holds text and returns all of it.
func (g *Guest) WaitConsole(ctx context.Context, text string, within time.Duration) (string, error) {
	var all string
	err := poll(ctx, within, fmt.Sprintf("%q on the console of %s", text, g.Name), func() bool {
		all, _ = g.Console()
		return strings.Contains(all, text)
	})
	if err != nil {
		err = fmt.Errorf("%w; its last lines:\n%s\nand what is seen of it:\n%s", err, tail(all, 20), g.Report(ctx))
	}
	return all, err
}

func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Stop ends the guest at once, if it runs.
func (g *Guest) Stop(ctx context.Context) error {
	state, err := g.State(ctx)
	if err == nil && state != "shut off" {
		_, err = g.lab.virsh(ctx, "destroy", g.Name)
	}
	return errors.Join(err, g.stopVsock(ctx))
}

// Suspend stops the vCPUs, as somebody does who has nothing to do with the monitor.
func (g *Guest) Suspend(ctx context.Context) error {
	_, err := g.lab.virsh(ctx, "suspend", g.Name)
	return err
}

// Resume lets them run again.
func (g *Guest) Resume(ctx context.Context) error {
	_, err := g.lab.virsh(ctx, "resume", g.Name)
	return err
}

// Remove takes away everything that Define and Start made.
func (g *Guest) Remove(ctx context.Context) error {
	if err := g.lab.RemoveDomain(ctx, g.Name); err != nil {
		return err
	}
	if err := g.stopVsock(ctx); err != nil {
		return err
	}
	if err := removeAll("/var/log/libvirt/qemu/" + g.Name + ".log"); err != nil {
		return err
	}
	return os.RemoveAll(g.dir)
}

// RemoveGuest takes away what a lab with these options made for a guest of that
// name, in another run. It starts nothing.
func RemoveGuest(ctx context.Context, o *Options, name string) error {
	l := &Lab{o: o.withDefaults()}
	g := &Guest{Name: name, lab: l, dir: filepath.Join(l.o.Dir, "guests", name)}
	if _, err := l.virsh(ctx, "uri"); err != nil {
		// With no libvirtd no domain is left but on its own paper.
		if _, lerr := os.Stat("/etc/libvirt/qemu/" + name + ".xml"); lerr == nil {
			return err
		}
		if err := g.stopVsock(ctx); err != nil {
			return err
		}
		return os.RemoveAll(g.dir)
	}
	return g.Remove(ctx)
}

// RemoveDomain ends and undefines a domain of a lab, with its snapshots. One
// that is not there is no error.
func (l *Lab) RemoveDomain(ctx context.Context, name string) error {
	if !nameOK.MatchString(name) {
		return fmt.Errorf("domain %q: not one of a lab's", name)
	}
	names, err := l.virsh(ctx, "list", "--all", "--name")
	if err != nil || !hasLine(names, name) {
		return err
	}
	if state, err := l.virsh(ctx, "domstate", name); err == nil && state != "shut off" {
		if _, err := l.virsh(ctx, "destroy", name); err != nil {
			return err
		}
	}
	names, err = l.virsh(ctx, "list", "--all", "--name")
	if err != nil || !hasLine(names, name) { // it was transient
		return err
	}
	_, err = l.virsh(ctx, "undefine", name, "--managed-save", "--snapshots-metadata", "--checkpoints-metadata", "--nvram")
	return err
}

func hasLine(text, line string) bool {
	for l := range strings.Lines(text) {
		if strings.TrimSpace(l) == line {
			return true
		}
	}
	return false
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// freePort returns a port of 127.0.0.1 that nobody listens on. QEMU takes it later,
// and anew at each start: so it is none of those that the kernel gives to whoever
// asks for any (32768 and above).
func freePort() (int, error) {
	var err error
	for range 100 {
		port := 12000 + rand.N(20000)
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, err
}
