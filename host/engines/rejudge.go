package engines

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
)

// Replay hands the batches of a VM with from <= Index <= to that are on record
// to submit, in order, until ctx ends or submit fails, whose error it returns.
type Replay func(ctx context.Context, vm uuid.UUID, from, to uint64, submit func(*engine.Batch) error) error

// unjudged are batches that passed, as a range of the VM's record.
type unjudged struct {
	batches     uint64
	first, last engine.Ref
}

// widen adds the range of u's.
func (g *unjudged) widen(u unjudged) {
	if g.batches == 0 || u.first.Index < g.first.Index {
		g.first = u.first
	}
	if g.batches == 0 || u.last.Index > g.last.Index {
		g.last = u.last
	}
	g.batches += u.batches
}

// after is what is left of g when n batches before the index next were taken.
func (g unjudged) after(next, n uint64) unjudged {
	g.batches -= min(n, g.batches-1)
	g.first.Index = max(g.first.Index, next)
	return g
}

var errReopened = errors.New("the circuit opened again")

// rejudge has the batches judged that passed while the circuit was open. The
// VM's next ones wait meanwhile: an engine is given a VM's batches in order. If
// ctx ends they go on waiting, so that no checkpoint covers what comes after a
// gap.
func (s *Supervisor) rejudge(ctx context.Context, q *vmQueue) {
	for {
		g, opened, ok := s.nextGap(q)
		if !ok {
			return
		}
		next, n := g.first.Index, uint64(0)
		err := s.opts.Replay(ctx, q.id, g.first.Index, g.last.Index, func(b *engine.Batch) error {
			err := s.submitAgain(ctx, q, b, opened)
			if err == nil {
				next, n = b.Index+1, n+1
			}
			return err
		})
		switch {
		case err == nil:
			s.ownRejudged(q.id, g, n)
		case errors.Is(err, errReopened):
			s.leave(q, g.after(next, n))
		case ctx.Err() != nil:
			s.leave(q, g.after(next, n))
			return
		default:
			s.miss(q, g.after(next, n), err)
		}
	}
}

// nextGap takes q's gap. With none, or with the circuit open again, q's next
// batches go on.
func (s *Supervisor) nextGap(q *vmQueue) (g unjudged, opened uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.unjudged.batches == 0 || s.circuitOpen {
		q.rejudging = false
		s.announce()
		return unjudged{}, 0, false
	}
	g, q.unjudged = q.unjudged, unjudged{}
	return g, s.opened, true
}

func (s *Supervisor) leave(q *vmQueue, g unjudged) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q.unjudged.widen(g)
}

// submitAgain is Submit for a batch that passed, unless the circuit has opened
// since.
func (s *Supervisor) submitAgain(ctx context.Context, q *vmQueue, b *engine.Batch, opened uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.opened != opened {
			return errReopened
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.room(q, len(b.Records)+itemOverhead) {
			s.take(q, b)
			return nil
		}
		if err := s.wait(ctx); err != nil {
			return err
		}
	}
}

// miss reports a gap that is not judged as long as this Supervisor lives, and
// keeps the VM's checkpoints from covering it.
func (s *Supervisor) miss(q *vmQueue, g unjudged, why error) {
	s.mu.Lock()
	q.hold(g.first)
	s.mu.Unlock()
	s.ownUnjudged(q.id, g, why)
}

// hold is called with the Supervisor's mu held.
func (q *vmQueue) hold(at engine.Ref) {
	if q.held == nil || at.Index < q.held.Index {
		q.held = &at
	}
}

// covers is how far a checkpoint after the batch b reaches: not past what was
// never judged.
func (q *vmQueue) covers(b *engine.Batch) engine.Ref {
	switch {
	case q.held == nil || b.Index < q.held.Index:
		return engine.Ref{Session: b.Session, Index: b.Index}
	case q.held.Index == 0:
		return engine.Ref{}
	}
	return engine.Ref{Session: q.held.Session, Index: q.held.Index - 1}
}

func (s *Supervisor) ownUnjudged(vm uuid.UUID, u unjudged, why error) {
	detail := u.detail()
	if why != nil {
		detail["error"] = why.Error()
	}
	s.own(RuleUnjudged, engine.High, vm, fmt.Sprintf(
		"Engine %s did not judge %d batches of this VM; evidence has them, and the next start of the monitor has the record judged from there on.", s.cfg.Name, u.batches), detail)
}

// ownRejudged says what became of a gap. What the record's quota refused is not
// there to be judged later.
func (s *Supervisor) ownRejudged(vm uuid.UUID, g unjudged, n uint64) {
	reason, severity := fmt.Sprintf("Engine %s is given %d batches of this VM from the record, which it had not judged when they came", s.cfg.Name, n), engine.Info
	if n < g.batches {
		reason, severity = fmt.Sprintf("%s; %d more are not on record and stay unjudged", reason, g.batches-n), engine.High
	}
	s.own(RuleUnjudged, severity, vm, reason+".", g.detail())
}

func (g unjudged) detail() map[string]string {
	return map[string]string{
		"batches": fmt.Sprint(g.batches),
		"first":   fmt.Sprintf("%s/%d", g.first.Session, g.first.Index),
		"last":    fmt.Sprintf("%s/%d", g.last.Session, g.last.Index),
	}
}
