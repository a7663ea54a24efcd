package api

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

// events answers one EventsRequest. Those of several batches are sent together,
// and those of each batch at once where it follows.
type events struct {
	s      *service
	filter *eventFilter
	asked  map[uuid.UUID]*asked
	named  cgroups
	mute   bool // what passes is only taken note of

	givenUp     uint64 // records that are no longer there, of those that were asked for
	limit, sent uint64
	group       []found
	send        func([]*apipb.Event) error
}

// found is an event that is about to be sent.
type found struct {
	event *apipb.Event
	named *cgroupNames
}

const maxGroup = 256

func newEvents(s *service, f *eventFilter, limit uint64, send func([]*apipb.Event) error) *events {
	return &events{s: s, filter: f, asked: map[uuid.UUID]*asked{}, named: cgroups{known: s.backend.Cgroups}, limit: limit, send: send}
}

func (g *events) run(ctx context.Context, q Query) error {
	if !q.Follow {
		q.GivenUp = func(_ uuid.UUID, n uint64) { g.givenUp += n }
	}
	if !g.filter.all() {
		q.May = func(vm uuid.UUID, has func(uint64) bool) bool { return g.of(vm).may(has) }
		g.named.look = g.s.backend.CgroupPaths
	}
	if g.filter.tracks() {
		return g.track(ctx, q)
	}
	return g.read(ctx, q)
}

// track begins where the record does, because who runs a program and which
// cgroup is a container's was said before.
func (g *events) track(ctx context.Context, q Query) error {
	g.filter.since = q.Since
	before := q
	before.Since = time.Time{}
	if !q.Follow {
		return g.read(ctx, before)
	}
	if q.Since.IsZero() {
		q.Since = time.Now()
	}
	before.Follow, before.Until, g.mute = false, q.Since, true
	if err := g.read(ctx, before); err != nil {
		return err
	}
	g.mute = false
	return g.read(ctx, q)
}

func (g *events) read(ctx context.Context, q Query) error {
	err := g.s.backend.Batches(ctx, q, func(b *engine.Batch) error {
		if err := g.batch(ctx, b); err != nil || !q.Follow {
			return err
		}
		return g.flush(ctx)
	})
	if err != nil && !errors.Is(err, errLimit) {
		_ = g.flush(ctx) // what was found before is not lost
		return err
	}
	if ferr := g.flush(ctx); ferr != nil {
		return ferr
	}
	return err
}

func (g *events) of(vm uuid.UUID) *asked {
	a := g.asked[vm]
	if a == nil {
		a = g.filter.of()
		g.asked[vm] = a
	}
	return a
}

// batch takes those records of b that match. What does not decode is one of
// them unless the caller asked for particular events.
func (g *events) batch(ctx context.Context, b *engine.Batch) error {
	a, named := g.of(b.VM), g.named.of(ctx, b.VM, b.Session)
	if err := a.begin(b.Session, named); err != nil {
		return err
	}
	var e vsockproto.Event
	v := envelopeOf(b, g.s.names.of(ctx, b.VM))
	for rest := b.Records; len(rest) > 0; {
		next, err := e.Parse(rest)
		if err != nil {
			if !g.filter.all() {
				return nil
			}
			return g.add(ctx, named, v.undecodable(b, rest, err))
		}
		named.note(&e)
		if err := a.note(&e); err != nil {
			return err
		}
		if !g.mute && !b.Received.Before(g.filter.since) && a.matches(&e) {
			out := v.event(b, &e)
			named.fill(out.Subject)
			if err := g.add(ctx, named, out); err != nil {
				return err
			}
		}
		rest = next
	}
	return nil
}

func (g *events) add(ctx context.Context, named *cgroupNames, e *apipb.Event) error {
	e.Unknown = bytes.Clone(e.Unknown) // the batch's, which is gone when the group is sent
	g.group = append(g.group, found{e, named})
	if g.sent++; g.sent == g.limit {
		return errLimit
	}
	if len(g.group) == maxGroup {
		return g.flush(ctx)
	}
	return nil
}

func (g *events) flush(ctx context.Context) error {
	if len(g.group) == 0 {
		return nil
	}
	g.resolve(ctx)
	out := make([]*apipb.Event, len(g.group))
	for i, f := range g.group {
		out[i] = f.event
	}
	g.group = g.group[:0]
	return g.send(out)
}

// resolve finds the names of those of the group's cgroups that nothing which
// passed has named, of each session at once.
func (g *events) resolve(ctx context.Context) {
	if g.named.look == nil {
		return
	}
	ids, last := map[*cgroupNames][]uint64{}, map[*cgroupNames]uint64{}
	for _, f := range g.group {
		if s := f.event.Subject; s != nil && s.Cgroup == "" {
			ids[f.named] = append(ids[f.named], s.CgroupId)
			last[f.named] = f.event.Index
		}
	}
	for n, all := range ids {
		g.named.resolve(ctx, n, all, last[n])
	}
	for _, f := range g.group {
		if s := f.event.Subject; s != nil && s.Cgroup == "" {
			f.named.fill(s)
		}
	}
}
