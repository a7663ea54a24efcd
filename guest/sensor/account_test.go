// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"errors"
	"slices"
	"testing"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

// script answers one reading of a counter after the other; the last one stays.
type script map[uint32][]bpf.ProbeCounter

func (s script) counter(slot uint32, into *bpf.ProbeCounter) error {
	all, ok := s[slot]
	if !ok {
		return errors.New("no such counter")
	}
	*into = all[0]
	if len(all) > 1 {
		s[slot] = all[1:]
	}
	return nil
}

func count(emitted, submitted, lost uint64) bpf.ProbeCounter {
	return bpf.ProbeCounter{Emitted: emitted, Submitted: submitted, Lost: lost}
}

func TestMark(t *testing.T) {
	tests := map[string]struct {
		readings []bpf.ProbeCounter
		want     []vsockproto.Counter
	}{
		"at rest": {
			[]bpf.ProbeCounter{count(7, 5, 2)},
			[]vsockproto.Counter{{Class: vsockproto.Critical, Watermark: 7, Lost: 2}},
		},
		"nothing yet": {
			[]bpf.ProbeCounter{count(0, 0, 0)}, nil,
		},
		"one under way for ever": {
			[]bpf.ProbeCounter{count(7, 6, 0)}, nil,
		},
		"at rest after a while": {
			[]bpf.ProbeCounter{count(7, 6, 0), count(7, 6, 0), count(7, 7, 0), count(8, 7, 0), count(8, 8, 0)},
			[]vsockproto.Counter{{Class: vsockproto.Critical, Watermark: 8}},
		},
		// What is done is read first: this one was at rest at neither reading.
		"equal in one reading only": {
			[]bpf.ProbeCounter{count(7, 7, 0), count(8, 7, 0), count(9, 8, 0)}, nil,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			k := newKernel()
			b := k.batcher()
			a := newAccount(script{0: tc.readings, 1: {{}}}, 1)
			if err := a.mark(b, vsockproto.Totals{}); err != nil {
				t.Fatal(err)
			}
			if !a.settle(b) {
				t.Fatal("empty rings are not settled")
			}
			if got := a.append(nil); !slices.Equal(got, tc.want) {
				t.Errorf("counters %+v, want %+v", got, tc.want)
			}
		})
	}
}

// TestSettle: a mark counts only when everything that was in the rings then
// has been handed over, and stays what it was until then.
func TestSettle(t *testing.T) {
	k := newKernel()
	b := k.batcher()
	a := newAccount(script{0: {count(40, 40, 0)}, 1: {count(1, 1, 0)}}, 1)
	for range 40 {
		k.write(t, vsockproto.Critical, 4000)
	}
	k.write(t, vsockproto.Bulk, 10)
	if err := a.mark(b, vsockproto.Totals{}); err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 0, 64<<10)
	taken := 0
	for !a.settle(b) {
		if got := a.append(nil); got != nil {
			t.Fatalf("counters %+v after %d records", got, taken)
		}
		k.write(t, vsockproto.Critical, 10) // what comes later does not count
		n := len(take(t, b, out))
		if n == 0 {
			t.Fatal("not settled, and nothing left")
		}
		taken += n
	}
	if taken < 41 {
		t.Errorf("settled after %d records of 41", taken)
	}
	want := []vsockproto.Counter{
		{Class: vsockproto.Critical, Watermark: 40},
		{Class: vsockproto.Bulk, Watermark: 1},
	}
	if got := a.append(nil); !slices.Equal(got, want) {
		t.Errorf("counters %+v, want %+v", got, want)
	}
}

func TestMarkFails(t *testing.T) {
	k := newKernel()
	b := k.batcher()
	if err := newAccount(script{}, 1).mark(b, vsockproto.Totals{}); err == nil {
		t.Error("a counter that cannot be read was no error")
	}
}

// TestTotals: those of a mark count once it is settled, summed over all CPUs.
func TestTotals(t *testing.T) {
	k := newKernel()
	b := k.batcher()
	first, second := count(1, 1, 0), count(0, 0, 0)
	first.Unrecorded, first.Unhooked = 5, 1
	second.Unrecorded = 2
	a := newAccount(script{0: {first}, 1: {{}}, 2: {second}, 3: {{}}}, 2)
	k.write(t, vsockproto.Critical, 10)
	if err := a.mark(b, vsockproto.Totals{MarkedNs: 9, Starts: 100, Unhooked: 3}); err != nil {
		t.Fatal(err)
	}
	if a.settle(b) || a.totals != (vsockproto.Totals{}) {
		t.Errorf("settled with %+v before the ring was read", a.totals)
	}
	take(t, b, make([]byte, 0, 64<<10))
	want := vsockproto.Totals{MarkedNs: 9, Starts: 100, Unrecorded: 7, Unhooked: 4}
	if !a.settle(b) || a.totals != want {
		t.Errorf("totals %+v, want %+v", a.totals, want)
	}
}

// TestWithheldBulk: it stays in its ring, and of a mark the critical part is
// confirmed.
func TestWithheldBulk(t *testing.T) {
	k := newKernel()
	b := k.batcher()
	a := newAccount(script{0: {count(2, 2, 0)}, 1: {count(3, 3, 0)}}, 1)
	for range 3 {
		k.write(t, vsockproto.Bulk, 10)
	}
	for range 2 {
		k.write(t, vsockproto.Critical, 10)
	}
	b.withheld = true
	if err := a.mark(b, vsockproto.Totals{MarkedNs: 1}); err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 0, 64<<10)
	if got := len(take(t, b, out)); got != 2 || b.pending() || !a.settle(b) {
		t.Fatalf("%d records, pending %v", got, b.pending())
	}
	want := []vsockproto.Counter{{Class: vsockproto.Critical, Watermark: 2}}
	if got := a.append(nil); !slices.Equal(got, want) {
		t.Errorf("counters %+v, want %+v", got, want)
	}
	b.withheld = false
	if err := a.mark(b, vsockproto.Totals{MarkedNs: 2}); err != nil {
		t.Fatal(err)
	}
	if a.settle(b) {
		t.Error("settled before bulk was read")
	}
	if got := len(take(t, b, out)); got != 3 || !a.settle(b) || len(a.append(nil)) != 2 {
		t.Errorf("%d records, counters %+v", got, a.append(nil))
	}
}

// TestMarkIsAFence: what comes behind a mark waits until it is settled, since its
// numbers may be as far ahead as what was lost in between.
func TestMarkIsAFence(t *testing.T) {
	k := newKernel()
	b := k.batcher()
	a := newAccount(script{0: {count(2, 2, 0)}, 1: {count(2, 2, 0)}}, 1)
	write := func() {
		for _, c := range []vsockproto.Class{vsockproto.Critical, vsockproto.Bulk} {
			k.write(t, c, 10)
			k.write(t, c, 10)
		}
	}
	write()
	if err := a.mark(b, vsockproto.Totals{MarkedNs: 1}); err != nil {
		t.Fatal(err)
	}
	write()
	out := make([]byte, 0, 64<<10)
	if n := len(take(t, b, out)); n != 4 || b.pending() {
		t.Errorf("%d records before the mark is settled, want 4; more pending: %v", n, b.pending())
	}
	if !a.settle(b) || !b.pending() {
		t.Error("not settled, or nothing behind it")
	}
	if n := len(take(t, b, out)); n != 4 {
		t.Errorf("%d records behind it, want 4", n)
	}
}
