package process

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// socket is this process's end of the event stream. The runtime's poller does
// not watch it: a thread that waits in the kernel has an answer one system call
// after it came, and is not woken each time the engine has read something.
type socket struct {
	fd int
	f  *os.File // of fd, blocking; a read under way keeps it open

	writing sync.Mutex // held while writing; before mu

	mu     sync.Mutex // guards closed, and fd against being another file's
	closed bool
}

// newSocket takes fd over.
func newSocket(fd int) *socket {
	return &socket{fd: fd, f: os.NewFile(uintptr(fd), "event stream")}
}

// Read waits for what the engine says; io.EOF after shut.
func (s *socket) Read(b []byte) (int, error) { return s.f.Read(b) }

// write writes all of b, and waits while the socket is full until deadline
// (zero: without end).
func (s *socket) write(b []byte, deadline time.Time) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	for s.open() {
		n, err := unix.SendmsgN(s.fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if n == len(b) {
			return nil
		}
		switch b = b[max(n, 0):]; err {
		case nil, unix.EINTR:
		case unix.EAGAIN:
			if err := s.room(deadline); err != nil {
				return err
			}
		default:
			return os.NewSyscallError("sendmsg", err)
		}
	}
	return os.ErrClosed
}

// room waits until something can be written, or the socket is shut.
func (s *socket) room(deadline time.Time) error {
	wait := -1
	if !deadline.IsZero() {
		wait = int(max(0, time.Until(deadline).Milliseconds()))
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}, wait)
	switch {
	case err != nil && !errors.Is(err, unix.EINTR):
		return os.NewSyscallError("poll", err)
	case err == nil && n == 0:
		return fmt.Errorf("wait for room: %w", os.ErrDeadlineExceeded)
	}
	return nil
}

// shut ends the stream in both directions: whoever waits in Read or write
// returns.
func (s *socket) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		_ = unix.Shutdown(s.fd, unix.SHUT_RDWR) // an error says that the other end is gone
	}
}

// Close shuts the socket and gives it up.
func (s *socket) Close() error {
	s.shut()
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	s.closed = true
	return s.f.Close()
}

func (s *socket) open() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.closed
}

var _ io.ReadCloser = (*socket)(nil)
