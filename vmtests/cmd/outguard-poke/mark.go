package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mark puts a text at the start of a page of its own, says where that is in the
// machine's memory, as the kernel has it, and keeps it there.
func mark(text string, d time.Duration) error {
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	copy(page, text)
	if err := unix.Mlock(page); err != nil {
		return err
	}
	virtual := uint64(uintptr(unsafe.Pointer(&page[0])))
	physical, err := physicalOf(virtual)
	if err != nil {
		return err
	}
	fmt.Printf("marked pid %d virtual %#x physical %#x length %d\n", os.Getpid(), virtual, physical, len(text))
	time.Sleep(d)
	return errors.Join(unix.Munlock(page), unix.Munmap(page))
}

// physicalOf reads /proc/self/pagemap: eight bytes for each page, in bits 0 to 54
// its frame's number, in bit 63 whether it is there.
func physicalOf(virtual uint64) (uint64, error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size := uint64(os.Getpagesize())
	var b [8]byte
	if _, err := f.ReadAt(b[:], int64(virtual/size*8)); err != nil {
		return 0, err
	}
	v := binary.LittleEndian.Uint64(b[:])
	frame := v & (1<<55 - 1)
	if v>>63 == 0 || frame == 0 {
		return 0, fmt.Errorf("page %#x is nowhere: %#x", virtual, v)
	}
	return frame*size + virtual%size, nil
}
