package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/plugins/engine"
)

// streams returns the VMs whose records q asks for.
func (b backend) streams(q api.Query) ([]uuid.UUID, error) {
	if q.VM != uuid.Nil {
		return []uuid.UUID{q.VM}, nil
	}
	return evidence.Streams(b.m.store.Dir())
}

// read hands every record that q asks for to yield, stream after stream, and
// with Follow all of them side by side, one call at a time. A stream that
// cannot be read stops no other: its error comes at the end.
func (b backend) read(ctx context.Context, q api.Query, yield func(uuid.UUID, *evidence.Record) error) error {
	if q.Follow {
		return b.follow(ctx, q, yield)
	}
	vms, err := b.streams(q)
	if err != nil {
		return err
	}
	var rotten []error
	for _, vm := range vms {
		var stop error
		err := b.readOne(ctx, vm, q, func(vm uuid.UUID, r *evidence.Record) error {
			stop = yield(vm, r)
			return stop
		})
		if stop == nil {
			stop = ctx.Err()
		}
		if stop != nil {
			return stop
		}
		if err != nil {
			rotten = append(rotten, recordError(vm, err))
		}
	}
	return errors.Join(rotten...)
}

// recordError says whose record it is that cannot be read.
func recordError(vm uuid.UUID, err error) error { return fmt.Errorf("record of VM %s: %w", vm, err) }

