package vm

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/outguard/outguard/vmtests/attack"
	"github.com/outguard/outguard/vmtests/image"
	"github.com/outguard/outguard/vmtests/service"
)

// need skips where no guest can be run, and fails where that is promised.
func need(t *testing.T) {
	t.Helper()
	promised := slices.Contains(strings.Split(os.Getenv("OUTGUARD_REQUIRE"), ","), "libvirt")
	if !promised {
		t.Skip("boots guests: set OUTGUARD_REQUIRE=libvirt")
	}
	for _, tool := range []string{"virsh", "qemu-system-x86_64", "mke2fs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("promised, but missing: %s (.ci/install vm)", tool)
		}
	}
}

// slow is how long each step of a guest's may take: under TCG on a loaded machine
// a boot that is one of 8 seconds elsewhere takes minutes.
const slow = 5 * time.Minute

func TestGuestServesAndFalls(t *testing.T) {
	need(t)
	img, err := image.Build(t.Context(), "/var/cache/outguard/images", &image.Options{Files: dialer(t)})
	if err != nil {
		t.Fatal(err)
	}
	site, err := Here()
	if err != nil {
		t.Fatal(err)
	}
	lab, err := Open(t.Context(), img, &Options{Dir: site.Dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range lab.Choices() {
		t.Log(c)
	}
	g, err := lab.Define(t.Context(), Spec{Name: site.Name("boot"), Image: img, Channel: true, Cmdline: []string{"outguard.task=dial"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if c, _ := g.Console(); t.Failed() {
			t.Log("its console: ", os.WriteFile(filepath.Join(t.ArtifactDir(), "console.log"), []byte(c), 0o644))
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	if g.channel != nil { // before the guest asks
		answer(t, lab, g)
	}
	if err := g.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := g.WaitConsole(t.Context(), "guest: up", slow); err != nil {
		t.Fatal(err)
	}
	t.Logf("kernel %s up in %s", img.Release, time.Since(began))
	if g.channel != nil {
		if _, err := g.WaitConsole(t.Context(), `dial: host says "hello, guest"`, slow); err != nil {
			t.Error(err)
		}
	}
	if err := service.Wait(t.Context(), g.Port, slow); err != nil {
		t.Fatal(err)
	}
	if err := service.Visit(t.Context(), g.Port, 1); err != nil {
		t.Error(err)
	}
	r, err := attack.Run(t.Context(), g.Port, slow)
	if err != nil || !r.Called {
		c, _ := g.Console()
		t.Errorf("attack: %+v, %v, want a call; console:\n%s", r, err, tail(c, 20))
	}
	t.Logf("the attacker's program called %s after the request", time.Since(r.Sent).Round(time.Millisecond))
	reports(t, g)
}

// reports holds that what is said of a guest that does not do what was waited for
// tells a guest that is well from one that stands.
func reports(t *testing.T, g *Guest) {
	t.Helper()
	well := []string{"libvirt: running", "disks: No errors found", "port 80: 200 OK", "RIP=", "sysrq: Show Blocked State", "task:init "}
	for end := time.Now().Add(slow); ; { // each question has seconds, and a machine may be busy for as long
		said := g.Report(t.Context())
		missing := slices.DeleteFunc(slices.Clone(well), func(s string) bool { return strings.Contains(said, s) })
		if len(missing) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Errorf("a guest that is well: no %q in\n%s", missing, said)
			break
		}
	}
	if err := g.Suspend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if said := g.Report(t.Context()); !strings.Contains(said, "libvirt: paused (user)") {
		t.Errorf("a guest that stands: %s", said)
	}
}

// dialer is a program for the guest that speaks to the host over vsock.
func dialer(t *testing.T) []image.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dial")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "testdata/dial.go")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the dialer: %v\n%s", err, out)
	}
	f, err := image.FromHost("/etc/tasks/dial", 0o755, path)
	if err != nil {
		t.Fatal(err)
	}
	return []image.File{f}
}

// answer is a host that answers one greeting on the guest's hybrid socket, as
// a process that is not QEMU's user.
func answer(t *testing.T, lab *Lab, g *Guest) {
	t.Helper()
	path := g.channel.Socket + "_6820"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := os.Chown(path, -1, lab.qemu.gid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		t.Fatal(err)
	}
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err == nil {
			fmt.Fprintf(c, "%s, guest", b)
		}
	}()
}

// TestPortIsLeftAlone: until a guest's QEMU takes its port, the kernel gives it to
// nobody who asks for any.
func TestPortIsLeftAlone(t *testing.T) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Fatal(err)
	}
	var low, high int
	if _, err := fmt.Sscan(string(text), &low, &high); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if port, err := freePort(); err != nil || port >= low && port <= high {
			t.Fatalf("port %d, of %d to %d that are anybody's, %v", port, low, high, err)
		}
	}
}
