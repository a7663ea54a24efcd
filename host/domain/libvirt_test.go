package domain

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/domain/domaintest"
)

func client(t testing.TB) *Client {
	t.Helper()
	c := New(nil)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestLife follows one guest through its states and watches its events.
func TestLife(t *testing.T) {
	g := domaintest.Start(t, domaintest.Config{Off: true})
	c, ctx := client(t), t.Context()
	events := watch(t, c)
	d, err := c.Lookup(ctx, g.Name)
	if err != nil || d.UUID != g.UUID || d.State != ShutOff || d.ID != -1 {
		t.Fatalf("%+v, %v", d, err)
	}
	if err := c.Pause(ctx, g.UUID); !errors.Is(err, ErrNotRunning) {
		t.Errorf("pause while off: %v", err)
	}
	g.Boot(t)
	if d, err = c.Lookup(ctx, g.UUID.String()); err != nil || d.State != Running || d.ID < 1 || d.Name != g.Name {
		t.Fatalf("%+v, %v", d, err)
	}
	if cid, err := c.CID(ctx, g.UUID); err != nil || cid != 0 {
		t.Errorf("CID %d, %v", cid, err)
	}
	cpu(t, c, g.UUID, true)
	for range 2 { // the second finds it so
		if err := c.Pause(ctx, g.UUID); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := c.Paused(ctx, g.UUID); !p || err != nil {
		t.Fatalf("paused %t, %v", p, err)
	}
	if s, err := qmp(g.QMP, "query-status"); err != nil || !strings.Contains(s, `"status": "paused"`) {
		t.Errorf("QEMU says %s, %v", s, err)
	}
	listed(t, c, g, Paused)
	cpu(t, c, g.UUID, false)
	for range 2 {
		if err := c.Resume(ctx, g.UUID); err != nil {
			t.Fatal(err)
		}
	}
	cpu(t, c, g.UUID, true)
	g.Virsh(t, "reset")
	events.want(t, g.UUID, "rebooted")
	g.Virsh(t, "destroy")
	listed(t, c, g, ShutOff)
	events.want(t, g.UUID, "started booted", "suspended paused", "resumed unpaused", "stopped destroyed")
	g.Virsh(t, "undefine")
	events.want(t, g.UUID, "undefined removed")
	if _, err := c.State(ctx, g.UUID); !errors.Is(err, ErrNotFound) {
		t.Errorf("state when undefined: %v", err)
	}
	var p interface{ Permanent() bool }
	if err := c.Pause(ctx, g.UUID); !errors.Is(err, ErrNotFound) || !errors.As(err, &p) || !p.Permanent() {
		t.Errorf("pause when undefined: %v", err)
	}
}

// listed checks that List has the guest in a state.
func listed(t *testing.T, c *Client, g *domaintest.Guest, want State) {
	t.Helper()
	all, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(d Domain) bool { return d.UUID == g.UUID })
	if i < 0 || all[i].State != want || all[i].Name != g.Name || (all[i].ID > 0) != want.Active() {
		t.Errorf("listed at %d of %+v, want it %s", i, all, want)
	}
}

// TestReconnect breaks the connection under the client.
func TestReconnect(t *testing.T) {
	domaintest.Libvirt(t)
	c := client(t)
	for range 3 {
		l, err := c.connect(&c.lines[0])
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Disconnect()
		if _, err := c.List(t.Context()); err != nil {
			t.Fatalf("after the connection broke: %v", err)
		}
	}
}

func TestCapture(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  domaintest.Config
		left string
	}{
		{"raw and qcow2", domaintest.Config{Disks: []string{"raw", "qcow2"}}, "[{screen display: the domain has none}]"},
		{"backing file and drives", domaintest.Config{Disks: []string{"qcow2"}, Backing: true, CDROM: true}, "[{sda empty drive} {sdb read-only} {screen display: the domain has none}]"},
		{"shared memory", domaintest.Config{Disks: []string{"raw", "qcow2"}, Shared: true}, "[{screen display: the domain has none}]"},
		{"no disk, and a display", domaintest.Config{Devices: "<video><model type='vga'/></video>"}, "[]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := domaintest.Start(t, c.cfg)
			cl := client(t)
			if err := cl.Pause(t.Context(), g.UUID); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(g.Dir, "capture")
			var parts sync.Map
			had, err := os.ReadFile(g.Log)
			if err != nil {
				t.Fatal(err)
			}
			s, err := cl.Capture(t.Context(), g.UUID, dir, &CaptureOptions{Progress: func(p Progress) { parts.Store(p.Part, p) }})
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(s.Left) != c.left || s.Name != g.Name {
				t.Errorf("left %v, name %s", s.Left, s.Name)
			}
			for _, f := range s.Files {
				fi, err := os.Stat(f.Path)
				if err != nil || fi.Size() != f.Size || fi.Mode().Perm() != 0o600 {
					t.Errorf("%+v: %v, %v", f, fi, err)
				}
				t.Logf("%s %s %s: %d bytes in %s", f.Kind, f.Target, f.Format, f.Size, f.Took)
			}
			checkPair(t, g, s, len(c.cfg.Disks))
			checkBeside(t, g, s, had, c.cfg.Devices != "")
			if p, _ := cl.Paused(t.Context(), g.UUID); !p {
				t.Error("the domain runs")
			}
			if err := cl.Resume(t.Context(), g.UUID); err != nil {
				t.Fatal(err)
			}
			if again, err := cl.XML(t.Context(), g.UUID); err != nil || !sameDisks(again, g.Disks) {
				t.Errorf("the domain's images changed: %v", err)
			}
		})
	}
}

