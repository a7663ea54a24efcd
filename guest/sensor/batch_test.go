// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/outguard/outguard/vsockproto"
)

// fakeRing is a ring with what the kernel has put into it.
type fakeRing struct {
	queue [][]byte
	bytes int
	err   error
}

func (r *fakeRing) put(b []byte) {
	r.queue = append(r.queue, b)
	r.bytes += len(b) + ringOverhead
}

func (r *fakeRing) AvailableBytes() int { return r.bytes }

func (r *fakeRing) ReadInto(rec *ringbuf.Record) error {
	if r.err != nil {
		return r.err
	}
	b := r.queue[0]
	r.queue = r.queue[1:]
	r.bytes -= len(b) + ringOverhead
	if cap(rec.RawSample) < len(b) {
		panic("the record does not fit, the reader would allocate")
	}
	rec.RawSample = rec.RawSample[:len(b)]
	copy(rec.RawSample, b)
	return nil
}

// kernel writes records as the programs do, and numbers them over both rings.
type kernel struct {
	critical, bulk fakeRing
	clock          uint64
}

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
	if class == vsockproto.Critical {
		k.critical.put(b)
	} else {
		k.bulk.put(b)
	}
	return k.clock
}

// take reads one batch and returns the records' times and classes.
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
	return got
}

func TestBatchPutsCriticalFirst(t *testing.T) {
	var k kernel
	b := newBatcher(&k.critical, &k.bulk)
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
	var k kernel
	b := newBatcher(&k.critical, &k.bulk)
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
	var k kernel
	b := newBatcher(&k.critical, &k.bulk)
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
	broken := errors.New("broken")
	for _, which := range []string{"critical", "bulk"} {
		t.Run(which, func(t *testing.T) {
			var k kernel
			k.write(t, vsockproto.Critical, 1)
			k.write(t, vsockproto.Bulk, 1)
			if which == "critical" {
				k.critical.err = broken
			} else {
				k.bulk.err = broken
			}
			_, _, err := newBatcher(&k.critical, &k.bulk).next(make([]byte, 0, 64<<10))
			if !errors.Is(err, broken) || !strings.Contains(err.Error(), which) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestBatchDoesNotAllocate(t *testing.T) {
	var k kernel
	k.write(t, vsockproto.Critical, 40)
	k.write(t, vsockproto.Bulk, 40)
	b := newBatcher(&k.critical, &k.bulk)
	out := make([]byte, 0, 64<<10)
	critical, bulk := k.critical, k.bulk
	if n := testing.AllocsPerRun(100, func() {
		k.critical, k.bulk = critical, bulk
		if _, n, err := b.next(out); n != 2 || err != nil {
			t.Fatalf("%d records, %v", n, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a batch", n)
	}
}
