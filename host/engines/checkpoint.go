package engines

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/outguard/outguard/host/failpoint"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/engine/process"
)

// checkpointer takes checkpoints when woken, until ctx ends.
func (s *Supervisor) checkpointer(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.kick:
			call, cancel := context.WithTimeout(ctx, s.opts.Deadline)
			s.checkpointDirty(call, s.opts.CheckpointEvery)
			cancel()
		}
	}
}

// checkpointDirty covers every VM whose oldest uncovered batch is older than
// age, or that keeps more than half of what it may.
func (s *Supervisor) checkpointDirty(ctx context.Context, age time.Duration) {
	for _, vm := range s.dirty(age) {
		err := s.checkpoint(ctx, vm)
		if ctx.Err() != nil || errors.Is(err, ErrNotRunning) {
			return
		}
		if s.failing(vm, err) {
			s.own(RuleStore, engine.Medium, vm, fmt.Sprintf("Engine %s has no new checkpoint: %v.", s.cfg.Name, err), nil)
		}
	}
}

// failing reports the first failure of a VM's checkpoints since the last
// success.
func (s *Supervisor) failing(vm uuid.UUID, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue(vm)
	before := q.failing
	q.failing = err != nil
	return q.failing && !before
}

// A checkpoint costs as much as judging some thousand events, whatever it
// covers. So of those that are only old, the oldest are covered, so many at a
// time: with thousands of VMs they wait longer, and no memory is the price,
// since of all that is kept there is never more than half of what may be: then
// those are covered that keep most.
func (s *Supervisor) dirty(age time.Duration) []uuid.UUID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var due, old, most []*vmQueue
	for _, q := range s.vms {
		switch {
		case len(q.items) == 0 || !q.items[0].answered:
		case q.kept > s.opts.ReplayBytes/2:
			due = append(due, q)
		case time.Since(q.dirtySince) >= age:
			old = append(old, q)
		default:
			most = append(most, q)
		}
	}
	slices.SortFunc(old, func(a, b *vmQueue) int { return a.dirtySince.Compare(b.dirtySince) })
	if age > 0 && len(old) > oldAtOnce {
		most, old = append(most, old[oldAtOnce:]...), old[:oldAtOnce]
	}
	due = append(due, old...)
	if excess := s.total - s.opts.TotalBytes/4; s.total > s.opts.TotalBytes/2 {
		slices.SortFunc(most, func(a, b *vmQueue) int { return cmp.Compare(b.kept, a.kept) })
		for _, q := range due {
			excess -= q.kept
		}
		for i := 0; i < len(most) && excess > 0; i++ {
			due, excess = append(due, most[i]), excess-most[i].kept
		}
	}
	vms := make([]uuid.UUID, len(due))
	for i, q := range due {
		vms[i] = q.id
	}
	return vms
}

// oldAtOnce is how many VMs get a checkpoint, for its age alone, each time that
// the checkpointer is woken, at the latest every quarter of Options.Deadline.
const oldAtOnce = 16

func (s *Supervisor) process() (*process.Process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return nil, fmt.Errorf("engine %s: %w", s.cfg.Name, ErrNotRunning)
	}
	return s.proc, nil
}

