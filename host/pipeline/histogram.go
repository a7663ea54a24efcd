package pipeline

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Histogram counts durations in buckets about 12 % wide, without a lock. The
// zero value is empty.
type Histogram struct {
	counts [64 * perOctave]atomic.Uint64
	sum    atomic.Uint64 // ns
}

const (
	octaveBits = 3
	perOctave  = 1 << octaveBits
)

// Observe counts d; a negative one as zero.
func (h *Histogram) Observe(d time.Duration) {
	ns := uint64(max(d, 0))
	h.counts[bucket(ns)].Add(1)
	h.sum.Add(ns)
}

func bucket(ns uint64) int {
	if ns < perOctave {
		return int(ns)
	}
	shift := bits.Len64(ns) - 1 - octaveBits
	return (shift+1)<<octaveBits + int(ns>>shift)&(perOctave-1)
}

// upper is the highest duration in a bucket, ns.
func upper(b int) uint64 {
	if b < perOctave {
		return uint64(b)
	}
	shift := b>>octaveBits - 1
	return uint64(perOctave+b&(perOctave-1)+1)<<shift - 1
}

// Count is how many durations were observed.
func (h *Histogram) Count() uint64 {
	var n uint64
	for i := range h.counts {
		n += h.counts[i].Load()
	}
	return n
}

// Sum is all of them together.
func (h *Histogram) Sum() time.Duration { return time.Duration(h.sum.Load()) }

// Quantile is the upper end of the bucket that holds the q-th part, q between
// 0 and 1; zero where nothing was observed.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := uint64(q*float64(h.Count())) + 1
	var n uint64
	last := 0
	for i := range h.counts {
		c := h.counts[i].Load()
		if c > 0 {
			last = i
		}
		if n += c; n >= rank {
			return time.Duration(upper(i))
		}
	}
	return time.Duration(upper(last))
}

// Buckets calls yield with each bucket in use: its upper end and how many
// durations are in it or below, as Prometheus counts.
func (h *Histogram) Buckets(yield func(le time.Duration, count uint64)) {
	var n uint64
	for i := range h.counts {
		if c := h.counts[i].Load(); c > 0 {
			n += c
			yield(time.Duration(upper(i)), n)
		}
	}
}
