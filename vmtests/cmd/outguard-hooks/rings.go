package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What of io_uring's interface is used.
const (
	setupSQPoll     = 1 << 1
	registerPersona = 9
	opNop           = 0
	opURingCmd      = 46
	offSQRing       = 0
	offSQEs         = 0x10000000
	paramsSize      = 120
	sqeSize         = 64
	enterGetEvents  = 1
	offSQArray      = 64 // in the parameters: of the submission ring's fields
	offSQTail       = 44
)

// rings makes one ring with a thread of the kernel's that looks for work, and
// one on which two orders are given.
func rings() error {
	var p [paramsSize]byte
	binary.LittleEndian.PutUint32(p[8:], setupSQPoll)
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&p)), 0)
	if e != 0 {
		for _, h := range []string{"uring_sqpoll", "uring_override_creds", "uring_cmd"} {
			skip(h, e)
		}
		return nil
	}
	unix.Close(int(fd))
	ran("uring_sqpoll", `"args":[]`)

	p = [paramsSize]byte{}
	if fd, _, e = unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&p)), 0); e != 0 {
		return e
	}
	defer unix.Close(int(fd))
	persona, _, e := unix.Syscall6(unix.SYS_IO_URING_REGISTER, fd, registerPersona, 0, 0, 0, 0)
	if e != 0 {
		return fmt.Errorf("personality: %w", e)
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	ring, err := unix.Mmap(int(fd), offSQRing, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	orders, err := unix.Mmap(int(fd), offSQEs, 4*sqeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	orders[0] = opNop
	binary.LittleEndian.PutUint16(orders[42:], uint16(persona))
	second := orders[sqeSize:]
	second[0] = opURingCmd
	binary.LittleEndian.PutUint32(second[4:], uint32(null.Fd()))
	binary.LittleEndian.PutUint32(second[8:], 0x6f67) // cmd_op
	le := binary.LittleEndian
	array := ring[le.Uint32(p[offSQArray:]):]
	le.PutUint32(array[0:], 0)
	le.PutUint32(array[4:], 1)
	le.PutUint32(ring[le.Uint32(p[offSQTail:]):], 2)
	if _, _, e := unix.Syscall6(unix.SYS_IO_URING_ENTER, fd, 2, 2, enterGetEvents, 0, 0); e != 0 {
		return fmt.Errorf("enter: %w", e)
	}
	ran("uring_override_creds", arg("uid", 0))
	ran("uring_cmd", path("/dev/null"), arg("cmd_op", 0x6f67))
	return nil
}
