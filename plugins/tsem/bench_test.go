package tsem

import (
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/engine/enginetest"
	"github.com/outguard/outguard/vsockproto"
)

// distinct are batches of so many different file_open records each seen
// before, and the engine that has learned them.
func distinct(b testing.TB, mapping Mapping, n int) (*Engine, []*engine.Batch) {
	b.Helper()
	g := enginetest.NewGuest(id)
	return distinctOf(b, mapping, n, g, g.Running("/usr/sbin/httpd"), "")
}

// distinctOf is the same of one process, which is of that workload.
func distinctOf(b testing.TB, mapping Mapping, n int, g *enginetest.Guest, server *enginetest.Process, workload string) (*Engine, []*engine.Batch) {
	b.Helper()
	e := New(&Options{Mapping: mapping})
	judge(b, e, g.Batch())
	var all []*engine.Batch
	const perBatch = 100
	for i := range n {
		open := g.Event(server, vsockproto.FileOpen)
		open.File, open.Path.Data = enginetest.File("/srv/www/index.html"), []byte("/srv/www/index.html")
		le.PutUint64(open.File.Digest[:], uint64(i))
		g.Add(&open)
		if i%perBatch == perBatch-1 || i == n-1 {
			all = append(all, g.Batch())
		}
	}
	for _, batch := range slices.Concat(all, all) { // twice, so that what can be remembered is
		if f := judge(b, e, batch); len(f) > 0 {
			b.Fatal(summary(f))
		}
	}
	if got := e.vms[id].find(workload).model.Valid(); got < uint64(n) {
		b.Fatalf("%d points, want %d", got, n)
	}
	if _, err := e.Seal(b.Context(), id); err != nil {
		b.Fatal(err)
	}
	return e, all
}

var sizes = []struct {
	name    string
	mapping Mapping
	n       int
}{{"quixote/300", Quixote, 300}, {"quixote/100k", Quixote, 100_000}, {"full/300", Full, 300}, {"full/100k", Full, 100_000}}

// BenchmarkWire judges wire records that are all repeats, one core: a small
// model, whose events are remembered, and a large one.
func BenchmarkWire(b *testing.B) {
	for _, c := range sizes {
		b.Run(c.name, func(b *testing.B) {
			e, all := distinct(b, c.mapping, c.n)
			report := func(f engine.Finding) { b.Error(f.Reason) }
			events, i, start := 0, 0, cpu()
			b.ReportAllocs()
			for b.Loop() {
				_ = e.Judge(all[i], report)
				events += all[i].Count
				i = (i + 1) % len(all)
			}
			reportRate(b, events, start)
		})
	}
}

// BenchmarkWireContained judges what a container does, whose model is one of two,
// and what the machine itself does, in the same guest.
func BenchmarkWireContained(b *testing.B) {
	for _, workload := range []string{"", "crun/web"} {
		b.Run("full/300/"+map[string]string{"": "machine", "crun/web": "container"}[workload], func(b *testing.B) {
			g := enginetest.NewGuest(id)
			init := g.Init()
			server := g.Contain(g.Run(init, "/usr/bin/crun"), 11, "/crun-web", "/srv/web")
			if workload == "" {
				server = init
			}
			e, all := distinctOf(b, Full, 300, g, server, workload)
			report := func(f engine.Finding) { b.Error(f.Reason) }
			events, i, start := 0, 0, cpu()
			b.ReportAllocs()
			for b.Loop() {
				_ = e.Judge(all[i], report)
				events += all[i].Count
				i = (i + 1) % len(all)
			}
			reportRate(b, events, start)
		})
	}
}

// BenchmarkWireNew judges wire records of a kind that was never seen: three
// digests each, a point, a note.
func BenchmarkWireNew(b *testing.B) {
	_, all := distinct(b, Full, 100_000)
	events, start := 0, cpu()
	for b.Loop() {
		e := New(nil)
		for _, batch := range all {
			_ = e.Judge(batch, func(engine.Finding) {})
			events += batch.Count
		}
	}
	reportRate(b, events, start)
}

// BenchmarkWireOne judges one record a batch: how long an event takes.
func BenchmarkWireOne(b *testing.B) {
	for _, c := range sizes {
		b.Run(c.name, func(b *testing.B) {
			e, all := distinct(b, c.mapping, c.n)
			var ones []*engine.Batch
			for _, batch := range all {
				for rest := batch.Records; len(rest) > 0; {
					h, err := vsockproto.ParseHeader(rest)
					if err != nil {
						b.Fatal(err)
					}
					one := *batch
					one.Count, one.Records, rest = 1, rest[:h.Length], rest[h.Length:]
					ones = append(ones, &one)
				}
			}
			report := func(f engine.Finding) { b.Error(f.Reason) }
			took := make([]time.Duration, 0, 1<<20)
			for i := 0; b.Loop(); i++ {
				start := time.Now()
				_ = e.Judge(ones[i%len(ones)], report)
				if took = append(took, time.Since(start)); len(took) == cap(took) {
					took = took[:0]
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-us")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-us")
		})
	}
}

// cpu is the time that this process had a core.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// reportRate reports events by the clock, and by the time that this process had a
// core, which is the rate of a core that nobody shares.
func reportRate(b *testing.B, events int, start time.Duration) {
	b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(events)/(cpu()-start).Seconds(), "events/core")
	b.ReportMetric(0, "ns/op")
}
