package engines

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/engine/process"
)

// Run starts the engine and keeps it running until ctx ends. Then it waits a
// little for the answers under way, stores the last checkpoints and ends the
// process. The error is the context's.
func (s *Supervisor) Run(ctx context.Context) error {
	failures := 0
	for ctx.Err() == nil {
		progress, err := s.runOnce(ctx)
		if ctx.Err() != nil {
			break
		}
		if progress {
			failures = 0
		}
		failures++
		s.log.Warn("engine ended", "err", err, "failures", failures)
		wait := min(s.opts.MinBackoff<<min(failures-1, 16), s.opts.MaxBackoff)
		if failures >= s.opts.CircuitAfter {
			s.openCircuit(err)
			wait = s.opts.CircuitFor
		}
		sleep(ctx, wait)
	}
	s.mu.Lock()
	s.announce()
	s.mu.Unlock()
	s.rejudges.Wait()
	return ctx.Err()
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// runOnce runs one process to its end and says whether it answered anything.
func (s *Supervisor) runOnce(ctx context.Context) (progress bool, err error) {
	p, err := process.Start(ctx, process.Config{
		Path: s.cfg.Path, Args: s.cfg.Args, SHA256: s.cfg.SHA256, UID: s.cfg.UID, GID: s.cfg.GID, Memory: s.cfg.Memory,
	}, &process.Options{Logger: s.log, SocketDir: s.opts.SocketDir})
	if ctx.Err() != nil && err != nil {
		return false, err // told to stop while it started: nothing is wrong with it
	}
	if err != nil {
		s.own(RuleStart, engine.High, uuid.Nil, fmt.Sprintf("Engine %s cannot be started: %v.", s.cfg.Name, err), nil)
		return false, err
	}
	defer p.Close()
	if err := s.begin(ctx, p); err != nil {
		return false, err
	}
	received := make(chan error, 1)
	go func() { received <- p.Receive(s.verdict) }()
	err, ended := s.attend(ctx, received)
	if ctx.Err() != nil {
		s.finish(received, ended)
	}
	p.Close()
	if !ended {
		<-received
	}
	return s.orphan(err, ctx.Err() != nil), err
}

// begin gives the process its checkpoints and then its batches. No checkpoint
// of the process before may be stored between the two.
func (s *Supervisor) begin(ctx context.Context, p *process.Process) error {
	s.checkpointMu.Lock()
	err := s.restore(ctx, p)
	if err != nil {
		s.checkpointMu.Unlock()
		return err
	}
	after := s.adopt(ctx, p)
	s.checkpointMu.Unlock()
	after()
	return nil
}

// restore gives the process the checkpoint of every VM that has one.
func (s *Supervisor) restore(ctx context.Context, p *process.Process) error {
	saved, err := s.opts.Store.Load(s.cfg.Name)
	if err != nil {
		s.own(RuleRestore, engine.Severest, uuid.Nil, fmt.Sprintf("Checkpoints of engine %s cannot be read, and it is not started without them: %v.", s.cfg.Name, err), nil)
		return err
	}
	for vm, c := range saved {
		err := c.Err
		if err == nil {
			err = p.Restore(ctx, vm, c.Data)
		}
		if err != nil && c.Err == nil && status.Code(err) != codes.Unknown {
			return err // not the engine's word on the checkpoint: it is gone, or hangs
		}
		s.refuse(vm, err)
	}
	return nil
}

// refuse notes whether the engine took the VM's checkpoint. One that it did
// not take is not overwritten until somebody has the VM's model learn anew:
// else a sealed model would be lost without a word.
func (s *Supervisor) refuse(vm uuid.UUID, err error) {
	s.mu.Lock()
	q := s.queue(vm)
	before := q.refused
	q.refused = err != nil
	s.mu.Unlock()
	if err != nil && !before {
		s.own(RuleRestore, engine.Severest, vm, fmt.Sprintf(
			"Engine %s cannot use its checkpoint of this VM and judges it without; the checkpoint is kept until the model is told to learn: %v.", s.cfg.Name, err), nil)
	}
}

// adopt makes p the process and sends it all that its checkpoints lack. What
// it returns reports what the time without a process has cost.
func (s *Supervisor) adopt(ctx context.Context, p *process.Process) (report func()) {
	s.mu.Lock()
	wasOpen := s.circuitOpen
	s.proc, s.description, s.circuitOpen = p, p.Description(), false
	s.inflight, s.windowUsed, s.answered, s.told, s.progress, s.ready = nil, 0, 0, 0, false, nil
	s.status.Starts++
	var passed []*vmQueue
	var gaps []unjudged
	for _, q := range s.vms {
		for _, it := range q.items {
			it.number, it.answered = 0, false
		}
		q.next, q.isReady = 0, false
		s.markReady(q)
		if q.unjudged.batches == 0 || q.rejudging {
			continue
		}
		if s.opts.Replay != nil {
			q.rejudging = true
			s.rejudges.Go(func() { s.rejudge(ctx, q) })
			continue
		}
		passed, gaps = append(passed, q), append(gaps, q.unjudged)
		q.hold(q.unjudged.first)
		q.unjudged = unjudged{}
	}
	s.pump()
	s.mu.Unlock()
	s.log.Info("engine started", "pid", p.PID(), "version", p.Description().Version)
	return func() {
		if wasOpen {
			s.own(RuleCircuit, engine.Info, uuid.Nil, fmt.Sprintf("Engine %s runs again.", s.cfg.Name), map[string]string{"circuit": "closed"})
		}
		for i, q := range passed {
			s.ownUnjudged(q.id, gaps[i], nil)
		}
	}
}

// attend watches the process: deadlines, checkpoints, its end.
func (s *Supervisor) attend(ctx context.Context, received <-chan error) (err error, ended bool) {
	tick := time.NewTicker(min(s.opts.Deadline/4, s.opts.CheckpointEvery/2))
	defer tick.Stop()
	mine, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); s.checkpointer(mine) }()
	defer func() { cancel(); <-done }()
	silent := false
	for {
		select {
		case err := <-received:
			s.ended(err, silent)
			return err, true
		case <-ctx.Done():
			return ctx.Err(), false
		case <-tick.C:
			if !silent && s.isSilent() {
				silent = true
				s.kill()
			}
			s.wakeCheckpointer()
		}
	}
}

