// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/vsockproto"
)

// What the kernel's interface says of a ring's records: a header of 8 bytes,
// whose first 4 are the length and two flags, before each.
const (
	ringHeader  = 8
	ringBusy    = 1 << 31 // under way: its bytes are not there yet
	ringDiscard = 1 << 30
)

// windowSize is how much of a ring is in the process's memory at a time. To map
// another part takes as much as the delivery of six of its 800 records.
const windowSize = 256 << 10

// ring reads one of the kernel's rings where it lies. How far it has read is
// its own affair; what the kernel may overwrite is told apart, by release.
//
// Positions are the kernel's: bytes since the ring was made, headers included.
type ring struct {
	consumer *atomic.Uint64 // up to here the kernel may overwrite
	producer *atomic.Uint64 // up to here it has given room to records
	read     uint64

	size   uint64 // of its data
	window []byte // a part of it; none before the first is looked at
	from   uint64 // where that begins
	view   func(from uint64) ([]byte, error)
	maps   [][]byte
}

// openRing maps a ring. It begins where the kernel was told last. The kernel
// would map the data twice in a row, so that its end cuts no record: that costs
// the process as much again, and even once it would be most of what it holds.
func openRing(fd int, size uint64) (_ *ring, err error) {
	var maps [][]byte
	defer func() {
		if err != nil {
			err = errors.Join(err, unmap(maps))
		}
	}()
	page := uint64(os.Getpagesize())
	for _, p := range [...]struct {
		from, size uint64
		access     int
	}{
		{0, page, unix.PROT_READ | unix.PROT_WRITE}, // the consumer's
		{page, page, unix.PROT_READ},                // the producer's
		{2 * page, min(size, windowSize), unix.PROT_READ},
	} {
		m, err := unix.Mmap(fd, int64(p.from), int(p.size), p.access, unix.MAP_SHARED)
		if err != nil {
			return nil, fmt.Errorf("map %d bytes at %d: %w", p.size, p.from, err)
		}
		maps = append(maps, m)
	}
	window := maps[2]
	r := newRing((*atomic.Uint64)(unsafe.Pointer(&maps[0][0])), (*atomic.Uint64)(unsafe.Pointer(&maps[1][0])), size, func(from uint64) ([]byte, error) {
		from &^= uint64(len(window)) - 1
		// The runtime is not told, as of other calls that come often: see wait.go.
		// Where it fails the kernel may have taken away what was there: the agent ends.
		_, _, errno := unix.RawSyscall6(unix.SYS_MMAP, uintptr(unsafe.Pointer(&window[0])), uintptr(len(window)), unix.PROT_READ,
			unix.MAP_SHARED|unix.MAP_FIXED, uintptr(fd), uintptr(2*page+from))
		if errno != 0 {
			return nil, fmt.Errorf("map ring at %d: %w", from, errno)
		}
		return window, nil
	})
	r.maps = maps
	return r, nil
}

// newRing reads a ring of so many bytes through the windows that view returns.
// Each is of the same size, a power of two, and begins at a multiple of it.
func newRing(consumer, producer *atomic.Uint64, size uint64, view func(from uint64) ([]byte, error)) *ring {
	return &ring{consumer: consumer, producer: producer, read: consumer.Load(), size: size, view: view}
}

func (r *ring) close() error { return unmap(r.maps) }

func unmap(maps [][]byte) error {
	var errs []error
	for _, m := range maps {
		errs = append(errs, unix.Munmap(m))
	}
	return errors.Join(errs...)
}

// at returns what the ring has from pos on, as far as the window goes, which is
// moved to there. Where a record begins all of its header is in it.
func (r *ring) at(pos uint64) ([]byte, error) {
	at := pos & (r.size - 1)
	if at-r.from < uint64(len(r.window)) {
		return r.window[at-r.from:], nil
	}
	var err error
	if r.window, err = r.view(at); err != nil {
		return nil, err // and no window: of the last one nothing may be left
	}
	r.from = at &^ (uint64(len(r.window)) - 1)
	return r.window[at-r.from:], nil
}

// end is how far the ring goes now.
func (r *ring) end() uint64 { return r.producer.Load() }

// holds reports whether the kernel keeps everything from pos on.
func (r *ring) holds(pos uint64) bool {
	from := r.consumer.Load()
	return pos-from <= r.end()-from
}

// release gives the kernel everything before pos.
func (r *ring) release(pos uint64) { r.consumer.Store(pos) }

// next reads the next record to the end of b, which has room for it. False:
// there is none, or it is not there as a whole.
func (r *ring) next(b []byte) ([]byte, bool, error) {
	for {
		left := r.end() - r.read
		if left == 0 {
			return b, false, nil
		}
		record, err := r.at(r.read)
		if err != nil {
			return b, false, err
		}
		head := (*atomic.Uint32)(unsafe.Pointer(&record[0])).Load()
		if head&ringBusy != 0 {
			return b, false, nil
		}
		n := uint64(head &^ ringDiscard)
		span := ringHeader + (n+7)&^7
		if span > left {
			return b, false, fmt.Errorf("record of %d bytes where the ring has %d: %w", n, left, vsockproto.ErrInvalid)
		}
		if head&ringDiscard == 0 {
			if n%8 != 0 || n > vsockproto.MaxRecord {
				return b, false, fmt.Errorf("record of %d bytes: %w", n, vsockproto.ErrInvalid)
			}
			if span <= uint64(len(record)) {
				b = append(b, record[ringHeader:ringHeader+n]...)
			} else if b, err = r.append(b, r.read+ringHeader, n); err != nil {
				return b, false, err
			}
			r.read += span
			return b, true, nil
		}
		r.read += span
	}
}

// append appends n bytes from pos on, wherever windows and the ring end.
func (r *ring) append(b []byte, pos, n uint64) ([]byte, error) {
	before := len(b)
	for end := pos + n; pos != end; {
		part, err := r.at(pos)
		if err != nil {
			return b[:before], err
		}
		part = part[:min(end-pos, uint64(len(part)))]
		b, pos = append(b, part...), pos+uint64(len(part))
	}
	return b, nil
}