func (b backend) readOne(ctx context.Context, vm uuid.UUID, q api.Query, yield func(uuid.UUID, *evidence.Record) error) error {
	s := evidence.Selection{Since: q.Since, Until: q.Until, Index: b.m.indexes(vm)}
	if q.May != nil {
		s.May = func(has func(uint64) bool) bool { return q.May(vm, has) }
	}
	done, err := b.m.reader(vm).Select(&s, func(r *evidence.Record) error { return errors.Join(ctx.Err(), yield(vm, r)) })
	if q.GivenUp != nil && done.GivenUp > 0 {
		q.GivenUp(vm, done.GivenUp)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// ofKind is what of a record may hold records of that kind.
func ofKind(q api.Query, kind evidence.Kind) api.Query {
	key := api.KindKey(uint16(kind))
	q.May = func(_ uuid.UUID, has func(uint64) bool) bool { return has(key) }
	return q
}

// CgroupPaths looks for them in what a session's records say.
func (b backend) CgroupPaths(ctx context.Context, vm, session uuid.UUID, ids []uint64, upTo uint64) (map[uint64]string, error) {
	found := map[uint64]string{}
	s := evidence.Selection{To: upTo + 1, Index: b.m.indexes(vm), May: api.NamesCgroups(ids)}
	_, err := b.m.reader(vm).Select(&s, func(r *evidence.Record) error {
		batch, ok := frameBatch(vm, r)
		if r.Kind != evidence.KindFrame || !ok || batch.Session != session {
			return ctx.Err()
		}
		api.CgroupsNamed(batch.Records, func(id uint64, path []byte) {
			if slices.Contains(ids, id) {
				found[id] = string(path)
			}
		})
		return ctx.Err()
	})
	return found, err
}

// followEvery is how soon a VM that is new on record is followed too.
const followEvery = time.Second

// follow reads on in the streams of vms, and with no VM named in those that
// come to be later, until ctx ends or yield fails. A stream that cannot be read
// ends it only where its VM was named.
func (b backend) follow(ctx context.Context, q api.Query, yield func(uuid.UUID, *evidence.Record) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if q.Since.IsZero() {
		q.Since = time.Now()
	}
	var mu sync.Mutex
	one := func(vm uuid.UUID, r *evidence.Record) error {
		mu.Lock()
		defer mu.Unlock()
		err := yield(vm, r)
		if err != nil {
			cancel(err)
		}
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	followed := map[uuid.UUID]bool{}
	for {
		vms, err := b.streams(q)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			cancel(err)
		}
		for _, vm := range vms {
			if followed[vm] {
				continue
			}
			followed[vm] = true
			wg.Go(func() {
				err := b.followOne(ctx, vm, q, one)
				if err == nil || ctx.Err() != nil {
					return
				}
				if q.VM == uuid.Nil { // the others go on
					b.m.log.Error("record cannot be followed", "vm", vm, "error", err)
					return
				}
				cancel(recordError(vm, err))
			})
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func (b backend) followOne(ctx context.Context, vm uuid.UUID, q api.Query, yield func(uuid.UUID, *evidence.Record) error) error {
	r := b.m.reader(vm)
	from, err := r.Since(q.Since)
	if errors.Is(err, fs.ErrNotExist) {
		from, err = 0, nil // no record yet: Follow waits
	}
	if err != nil {
		return err
	}
	return r.Follow(ctx, from, func(r *evidence.Record) error {
		if r.Time.Before(q.Since) {
			return nil
		}
		return yield(vm, r)
	})
}

func (b backend) Batches(ctx context.Context, q api.Query, yield func(*engine.Batch) error) error {
	return b.read(ctx, q, func(vm uuid.UUID, r *evidence.Record) error {
		if r.Kind != evidence.KindFrame {
			return nil
		}
		if batch, ok := frameBatch(vm, r); ok {
			return yield(&batch)
		}
		return nil
	})
}

// Findings hands findings on as they come where it follows. Otherwise each
// stream is read in the order of its record, and of the streams' next findings
// the earliest goes first: one finding of each stream is in memory. A stream
// that cannot be read on gives what is before, and its error comes at the end.
func (b backend) Findings(ctx context.Context, q api.Query, yield func(*engine.Finding) error) error {
	if q.Follow {
		return b.follow(ctx, q, func(_ uuid.UUID, r *evidence.Record) error { return findingIn(r, yield) })
	}
	vms, err := b.streams(q)
	if err != nil {
		return err
	}
	return b.merge(ctx, vms, q, yield)
}

// findingIn hands a record's finding on, if it is one.
func findingIn(r *evidence.Record, yield func(*engine.Finding) error) error {
	if r.Kind != evidence.KindFinding {
		return nil
	}
	f, err := unmarshal[engine.Finding](r)
	if err != nil {
		return err
	}
	return yield(&f)
}

// findingsHead is a stream's next finding.
type findingsHead struct {
	vm   uuid.UUID
	f    *engine.Finding
	pull func() (*engine.Finding, error, bool)
}

func (b backend) merge(ctx context.Context, vms []uuid.UUID, q api.Query, yield func(*engine.Finding) error) error {
	var rotten []error
	var heads []*findingsHead
	advance := func(h *findingsHead) bool {
		f, err, ok := h.pull()
		if err != nil {
			rotten = append(rotten, recordError(h.vm, err))
		}
		h.f = f
		return ok && err == nil
	}
	for _, vm := range vms {
		pull, stop := iter.Pull2(b.findingsOf(ctx, vm, q))
		defer stop()
		if h := (&findingsHead{vm: vm, pull: pull}); advance(h) {
			heads = append(heads, h)
		}
	}
	for len(heads) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		first := slices.MinFunc(heads, func(a, b *findingsHead) int { return a.f.At.Compare(b.f.At) })
		if err := yield(first.f); err != nil {
			return err
		}
		if !advance(first) {
			heads = slices.DeleteFunc(heads, func(h *findingsHead) bool { return h == first })
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return errors.Join(rotten...)
}

// findingsOf is one stream's findings, and why there are no more of them if
// that is not its end.
func (b backend) findingsOf(ctx context.Context, vm uuid.UUID, q api.Query) iter.Seq2[*engine.Finding, error] {
	q = ofKind(q, evidence.KindFinding)
	return func(yield func(*engine.Finding, error) bool) {
		stopped := false
		err := b.readOne(ctx, vm, q, func(_ uuid.UUID, r *evidence.Record) error {
			return findingIn(r, func(f *engine.Finding) error {
				if stopped = !yield(f, nil); stopped {
					return evidence.ErrStop
				}
				return nil
			})
		})
		if err != nil && !stopped {
			yield(nil, err)
		}
	}
}
