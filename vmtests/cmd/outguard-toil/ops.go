package main

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What is done goes to the kernel without Go's scheduler in between, which would
// look at the clock and signal itself.
var ops = map[string]func() (do func() error, err error){
	"open":       func() (func() error, error) { return openReadClose("/srv/data/parts.txt") },
	"flood":      func() (func() error, error) { return openReadClose("/srv/data/parts.txt") },
	"open-tmpfs": func() (func() error, error) { return onTmpfs() },
	"stat":       stat,
	"mmap":       mmap,
	"pipe":       pipe,
	"connect":    connect,
	"exec":       func() (func() error, error) { return program("/bin/busybox", "true") },
	"compile": func() (func() error, error) {
		return program("/usr/bin/gcc", "gcc", "-O2", "-o", "/tmp/words", "/srv/words.c")
	},
}

func must(errno syscall.Errno, what string) error {
	if errno != 0 {
		return os.NewSyscallError(what, errno)
	}
	return nil
}

func openReadClose(path string) (func() error, error) {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return nil, err
	}
	var b [64]byte
	return func() error {
		fd, _, errno := unix.RawSyscall6(unix.SYS_OPENAT, ^uintptr(99), uintptr(unsafe.Pointer(name)), unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0) // AT_FDCWD
		if errno != 0 {
			return must(errno, "open")
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&b)), uintptr(len(b))); errno != 0 {
			return must(errno, "read")
		}
		_, _, errno = unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
		return must(errno, "close")
	}, nil
}

// onTmpfs is an open whose record has no digest on any kernel.
func onTmpfs() (func() error, error) {
	if err := os.WriteFile("/tmp/toil", make([]byte, 64), 0o644); err != nil {
		return nil, err
	}
	return openReadClose("/tmp/toil")
}

func stat() (func() error, error) {
	name, err := unix.BytePtrFromString("/srv/data/parts.txt")
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	return func() error {
		_, _, errno := unix.RawSyscall6(unix.SYS_NEWFSTATAT, ^uintptr(99), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&st)), 0, 0, 0)
		return must(errno, "stat")
	}, nil
}

// mmap maps a page of a file, privately, and takes it away again.
func mmap() (func() error, error) {
	fd, err := unix.Open("/srv/data/parts.txt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return func() error {
		at, _, errno := unix.RawSyscall6(unix.SYS_MMAP, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE, uintptr(fd), 0)
		if errno != 0 {
			return must(errno, "mmap")
		}
		_, _, errno = unix.RawSyscall(unix.SYS_MUNMAP, at, 4096, 0)
		return must(errno, "munmap")
	}, nil
}

const echo = "-echo"

// pipe sends a byte to another process and has it come back.
func pipe() (func() error, error) {
	var there, back [2]int
	if err := unix.Pipe(there[:]); err != nil {
		return nil, err
	}
	if err := unix.Pipe(back[:]); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	_, err = syscall.ForkExec(self, []string{self, echo}, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{uintptr(there[0]), uintptr(back[1]), uintptr(null)}})
	if err != nil {
		return nil, fmt.Errorf("start the other end: %w", err)
	}
	unix.Close(there[0])
	unix.Close(back[1])
	return func() error { return passOn(back[0], there[1], false) }, nil
}

// passOn writes one byte and reads one, or the other way round.
func passOn(in, out int, readFirst bool) error {
	var b [1]byte
	if !readFirst {
		if _, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(out), uintptr(unsafe.Pointer(&b)), 1); errno != 0 {
			return must(errno, "write")
		}
	}
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(in), uintptr(unsafe.Pointer(&b)), 1)
	if errno != 0 {
		return must(errno, "read")
	}
	if n == 0 {
		os.Exit(0) // the other end has gone
	}
	if readFirst {
		if _, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(out), uintptr(unsafe.Pointer(&b)), 1); errno != 0 {
			return must(errno, "write")
		}
	}
	return nil
}

// echoes is the other end of pipe.
func echoes() error {
	for {
		if err := passOn(0, 1, true); err != nil {
			return err
		}
	}
}

// connect makes a connection over the loopback, and accepts it.
func connect() (func() error, error) {
	listening, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(listening, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return nil, err
	}
	if err := unix.Listen(listening, 8); err != nil {
		return nil, err
	}
	name, err := unix.Getsockname(listening)
	if err != nil {
		return nil, err
	}
	port := name.(*unix.SockaddrInet4).Port
	to := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: uint16(port>>8 | port<<8), Addr: [4]byte{127, 0, 0, 1}}
	reset := unix.Linger{Onoff: 1} // or the ports would run out, waiting
	return func() error {
		fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if errno != 0 {
			return must(errno, "socket")
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&to)), unsafe.Sizeof(to)); errno != 0 {
			return must(errno, "connect")
		}
		peer, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listening), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
		if errno != 0 {
			return must(errno, "accept")
		}
		if _, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&reset)), unsafe.Sizeof(reset), 0); errno != 0 {
			return must(errno, "setsockopt")
		}
		for _, fd := range [...]uintptr{fd, peer} {
			if _, _, errno := unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0); errno != 0 {
				return must(errno, "close")
			}
		}
		return nil
	}, nil
}

// program runs one and waits for its end.
func program(path string, args ...string) (func() error, error) {
	env := []string{"PATH=/usr/bin:/bin"}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	files := []uintptr{null.Fd(), null.Fd(), 2}
	return func() error {
		pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{Env: env, Files: files})
		if err != nil {
			return fmt.Errorf("run %s: %w", path, err)
		}
		var status syscall.WaitStatus
		_, _, errno := unix.RawSyscall6(unix.SYS_WAIT4, uintptr(pid), uintptr(unsafe.Pointer(&status)), 0, 0, 0, 0)
		if errno != 0 {
			return must(errno, "wait")
		}
		if status != 0 {
			return fmt.Errorf("run %s: status %#x", path, uint32(status))
		}
		return nil
	}, nil
}

func yield() { unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
