// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/vsockproto"
)

// Canary does once whatever makes the hooks of vsockproto.CanaryTypes run,
// under names that hold the nonce, and returns the answer for the host, but for
// the time.
func (c *Control) Canary(q vsockproto.Canary) vsockproto.CanaryAck {
	ack := vsockproto.CanaryAck{Nonce: q.Nonce}
	if err := c.sing(q.Nonce); err != nil {
		ack.Reason = clip(err.Error())
	}
	return ack
}

// sing does it in a thread of its own meanwhile, which the programs know.
func (c *Control) sing(nonce [16]byte) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := c.programs.SetCanary(uint32(unix.Gettid())); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.programs.SetCanary(0)) }()
	name := vsockproto.CanaryName(nonce)
	return errors.Join(
		singFile(name),
		singSocket(name),
		singImpossible(vsockproto.CanaryProtocol(nonce)),
		singSignal(),
		singPrctl(nonce),
	)
}

// singFile does what it can to a file that has no name in any directory.
func singFile(name string) error {
	made, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make a memfd: %w", err)
	}
	defer unix.Close(made)
	if err := unix.Ftruncate(made, 1); err != nil {
		return fmt.Errorf("fill a memfd: %w", err)
	}
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(made), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a memfd: %w", err)
	}
	defer unix.Close(fd)
	b, err := unix.Mmap(fd, 0, 1, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("map a memfd: %w", err)
	}
	return errors.Join(unix.Munmap(b), singFurther(fd), singMount(name, fd))
}

// singFurther asks the file for what is ahead of it and for its flags, and locks it.
func singFurther(fd int) error {
	if _, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err != nil {
		return fmt.Errorf("ask a memfd: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil {
		return fmt.Errorf("ask a memfd for its flags: %w", err)
	}
	if err := unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock a memfd: %w", err)
	}
	return nil
}

// singMount asks for a mount that cannot be had: what it would lie over is in no
// namespace, and what it would be of is not there.
func singMount(name string, fd int) error {
	if err := unix.Mount(name, "/proc/self/fd/"+strconv.Itoa(fd), "", unix.MS_BIND, ""); err == nil {
		return fmt.Errorf("a mount over a memfd: %w", errors.ErrUnsupported)
	}
	return nil
}

// singPrctl asks for what no kernel has.
func singPrctl(nonce [16]byte) error {
	arg2, arg3 := vsockproto.CanaryArgs(nonce)
	if err := unix.Prctl(int(vsockproto.CanaryProtocol(nonce)), uintptr(arg2), uintptr(arg3), 0, 0); err == nil {
		return fmt.Errorf("a prctl of no option: %w", errors.ErrUnsupported)
	}
	return nil
}

// singSocket binds an abstract address, listens at it and connects to it. The
// connection is asked for before there is one, which is enough for the hook.
func singSocket(name string) error {
	listener, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("make a socket: %w", err)
	}
	defer unix.Close(listener)
	at := &unix.SockaddrUnix{Name: "@" + name}
	if err := unix.Bind(listener, at); err != nil {
		return fmt.Errorf("bind a socket: %w", err)
	}
	if err := unix.Listen(listener, 1); err != nil {
		return fmt.Errorf("listen at a socket: %w", err)
	}
	if fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC); err == nil {
		unix.Close(fd) // somebody was faster
	}
	caller, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("make a socket: %w", err)
	}
	defer unix.Close(caller)
	if err := unix.Connect(caller, at); err != nil && !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("connect a socket: %w", err)
	}
	return nil
}

// singImpossible asks for a socket that cannot be had; the hook comes first.
func singImpossible(protocol uint32) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, int(protocol))
	if err == nil {
		unix.Close(fd)
		return fmt.Errorf("a socket of protocol %d: %w", protocol, errors.ErrUnsupported)
	}
	return nil
}

// singSignal sends itself no signal, which is checked like any other.
func singSignal() error {
	if err := unix.Kill(unix.Getpid(), 0); err != nil {
		return fmt.Errorf("send a signal: %w", err)
	}
	return nil
}
