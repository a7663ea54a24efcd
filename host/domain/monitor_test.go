package domain

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/domain/domaintest"
)

// monitorUID is nobody: libvirtd asks for a user with an entry in passwd.
const monitorUID = 65534

// captureAsMonitor captures as an ordinary user who is in group libvirt
// and may read what others own, as the monitor does, and what else is in caps:
// the memory is then taken in the way that is wanted.
func captureAsMonitor(t *testing.T, g *domaintest.Guest, caps, want string) {
	group, err := user.LookupGroup("libvirt")
	domaintest.Require(t, err == nil, "no group libvirt")
	_, err = exec.LookPath("setpriv")
	domaintest.Require(t, err == nil, "no setpriv")
	dir := filepath.Join(g.Dir, "bundles"+caps)
	if err := errors.Join(os.Mkdir(dir, 0o711), os.Chown(dir, monitorUID, monitorUID)); err != nil {
		t.Fatal(err)
	}
	self := filepath.Join(g.Dir, "test"+caps)
	if out, err := exec.Command("cp", os.Args[0], self).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	uid := strconv.Itoa(monitorUID)
	caps = "-all,+dac_read_search" + caps
	cmd := exec.Command("setpriv", "--reuid", uid, "--regid", uid, "--groups", group.Gid, "--no-new-privs",
		"--inh-caps", caps, "--ambient-caps", caps, "--bounding-set", caps,
		self, "-test.run", "^TestMonitorHelper$", "-test.v", "-test.timeout", "5m")
	cmd.Dir = g.Dir
	cmd.Env = append(os.Environ(), "OUTGUARD_TEST_MONITOR="+g.UUID.String(), "OUTGUARD_TEST_DIR="+dir, "OUTGUARD_TEST_MEMORY="+want, "TMPDIR=/tmp")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

// TestMonitorHelper is the other end of captureAsMonitor.
func TestMonitorHelper(t *testing.T) {
	text := os.Getenv("OUTGUARD_TEST_MONITOR")
	if text == "" {
		t.Skip("run by TestCaptureOf and TestCaptureShared")
	}
	vm, c := uuid.MustParse(text), client(t)
	if os.Getuid() != monitorUID {
		t.Fatalf("uid %d", os.Getuid())
	}
	if err := c.Pause(t.Context(), vm); err != nil {
		t.Fatalf("is libvirtd's socket open to group libvirt (polkit, or auth_unix_rw)? %v", err)
	}
	dir := filepath.Join(os.Getenv("OUTGUARD_TEST_DIR"), "one")
	s, err := c.Capture(t.Context(), vm, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := os.Getenv("OUTGUARD_TEST_MEMORY"); !strings.HasPrefix(how(s), want) {
		t.Errorf("memory image: %s, want %s", how(s), want)
	}
	for _, f := range s.Files {
		r, err := os.Open(f.Path)
		if err != nil {
			t.Error(err)
			continue
		}
		n, err := io.Copy(io.Discard, r)
		_ = r.Close()
		if err != nil || n != f.Size {
			t.Errorf("%s: read %d of %d bytes, %v", f.Path, n, f.Size, err)
		}
		t.Log(owner(f.Path))
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Errorf("a bundle that its owner cannot remove: %v", err)
	}
}

func owner(path string) string {
	out, _ := exec.Command("stat", "-c", "%U:%G %a %s %n", path).Output()
	return string(out)
}
