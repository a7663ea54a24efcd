package main

import (
	"encoding/binary"
	"maps"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestCount reads a ring in which a sample goes around the end, and one was lost.
func TestCount(t *testing.T) {
	le := binary.LittleEndian
	n := &names{
		addresses: []uint64{userspace + 0x100, userspace + 0x200, userspace + 0x300},
		functions: []string{"__x64_sys_openat", "vfs_read", "memset"},
		tasks:     map[uint32]string{7: "cat"},
	}
	record := func(kind uint32, body ...uint64) (b []byte) {
		b = le.AppendUint32(b, kind)
		b = le.AppendUint32(b, uint32(8+8*len(body))<<16)
		for _, v := range body {
			b = le.AppendUint64(b, v)
		}
		return b
	}
	const who = 7<<32 | 6 // thread, process
	var stream []byte
	stream = append(stream, record(unix.PERF_RECORD_SAMPLE, userspace+0x210, who, 4, ^uint64(127), userspace+0x210, userspace+0x1f0, userspace+0x310)...)
	stream = append(stream, record(unix.PERF_RECORD_LOST, 1, 5)...)
	stream = append(stream, record(unix.PERF_RECORD_SAMPLE, 0x4000, who, 0)...)
	stream = append(stream, record(unix.PERF_RECORD_SAMPLE, userspace+0x210, who, 1, userspace+0x100)...)

	page := os.Getpagesize()
	ring := make([]byte, page+128) // less than the stream, so that its end lies at the front
	meta := (*unix.PerfEventMmapPage)(unsafe.Pointer(&ring[0]))
	meta.Data_head = uint64(len(stream))
	if len(stream) <= 128 || len(stream) > 2*128 {
		t.Fatalf("%d bytes", len(stream))
	}
	from := len(stream) - 128
	for i, b := range stream[from:] {
		ring[page+(from+i)%128] = b
	}
	meta.Data_tail = uint64(len(stream) - 40 - 32) // the last two are whole
	at, within, lost := n.count(ring)
	want := map[sampled]int{{"cat", "-", "user"}: 1, {"cat", "__x64_sys_openat", "vfs_read"}: 1}
	if !maps.Equal(at, want) || len(within) != 0 || lost != 0 {
		t.Errorf("%v, %v, %d lost", at, within, lost)
	}

	whole := make([]byte, page+256)
	meta = (*unix.PerfEventMmapPage)(unsafe.Pointer(&whole[0]))
	meta.Data_head = uint64(copy(whole[page:], stream))
	at, _, lost = n.count(whole)
	want[sampled{"cat", "__x64_sys_openat", "vfs_read"}] = 2
	if !maps.Equal(at, want) || lost != 5 {
		t.Errorf("%v, %d lost, want %v and 5", at, lost, want)
	}
}
