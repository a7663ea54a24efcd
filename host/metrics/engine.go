package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Engine counts for one engine. Its methods allocate nothing.
type Engine struct {
	judged, restarts prometheus.Counter
	up, queue        prometheus.Gauge
	verdict          prometheus.Observer
}

// Engine returns the counters of an engine.
func (m *Metrics) Engine(name string) *Engine {
	return m.engines.get(name, name, func(name string) *Engine {
		return &Engine{
			judged: m.judged.WithLabelValues(name), restarts: m.restarts.WithLabelValues(name),
			up: m.up.WithLabelValues(name), queue: m.queue.WithLabelValues(name),
			verdict: m.verdict.WithLabelValues(name),
		}
	})
}

// Verdict notes that the engine has judged n records, and the time since the
// last byte of their frame had arrived.
func (e *Engine) Verdict(n int, took time.Duration) {
	e.judged.Add(float64(n))
	e.verdict.Observe(took.Seconds())
}

// Up says whether the engine's process runs and answers.
func (e *Engine) Up(up bool) { e.up.Set(boolValue(up)) }

// Restarted counts a start of the process after its first.
func (e *Engine) Restarted() { e.restarts.Inc() }

// Queue says how many batches wait for the engine.
func (e *Engine) Queue(batches int) { e.queue.Set(float64(batches)) }
