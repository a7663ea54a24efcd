// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// directly makes a socket that is read and written directly, and its other end.
func directly(t testing.TB) (s, other net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		ends[i], err = net.FileConn(f)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ends[i].Close() })
	}
	d, err := newDirect(ends[0].(*net.UnixConn))
	if err != nil {
		t.Fatal(err)
	}
	return socket{ends[0], d}, ends[1]
}

// TestDirect: what is written is more than the socket has room for, and both
// directions are busy at once.
func TestDirect(t *testing.T) {
	s, other := directly(t)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	done := make(chan error, 2)
	go func() {
		n, err := s.Write(sent)
		if n != len(sent) && err == nil {
			err = io.ErrShortWrite
		}
		done <- err
	}()
	go func() {
		_, err := io.Copy(other, io.LimitReader(other, int64(len(sent)))) // all of it comes back
		done <- err
	}()
	back := make([]byte, len(sent))
	if _, err := io.ReadFull(s, back); err != nil || !bytes.Equal(back, sent) {
		t.Errorf("read back: %v, the same: %t", err, bytes.Equal(back, sent))
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestDirectEnds: an end, a deadline, a closed connection and a broken one are
// what they are of a net.Conn.
func TestDirectEnds(t *testing.T) {
	s, other := directly(t)
	b := make([]byte, 8)
	if err := s.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Read(b); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after its deadline: %d, %v", n, err)
	}
	if err := s.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	other.Close()
	if n, err := s.Read(b); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if n, err := s.Write(b); n != 0 || !errors.Is(err, unix.EPIPE) {
		t.Errorf("to nobody: %d, %v", n, err)
	}
	s, _ = directly(t)
	ended := make(chan error)
	go func() { _, err := s.Read(b); ended <- err }()
	s.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed under it: %v", err)
	}
}

// TestDirectAllocates: nothing, once it stands.
func TestDirectAllocates(t *testing.T) {
	s, other := directly(t)
	b, echo := make([]byte, 64), make([]byte, 64)
	n := testing.AllocsPerRun(100, func() {
		_, werr := s.Write(b)
		_, rerr := io.ReadFull(other, echo)
		_, oerr := other.Write(echo)
		_, err := io.ReadFull(s, b)
		if err := errors.Join(werr, rerr, oerr, err); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations for a write and a read", n)
	}
}
