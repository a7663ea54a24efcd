package link

import (
	"fmt"
	"math"

	"github.com/outguard/outguard/vsockproto"
)

// Starts proves that every task that the guest's kernel counts was announced:
// by a record of task_newtask, or in Totals.Unrecorded.
//
// The kernel counts a start before the tracepoint tells of it, so at any moment
// some are counted and not announced. What is certain: what was counted at one
// mark is announced by the next one's heartbeat, and what was announced by one
// heartbeat is counted at the next mark. Both bound the number of tasks that
// were made before anything was announced, which is not known and never
// changes. Bounds that exclude each other are a contradiction, by the number of
// starts that are not accounted for.
//
// The zero value has heard nothing. Its fields are exported to be stored; all
// of it is the state of one boot. It is not safe for concurrent use.
type Starts struct {
	Received uint64 // records of task_newtask
	Marked   uint64 // Totals.MarkedNs of the last settlement; 0: none
	Counted  uint64 // Totals.Starts then
	Declared uint64 // Totals.Unrecorded then
	Said     uint64 // announced by then: Received + Declared
	Bound    bool
	Low      int64 // where Bound: so many tasks at least were made before anything was announced
	High     int64 // and so many at most
}

// StartsError says by how many starts the kernel's count and the records differ.
type StartsError struct {
	Missing uint64 // counted and not announced; 0: Excess is not
	Excess  uint64 // announced and not counted
}

func (e *StartsError) Error() string {
	if e.Missing > 0 {
		return fmt.Sprintf("%d tasks that the kernel counts were not announced", e.Missing)
	}
	return fmt.Sprintf("%d tasks were announced that the kernel does not count", e.Excess)
}

// Settle enters what a heartbeat says; one that repeats an earlier mark says
// nothing new. A *StartsError is a contradiction, after which the proof begins
// anew; ErrBackwards is a count that shrank.
func (s *Starts) Settle(t *vsockproto.Totals) error {
	if t.MarkedNs <= s.Marked {
		return nil
	}
	if s.Marked > 0 && (t.Starts < s.Counted || t.Unrecorded < s.Declared) {
		was := *s
		s.Bound, s.Marked, s.Counted, s.Declared, s.Said = false, t.MarkedNs, t.Starts, t.Unrecorded, s.Received+t.Unrecorded
		return fmt.Errorf("starts %d after %d, unrecorded %d after %d: %w", t.Starts, was.Counted, t.Unrecorded, was.Declared, ErrBackwards)
	}
	said := s.Received + t.Unrecorded
	var err error
	if s.Marked > 0 {
		err = s.bound(int64(s.Counted-said), int64(t.Starts-s.Said))
	}
	s.Marked, s.Counted, s.Declared, s.Said = t.MarkedNs, t.Starts, t.Unrecorded, said
	return err
}

func (s *Starts) bound(low, high int64) error {
	if !s.Bound {
		s.Bound, s.Low, s.High = true, math.MinInt64, math.MaxInt64
	}
	was := *s
	s.Low, s.High = max(s.Low, low), min(s.High, high)
	if s.Low <= s.High {
		return nil
	}
	s.Bound = false
	if low > was.High {
		return &StartsError{Missing: uint64(low - was.High)}
	}
	if high < was.Low {
		return &StartsError{Excess: uint64(was.Low - high)}
	}
	return &StartsError{Missing: uint64(s.Low - s.High)}
}
