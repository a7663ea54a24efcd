// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
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

// ring reads one of the kernel's rings where it lies. How far it has read is
// its own affair; what the kernel may overwrite is told apart, by release.
//
// Positions are the kernel's: bytes since the ring was made, headers included.
type ring struct {
	consumer *atomic.Uint64 // up to here the kernel may overwrite
	producer *atomic.Uint64 // up to here it has given room to records
	data     []byte
	read     uint64
	maps     [2][]byte
}

// openRing maps a ring. It begins where the kernel was told last. The kernel
// would map the data twice in a row, so that its end cuts no record: that costs
// the process as much again.
func openRing(m *ebpf.Map) (*ring, error) {
	page, size := os.Getpagesize(), int(m.MaxEntries())
	head, err := unix.Mmap(m.FD(), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map consumer page: %w", err)
	}
	body, err := unix.Mmap(m.FD(), int64(page), page+size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map ring: %w", err), unix.Munmap(head))
	}
	r := newRing((*atomic.Uint64)(unsafe.Pointer(&head[0])), (*atomic.Uint64)(unsafe.Pointer(&body[0])), body[page:])
	r.maps = [2][]byte{head, body}
	return r, nil
}

func newRing(consumer, producer *atomic.Uint64, data []byte) *ring {
	return &ring{consumer: consumer, producer: producer, data: data, read: consumer.Load()}
}

func (r *ring) close() error {
	return errors.Join(unix.Munmap(r.maps[0]), unix.Munmap(r.maps[1]))
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

// at is where a position lies in data.
func (r *ring) at(pos uint64) uint64 { return pos & uint64(len(r.data)-1) }

// next reads the next record to the end of b, which has room for it. False:
// there is none, or it is not there as a whole.
func (r *ring) next(b []byte) ([]byte, bool, error) {
	for {
		left := r.end() - r.read
		if left == 0 {
			return b, false, nil
		}
		at := r.at(r.read)
		head := (*atomic.Uint32)(unsafe.Pointer(&r.data[at])).Load()
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
			from := r.at(r.read + ringHeader)
			first := min(n, uint64(len(r.data))-from)
			b = append(b, r.data[from:from+first]...)
			b = append(b, r.data[:n-first]...)
			r.read += span
			return b, true, nil
		}
		r.read += span
	}
}
