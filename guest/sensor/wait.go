// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// linger is how long a reader that has found the rings empty looks again by
// itself. It is longer than BULK_WAKE_NS in guest/bpf/emit.h: the first bulk
// record after so long a silence wakes the reader, those before it do not.
const linger = 20 * time.Millisecond

// stall is how long a reader waits that has come to a record under way.
const stall = time.Millisecond

// bell waits for records in any ring. It hears what wakes, not what is there:
// what was read and is not released is in the rings as well.
//
// The runtime's poller watches the epoll that watches the rings. A thread that
// waited in epoll_wait itself would keep its processor, and the runtime would
// wake another to take it away and once more when the wait is over: that is more
// than what there is to do for a record.
type bell struct {
	epoll *os.File
	event int

	raw    syscall.RawConn
	look   func(fd uintptr) bool
	events [4]unix.EpollEvent
	n      int
	err    error
}

func newBell(fds ...int) (*bell, error) {
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(epoll, true) // os.NewFile gives to the poller what does not block
	}
	if err != nil {
		unix.Close(event)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	b := &bell{epoll: os.NewFile(uintptr(epoll), "rings"), event: event}
	for _, fd := range append(fds, event) {
		e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)}
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
			return nil, errors.Join(fmt.Errorf("epoll: %w", err), b.close())
		}
	}
	if b.raw, err = b.epoll.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("epoll: %w", err), b.close())
	}
	// It does not wait, so the runtime need not be told of a system call: it would
	// wake a thread of its own for that.
	b.look = func(fd uintptr) bool {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, fd, uintptr(unsafe.Pointer(&b.events[0])), uintptr(len(b.events)), 0, 0, 0)
		b.n, b.err = int(n), nil
		if errno != 0 {
			b.n, b.err = 0, errno
		}
		return b.n != 0 || b.err != nil
	}
	return b, nil
}

// ring ends a wait that is under way, or else the next one.
func (b *bell) ring() error {
	_, err := unix.Write(b.event, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	return err
}

// wait returns when there is something to read, when the bell was rung, or after
// d. Pending looks at the rings themselves: a record that woke nobody is seen
// by it alone.
func (b *bell) wait(d time.Duration, pending func() bool) error {
	if pending() {
		return nil
	}
	if ready, err := b.poll(min(d, linger)); ready || err != nil || d <= linger || pending() {
		return err
	}
	_, err := b.poll(d - linger)
	return err
}

// pause returns after a moment, when the bell was rung, or when a record woke it.
func (b *bell) pause(d time.Duration) error {
	_, err := b.poll(min(d, stall))
	return err
}

// poll waits for d, or only looks if that is nothing.
func (b *bell) poll(d time.Duration) (ready bool, err error) {
	b.n, b.err = 0, nil
	if d <= 0 {
		err = b.raw.Control(func(fd uintptr) { b.look(fd) })
	} else if err = b.epoll.SetReadDeadline(time.Now().Add(d)); err == nil {
		err = b.raw.Read(b.look)
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		err = b.err
	}
	if err != nil && !errors.Is(err, unix.EINTR) {
		return false, fmt.Errorf("epoll: %w", err)
	}
	for i := range max(b.n, 0) {
		if b.events[i].Fd == int32(b.event) {
			var drop [8]byte
			unix.Read(b.event, drop[:])
		}
	}
	return b.n > 0, nil
}

func (b *bell) close() error {
	return errors.Join(unix.Close(b.event), b.epoll.Close())
}
