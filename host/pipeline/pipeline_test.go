package pipeline

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/outguard/outguard/plugins/engine"
)

// slow is an engine with room for so many batches.
type slow struct {
	name string
	room chan struct{}
	got  []uint64
}

func (e *slow) Name() string { return e.name }

func (e *slow) TrySubmit(b *engine.Batch) bool {
	select {
	case e.room <- struct{}{}:
		e.got = append(e.got, b.Index)
		return true
	default:
		return false
	}
}

func (e *slow) Submit(ctx context.Context, b *engine.Batch) error {
	select {
	case e.room <- struct{}{}:
		e.got = append(e.got, b.Index)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A full engine delays its VM and keeps the other engine served.
func TestSubmitFullEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full, free := &slow{name: "full", room: make(chan struct{}, 1)}, &slow{name: "free", room: make(chan struct{}, 9)}
		p := New(full, free)
		done := make(chan error)
		go func() {
			for i := range uint64(2) {
				if err := p.Submit(t.Context(), &engine.Batch{Index: i}); err != nil {
					done <- err
				}
			}
			close(done)
		}()
		synctest.Wait()
		if len(full.got) != 1 || len(free.got) != 2 {
			t.Fatalf("full has %v, free has %v", full.got, free.got)
		}
		<-full.room
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if len(full.got) != 2 || full.got[1] != 1 {
			t.Errorf("full has %v", full.got)
		}
	})
}

func TestSubmitCancelled(t *testing.T) {
	p := New(&slow{room: make(chan struct{})})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Submit(ctx, &engine.Batch{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestHistogram(t *testing.T) {
	var h Histogram
	if h.Quantile(0.5) != 0 {
		t.Error("an empty histogram has a median")
	}
	for i := range 1000 {
		h.Observe(time.Duration(i+1) * time.Microsecond)
	}
	if h.Count() != 1000 || h.Sum() != 500500*time.Microsecond {
		t.Errorf("count %d, sum %s", h.Count(), h.Sum())
	}
	for q, want := range map[float64]time.Duration{0.5: 500 * time.Microsecond, 0.99: 990 * time.Microsecond, 1: time.Millisecond} {
		if got := h.Quantile(q); got < want || got > want+want/8+1 {
			t.Errorf("quantile %g is %s, want about %s", q, got, want)
		}
	}
	last := uint64(0)
	h.Buckets(func(le time.Duration, n uint64) {
		if n < last {
			t.Errorf("bucket %s counts %d after %d", le, n, last)
		}
		last = n
	})
	if last != 1000 {
		t.Errorf("the last bucket counts %d", last)
	}
}

func TestBucketBounds(t *testing.T) {
	for ns := uint64(0); ns < 1<<40; ns = ns*5/4 + 1 {
		b := bucket(ns)
		if ns > upper(b) || (b > 0 && ns <= upper(b-1)) {
			t.Errorf("%d in bucket %d, which ends at %d", ns, b, upper(b))
		}
	}
}

func TestSubmitAllocs(t *testing.T) {
	p := New(&discard{}, &discard{})
	b := &engine.Batch{}
	if n := testing.AllocsPerRun(100, func() { _ = p.Submit(t.Context(), b) }); n != 0 {
		t.Errorf("%g allocations", n)
	}
}

type discard struct{}

func (*discard) Name() string                                { return "discard" }
func (*discard) TrySubmit(*engine.Batch) bool                { return true }
func (*discard) Submit(context.Context, *engine.Batch) error { return nil }
