package metrics

import (
	"sync/atomic"

	"github.com/google/uuid"

	"github.com/outguard/outguard/vsockproto"
)

// VM counts for one VM. Its methods allocate nothing: the hot path calls them
// once for each frame.
type VM struct {
	label                   string
	received, lost, missing counts
	frames, frameBytes      atomic.Uint64
	refused, sessions       atomic.Uint64
	byAge, bySize           atomic.Uint64
	live                    atomic.Uint64 // 1: it is
	evidence, evidenceIx    atomic.Uint64
}

// counts are of records, by class.
type counts [classes]atomic.Uint64

// classes is one more than the highest class, and 0 is for what is none.
const classes = int(vsockproto.Bulk) + 1

var classNames = [classes]string{other, "critical", "bulk"}

// VM returns the counters of a VM, labelled by its domain's name (by the UUID
// where that is empty, or another VM's label). All VMs past the bound share one.
// The first call makes them, later ones find them; a domain that changes its name
// keeps its first.
func (m *Metrics) VM(id uuid.UUID, name string) *VM {
	if name == "" {
		name = id.String()
	}
	return m.vms.get(id.String(), name, func(label string) *VM { return &VM{label: label} })
}

// Forget ends the series of a domain that is no more.
func (m *Metrics) Forget(id uuid.UUID) { m.vms.drop(id.String()) }

// Frame counts a received frame of so many bytes.
func (v *VM) Frame(bytes int) {
	v.frames.Add(1)
	v.frameBytes.Add(uint64(bytes))
}

// Received counts n records of a class.
func (v *VM) Received(c vsockproto.Class, n int) { add(&v.received, c, uint64(n)) }

// Lost counts n records that the agent newly declared lost.
func (v *VM) Lost(c vsockproto.Class, n uint64) { add(&v.lost, c, n) }

// Missing counts n records that were neither received nor declared lost.
func (v *VM) Missing(c vsockproto.Class, n uint64) { add(&v.missing, c, n) }

// add ignores what is no class: vsockproto has refused it before.
func add(counters *counts, c vsockproto.Class, n uint64) {
	if 0 < c && int(c) < classes {
		counters[c].Add(n)
	}
}

// Refused counts a bulk frame that the VM's quota kept out of the record.
func (v *VM) Refused() { v.refused.Add(1) }

// GaveUp counts n records that retention gave up for their age or for the size of
// the record.
func (v *VM) GaveUp(reason string, n uint64) {
	if reason == "age" {
		v.byAge.Add(n)
	} else {
		v.bySize.Add(n)
	}
}

// SessionBegun counts a session and marks it live; SessionEnded unmarks it.
func (v *VM) SessionBegun() {
	v.sessions.Add(1)
	v.live.Store(1)
}

// SessionEnded says that the VM's agent has no live session.
func (v *VM) SessionEnded() { v.live.Store(0) }

// Evidence says how large the VM's record is and which index comes next.
func (v *VM) Evidence(bytes, next uint64) {
	v.evidence.Store(bytes)
	v.evidenceIx.Store(next)
}
