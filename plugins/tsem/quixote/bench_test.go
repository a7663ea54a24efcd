package quixote

import (
	"bytes"
	"fmt"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/outguard/outguard/plugins/tsem"
)

// exports are lines as a kernel exports them, of so many different events.
func exports(b testing.TB, n int) (lines [][]byte) {
	b.Helper()
	events := bytes.Split(bytes.TrimSpace(gunzip(b, "traj/mixed.events.jsonl.gz")), []byte("\n"))
	for i := range max(n, len(events)) {
		task := fmt.Appendf(nil, `"task_id": "%064x"`, i/len(events))
		e := events[i%len(events)]
		at := bytes.Index(e, []byte(`"task_id": "`))
		lines = append(lines, append(append(bytes.Clone(e[:at]), task...), e[at+len(task):]...))
	}
	return lines
}

// BenchmarkJSON judges exported lines, one core.
func BenchmarkJSON(b *testing.B) {
	for _, d := range []struct {
		name    string
		dialect Dialect
	}{{"quixote", Text}, {"json", Strict}} {
		for _, c := range []struct {
			name string
			n    int
		}{{"300", 300}, {"100k", 100_000}} {
			b.Run(d.name+"/"+c.name, func(b *testing.B) {
				lines := exports(b, c.n)
				p, mapper, m := NewParser(d.dialect), tsem.NewMapper(), tsem.NewModel(0)
				b.ReportAllocs()
				start := cpu()
				for i := 0; b.Loop(); i++ {
					e, err := p.Parse(lines[i%len(lines)])
					if err != nil {
						b.Fatal(err)
					}
					v, err := mapper.Map(&e.Event)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := m.Update(v.Point); err != nil {
						b.Fatal(err)
					}
				}
				rate(b, b.N, start)
			})
		}
	}
}

// BenchmarkMeasure is the verb, its output thrown away.
func BenchmarkMeasure(b *testing.B) {
	all := bytes.Join(exports(b, 1000), []byte("\n"))
	start := cpu()
	for b.Loop() {
		if err := Measure(io.Discard, bytes.NewReader(all), Text); err != nil {
			b.Fatal(err)
		}
	}
	rate(b, 1000*b.N, start)
}

// cpu is the time that this process had a core.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rate reports events by the clock, and by the time that this process had a
// core, which is the rate of a core that nobody shares.
func rate(b *testing.B, events int, start time.Duration) {
	b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(events)/(cpu()-start).Seconds(), "events/core")
}
