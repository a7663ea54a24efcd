package domain

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/host/domain/domaintest"
)

// how is what a capture says of the way that its memory was taken.
func how(s *Snapshot) string {
	for _, f := range s.Facts {
		if f.Name == "memory image" {
			return f.Value
		}
	}
	return ""
}

// TestCopiedMemory holds the core that is copied from a guest's RAM, below and
// above 4 GiB, against the one that QEMU itself writes of it.
func TestCopiedMemory(t *testing.T) {
	g := domaintest.Start(t, domaintest.Config{Memory: 3 << 10, Shared: true, Devices: "<video><model type='vga'/></video>"})
	c := client(t)
	if err := c.Pause(t.Context(), g.UUID); err != nil {
		t.Fatal(err)
	}
	before := allocated(t, g)
	var last Progress
	s, err := c.Capture(t.Context(), g.UUID, filepath.Join(g.Dir, "capture"), &CaptureOptions{Progress: func(p Progress) { last = p }})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(how(s), "copied") {
		t.Fatalf("memory image: %s", how(s))
	}
	if last.Part != "memory" || last.Done != last.Total || last.Total < 3<<30-mebi {
		t.Errorf("progress %+v", last)
	}
	if grown := allocated(t, g) - before; grown > 16<<20 { // libvirt's pipe takes 1 MiB
		t.Errorf("the guest takes %d bytes more of the host", grown)
	}
	if p, err := c.Paused(t.Context(), g.UUID); !p || err != nil {
		t.Errorf("paused %t, %v", p, err)
	}
	g.Virsh(t, "dump", "--memory-only", filepath.Join(g.Dir, "qemu.elf"))
	sameCore(t, s.Files[1].Path, filepath.Join(g.Dir, "qemu.elf"))
	left, err := os.ReadDir(filepath.Join(g.Dir, "capture"))
	if err != nil || len(left) != len(s.Files) {
		t.Errorf("%d files, %v, want %d: %v", len(left), err, len(s.Files), left)
	}
	if err := c.Resume(t.Context(), g.UUID); err != nil {
		t.Fatal(err)
	}
	cpu(t, c, g.UUID, true)
}

// allocated is how much of the guest's RAM the host has given it, bytes.
func allocated(t *testing.T, g *domaintest.Guest) int64 {
	t.Helper()
	f, _, err := openRAM(pidDir, g.Name, g.UUID)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func sameCore(t *testing.T, got, want string) {
	t.Helper()
	a, b := openCore(t, got), openCore(t, want)
	if a.Type != b.Type || a.Machine != b.Machine || len(a.Progs) != len(b.Progs) || len(b.Progs) < 4 {
		t.Fatalf("%s %s with %d ranges, want %s %s with %d", a.Type, a.Machine, len(a.Progs), b.Type, b.Machine, len(b.Progs))
	}
	above := false
	for i := range b.Progs {
		p, q := a.Progs[i].ProgHeader, b.Progs[i].ProgHeader
		p.Off, q.Off = 0, 0
		if p != q {
			t.Errorf("range %d: %+v, want %+v", i, p, q)
		}
		if at := sameContent(t, a.Progs[i].Open(), b.Progs[i].Open()); at >= 0 {
			t.Errorf("range %d, %s at %#x: differs at %#x", i, p.Type, p.Paddr, at)
		}
		above = above || p.Paddr == high
	}
	if !above {
		t.Error("no memory above 4 GiB")
	}
	notes, err := io.ReadAll(b.Progs[0].Open())
	if err != nil || !bytes.Contains(notes, []byte("VMCOREINFO\x00")) || !bytes.Contains(notes, []byte("OSRELEASE=")) {
		t.Errorf("the kernel's note is missing in %d bytes of them, %v", len(notes), err)
	}
}

func openCore(t *testing.T, path string) *elf.File {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// sameContent is where two streams begin to differ, -1 where they do not.
func sameContent(t *testing.T, a, b io.Reader) int64 {
	t.Helper()
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); ; at += int64(len(x)) {
		n, err := io.ReadFull(a, x)
		m, err2 := io.ReadFull(b, y)
		if n != m || !bytes.Equal(x[:n], y[:m]) {
			return at
		}
		if err != nil || err2 != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatal(err, err2)
			}
			return -1
		}
	}
}

// captureDumped: where the memory is no file, libvirt dumps it, and the capture
// says so.
func captureDumped(t *testing.T, g *domaintest.Guest) {
	c := client(t)
	if err := c.Pause(t.Context(), g.UUID); err != nil {
		t.Fatal(err)
	}
	s, err := c.Capture(t.Context(), g.UUID, filepath.Join(g.Dir, "dumped"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := dumpedFor(errPrivate.Error()); how(s) != want {
		t.Errorf("memory image: %s, want %s", how(s), want)
	}
}

// TestKilledWhileCopying kills the process that captures, a little later each
// time: libvirtd is not left waiting for it, and the next one captures.
func TestKilledWhileCopying(t *testing.T) {
	g := domaintest.Start(t, domaintest.Config{Shared: true})
	c := client(t)
	if err := c.Pause(t.Context(), g.UUID); err != nil {
		t.Fatal(err)
	}
	for i := range 24 {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestCopyHelper$", "-test.timeout", "5m")
		cmd.Env = append(os.Environ(), "OUTGUARD_TEST_COPY="+g.UUID.String(), "OUTGUARD_TEST_DIR="+filepath.Join(g.Dir, fmt.Sprint("killed", i)))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for lines.Scan() && lines.Text() != "capturing" {
		}
		time.Sleep(time.Duration(i) * 3 * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if p, err := c.Paused(ctx, g.UUID); !p || err != nil {
			t.Fatalf("killed %d ms after it began: paused %t, %v", 3*i, p, err)
		}
		cancel()
	}
	s, err := c.Capture(t.Context(), g.UUID, filepath.Join(g.Dir, "whole"), nil)
	if err != nil || how(s) != copiedMemory {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestCopyHelper is the process that is killed.
func TestCopyHelper(t *testing.T) {
	text := os.Getenv("OUTGUARD_TEST_COPY")
	if text == "" {
		t.Skip("run by TestKilledWhileCopying")
	}
	fmt.Println("capturing")
	_, err := client(t).Capture(t.Context(), uuid.MustParse(text), os.Getenv("OUTGUARD_TEST_DIR"), nil)
	fmt.Println("captured", err)
}
