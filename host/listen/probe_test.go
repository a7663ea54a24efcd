package listen

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// TestProbe holds each way in which the host's side of a hybrid vsock answers
// against what it means. That these are its ways is tested on a guest.
func TestProbe(t *testing.T) {
	for _, c := range []struct {
		name   string
		want   Answer
		answer func(*net.UnixConn)
	}{
		{"refused", Lives, func(c *net.UnixConn) { bufio.NewReader(c).ReadString('\n'); c.Close() }},
		{"somebody listens", Lives, func(c *net.UnixConn) { c.Write([]byte("OK 1024\n")); c.Close() }},
		{"no driver", Gone, func(c *net.UnixConn) { c.Close() }}, // with bytes unread: a reset
		{"hung", Mute, func(c *net.UnixConn) { t.Cleanup(func() { c.Close() }) }},
		{"nobody there", Gone, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, vm := t.TempDir(), uuid.New()
			h := NewHybrid(dir, func(context.Context, net.Conn, uuid.UUID, string) {}, nil)
			if c.want != Mute {
				h.probe = time.Minute // whoever answers may be slow
			}
			if got := h.Probe(t.Context(), vm); got != Unknown {
				t.Errorf("a domain without a socket: %s", got)
			}
			if err := h.Add(vm, "web"); err != nil {
				t.Fatal(err)
			}
			defer h.Remove(vm)
			if c.answer != nil {
				ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "web.sock"), Net: "unix"})
				if err != nil {
					t.Fatal(err)
				}
				defer ln.Close()
				go func() {
					if conn, err := ln.AcceptUnix(); err == nil {
						waitReadable(conn)
						c.answer(conn)
					}
				}()
			}
			if got := h.Probe(t.Context(), vm); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// TestProbeLetsItBeRead: a request that the other side is too late for stays
// there until it is taken, and one at a time.
func TestProbeLetsItBeRead(t *testing.T) {
	dir, vm := t.TempDir(), uuid.New()
	h := NewHybrid(dir, func(context.Context, net.Conn, uuid.UUID, string) {}, nil)
	if err := h.Add(vm, "web"); err != nil {
		t.Fatal(err)
	}
	defer h.Remove(vm)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "web.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for range 2 {
		if got := h.Probe(t.Context(), vm); got != Mute {
			t.Fatalf("nobody accepts: %s", got)
		}
	}
	conn, err := ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	fds := []unix.PollFd{{Events: unix.POLLIN}}
	raw, _ := conn.SyscallConn()
	_ = raw.Control(func(fd uintptr) {
		fds[0].Fd = int32(fd)
		_, err = unix.Poll(fds, 0)
	})
	if err != nil || fds[0].Revents != unix.POLLIN {
		t.Errorf("the request that nobody took: events %#x, %v; want it there, and its sender, too", fds[0].Revents, err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "CONNECT 6820\n" {
		t.Errorf("%q, %v", line, err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil { // its sender goes once it is taken
		t.Error("more than one request")
	}
	conn.Close()
	ln.SetDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := ln.Accept(); err == nil {
		t.Error("a second request while the first was not taken")
	}
	ln.SetDeadline(time.Time{})
	go func() {
		if c, err := ln.AcceptUnix(); err == nil {
			waitReadable(c)
			bufio.NewReader(c).ReadString('\n')
			c.Close()
		}
	}()
	h.probe = time.Minute // whoever answers may be slow
	if got := h.Probe(t.Context(), vm); got != Lives {
		t.Errorf("afterwards: %s", got)
	}
}

// waitReadable returns when the request is there, unread.
func waitReadable(c *net.UnixConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		n := 0
		raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
		if n >= len("CONNECT 6820\n") {
			return
		}
	}
}

func TestConnectedMeans(t *testing.T) {
	for err, want := range map[error]Answer{
		nil: Lives, unix.ECONNRESET: Lives, unix.ETIMEDOUT: Mute, unix.ENODEV: Gone, unix.EACCES: Unknown,
	} {
		if got := connected(err); got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}

// TestOthersSocketsAreOursToConnectTo: whatever the umask of who makes a socket
// beside ours, it lets our user connect, and ours keep their mode.
func TestOthersSocketsAreOursToConnectTo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vsock")
	h := NewHybrid(dir, func(context.Context, net.Conn, uuid.UUID, string) {}, nil)
	h.open()
	if err := h.Add(uuid.New(), "web"); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(h.Path("web")); err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("our socket: %v, %v", fi, err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "web.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	acl := make([]byte, 256)
	n, err := unix.Getxattr(filepath.Join(dir, "web.sock"), "system.posix_acl_access", acl)
	if err != nil {
		t.Fatal(err)
	}
	want := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, aclUser), 7), uint32(os.Geteuid()))
	if !bytes.Contains(acl[:n], want) {
		t.Errorf("acl % x does not name us", acl[:n])
	}
}
