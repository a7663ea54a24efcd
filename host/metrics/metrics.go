// Package metrics names what the monitor counts and measures, for Prometheus.
// The monitor calls typed methods; labels never hold what a guest chose, and
// their number is bounded: a VM past MaxVMs, or a rule past MaxRules, counts
// under the label "other".
package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/outguard/outguard/plugins/engine"
)

// Options of Metrics. Zero values mean the defaults.
type Options struct {
	MaxVMs     int // VMs with labels of their own, default 10000
	MaxEngines int // default 64
	MaxRules   int // rules of findings and of the playbook, default 500
	Version    string
}

// other stands for every label value past its bound.
const other = "other"

// Metrics holds every collector of the monitor. Its methods may be called from
// many goroutines at once.
type Metrics struct {
	registry *prometheus.Registry
	vms      table[*VM]
	engines  table[*Engine]
	rules    bounded

	judged, restarts *prometheus.CounterVec   // engine
	up, queue        *prometheus.GaugeVec     // engine
	verdict          *prometheus.HistogramVec // engine
	findings         *prometheus.CounterVec   // engine, rule, severity
	decisions        *prometheus.CounterVec   // rule, outcome
	orders           *prometheus.CounterVec   // step, result
	orderTime        *prometheus.HistogramVec // step
	connections      *prometheus.CounterVec   // result
	libvirt          prometheus.Gauge
	evidenceErrors   prometheus.Counter
	evidenceFull     prometheus.Gauge
}

// VerdictBuckets are in seconds, from 10 us: event to verdict is meant to stay
// under 170 us.
var VerdictBuckets = []float64{
	10e-6, 20e-6, 35e-6, 50e-6, 75e-6, 100e-6, 130e-6, 170e-6, 250e-6, 400e-6, 700e-6,
	1e-3, 2e-3, 5e-3, 10e-3, 25e-3, 100e-3, 1,
}

// OrderBuckets are in seconds: a stop is meant to take under 5 ms, a capture
// takes seconds.
var OrderBuckets = []float64{
	500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1, 2.5, 5, 10, 30, 60, 300,
}

