package domain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"github.com/outguard/outguard/host/domain/domaintest"
)

func TestInto(t *testing.T) {
	const text = `<domainbackup><disks><disk name='vdb' backup='no'/><disk name='vda' backup='yes' type='file'><target file='%s'/></disk></disks></domainbackup>`
	for path, want := range map[string]bool{
		"/b/.capturing-1/disk-vda.qcow2":   true,
		"/b/disk-vda.qcow2":                false,
		"/b/x/.capturing-1/disk-vda.qcow2": false,
		"/c/.capturing-1/disk-vda.qcow2":   false,
	} {
		var b libvirtxml.DomainBackup
		if err := b.Unmarshal(fmt.Sprintf(text, path)); err != nil {
			t.Fatal(err)
		}
		if got := into(&b, "/b"); got != want {
			t.Errorf("%s: %t", path, got)
		}
	}
	if into(&libvirtxml.DomainBackup{}, "/b") {
		t.Error("a backup of nothing")
	}
}

// bigDisk has a guest that stands, with a disk that takes a while to copy, of so many bytes.
func bigDisk(t *testing.T, c *Client) (g *domaintest.Guest, size int64) {
	t.Helper()
	g = domaintest.Start(t, domaintest.Config{Disks: []string{"raw"}, Off: true})
	f, err := os.OpenFile(g.Disks[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := bytes.Repeat([]byte("all of it is to be copied. "), 1<<20/27)
	for size = 0; size < 3<<28; size += int64(len(b)) {
		if _, err := f.WriteAt(b, size); err != nil {
			t.Fatal(err)
		}
	}
	if size, err = size&^511, f.Truncate(size&^511); err != nil {
		t.Fatal(err)
	}
	g.Boot(t)
	if err := c.Pause(t.Context(), g.UUID); err != nil {
		t.Fatal(err)
	}
	return g, size
}

// copyOut has QEMU copy the disk into a directory, and returns the copy when that is under way.
func copyOut(t *testing.T, g *domaintest.Guest, dir string) (path string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "disk-vda.qcow2")
	request := filepath.Join(t.TempDir(), "backup.xml")
	text := fmt.Sprintf("<domainbackup><disks><disk name='vda' type='file'><driver type='qcow2'/><target file='%s'/></disk></disks></domainbackup>", path)
	if err := os.WriteFile(request, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	g.Virsh(t, "backup-begin", request)
	return path
}

func copied(t *testing.T, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t).Blocks * 512
}

// TestEarlierCopyIsEnded: QEMU still copies disks for a capture that nobody waits for any
// more. The next one ends that, and is whole.
func TestEarlierCopyIsEnded(t *testing.T) {
	domaintest.Libvirt(t)
	c := client(t)
	g, size := bigDisk(t, c)
	path := copyOut(t, g, filepath.Join(g.Dir, ".capturing-1"))
	s, err := c.Capture(t.Context(), g.UUID, filepath.Join(g.Dir, ".capturing-2"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) { // libvirt removes what is aborted
		t.Errorf("the earlier copy went on to its end: %v", err)
	}
	for _, f := range s.Files {
		if f.Kind == "disk" && copied(t, f.Path) < size {
			t.Errorf("the disk's copy has %d bytes of %d", copied(t, f.Path), size)
		}
	}
}

// TestOthersCopyIsNot: a capture that is given up while it waits for somebody else's job
// leaves that alone.
func TestOthersCopyIsNot(t *testing.T) {
	domaintest.Libvirt(t)
	c := client(t)
	g, _ := bigDisk(t, c)
	path := copyOut(t, g, filepath.Join(g.Dir, "theirs", "today"))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := c.Capture(ctx, g.UUID, filepath.Join(g.Dir, ".capturing-1"), nil); err == nil {
		t.Error("captured, before its time was over: the copy was too quick for this test")
	}
	await(t, "their copy to end", func() bool { return strings.Contains(g.Virsh(t, "domjobinfo"), "None") })
	if out, err := exec.Command("qemu-img", "compare", "-U", "-f", "raw", "-F", "qcow2", g.Disks[0], path).CombinedOutput(); err != nil {
		t.Errorf("their copy: %v: %s", err, out)
	}
}
