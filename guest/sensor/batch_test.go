// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/outguard/outguard/vsockproto"
)

// kernel writes records as the programs do, and numbers them over both rings.
type kernel struct {
	critical, bulk *memRing
	clock          uint64
}

func newKernel() *kernel { return &kernel{critical: newMemRing(4 << 20), bulk: newMemRing(4 << 20)} }

func (k *kernel) batcher() *batcher { return newBatcher(k.critical.reader(), k.bulk.reader()) }

func (k *kernel) write(t testing.TB, class vsockproto.Class, path int) uint64 {
	t.Helper()
	k.clock++
	e := vsockproto.Event{Header: vsockproto.Header{
		Type: vsockproto.FileOpen, Class: class, Sequence: k.clock, BootNs: k.clock,
	}}
	e.Path.Data = make([]byte, path)
	b, err := e.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	into := k.bulk
	if class == vsockproto.Critical {
		into = k.critical
	}
	if !into.put(b) {
		t.Fatal("the ring is full")
	}
	return k.clock
}

// take reads one batch, lets go of it, and returns the records' times and classes.
func take(t testing.TB, b *batcher, out []byte) []string {
	t.Helper()
	records, n, err := b.next(out)
	if err != nil {
		t.Fatal(err)
	}
	if len(out) == 0 && cap(out) > 0 && len(records) > 0 && &records[0] != &out[:1][0] {
		t.Fatal("the batch left its buffer")
	}
	var got []string
	for len(records) > 0 {
		var e vsockproto.Event
		if records, err = e.Parse(records); err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s@%d", e.Class, e.BootNs))
	}
	if len(got) != n {
		t.Fatalf("%d records, counted %d", len(got), n)
	}
	b.critical.release(b.handed().critical)
	b.bulk.release(b.handed().bulk)
	return got
}

func TestBatchPutsCriticalFirst(t *testing.T) {
	k := newKernel()
	b := k.batcher()
	for _, c := range []vsockproto.Class{vsockproto.Critical, vsockproto.Bulk, vsockproto.Critical, vsockproto.Bulk} {
		k.write(t, c, 10)
	}
	got := take(t, b, make([]byte, 0, 64<<10))
	want := []string{"critical@1", "critical@3", "bulk@2", "bulk@4"}
	if !slices.Equal(got, want) {
		t.Errorf("batch %v, want %v", got, want)
	}
	if got := take(t, b, make([]byte, 0, 64<<10)); got != nil {
		t.Errorf("empty rings gave %v", got)
	}
}

// TestBatchHoldsBulkBack: bulk that was read waits until every critical record
// from before it has gone, over as many batches as that takes.
func TestBatchHoldsBulkBack(t *testing.T) {
	k := newKernel()
	b := k.batcher()
	for range 40 {
		k.write(t, vsockproto.Critical, 4000)
	}
	last := k.write(t, vsockproto.Bulk, 10)
	var got []string
	for range 10 {
		got = append(got, take(t, b, make([]byte, 0, 64<<10))...)
		// What comes later does not hold the bulk up any longer.
		k.write(t, vsockproto.Critical, 10)
	}
	at := slices.Index(got, fmt.Sprintf("bulk@%d", last))
	if at != 40 {
		t.Errorf("the bulk record is number %d of %v", at, got)
	}
}

// TestBatchOrder writes at random while batches are taken: nothing is lost or
// repeated, each class keeps its order, and no bulk record comes before a
// critical one that was written before it.
func TestBatchOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	k := &kernel{critical: newMemRing(32 << 20), bulk: newMemRing(32 << 20)}
	b := k.batcher()
	out := make([]byte, 0, 64<<10)
	var got []string
	for range 200 {
		for range rng.IntN(60) {
			k.write(t, vsockproto.Class(1+rng.IntN(2)), rng.IntN(4000))
		}
		got = append(got, take(t, b, out)...)
	}
	for {
		more := take(t, b, out)
		if more == nil {
			break
		}
		got = append(got, more...)
	}
	if uint64(len(got)) != k.clock {
		t.Fatalf("%d records, wrote %d", len(got), k.clock)
	}
	checkOrder(t, got)
}

func checkOrder(t *testing.T, got []string) {
	t.Helper()
	var bulk, critical, highestBulk int
	for _, s := range got {
		var at int
		class, rest, _ := strings.Cut(s, "@")
		fmt.Sscan(rest, &at)
		if class == "bulk" {
			if at <= bulk {
				t.Fatalf("%s after bulk@%d", s, bulk)
			}
			bulk, highestBulk = at, max(highestBulk, at)
			continue
		}
		if at <= critical {
			t.Fatalf("%s after critical@%d", s, critical)
		}
		if at < highestBulk {
			t.Fatalf("%s after bulk@%d, which was written later", s, highestBulk)
		}
		critical = at
	}
}

func TestBatchErrors(t *testing.T) {
	for _, which := range []string{"critical", "bulk"} {
		t.Run(which, func(t *testing.T) {
			k := newKernel()
			broken := map[string]*memRing{"critical": k.critical, "bulk": k.bulk}[which]
			broken.put([]byte("nine byte"))
			_, _, err := k.batcher().next(make([]byte, 0, 64<<10))
			if !errors.Is(err, vsockproto.ErrInvalid) || !strings.Contains(err.Error(), which) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// TestBatchStalls: a record under way holds up what comes after it, and what
// may rest on it, and nothing else.
func TestBatchStalls(t *testing.T) {
	for _, class := range []vsockproto.Class{vsockproto.Critical, vsockproto.Bulk} {
		t.Run(class.String(), func(t *testing.T) {
			k := newKernel()
			b := k.batcher()
			out := make([]byte, 0, 64<<10)
			k.write(t, vsockproto.Critical, 10)
			ring := k.bulk
			if class == vsockproto.Critical {
				ring = k.critical
			}
			pos, _ := ring.reserve(8)
			k.write(t, vsockproto.Bulk, 10)
			if got := take(t, b, out); !slices.Equal(got, []string{"critical@1"}) {
				t.Errorf("batch %v", got)
			}
			if !b.stalled || !b.pending() {
				t.Errorf("stalled %v, pending %v", b.stalled, b.pending())
			}
			ring.commit(pos, nil)
			if got := take(t, b, out); !slices.Equal(got, []string{"bulk@2"}) {
				t.Errorf("batch %v", got)
			}
			if b.stalled || b.pending() {
				t.Errorf("stalled %v, pending %v", b.stalled, b.pending())
			}
		})
	}
}

func TestBatchDoesNotAllocate(t *testing.T) {
	k := newKernel()
	k.write(t, vsockproto.Critical, 40)
	k.write(t, vsockproto.Bulk, 40)
	b := k.batcher()
	out := make([]byte, 0, 64<<10)
	if n := testing.AllocsPerRun(100, func() {
		b.place(position{})
		if _, n, err := b.next(out); n != 2 || err != nil {
			t.Fatalf("%d records, %v", n, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a batch", n)
	}
}
