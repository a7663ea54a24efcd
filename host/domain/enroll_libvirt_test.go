package domain

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/outguard/outguard/host/domain/domaintest"
)

// backend returns the vhost-device-vsock binary, or skips.
func backend(t *testing.T) string {
	t.Helper()
	for _, name := range []string{os.Getenv("OUTGUARD_VHOST_VSOCK"), "vhost-device-vsock", "/var/cache/outguard/vhost-device-vsock/current"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	domaintest.Require(t, false, "no vhost-device-vsock (OUTGUARD_VHOST_VSOCK names it)")
	return ""
}

// serve runs a backend for an enrolment, as QEMU's user, until the test ends.
func serve(t *testing.T, binary string, e *Enrolment) {
	t.Helper()
	dir := filepath.Dir(e.Vhost)
	if out, err := exec.Command("sh", "-c", `mkdir -p "$1" && chown libvirt-qemu: "$1" && cp -L "$2" "$1/backend"`, "sh", dir, binary).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	user, err := userIDs("libvirt-qemu")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "backend"), "--guest-cid", fmt.Sprint(e.CID), "--socket", e.Vhost, "--uds-path", e.Socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(user.uid), Gid: uint32(user.gid)}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	await(t, "the backend to come up", func() bool { return listens(t, e.Vhost) })
}

// listens reports whether somebody does at a socket, which is there before.
func listens(t *testing.T, path string) bool {
	t.Helper()
	all, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	const accepts = "00010000" // __SO_ACCEPTCON, the fourth column
	for line := range strings.Lines(string(all)) {
		if f := strings.Fields(line); len(f) == 8 && f[3] == accepts && f[7] == path {
			return true
		}
	}
	return false
}

