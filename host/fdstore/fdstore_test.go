package fdstore

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPutAndRemove: the manager is told as sd_notify(3) says, and has the descriptor.
func TestPutAndRemove(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := Put("x", w); !errors.Is(err, ErrNone) {
		t.Errorf("without a manager: %v", err)
	}
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err := errors.Join(Put("standing-1", w), Remove("standing-1"), w.Close()); err != nil {
		t.Fatal(err)
	}
	b, oob := make([]byte, 1024), make([]byte, 1024)
	n, o, _, _, err := manager.ReadMsgUnix(b, oob)
	if err != nil || string(b[:n]) != "FDSTORE=1\nFDNAME=standing-1\n" {
		t.Fatalf("%q, %v", b[:n], err)
	}
	all, err := unix.ParseSocketControlMessage(oob[:o])
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	fds, err := unix.ParseUnixRights(&all[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%v, %v", fds, err)
	}
	copied := os.NewFile(uintptr(fds[0]), "copied")
	if _, err := copied.Write([]byte("it leads there")); err != nil {
		t.Error(err)
	}
	_ = copied.Close()
	if got, err := io.ReadAll(r); string(got) != "it leads there" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if n, o, _, _, err = manager.ReadMsgUnix(b, oob); err != nil || o != 0 || string(b[:n]) != "FDSTOREREMOVE=1\nFDNAME=standing-1\n" {
		t.Errorf("%q, %d, %v", b[:n], o, err)
	}
}

// TestKept starts a process as the manager does, which tells what it was given.
func TestKept(t *testing.T) {
	if os.Getenv("OUTGUARD_FDSTORE_CHILD") != "" {
		for name, f := range Kept() {
			if err := f.SetReadDeadline(time.Now().Add(time.Minute)); err != nil && !errors.Is(err, os.ErrNoDeadline) {
				t.Error(err)
			}
			b, err := io.ReadAll(f)
			t.Logf("%s: %s, %v", name, b, err)
		}
		if len(Kept()) != 0 {
			t.Error("handed out twice")
		}
		return
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", os.Args[0], "-test.run=^TestKept$", "-test.v")
	cmd.Env = append(os.Environ(), "OUTGUARD_FDSTORE_CHILD=1", "LISTEN_FDS=2", "LISTEN_FDNAMES=standing-1:standing-1")
	cmd.ExtraFiles = []*os.File{r, r}
	if _, err := w.Write([]byte("kept")); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	out, err := cmd.CombinedOutput()
	_ = r.Close()
	if err != nil || strings.Count(string(out), "standing-1: kept, <nil>") != 1 {
		t.Errorf("%v\n%s", err, out)
	}
}