func (s *Supervisor) isSilent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.inflight) > 0 && time.Since(s.headSince) > s.opts.Deadline
}

// ended reports why the process is gone.
func (s *Supervisor) ended(err error, silent bool) {
	vm := uuid.Nil
	s.mu.Lock()
	if len(s.inflight) > 0 {
		vm = s.inflight[0].batch.VM
	}
	s.mu.Unlock()
	switch {
	case silent:
		s.own(RuleSilent, engine.High, vm, fmt.Sprintf("Engine %s did not answer within %s and is started again.", s.cfg.Name, s.opts.Deadline), nil)
	case errors.Is(err, process.ErrProtocol):
		s.own(RuleEnded, engine.High, vm, fmt.Sprintf("Engine %s broke the contract and is started again: %v.", s.cfg.Name, err), nil)
	case errors.Is(err, io.EOF):
		s.own(RuleEnded, engine.Medium, vm, fmt.Sprintf("Engine %s ended and is started again.", s.cfg.Name), nil)
	default:
		s.own(RuleEnded, engine.Medium, vm, fmt.Sprintf("Engine %s ended and is started again: %v.", s.cfg.Name, err), nil)
	}
}

// orphan forgets the process. A batch that was first in line when the process
// ended, twice, is passed over: one VM's bytes do not stop all the others.
func (s *Supervisor) orphan(err error, stopping bool) (progress bool) {
	s.mu.Lock()
	s.proc = nil
	progress = s.progress
	var poison *item
	if len(s.inflight) > 0 && !stopping {
		it := s.inflight[0]
		if it.crashes++; it.crashes >= 2 {
			poison = it
			s.remove(it)
		}
	}
	s.inflight, s.windowUsed = nil, 0
	s.announce()
	s.mu.Unlock()
	if poison != nil {
		b := &poison.batch
		s.report(engine.Finding{
			ID: newID(), Engine: "monitor", VM: b.VM, At: time.Now(), Received: b.Received,
			Rule: RulePoison, Severity: engine.Severest,
			Ref:    &engine.Ref{Session: b.Session, Index: b.Index},
			Reason: fmt.Sprintf("Engine %s ended twice on the same batch of %d records, which is passed over: %v.", s.cfg.Name, b.Count, err),
		})
	}
	return progress
}

// remove takes one batch out of its queue.
func (s *Supervisor) remove(it *item) {
	q := it.vm
	for i, other := range q.items {
		if other != it {
			continue
		}
		q.items = append(q.items[:i:i], q.items[i+1:]...)
		q.kept -= it.size()
		s.total -= it.size()
		if !it.reported {
			q.unanswered -= it.size()
			s.status.Unjudged++
			s.status.Pending--
		}
		return
	}
}

// openCircuit lets every waiting batch pass, and all that come until the
// engine runs again.
func (s *Supervisor) openCircuit(cause error) {
	s.mu.Lock()
	was := s.circuitOpen
	s.circuitOpen = true
	if !was {
		s.opened++
	}
	for _, q := range s.vms {
		for i, it := range q.items {
			if !it.reported {
				s.passRest(q, i)
				break
			}
		}
	}
	s.announce()
	s.mu.Unlock()
	if !was {
		s.own(RuleCircuit, engine.Severest, uuid.Nil,
			fmt.Sprintf("Engine %s fails again and again; batches pass unjudged until it runs: %v.", s.cfg.Name, cause),
			map[string]string{"circuit": "open"})
	}
}

// passRest lets all batches of q from the i-th on pass. Those before it were
// judged once and stay, for the model that the next process goes on with.
func (s *Supervisor) passRest(q *vmQueue, i int) {
	for _, it := range q.items[i:] {
		s.pass(q, &it.batch)
		if it.crashes > 0 {
			q.suspect = suspect{it.batch.Index, it.crashes}
		}
		s.status.Pending--
		q.kept -= it.size()
		s.total -= it.size()
	}
	clear(q.items[i:])
	q.items, q.next, q.unanswered = q.items[:i], min(q.next, i), 0
}

// finish is the orderly end: answers under way, then checkpoints.
func (s *Supervisor) finish(received <-chan error, ended bool) {
	if ended {
		return
	}
	if within(min(s.opts.Deadline, 3*time.Second), func(ctx context.Context) error { return s.awaitAnswers(ctx, ^uint64(0)) }) != nil {
		return
	}
	_ = within(15*time.Second, func(ctx context.Context) error { // what fails is reported
		s.checkpointDirty(ctx, 0)
		return nil
	})
}

func within(d time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return do(ctx)
}