// TestEnroll enrols a domain twice, boots it, has it read its key and show
// its vsock device, captures it, which no migration could, and unenrols it.
func TestEnroll(t *testing.T) {
	binary := backend(t)
	g := domaintest.Start(t, domaintest.Config{Off: true, Disks: []string{"raw"}})
	c, ctx := client(t), t.Context()
	before := g.Virsh(t, "dumpxml")
	opts := &EnrollOptions{StateDir: filepath.Join(g.Dir, "state"), RunDir: filepath.Join(g.Dir, "run"), Transport: VhostUser, User: "nobody"}
	first, err := c.Enroll(ctx, g.Name, opts)
	if err != nil {
		t.Fatal(err)
	}
	once := g.Virsh(t, "dumpxml")
	e, err := c.Enroll(ctx, g.UUID.String(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if twice := g.Virsh(t, "dumpxml"); twice != once {
		t.Errorf("enrolling twice changed the domain:\n%s\nto\n%s", once, twice)
	}
	if e.Key == first.Key || e.CID != first.CID || e.Socket != first.Socket {
		t.Errorf("the key must change and nothing else: %+v, %+v", first, e)
	}
	list, err := Enrolments(filepath.Join(opts.StateDir, "enroll"))
	if err != nil || len(list) != 1 || list[0].Key != e.Key || list[0].UUID != g.UUID {
		t.Fatalf("%+v, %v", list, err)
	}
	for path, want := range map[string]string{
		e.KeyFile: "libvirt-qemu 400",
		filepath.Join(opts.StateDir, "enroll", g.UUID.String()+".json"): "nobody 600",
		filepath.Join(opts.StateDir, "enroll"):                          "nobody 700",
		filepath.Join(opts.StateDir, "keys"):                            "root 711",
	} {
		out, _ := exec.Command("stat", "-c", "%U %a", path).Output()
		if got := strings.TrimSpace(string(out)); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}

	serve(t, binary, e)
	g.Boot(t)
	console, _ := os.ReadFile(g.Log)
	if m := regexp.MustCompile(`key (\d+) ([0-9a-f]+)`).FindStringSubmatch(string(console)); m == nil || m[1] != "400" || m[2] != hex.EncodeToString(e.Key[:]) {
		t.Errorf("the guest's key: %q", m)
	}
	if !strings.Contains(string(console), "virtio device 0x0013") {
		t.Errorf("the guest has no vsock device:\n%s", console)
	}
	if _, err := c.Enroll(ctx, g.Name, opts); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), "virsh shutdown") {
		t.Errorf("while it runs: %v", err)
	}
	if err := c.Pause(ctx, g.UUID); err != nil {
		t.Fatal(err)
	}
	s, err := c.Capture(ctx, g.UUID, filepath.Join(g.Dir, "capture"), nil)
	if err != nil {
		t.Fatalf("with a vhost-user device: %v", err)
	}
	checkPair(t, g, s, 1)

	g.Virsh(t, "destroy")
	if err := c.Unenroll(ctx, g.Name, opts); err != nil {
		t.Fatal(err)
	}
	if after := g.Virsh(t, "dumpxml"); after != before {
		t.Errorf("unenrolling leaves something:\n%s\nwas\n%s", after, before)
	}
	for _, d := range []string{"enroll", "keys"} {
		left, _ := filepath.Glob(filepath.Join(opts.StateDir, d, "[^.]*"))
		if len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// TestEnrollChangesTransport enrols over one transport and then another; the
// definition is libvirt's own, though the host may lack the device to start it.
func TestEnrollChangesTransport(t *testing.T) {
	g := domaintest.Start(t, domaintest.Config{Off: true})
	c, ctx := client(t), t.Context()
	before := g.Virsh(t, "dumpxml")
	opts := &EnrollOptions{StateDir: filepath.Join(g.Dir, "state"), RunDir: filepath.Join(g.Dir, "run"), User: "nobody"}
	for _, opts.Transport = range []Transport{KernelVsock, VhostUser, KernelVsock} {
		e, err := c.Enroll(ctx, g.Name, opts)
		if err != nil {
			t.Fatal(err)
		}
		text := g.Virsh(t, "dumpxml")
		kernel := strings.Contains(text, "<vsock model='virtio'>") && !strings.Contains(text, "vhost-user-vsock") && e.Listen() == ""
		user := !strings.Contains(text, "<vsock") && strings.Contains(text, "vhost-user-vsock-pci") && e.Listen() != ""
		if kernel != (opts.Transport == KernelVsock) || user != (opts.Transport == VhostUser) {
			t.Errorf("%s, listening at %q:\n%s", opts.Transport, e.Listen(), text)
		}
	}
	if err := c.Unenroll(ctx, g.Name, opts); err != nil {
		t.Fatal(err)
	}
	if after := g.Virsh(t, "dumpxml"); after != before {
		t.Errorf("unenrolling leaves something:\n%s\nwas\n%s", after, before)
	}
}

func TestEnrollRefuses(t *testing.T) {
	g := domaintest.Start(t, domaintest.Config{Off: true})
	c, ctx := client(t), t.Context()
	opts := EnrollOptions{StateDir: filepath.Join(g.Dir, "state"), RunDir: filepath.Join(g.Dir, "run"), Transport: VhostUser, User: "nobody"}
	before := g.Virsh(t, "dumpxml")
	for _, c2 := range []struct {
		want, domain string
		edit         func(*EnrollOptions)
	}{
		{"no such domain", "respond-test-none", func(*EnrollOptions) {}},
		{"useradd --system", g.Name, func(o *EnrollOptions) { o.User = "outguard-test-none" }},
		{"none of vsock, vhost-user, serial", g.Name, func(o *EnrollOptions) { o.Transport = "pigeon" }},
		{"absolute path", g.Name, func(o *EnrollOptions) { o.Sockets = "/" + strings.Repeat("a", 120) }},
	} {
		o := opts
		c2.edit(&o)
		if _, err := c.Enroll(ctx, c2.domain, &o); err == nil || !strings.Contains(err.Error(), c2.want) {
			t.Errorf("got %v, want %q", err, c2.want)
		}
	}
	closed := opts
	closed.StateDir = filepath.Join(g.Dir, "closed", "state")
	if err := os.Mkdir(filepath.Dir(closed.StateDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Enroll(ctx, g.Name, &closed); err == nil || !strings.Contains(err.Error(), "chmod o+x") {
		t.Errorf("where QEMU cannot go: %v", err)
	}
	linked, outside := opts, filepath.Join(g.Dir, "outside")
	linked.StateDir = filepath.Join(g.Dir, "linked")
	for _, d := range []string{linked.StateDir, outside} {
		if err := errors.Join(os.Mkdir(d, 0o711), os.Chmod(d, 0o711)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(linked.StateDir, "keys")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Enroll(ctx, g.Name, &linked); err == nil {
		t.Error("wrote where a link led out of the state directory")
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("outside: %v", left)
	}
	if after := g.Virsh(t, "dumpxml"); after != before {
		t.Error("a refused enrolment changed the domain")
	}
	if list, err := Enrolments(filepath.Join(opts.StateDir, "enroll")); len(list) != 0 || err != nil {
		t.Errorf("a refused enrolment left %v, %v", list, err)
	}
}

// TestEnrollSerial: the domain gets a port that QEMU serves at the socket, keeps
// it when it is enrolled again without a word of a transport, and is what it was
// after Unenroll. Its guest's end is closed until somebody opens it.
func TestEnrollSerial(t *testing.T) {
	g := domaintest.Start(t, domaintest.Config{Off: true})
	c, ctx := client(t), t.Context()
	before := g.Virsh(t, "dumpxml")
	opts := &EnrollOptions{StateDir: filepath.Join(g.Dir, "state"), RunDir: filepath.Join(g.Dir, "run"), Transport: Serial, User: "nobody"}
	if _, err := c.Enroll(ctx, g.Name, opts); err != nil {
		t.Fatal(err)
	}
	once := g.Virsh(t, "dumpxml")
	opts.Transport = ""
	e, err := c.Enroll(ctx, g.Name, opts)
	if err != nil || e.Transport != Serial {
		t.Fatalf("again: %+v, %v", e, err)
	}
	if twice := g.Virsh(t, "dumpxml"); twice != once {
		t.Errorf("enrolling twice changed the domain:\n%s\nto\n%s", once, twice)
	}
	if !strings.Contains(e.Snippet(), "--channel serial:org.outguard.agent.0") || !strings.Contains(e.Snippet(), "virtio_console") {
		t.Errorf("the guest is told:\n%s", e.Snippet())
	}
	if open, err := c.PortOpen(ctx, g.UUID); open || err == nil {
		t.Errorf("of a domain that is off: %v, %v", open, err)
	}
	g.Virsh(t, "start")
	conn, err := net.Dial("unix", e.Socket)
	if err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	if open, err := c.PortOpen(ctx, g.UUID); open || err != nil {
		t.Errorf("PortOpen: %v, %v", open, err)
	}
	g.Virsh(t, "destroy")
	if err := c.Unenroll(ctx, g.Name, opts); err != nil {
		t.Fatal(err)
	}
	if after := g.Virsh(t, "dumpxml"); after != before {
		t.Errorf("unenrolling left\n%s\nof\n%s", after, before)
	}
}
