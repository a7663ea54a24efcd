package link_test

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
)

// kernel counts starts, announces each a while later, and beats.
type kernel struct {
	link.Starts
	now, counted, unrecorded uint64
	under                    int // counted, not yet announced
}

func (k *kernel) start(n int) { k.counted += uint64(n); k.under += n }

// announce makes n of those under way known, some of them as unrecorded.
func (k *kernel) announce(n int, r *rand.Rand) {
	for range n {
		k.under--
		if r.IntN(4) == 0 {
			k.unrecorded++
		} else {
			k.Received++
		}
	}
}

// mark takes the totals and announces everything that had been counted at the
// mark before, as a kernel does within a heartbeat.
func (k *kernel) totals() *vsockproto.Totals {
	k.now++
	return &vsockproto.Totals{MarkedNs: k.now, Starts: k.counted, Unrecorded: k.unrecorded}
}

// TestStartsHold: whatever is under way at a mark, an honest kernel never
// contradicts itself, and one start that is not announced always is one.
func TestStartsHold(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		k := &kernel{counted: r.Uint64N(1000)}
		for beat := range 60 {
			late := k.under // counted at or before the last mark: announced before this one
			k.start(r.IntN(30))
			k.announce(late+r.IntN(k.under-late+1), r)
			mark := k.totals()
			k.announce(r.IntN(k.under+1), r) // these records stand before the heartbeat as well
			k.start(r.IntN(3))
			if err := k.Settle(mark); err != nil {
				t.Fatalf("seed %d, beat %d: %v", seed, beat, err)
			}
		}
		k.announce(k.under, r)
		for range 2 { // at rest the bounds meet
			if err := k.Settle(k.totals()); err != nil {
				t.Fatal(err)
			}
		}
		if k.Low != k.High {
			t.Fatalf("seed %d: bounds %d and %d", seed, k.Low, k.High)
		}
		hidden := 1 + r.Uint64N(5)
		k.counted += hidden
		if err := k.Settle(k.totals()); err != nil {
			t.Fatalf("seed %d: %v before it can be known", seed, err)
		}
		var e *link.StartsError
		if err := k.Settle(k.totals()); !errors.As(err, &e) || e.Missing != hidden {
			t.Fatalf("seed %d: %v, want %d missing", seed, err, hidden)
		}
		for range 3 { // it is said once
			if err := k.Settle(k.totals()); err != nil {
				t.Fatalf("seed %d: again %v", seed, err)
			}
		}
	}
}

func TestStartsInExcess(t *testing.T) {
	k := &kernel{counted: 50}
	for range 3 {
		if err := k.Settle(k.totals()); err != nil {
			t.Fatal(err)
		}
	}
	k.Received += 2
	var first error
	for range 2 {
		if err := k.Settle(k.totals()); err != nil {
			first = err
		}
	}
	var e *link.StartsError
	if !errors.As(first, &e) || e.Excess != 2 || e.Missing != 0 {
		t.Errorf("%v, want 2 in excess", first)
	}
}

func TestStartsShrink(t *testing.T) {
	k := &kernel{counted: 50, unrecorded: 3}
	if err := k.Settle(k.totals()); err != nil {
		t.Fatal(err)
	}
	for _, f := range []func(*vsockproto.Totals){
		func(t *vsockproto.Totals) { t.Starts-- },
		func(t *vsockproto.Totals) { t.Unrecorded-- },
	} {
		x := k.totals()
		f(x)
		if err := k.Settle(x); !errors.Is(err, link.ErrBackwards) {
			t.Errorf("%+v: %v", x, err)
		}
	}
}

// TestStartsRepeated: a heartbeat without a new mark changes nothing, and what
// is stored goes on where it was.
func TestStartsRepeated(t *testing.T) {
	k := &kernel{counted: 50}
	mark := k.totals()
	for range 3 {
		if err := k.Settle(mark); err != nil {
			t.Fatal(err)
		}
		k.counted++
		k.Received++
	}
	b, err := json.Marshal(k.Starts)
	if err != nil {
		t.Fatal(err)
	}
	var back link.Starts
	if err := json.Unmarshal(b, &back); err != nil || back != k.Starts {
		t.Errorf("%+v came back as %+v, %v", k.Starts, back, err)
	}
}

func FuzzStarts(f *testing.F) {
	f.Add(uint64(1), uint64(5), uint64(0), uint64(2), uint64(9), uint64(1), uint64(3))
	f.Fuzz(func(t *testing.T, m1, s1, u1, m2, s2, u2, received uint64) {
		var s link.Starts
		for range 3 {
			s.Received += received
			_ = s.Settle(&vsockproto.Totals{MarkedNs: m1, Starts: s1, Unrecorded: u1})
			_ = s.Settle(&vsockproto.Totals{MarkedNs: m2, Starts: s2, Unrecorded: u2})
		}
		if s.Bound && s.Low > s.High {
			t.Fatalf("%+v", s)
		}
	})
}