// checkBeside looks at the console's end, the picture and what the domain is said
// to run on. had is what the console's file held before: virtlogd writes it, and
// may be behind a guest that stands.
func checkBeside(t *testing.T, g *domaintest.Guest, s *Snapshot, had []byte, display bool) {
	t.Helper()
	var console, screen []byte
	for _, f := range s.Files {
		b, err := os.ReadFile(f.Path)
		if err != nil {
			t.Fatal(err)
		}
		switch f.Kind {
		case "console":
			console = b
		case "screen":
			screen = b
		}
	}
	has, err := os.ReadFile(g.Log)
	if err != nil || !bytes.HasPrefix(console, had) || !bytes.HasPrefix(has, console) || !bytes.Contains(had, []byte("count")) {
		t.Errorf("console: %d bytes, %v, want %d to %d", len(console), err, len(had), len(has))
	}
	if (screen != nil) != display {
		t.Errorf("a picture of %d bytes", len(screen))
	}
	if display {
		img, err := parsePNG(screen)
		if err != nil {
			t.Fatal(err)
		}
		if size := img.Bounds().Size(); size.X < 320 || size.Y < 200 {
			t.Errorf("a picture of %v", size)
		}
	}
	for _, name := range []string{"libvirt", "qemu", "machine", "vcpus", "memory", "emulator"} {
		if !slices.ContainsFunc(s.Facts, func(f Fact) bool { return f.Name == name && f.Value != "" }) {
			t.Errorf("no word of %s in %v", name, s.Facts)
		}
	}
}

func sameDisks(xml string, disks []string) bool {
	for _, d := range disks {
		if !strings.Contains(xml, "file='"+d+"'") {
			return false
		}
	}
	return true
}

var count = regexp.MustCompile(`count (\d{9})`)

// checkPair proves that memory and disks are of one moment: the guest counts
// in memory and then on each disk in turn.
func checkPair(t *testing.T, g *domaintest.Guest, s *Snapshot, disks int) {
	t.Helper()
	var last int
	for _, f := range s.Files {
		if f.Kind != "disk" {
			continue
		}
		disks--
		raw := f.Path + ".raw"
		if out, err := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", f.Path, raw).CombinedOutput(); err != nil {
			t.Fatalf("convert: %v\n%s", err, out)
		}
		b, err := os.ReadFile(raw)
		if err != nil || uint64(len(b)) != f.Virtual || len(b) != 16<<20 {
			t.Fatalf("%d bytes, virtual %d, %v", len(b), f.Virtual, err)
		}
		m := count.FindSubmatch(b[:512])
		if m == nil {
			t.Fatalf("disk %s has no count: %q", f.Target, b[:20])
		}
		n := atoi(m[1])
		if last != 0 && n != last && n != last-1 {
			t.Errorf("disk %s counts %d, the one before %d", f.Target, n, last)
		}
		last = max(last, n)
		if strings.HasSuffix(g.Disks[0], "qcow2") && len(g.Disks) == 1 && !bytes.HasPrefix(b[4800:], []byte("the base's own content.")) {
			t.Errorf("the backing file's content is missing: %q", b[4800:4830])
		}
	}
	if disks != 0 {
		t.Errorf("%d disks are missing", disks)
	}
	memory := s.Files[1]
	f, err := elf.Open(memory.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var ram uint64
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD {
			ram += p.Filesz
		}
	}
	if f.Type != elf.ET_CORE || ram < 256<<20 {
		t.Errorf("memory: type %s, %d bytes", f.Type, ram)
	}
	if last == 0 {
		return
	}
	if !contains(t, memory.Path, fmt.Sprintf("mark %09d", last)) && !contains(t, memory.Path, fmt.Sprintf("mark %09d", last+1)) {
		t.Errorf("memory is earlier than the disks' count %d", last)
	}
	if contains(t, memory.Path, fmt.Sprintf("mark %09d", last+2)) {
		t.Errorf("memory is later than the disks' count %d", last)
	}
}

