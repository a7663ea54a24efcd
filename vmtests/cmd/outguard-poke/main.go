// Outguard-poke is what an intruder, or a busy program, does in a guest of the
// tests, without a shell in between:
//
//	outguard-poke opens FILE N        open and close FILE so often, as fast as it can
//	outguard-poke execs PROGRAM N     run PROGRAM so often, one after another
//	outguard-poke threads N           begin and end so many threads
//	outguard-poke garbage N           connect to the host's port so often and send noise
//	outguard-poke hold N SECONDS      so many connections at once, which say nothing
//	outguard-poke mute MAP TYPE       have the agent's programs not report a type any more
//	outguard-poke mark TEXT SECONDS   keep a text in memory, and say where it is there
//	outguard-poke as USER ...         any of these, without root's rights
//	outguard-poke locks FILE N        open and lock a file
//	outguard-poke dirs PREFIX N       make directories
//	outguard-poke steady DIR          opens and execs until it is told to stop; see steady
//	outguard-poke acted DIR [NAME...] races, detours and disguises in a new directory; see acted
//
// It says what it did on standard output, and ends with 0 if it could.
package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "outguard-poke:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("want opens, locks, dirs, execs, threads, garbage, hold, mute, mark, steady or acted")
	}
	switch args[0] {
	case "acted":
		return acted(args[1], args[2:]...)
	case "steady":
		return steady(args[1])
	case "exec": // of acted
		return becomes(args[1:])
	}
	if args[0] == "as" && len(args) > 2 {
		if err := become(args[1]); err != nil {
			return err
		}
		return run(args[2:])
	}
	n, err := strconv.Atoi(args[len(args)-1])
	if err != nil {
		return err
	}
	switch args[0] {
	case "mark":
		return mark(args[1], time.Duration(n)*time.Second)
	case "opens":
		return times(n, func() error { return open(args[1]) })
	case "locks":
		return times(n, func() error { return lock(args[1]) })
	case "dirs":
		made := 0
		return times(n, func() error {
			made++
			return unix.Mkdir(fmt.Sprint(args[1], made-1), 0o755)
		})
	case "execs":
		return times(n, func() error { return exec.Command(args[1]).Run() })
	case "threads":
		return times(n, thread)
	case "garbage":
		return times(n, garbage)
	case "mute":
		return mute(args[1], n)
	case "sparse":
		return times(n, func() error { return sparse(args[1]) })
	case "hold":
		count, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return hold(count, time.Duration(n)*time.Second)
	}
	return fmt.Errorf("%s: no such thing to do", args[0])
}

func become(name string) error {
	u, err := user.Lookup(name)
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	return errors.Join(syscall.Setgroups(nil), syscall.Setgid(gid), syscall.Setuid(uid))
}

func times(n int, do func() error) error {
	began := time.Now()
	for i := range n {
		if err := do(); err != nil {
			return fmt.Errorf("after %d: %w", i, err)
		}
	}
	fmt.Printf("%d in %s\n", n, time.Since(began).Round(time.Millisecond))
	return nil
}

func open(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func lock(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Flock(fd, unix.LOCK_SH), unix.Close(fd))
}

// thread ends its goroutine locked to a thread, which ends with it.
func thread() error {
	var done sync.WaitGroup
	done.Go(func() { runtime.LockOSThread() })
	done.Wait()
	return nil
}

// dial connects to the monitor's port, as any process in a guest may.
func dial() (int, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: 6820}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// garbage is a Hello from its header on, and noise behind it. It does not mind how
// it is refused.
func garbage() error {
	fd, err := dial()
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	noise := make([]byte, 512)
	if _, err := rand.Read(noise); err != nil {
		return err
	}
	copy(noise, []byte{0: 0, 1: 2, 4: 1, 6: 1, 15: 0}) // 512 bytes, type 1, version 1
	_, _ = unix.Write(fd, noise)
	_, _ = unix.Read(fd, noise)
	return nil
}

func hold(n int, d time.Duration) error {
	for i := range n {
		if _, err := dial(); err != nil { // held by the process
			fmt.Printf("%d connections, then: %v\n", i, err)
			break
		}
	}
	time.Sleep(d)
	return nil
}