func (s *Supervisor) checkpoint(ctx context.Context, vm uuid.UUID) error {
	s.checkpointMu.Lock()
	defer s.checkpointMu.Unlock()
	p, err := s.process()
	if err != nil {
		return err
	}
	c, err := p.Checkpoint(ctx, vm)
	if status.Code(err) == codes.Unavailable {
		p.Kill() // without its control the process is of no use
		return fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	if err != nil {
		return err
	}
	return s.keep(ctx, p, vm, c)
}

// keep stores a checkpoint once the answers to all that it covers are here,
// and lets go of what it covers.
func (s *Supervisor) keep(ctx context.Context, p *process.Process, vm uuid.UUID, c process.Checkpoint) error {
	if err := s.awaitAnswers(ctx, c.Judged); err != nil {
		return err
	}
	s.mu.Lock()
	if s.proc != p {
		s.mu.Unlock()
		return fmt.Errorf("engine %s: %w", s.cfg.Name, ErrNotRunning)
	}
	q := s.queue(vm)
	n := 0
	for n < len(q.items) && q.items[n].answered && q.items[n].number <= c.Judged {
		n++
	}
	if n > 0 {
		q.covered = q.covers(&q.items[n-1].batch)
	}
	saved := Saved{Session: q.covered.Session, Index: q.covered.Index, Data: c.Data}
	refused := q.refused
	s.mu.Unlock()
	failpoint.At(failpoint.Checkpoint)
	if !refused {
		if err := s.opts.Store.Save(s.cfg.Name, vm, saved); err != nil {
			return fmt.Errorf("store checkpoint: %w", err)
		}
	}
	failpoint.At(failpoint.Stored)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release(q, n)
	return nil
}

// release lets go of the first n batches of q, which a checkpoint covers. The
// queue has only grown at its end since they were counted, unless the circuit
// has opened.
func (s *Supervisor) release(q *vmQueue, n int) {
	n = min(n, len(q.items))
	for _, it := range q.items[:n] {
		q.kept -= it.size()
		s.total -= it.size()
		if it.released = true; !it.telling {
			it.free()
		}
	}
	clear(q.items[:n])
	q.items = q.items[n:]
	q.next = max(q.next-n, 0)
	q.dirtySince = time.Now()
	s.announce()
}

// awaitAnswers waits until the answers up to number are here and their findings
// reported, or all of them where number is the highest.
func (s *Supervisor) awaitAnswers(ctx context.Context, number uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.proc == nil:
			return fmt.Errorf("engine %s: %w", s.cfg.Name, ErrNotRunning)
		case s.told >= number, number == ^uint64(0) && len(s.inflight) == 0 && s.told == s.answered:
			return nil
		}
		if err := s.wait(ctx); err != nil {
			return err
		}
	}
}

// Models lists the engine's models.
func (s *Supervisor) Models(ctx context.Context) ([]engine.Model, error) {
	p, err := s.process()
	if err != nil {
		return nil, err
	}
	return p.Models(ctx)
}

// Places tells of the VM's cgroups and containers.
func (s *Supervisor) Places(ctx context.Context, vm uuid.UUID) (engine.Places, error) {
	p, err := s.process()
	if err != nil {
		return engine.Places{}, err
	}
	return p.Places(ctx, vm)
}

// Learn opens the VM's own model. When it returns without an error, the change is
// stored.
func (s *Supervisor) Learn(ctx context.Context, vm uuid.UUID) (engine.Model, error) {
	return s.Of("").Learn(ctx, vm)
}

// Seal closes the VM's own model. When it returns without an error, the change is
// stored. It counts from the batch that the engine judges next.
func (s *Supervisor) Seal(ctx context.Context, vm uuid.UUID) (engine.Model, error) {
	return s.Of("").Seal(ctx, vm)
}

type changeFunc func(*process.Process, context.Context, uuid.UUID) (engine.Model, process.Checkpoint, error)

// change lets do change the model, and stores that: over a checkpoint that
// could not be used only where anew says so.
func (s *Supervisor) change(ctx context.Context, vm uuid.UUID, anew bool, do changeFunc) (engine.Model, error) {
	s.checkpointMu.Lock()
	defer s.checkpointMu.Unlock()
	p, err := s.process()
	if err != nil {
		return engine.Model{}, err
	}
	if err := s.admit(vm, anew); err != nil {
		return engine.Model{}, err
	}
	m, c, err := do(p, ctx, vm)
	if err != nil {
		return engine.Model{}, fmt.Errorf("engine %s: %w", s.cfg.Name, err)
	}
	if err := s.keep(ctx, p, vm, c); err != nil {
		return engine.Model{}, fmt.Errorf("engine %s: %w", s.cfg.Name, err)
	}
	return m, nil
}

// ErrRefused is for a model whose stored checkpoint could not be used.
var ErrRefused = errors.New("the stored checkpoint could not be used; let the model learn anew first")

func (s *Supervisor) admit(vm uuid.UUID, anew bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue(vm)
	if q.refused && !anew {
		return fmt.Errorf("engine %s: %w", s.cfg.Name, ErrRefused)
	}
	q.refused = false
	return nil
}

// Covered says up to which batch of the VM a stored checkpoint reaches. What
// evidence holds after it can be submitted again after a restart of the host.
// A checkpoint that cannot be read covers nothing.
func (s *Supervisor) Covered(vm uuid.UUID) (session uuid.UUID, index uint64, ok bool, err error) {
	saved, err := s.opts.Store.Load(s.cfg.Name)
	if err != nil {
		return uuid.Nil, 0, false, err
	}
	c, ok := saved[vm]
	return c.Session, c.Index, ok && c.Err == nil, nil
}
