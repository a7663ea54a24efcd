// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"fmt"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/outguard/outguard/vsockproto"
)

// ring is the reading end of one of the kernel's rings.
type ring interface {
	AvailableBytes() int
	ReadInto(*ringbuf.Record) error
}

// ringOverhead is what a record takes in a ring beside its own bytes.
const ringOverhead = 8

// heldSize bounds the bulk records that are read ahead of the critical ones.
const heldSize = 32 << 10

// tap counts how far a ring has been read, in the ring's own bytes.
type tap struct {
	ring
	rec  ringbuf.Record
	read uint64
}

// into reads the next record to the end of b, which has room for it.
func (t *tap) into(b []byte) ([]byte, error) {
	t.rec.RawSample = b[len(b):cap(b)]
	if err := t.ReadInto(&t.rec); err != nil {
		return b, err
	}
	n := len(t.rec.RawSample)
	if n%8 != 0 || n > vsockproto.MaxRecord {
		return b, fmt.Errorf("record of %d bytes: %w", n, vsockproto.ErrInvalid)
	}
	t.read += uint64(n + ringOverhead)
	return b[:len(b)+n], nil
}

// end is how far the ring goes now.
func (t *tap) end() uint64 { return t.read + uint64(t.AvailableBytes()) }

// batcher puts the records of both rings into an order in which no record
// comes before the start of its task or of its program: the bulk that is there
// is read first, then every critical record that is there, and these go first.
// What a bulk record rests on was in the critical ring when it was written.
type batcher struct {
	critical, bulk tap

	held      []byte // bulk, waiting for the critical records before it
	heldCount int
	heldRead  uint64 // bulk.read behind what held begins with
	due       uint64 // how far critical must be read before held may go
}

func newBatcher(critical, bulk ring) *batcher {
	return &batcher{
		critical: tap{ring: critical},
		bulk:     tap{ring: bulk},
		held:     make([]byte, 0, heldSize),
	}
}

// sent is how far bulk has been handed over.
func (b *batcher) sent() uint64 {
	if b.heldCount > 0 {
		return b.heldRead
	}
	return b.bulk.read
}

// pending reports whether there is anything to hand over.
func (b *batcher) pending() bool {
	return b.heldCount > 0 || b.critical.AvailableBytes() > 0 || b.bulk.AvailableBytes() > 0
}

// next appends records to out, never beyond its capacity, and counts them. An
// out without room for the largest record may stay as it is.
func (b *batcher) next(out []byte) ([]byte, int, error) {
	if b.heldCount == 0 {
		if err := b.hold(); err != nil {
			return out, 0, err
		}
	}
	count := 0
	for b.critical.read < b.due && cap(out)-len(out) >= vsockproto.MaxRecord {
		var err error
		if out, err = b.critical.into(out); err != nil {
			return out, count, fmt.Errorf("read critical ring: %w", err)
		}
		count++
	}
	if b.critical.read >= b.due && cap(out)-len(out) >= len(b.held) {
		out = append(out, b.held...)
		count += b.heldCount
		b.held, b.heldCount = b.held[:0], 0
	}
	return out, count, nil
}

// hold reads what bulk there is, up to a batch, and then looks how far the
// critical ring goes.
func (b *batcher) hold() error {
	b.heldRead = b.bulk.read
	for end := b.bulk.end(); b.bulk.read < end && cap(b.held)-len(b.held) >= vsockproto.MaxRecord; {
		var err error
		if b.held, err = b.bulk.into(b.held); err != nil {
			return fmt.Errorf("read bulk ring: %w", err)
		}
		b.heldCount++
	}
	b.due = b.critical.end()
	return nil
}
