package metrics

import (
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/outguard/outguard/vsockproto"
)

// VM counts for one VM. Its methods allocate nothing: the hot path calls them
// once for each frame.
type VM struct {
	received, lost, missing [classes]prometheus.Counter
	frames, frameBytes      prometheus.Counter
	refused, sessions       prometheus.Counter
	byAge, bySize           prometheus.Counter
	live                    prometheus.Gauge
	evidence, evidenceIx    prometheus.Gauge
}

// classes is one more than the highest class, and 0 is for what is none.
const classes = int(vsockproto.Bulk) + 1

var classNames = [classes]string{other, "critical", "bulk"}

// VM returns the counters of a VM, labelled by its domain's name (the UUID where
// that is empty). All VMs past the bound share one. The first call makes them,
// later ones find them; a domain that changes its name keeps its first.
func (m *Metrics) VM(id uuid.UUID, name string) *VM {
	if name == "" {
		name = id.String()
	}
	return m.vms.get(id.String(), name, m.newVM)
}

// Forget ends the series of a domain that is no more.
func (m *Metrics) Forget(id uuid.UUID) {
	name, ok := m.vms.drop(id.String())
	if !ok {
		return
	}
	labels := prometheus.Labels{"vm": name}
	for _, v := range []interface{ DeletePartialMatch(prometheus.Labels) int }{
		m.received, m.lost, m.missing, m.frames, m.frameBytes, m.refused, m.gaveUp, m.sessions, m.live, m.evidence, m.evidenceIx,
	} {
		v.DeletePartialMatch(labels)
	}
}

func (m *Metrics) newVM(name string) *VM {
	v := &VM{
		frames: m.frames.WithLabelValues(name), frameBytes: m.frameBytes.WithLabelValues(name),
		refused: m.refused.WithLabelValues(name), sessions: m.sessions.WithLabelValues(name),
		byAge: m.gaveUp.WithLabelValues(name, "age"), bySize: m.gaveUp.WithLabelValues(name, "size"),
		live:     m.live.WithLabelValues(name),
		evidence: m.evidence.WithLabelValues(name), evidenceIx: m.evidenceIx.WithLabelValues(name),
	}
	for c := 1; c < classes; c++ {
		v.received[c] = m.received.WithLabelValues(name, classNames[c])
		v.lost[c] = m.lost.WithLabelValues(name, classNames[c])
		v.missing[c] = m.missing.WithLabelValues(name, classNames[c])
	}
	return v
}

// Frame counts a received frame of so many bytes.
func (v *VM) Frame(bytes int) {
	v.frames.Inc()
	v.frameBytes.Add(float64(bytes))
}

// Received counts n records of a class.
func (v *VM) Received(c vsockproto.Class, n int) { add(&v.received, c, uint64(n)) }

// Lost counts n records that the agent newly declared lost.
func (v *VM) Lost(c vsockproto.Class, n uint64) { add(&v.lost, c, n) }

// Missing counts n records that were neither received nor declared lost.
func (v *VM) Missing(c vsockproto.Class, n uint64) { add(&v.missing, c, n) }

// add ignores what is no class: vsockproto has refused it before.
func add(counters *[classes]prometheus.Counter, c vsockproto.Class, n uint64) {
	if int(c) < classes && counters[c] != nil {
		counters[c].Add(float64(n))
	}
}

// Refused counts a bulk frame that the VM's quota kept out of the record.
func (v *VM) Refused() { v.refused.Inc() }

// GaveUp counts n records that retention gave up for their age or for the size of
// the record.
func (v *VM) GaveUp(reason string, n uint64) {
	c := v.bySize
	if reason == "age" {
		c = v.byAge
	}
	c.Add(float64(n))
}

// SessionBegun counts a session and marks it live; SessionEnded unmarks it.
func (v *VM) SessionBegun() {
	v.sessions.Inc()
	v.live.Set(1)
}

// SessionEnded says that the VM's agent has no live session.
func (v *VM) SessionEnded() { v.live.Set(0) }

// Evidence says how large the VM's record is and which index comes next.
func (v *VM) Evidence(bytes, next uint64) {
	v.evidence.Set(float64(bytes))
	v.evidenceIx.Set(float64(next))
}
