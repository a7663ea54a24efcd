package monitor

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/respond"
	"github.com/outguard/outguard/host/session"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

// inGuest has VMs' agents do what orders ask of them, and holds what they say
// against what they report.
type inGuest struct{ m *Monitor }

// process is the event by which an order's finding names a process of the
// guest's that still runs, as far as the host knows.
func (g inGuest) process(ctx context.Context, o respond.Order) (*vsockproto.Event, error) {
	if w, _ := g.m.domains.get(o.VM); w.State == domain.Paused || w.State == domain.ShutOff {
		return nil, fmt.Errorf("the VM is %s, and its guest does nothing", w.State)
	}
	f, err := g.m.captures.finding(o)
	if err != nil {
		return nil, err
	}
	e, err := g.event(f)
	if err != nil {
		return nil, err
	}
	err = g.back(ctx, func() error {
		switch s, ok := g.m.sessions.StatusOf(o.VM); {
		case !ok || s.Session == uuid.Nil:
			return session.ErrNoAgent
		case s.Session != f.Ref.Session:
			return errors.New("the guest has begun anew since")
		}
		return nil
	})
	return e, err
}

// agentsBack is how long after its start a monitor waits for agents that an
// earlier one had heard: an order that it found is not lost for their way back.
const agentsBack = 3 * time.Second

// back tries again while the VM's agent may be on its way back.
func (g inGuest) back(ctx context.Context, try func() error) error {
	for {
		err := try()
		if !errors.Is(err, session.ErrNoAgent) || time.Since(g.m.started) > agentsBack || ctx.Err() != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Kill names the process by its pid and when it started, both as the event of
// the finding told them, so that a pid that is another's by now is left alone.
func (g inGuest) Kill(ctx context.Context, o respond.Order, tree bool) (string, bool, error) {
	e, err := g.process(ctx, o)
	if err != nil {
		return "", false, err
	}
	stream, err := g.m.store.Stream(o.VM)
	if err != nil {
		return "", false, err
	}
	from := stream.Stats().Next
	q := vsockproto.Command{Kind: vsockproto.CommandKill, TGID: e.TGID, StartNs: e.LeaderStartNs}
	if tree {
		q.Kind = vsockproto.CommandKillTree
	}
	a, err := g.command(ctx, o.VM, q)
	if err != nil {
		return "", false, err
	}
	shown := g.ended(ctx, o.VM, from, q)
	detail := fmt.Sprintf("process %d, %d ended", q.TGID, a.Tasks)
	if !shown {
		detail += ", says the guest; its end is not on record"
	}
	return detail, shown, nil
}

// command has the agent do something; what it refuses is an error.
func (g inGuest) command(ctx context.Context, vm uuid.UUID, q vsockproto.Command) (vsockproto.CommandAck, error) {
	var a vsockproto.CommandAck
	err := g.back(ctx, func() (err error) {
		a, err = g.m.sessions.Command(ctx, vm, q)
		return err
	})
	if err == nil && a.Reason != "" {
		err = fmt.Errorf("the guest says: %q", a.Reason)
	}
	return a, err
}

// Cgroup is that of the process that did it.
func (g inGuest) Cgroup(ctx context.Context, o respond.Order) (string, error) {
	e, err := g.process(ctx, o)
	if err != nil {
		return "", err
	}
	if e.CgroupID == 0 {
		return "", errors.New("the finding's event tells no cgroup")
	}
	return strconv.FormatUint(e.CgroupID, 10), nil
}

// Freeze has a cgroup stand, or go on. One that the agent does not find is gone:
// no order can have it go on.
func (g inGuest) Freeze(ctx context.Context, vm uuid.UUID, cgroup string, on bool) (bool, error) {
	id, err := strconv.ParseUint(cgroup, 10, 64)
	if err != nil {
		return false, fmt.Errorf("cgroup %q: %w", cgroup, err)
	}
	q := vsockproto.Command{Kind: vsockproto.CommandFreeze, Cgroup: id}
	if !on {
		q.Kind = vsockproto.CommandThaw
	}
	a, err := g.command(ctx, vm, q)
	return a.Reason == vsockproto.NoCgroup, err
}

// event reads the event of a finding from the record.
func (g inGuest) event(f *engine.Finding) (*vsockproto.Event, error) {
	if f == nil || f.Ref == nil {
		return nil, errors.New("the finding is of no event, and so of no process")
	}
	var found *vsockproto.Event
	err := g.m.reader(f.VM).Read(f.Ref.Index, f.Ref.Index+1, func(r *evidence.Record) error {
		if b, ok := frameBatch(f.VM, r); r.Kind == evidence.KindFrame && ok {
			found = eventIn(&b, f.Ref)
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case found == nil || found.TGID == 0:
		return nil, errors.New("the finding's event is not on record, or of no process")
	}
	return found, nil
}

// eventIn finds the event that ref names in a batch; nil: it is not there.
func eventIn(b *engine.Batch, ref *engine.Ref) *vsockproto.Event {
	for rest := b.Records; len(rest) > 0; {
		e := new(vsockproto.Event)
		var err error
		if rest, err = e.Parse(rest); err != nil {
			return nil
		}
		if e.CPU == ref.CPU && uint8(e.Class) == ref.Class && e.Sequence == ref.Sequence {
			return e
		}
	}
	return nil
}

// ended waits for the end of a process to be on record, from an index on.
func (g inGuest) ended(ctx context.Context, vm uuid.UUID, from uint64, q vsockproto.Command) (seen bool) {
	var e vsockproto.Event
	_ = g.m.reader(vm).Follow(ctx, from, func(r *evidence.Record) error {
		if r.Kind != evidence.KindFrame {
			return nil
		}
		b, _ := frameBatch(vm, r)
		for rest := b.Records; len(rest) > 0; {
			var err error
			if rest, err = e.Parse(rest); err != nil {
				return nil // it is the session's to find
			}
			if e.Type == vsockproto.SchedProcessExit && e.PID == q.TGID && e.StartNs == q.StartNs {
				seen = true
				return evidence.ErrStop
			}
		}
		return nil
	})
	return seen
}