func atoi(b []byte) (n int) {
	_, _ = fmt.Sscanf(string(b), "%d", &n)
	return n
}

func contains(t *testing.T, path, want string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf, kept := make([]byte, 1<<20), 0
	for {
		n, err := f.Read(buf[kept:])
		if bytes.Contains(buf[:kept+n], []byte(want)) {
			return true
		}
		if errors.Is(err, io.EOF) {
			return false
		}
		kept = copy(buf, buf[max(0, kept+n-len(want)):kept+n])
	}
}

// TestCaptureOf tries one guest in turn.
func TestCaptureOf(t *testing.T) {
	g := domaintest.Start(t, domaintest.Config{Disks: []string{"raw", "qcow2"}})
	t.Run("refuses", func(t *testing.T) { captureRefuses(t, g) })
	t.Run("interrupted", func(t *testing.T) { captureInterrupted(t, g) })
	t.Run("dumped", func(t *testing.T) { captureDumped(t, g) })
	t.Run("monitor", func(t *testing.T) { captureAsMonitor(t, g, ",+sys_ptrace", dumpedFor(errPrivate.Error())) })
}

// TestCaptureShared tries one whose RAM is a file that QEMU shares.
func TestCaptureShared(t *testing.T) {
	g := domaintest.Start(t, domaintest.Config{Disks: []string{"raw", "qcow2"}, Shared: true})
	t.Run("interrupted", func(t *testing.T) { captureInterrupted(t, g) })
	t.Run("monitor", func(t *testing.T) { captureAsMonitor(t, g, ",+sys_ptrace", copiedMemory) })
	t.Run("monitor that may not trace", func(t *testing.T) {
		captureAsMonitor(t, g, "", dumpedFor("open QEMU's memory: permission denied: this process has no CAP_SYS_PTRACE"))
	})
}

func captureRefuses(t *testing.T, g *domaintest.Guest) {
	c, ctx := client(t), t.Context()
	if _, err := c.Capture(ctx, g.UUID, filepath.Join(g.Dir, "c"), nil); err == nil || !strings.Contains(err.Error(), "pause it first") {
		t.Errorf("of a running domain: %v", err)
	}
	if err := c.Pause(ctx, g.UUID); err != nil {
		t.Fatal(err)
	}
	closed := filepath.Join(g.Dir, "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Capture(ctx, g.UUID, filepath.Join(closed, "c"), nil); err == nil || !strings.Contains(err.Error(), "chmod o+x "+closed) {
		t.Errorf("where QEMU cannot go: %v", err)
	}
	if _, err := c.Capture(ctx, uuid.New(), filepath.Join(g.Dir, "c"), nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("of no domain: %v", err)
	}
	taken := filepath.Join(g.Dir, "taken")
	if err := os.Mkdir(taken, 0o755); err != nil {
		t.Fatal(err)
	}
	keep := filepath.Join(taken, "disk-vda.qcow2")
	if err := os.WriteFile(keep, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Capture(ctx, g.UUID, taken, nil); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("onto another file: %v", err)
	}
	left, _ := os.ReadDir(taken)
	if b, _ := os.ReadFile(keep); len(left) != 1 || string(b) != "mine" {
		t.Errorf("partial files: %v", left)
	}
}

// captureInterrupted resumes the domain, or gives up, during a capture: it does
// not go on from where it begins with the memory before that is done.
func captureInterrupted(t *testing.T, g *domaintest.Guest) {
	c := client(t)
	for i, interrupt := range []func(cancel func()) error{
		func(cancel func()) error { cancel(); return nil },
		func(func()) error { return resumeByQEMU(t.Context(), c, g) },
	} {
		if err := c.Pause(t.Context(), g.UUID); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		dir := filepath.Join(g.Dir, fmt.Sprint("c", i))
		var once sync.Once
		refused := errors.New("it was not told of the memory")
		began := time.Now()
		_, err := c.Capture(ctx, g.UUID, dir, &CaptureOptions{Progress: func(p Progress) {
			once.Do(func() { refused = interrupt(cancel) })
		}})
		cancel()
		t.Logf("interrupted after %s: %v", time.Since(began), err)
		if refused != nil {
			t.Errorf("interrupt it: %v", refused)
		}
		want := []error{context.Canceled, ErrResumed}[i]
		if !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("partial files: %v", left)
		}
	}
}