// New returns metrics with a registry of their own.
func New(opts *Options) *Metrics {
	o := opts.withDefaults()
	r := prometheus.NewRegistry()
	m := &Metrics{registry: r}
	m.vms.limit, m.engines.limit, m.rules.limit = o.MaxVMs, o.MaxEngines, o.MaxRules
	b := builder{r}
	m.collectVMs(b)
	m.collectEngines(b)
	m.collectAnswers(b)
	m.libvirt = b.gauge("libvirt_up", "Whether libvirtd answers.").WithLabelValues()
	m.connections = b.counter("connections_total", "Connections of agents, by what became of them.", "result")
	b.gauge("build_info", "The version that runs, as a label.", "version").WithLabelValues(o.Version).Set(1)
	r.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (o *Options) withDefaults() Options {
	var out Options
	if o != nil {
		out = *o
	}
	for v, d := range map[*int]int{&out.MaxVMs: 10000, &out.MaxEngines: 64, &out.MaxRules: 500} {
		if *v == 0 {
			*v = d
		}
	}
	return out
}

func (m *Metrics) collectVMs(b builder) {
	c := &vms{table: &m.vms}
	c.addClasses("events_received_total", "Records received.", func(v *VM) *counts { return &v.received })
	c.addClasses("events_lost_total", "Records that the guest's agent declared lost.", func(v *VM) *counts { return &v.lost })
	c.addClasses("events_missing_total", "Records neither received nor declared lost: each is a violation.",
		func(v *VM) *counts { return &v.missing })
	c.addCounter("frames_total", "Frames received.", func(v *VM) uint64 { return v.frames.Load() })
	c.addCounter("bytes_total", "Bytes of frames received.", func(v *VM) uint64 { return v.frameBytes.Load() })
	c.addCounter("evidence_refused_total", "Bulk frames that the VM's quota kept out of the record.",
		func(v *VM) uint64 { return v.refused.Load() })
	c.addLabelled("evidence_given_up_total", "Records that retention gave up, by its reason: age or size.", "reason",
		map[string]func(v *VM) uint64{
			"age":  func(v *VM) uint64 { return v.byAge.Load() },
			"size": func(v *VM) uint64 { return v.bySize.Load() },
		})
	c.addCounter("sessions_total", "Sessions begun.", func(v *VM) uint64 { return v.sessions.Load() })
	c.addGauge("session_live", "Whether the VM's agent has a live session.", func(v *VM) uint64 { return v.live.Load() })
	c.addGauge("evidence_bytes", "Size of the VM's record on disk.", func(v *VM) uint64 { return v.evidence.Load() })
	c.addGauge("evidence_index", "Index that the VM's next record gets.", func(v *VM) uint64 { return v.evidenceIx.Load() })
	b.r.MustRegister(c)
	m.evidenceFull = b.gauge("evidence_full", "Whether the disk is full up to the reserve, and what guests send waits.").WithLabelValues()
	m.evidenceErrors = b.counter("evidence_errors_total", "Writes to the record that failed.").WithLabelValues()
}

func (m *Metrics) collectEngines(b builder) {
	m.judged = b.counter("engine_judged_total", "Records judged.", "engine")
	m.restarts = b.counter("engine_restarts_total", "Starts of the engine's process after its first.", "engine")
	m.up = b.gauge("engine_up", "Whether the engine's process runs and answers.", "engine")
	m.queue = b.gauge("engine_queue", "Batches that wait for the engine.", "engine")
	m.verdict = b.histogram("verdict_seconds", "From the arrival of a frame's last byte to the engine's verdict on it.",
		VerdictBuckets, "engine")
}

func (m *Metrics) collectAnswers(b builder) {
	m.findings = b.counter("findings_total", "Findings.", "engine", "rule", "severity")
	m.decisions = b.counter("decisions_total", "Decisions, by the playbook's rule and by what it asked for.", "rule", "outcome")
	m.orders = b.counter("orders_total", "Orders, by how they ended.", "step", "result")
	m.orderTime = b.histogram("order_seconds", "From decision to checked effect.", OrderBuckets, "step")
}

// Handler serves the metrics in Prometheus's formats.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

// Registry is for collectors of other parts, and for tests.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }

// Monitor is the engine's name in the monitor's own findings.
const Monitor = "monitor"

// Finding counts one, under the name of an engine that Engine was called for,
// or of the monitor itself.
func (m *Metrics) Finding(f *engine.Finding) {
	name := Monitor
	if f.Engine != Monitor {
		name = m.engines.label(f.Engine)
	}
	m.findings.WithLabelValues(name, m.rules.label(f.Rule), severity(f.Severity)).Inc()
}

var severities = [...]string{
	engine.Info: "info", engine.Low: "low", engine.Medium: "medium", engine.High: "high", engine.Severest: "critical",
}

func severity(s engine.Severity) string {
	if s > 0 && int(s) < len(severities) {
		return severities[s]
	}
	return other
}

// Decision counts one: the playbook's rule, and its outcome such as "pause".
func (m *Metrics) Decision(rule, outcome string) {
	m.decisions.WithLabelValues(m.rules.label(rule), outcome).Inc()
}

// Order counts one that has ended: its step, its result and the time from
// decision to checked effect. step and result are the monitor's own words.
func (m *Metrics) Order(step, result string, took time.Duration) {
	m.orders.WithLabelValues(step, result).Inc()
	m.orderTime.WithLabelValues(step).Observe(took.Seconds())
}

// Connection counts one of an agent: "accepted", or the reject code's name.
func (m *Metrics) Connection(result string) { m.connections.WithLabelValues(result).Inc() }

// LibvirtUp says whether libvirtd answers.
func (m *Metrics) LibvirtUp(up bool) { m.libvirt.Set(boolValue(up)) }

// EvidenceFull says whether the disk has no room for what guests send.
func (m *Metrics) EvidenceFull(full bool) { m.evidenceFull.Set(boolValue(full)) }

// EvidenceError counts a write to the record that failed.
func (m *Metrics) EvidenceError() { m.evidenceErrors.Inc() }

func boolValue(v bool) float64 {
	if v {
		return 1
	}
	return 0
}
