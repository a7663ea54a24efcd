// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

// counters reads the programs' account of one (CPU, class).
type counters interface {
	counter(slot uint32, into *bpf.ProbeCounter) error
}

// marks bounds how often a mark looks at a counter that does not come to rest.
const marks = 16

// account finds for every (CPU, class) a number up to which everything has
// been handed over: one that was the last at a moment when none was under way,
// once the rings have been read past that moment.
type account struct {
	src   counters
	slots []slot

	pending        bool
	critical, bulk uint64            // how far the rings must be read
	marked, totals vsockproto.Totals // to be confirmed; confirmed
}

type slot struct {
	mark, markLost       uint64 // to be confirmed
	watermark, lost      uint64 // confirmed, with its lost
	unrecorded, unhooked uint64 // at the mark
}

func newAccount(src counters, cpus int) *account {
	return &account{src: src, slots: make([]slot, 2*cpus)}
}

// mark takes the counters, and where the rings end now. t is what was taken of
// the kernel's own right before.
func (a *account) mark(b *batcher, t vsockproto.Totals) error {
	for i := range a.slots {
		s := &a.slots[i]
		if err := s.take(a.src, uint32(i)); err != nil {
			return err
		}
		t.Unrecorded += s.unrecorded
		t.Unhooked += s.unhooked
	}
	a.marked = t
	a.pending, a.critical, a.bulk = true, b.critical.end(), b.bulk.end()
	// What is numbered behind the mark may be far ahead of what is before it, if
	// much was lost in between: it has to wait until the host knows of that.
	b.fence = &position{a.critical, a.bulk}
	return nil
}

// take reads what is done first and what was begun after it: if they are equal,
// nothing was under way in between. Otherwise the mark stays where it was.
func (s *slot) take(src counters, i uint32) error {
	for range marks {
		var done, begun bpf.ProbeCounter
		if err := src.counter(i, &done); err != nil {
			return err
		}
		if err := src.counter(i, &begun); err != nil {
			return err
		}
		s.unrecorded, s.unhooked = begun.Unrecorded, begun.Unhooked
		if done.Submitted+done.Lost == begun.Emitted {
			s.mark, s.markLost = begun.Emitted, done.Lost
			return nil
		}
	}
	return nil
}

// settle confirms the mark if b has handed over everything before it. Of bulk
// that is withheld nothing is handed over, and its mark not confirmed.
func (a *account) settle(b *batcher) bool {
	if !a.pending {
		return true
	}
	at := b.handed()
	whole := at.bulk >= a.bulk
	if at.critical < a.critical || !whole && !b.withheld {
		return false
	}
	for i := range a.slots {
		s := &a.slots[i]
		if i%2 == 1 && !whole {
			continue
		}
		s.watermark, s.lost = s.mark, s.markLost
	}
	a.totals = a.marked
	a.pending, b.fence = false, nil
	return true
}

// append adds the confirmed counters to to; those that never counted are left out.
func (a *account) append(to []vsockproto.Counter) []vsockproto.Counter {
	for i, s := range a.slots {
		if s.watermark == 0 {
			continue
		}
		to = append(to, vsockproto.Counter{
			CPU:       uint32(i / 2),
			Class:     vsockproto.Class(i%2 + 1),
			Watermark: s.watermark,
			Lost:      s.lost,
		})
	}
	return to
}
