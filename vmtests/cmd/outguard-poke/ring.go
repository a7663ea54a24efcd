package main

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What of io_uring's interface is used.
const (
	setupSQPoll   = 1 << 1
	sqeAsync      = 1 << 4 // a worker does it
	opConnect     = 16
	opOpenat      = 18
	registerFiles = 2
	getEvents     = 1
	sqWakeup      = 2
	offSQRing     = 0
	offSQEs       = 0x10000000
	sqeSize       = 64
	cqeSize       = 16
	paramsSize    = 120
	ringEntries   = 4
)

// ring is an io_uring on which one order is given at a time.
type ring struct {
	fd             int
	mem, orders    []byte
	sqTail, cqHead *uint32
	cqTail         *uint32
	array, mask    uint32 // offset of the submission ring's array; its mask
	cqes, cqMask   uint32
}

func newRing(flags uint32) (*ring, error) {
	le := binary.LittleEndian
	var p [paramsSize]byte
	le.PutUint32(p[8:], flags)
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, ringEntries, uintptr(unsafe.Pointer(&p)), 0)
	if e != 0 {
		return nil, fmt.Errorf("io_uring: %w", e)
	}
	mem, err := unix.Mmap(int(fd), offSQRing, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, err
	}
	orders, err := unix.Mmap(int(fd), offSQEs, ringEntries*sqeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, err
	}
	sq, cq := p[40:], p[80:] // struct io_sqring_offsets, io_cqring_offsets
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&mem[off])) }
	return &ring{
		fd: int(fd), mem: mem, orders: orders,
		sqTail: at(le.Uint32(sq[4:])), mask: *at(le.Uint32(sq[8:])), array: le.Uint32(sq[24:]),
		cqHead: at(le.Uint32(cq[0:])), cqTail: at(le.Uint32(cq[4:])), cqMask: *at(le.Uint32(cq[8:])), cqes: le.Uint32(cq[20:]),
	}, nil
}

func (r *ring) close() { unix.Close(r.fd) }

type order [sqeSize]byte

// do gives one order and returns its result.
func (r *ring) do(o order) (int, error) {
	tail := atomic.LoadUint32(r.sqTail)
	slot := tail & r.mask
	copy(r.orders[slot*sqeSize:], o[:])
	binary.LittleEndian.PutUint32(r.mem[r.array+4*slot:], slot)
	atomic.StoreUint32(r.sqTail, tail+1)
	head := *r.cqHead
	for submit := uintptr(1); atomic.LoadUint32(r.cqTail) == head; submit = 0 {
		_, _, e := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), submit, 1, getEvents|sqWakeup, 0, 0)
		if e != 0 && e != unix.EINTR {
			return 0, fmt.Errorf("io_uring: %w", e)
		}
	}
	result := int32(binary.LittleEndian.Uint32(r.mem[r.cqes+(head&r.cqMask)*cqeSize+8:]))
	atomic.StoreUint32(r.cqHead, head+1)
	if result < 0 {
		return 0, unix.Errno(-result)
	}
	return int(result), nil
}

func openOrder(path uintptr) (o order) {
	o[0] = opOpenat
	binary.LittleEndian.PutUint32(o[4:], 0xffffff9c) // AT_FDCWD
	binary.LittleEndian.PutUint64(o[16:], uint64(path))
	return o
}

func connectOrder(fd int, sockaddr uintptr) (o order) {
	o[0] = opConnect
	binary.LittleEndian.PutUint32(o[4:], uint32(fd))
	binary.LittleEndian.PutUint64(o[8:], sockaddrSize)
	binary.LittleEndian.PutUint64(o[16:], uint64(sockaddr))
	return o
}

// entry is the way in through a ring.
func (r *ring) entry(name string, flags byte) entry {
	return entry{
		name,
		func(path uintptr) (int, error) {
			o := openOrder(path)
			o[1] = flags
			return r.do(o)
		},
		func(fd int, sockaddr uintptr) error {
			o := connectOrder(fd, sockaddr)
			o[1] = flags
			_, err := r.do(o)
			return err
		},
	}
}

// rings opens a file into a slot of the ring's own: the process gets no
// descriptor of it.
func (s *stage) rings() error {
	r, err := newRing(0)
	if err != nil {
		return err
	}
	defer r.close()
	slots := [2]int32{-1, -1}
	if _, _, e := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerFiles, uintptr(unsafe.Pointer(&slots)), uintptr(len(slots)), 0, 0); e != 0 {
		return fmt.Errorf("register slots: %w", e)
	}
	f := seen{data: []byte("in a slot")}
	if f.path, err = s.put("slot", f.data); err != nil {
		return err
	}
	name := append([]byte(f.path), 0)
	o := openOrder(uintptr(unsafe.Pointer(&name[0])))
	binary.LittleEndian.PutUint32(o[44:], 1) // file_index
	if _, err := r.do(o); err != nil {
		return err
	}
	s.opened(1, f, tgidPart())
	return nil
}
