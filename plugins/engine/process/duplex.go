package process

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// duplex is this process's end of the event stream: a socket that batches are
// written to, and another that answers are read from. With one for both the
// kernel would wake whoever waits for an answer each time that the other side
// has read a batch. The runtime's poller watches neither: a thread that waits in
// read(2) has an answer one system call after it came.
type duplex struct {
	out int      // descriptor of batches
	in  *os.File // answers; blocking; a read under way keeps it open

	writing sync.Mutex // held while writing; before mu

	mu     sync.Mutex // guards closed, and both against being other files
	closed bool
}

// newDuplex makes both, and returns the engine's end as well: where it reads,
// and where it writes.
func newDuplex() (ours *duplex, theirs [2]*os.File, err error) {
	batches, err := socketPair()
	if err != nil {
		return nil, theirs, err
	}
	answers, err := socketPair()
	if err != nil {
		return nil, theirs, errors.Join(err, unix.Close(batches[0]), unix.Close(batches[1]))
	}
	ours = &duplex{out: batches[0], in: os.NewFile(uintptr(answers[0]), "answers")}
	theirs[0] = os.NewFile(uintptr(batches[1]), "batches")
	theirs[1] = os.NewFile(uintptr(answers[1]), "answers")
	return ours, theirs, nil
}

func socketPair() ([2]int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fds, os.NewSyscallError("socketpair", err)
	}
	for _, fd := range fds {
		// Room for a window of batches; the kernel gives what it allows.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
	}
	return fds, nil
}

// Read waits for what the engine says; io.EOF after shut.
func (d *duplex) Read(b []byte) (int, error) { return d.in.Read(b) }

// write writes all of b, and waits while the socket is full until deadline
// (zero: without end).
func (d *duplex) write(b []byte, deadline time.Time) error {
	d.writing.Lock()
	defer d.writing.Unlock()
	for d.open() {
		n, err := unix.SendmsgN(d.out, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if n == len(b) {
			return nil
		}
		switch b = b[max(n, 0):]; err {
		case nil, unix.EINTR:
		case unix.EAGAIN:
			if err := d.room(deadline); err != nil {
				return err
			}
		default:
			return os.NewSyscallError("sendmsg", err)
		}
	}
	return os.ErrClosed
}

// room waits until something can be written, or the stream is shut.
func (d *duplex) room(deadline time.Time) error {
	wait := -1
	if !deadline.IsZero() {
		wait = int(max(0, time.Until(deadline).Milliseconds()))
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(d.out), Events: unix.POLLOUT}}, wait)
	switch {
	case err != nil && !errors.Is(err, unix.EINTR):
		return os.NewSyscallError("poll", err)
	case err == nil && n == 0:
		return fmt.Errorf("wait for room: %w", os.ErrDeadlineExceeded)
	}
	return nil
}

func (d *duplex) open() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.closed
}

// shut ends the stream in both directions: whoever waits in Read or write
// returns, and an engine that reads on finds its end.
func (d *duplex) shut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed { // errors say that the other end is gone
		_ = unix.Shutdown(d.out, unix.SHUT_RDWR)
		_ = unix.Shutdown(int(d.in.Fd()), unix.SHUT_RDWR)
	}
}

// Close shuts the stream and gives it up.
func (d *duplex) Close() error {
	d.shut()
	d.writing.Lock()
	defer d.writing.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return os.ErrClosed
	}
	d.closed = true
	return errors.Join(unix.Close(d.out), d.in.Close())
}
