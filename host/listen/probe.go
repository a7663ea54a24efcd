package listen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/vsockproto"
)

// Answer is what a guest's kernel did with a connection from the host to a
// port at which nobody listens.
type Answer uint8

// Answers of a guest's vsock.
const (
	Unknown Answer = iota // it could not be tried
	Lives                 // the guest's kernel refused, or somebody listens after all
	Mute                  // nothing came back in time
	Gone                  // the guest has no vsock, or the host's side of it has ended
)

func (a Answer) String() string {
	return [...]string{"unknown", "lives", "mute", "gone"}[a]
}

// probeTime is how long a guest's kernel has to answer. A busy one answers
// within milliseconds.
const probeTime = 700 * time.Millisecond

// Probe asks a domain's guest, past its agent, through the socket at which the
// host reaches it: the one that vhost-device-vsock, Firecracker or Cloud
// Hypervisor made beside ours.
func (h *HybridListener) Probe(ctx context.Context, vm uuid.UUID) Answer {
	h.mu.Lock()
	s := h.at[vm]
	h.mu.Unlock()
	if s == nil {
		return Unknown
	}
	ctx, cancel := context.WithTimeout(ctx, h.probe)
	defer cancel()
	if !s.free(ctx) {
		return Mute // not even the request before was taken
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(h.dir, s.name+".sock"))
	if err != nil {
		s.asking <- struct{}{}
		return undialled(err)
	}
	return s.ask(ctx, conn.(*net.UnixConn))
}

// free takes the one place that a socket has for a request.
func (s *socket) free(ctx context.Context) bool {
	select {
	case <-s.asking:
		return true
	case <-ctx.Done():
		return false
	}
}

// ask sends the request and closes conn, now or, in a goroutine of its own, when
// the other side has taken it: vhost-device-vsock 0.3.0 never lets go of a
// connection that was closed before it had read the request. It spins on it,
// and that ends the device's only worker when QEMU stops the rings, at a pause.
func (s *socket) ask(ctx context.Context, conn *net.UnixConn) Answer {
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	_, err := fmt.Fprintf(conn, "CONNECT %d\n", vsockproto.Port)
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && unread(conn) {
		go s.leave(conn)
		return Mute
	}
	conn.Close()
	s.asking <- struct{}{}
	return read(err)
}

// leave closes conn once the other side has read all or is gone.
func (s *socket) leave(conn *net.UnixConn) {
	for {
		_ = conn.SetReadDeadline(time.Now().Add(probeTime))
		_, err := conn.Read(make([]byte, 1))
		if !errors.Is(err, os.ErrDeadlineExceeded) || !unread(conn) {
			break
		}
	}
	conn.Close()
	s.asking <- struct{}{}
}

// unread reports whether the other side has not read all yet.
func unread(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	queued := 0
	err = raw.Control(func(fd uintptr) { queued, _ = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) })
	return err == nil && queued > 0
}

func undialled(err error) Answer {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return Gone // the process behind it
	}
	return Unknown
}

// read tells the answer from how reading ended. The connection is closed where
// the guest refused, and reset where there is no driver in it.
func read(err error) Answer {
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return Lives
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Gone
	case errors.Is(err, os.ErrDeadlineExceeded):
		return Mute
	}
	return Unknown
}

// ProbeVsock asks the guest of that CID through the host's kernel.
func ProbeVsock(cid uint32) Answer {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Unknown
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(probeTime.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.AF_VSOCK, unix.SO_VM_SOCKETS_CONNECT_TIMEOUT, &limit); err != nil {
		return Unknown
	}
	return connected(unix.Connect(fd, &unix.SockaddrVM{CID: cid, Port: vsockproto.Port}))
}

func connected(err error) Answer {
	switch {
	case err == nil, errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.ECONNREFUSED):
		return Lives
	case errors.Is(err, unix.ETIMEDOUT), errors.Is(err, unix.EINPROGRESS):
		return Mute
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENODEV):
		return Gone
	}
	return Unknown
}
