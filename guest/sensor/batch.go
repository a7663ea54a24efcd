// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"fmt"

	"github.com/outguard/outguard/vsockproto"
)

// heldSize bounds the bulk records that are read ahead of the critical ones.
const heldSize = 32 << 10

// position is how far both rings go: everything before it, and nothing else.
type position struct{ critical, bulk uint64 }

// batcher puts the records of both rings into an order in which no record
// comes before the start of its task or of its program: the bulk that is there
// is read first, then every critical record that is there, and these go first.
// What a bulk record rests on was in the critical ring when it was written.
type batcher struct {
	critical, bulk *ring

	held      []byte // bulk, waiting for the critical records before it
	heldCount int
	heldRead  uint64    // bulk.read behind what held begins with
	due       uint64    // how far critical must be read before held may go
	withheld  bool      // bulk stays where it is
	fence     *position // nothing behind it is handed over; nil: no bound
	stalled   bool      // next stopped before a record that is not there as a whole
}

func newBatcher(critical, bulk *ring) *batcher {
	return &batcher{critical: critical, bulk: bulk, held: make([]byte, 0, heldSize)}
}

// place goes on at p. Nothing has been read before.
func (b *batcher) place(p position) { b.critical.read, b.bulk.read = p.critical, p.bulk }

// handed is how far records have been handed over.
func (b *batcher) handed() position {
	p := position{b.critical.read, b.bulk.read}
	if b.heldCount > 0 {
		p.bulk = b.heldRead
	}
	return p
}

// pending reports whether there is anything to hand over.
func (b *batcher) pending() bool {
	critical, bulk := b.ends()
	return b.critical.read < critical || !b.withheld && (b.heldCount > 0 || b.bulk.read < bulk)
}

// ends is how far each ring may be read.
func (b *batcher) ends() (critical, bulk uint64) {
	critical, bulk = b.critical.end(), b.bulk.end()
	if b.fence != nil {
		critical, bulk = min(critical, b.fence.critical), min(bulk, b.fence.bulk)
	}
	return critical, bulk
}

// next appends records to out, never beyond its capacity, and counts them. An
// out without room for the largest record may stay as it is.
func (b *batcher) next(out []byte) ([]byte, int, error) {
	b.stalled = false
	switch {
	case b.withheld:
		b.due, _ = b.ends()
	case b.heldCount == 0:
		if err := b.hold(); err != nil {
			return out, 0, err
		}
	}
	count := 0
	for b.critical.read < b.due && cap(out)-len(out) >= vsockproto.MaxRecord {
		var ok bool
		var err error
		if out, ok, err = b.critical.next(out); err != nil {
			return out, count, fmt.Errorf("read critical ring: %w", err)
		}
		if !ok {
			b.stalled = b.critical.read < b.due
			break
		}
		count++
	}
	if !b.withheld && b.critical.read >= b.due && cap(out)-len(out) >= len(b.held) {
		out = append(out, b.held...)
		count += b.heldCount
		b.held, b.heldCount = b.held[:0], 0
	}
	return out, count, nil
}

// hold reads what bulk there is, up to a batch, and then looks how far the
// critical ring goes.
func (b *batcher) hold() error {
	defer func() { b.due, _ = b.ends() }() // on an error too: bulk that is held waits for it
	b.heldRead = b.bulk.read
	for _, end := b.ends(); b.bulk.read < end && cap(b.held)-len(b.held) >= vsockproto.MaxRecord; {
		var ok bool
		var err error
		if b.held, ok, err = b.bulk.next(b.held); err != nil {
			return fmt.Errorf("read bulk ring: %w", err)
		}
		if !ok {
			b.stalled = b.bulk.read < end
			break
		}
		b.heldCount++
	}
	return nil
}
