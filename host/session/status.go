package session

import (
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/vsockproto"
)

// State says how a VM stands with the monitor.
type State string

// States of a VM.
const (
	Absent State = "absent" // expected, never heard in this run of the VM
	Live   State = "live"
	Silent State = "silent" // its vCPUs run, and it says nothing
	Ended  State = "ended"  // no connection, and not missed yet
)

// Status is how one VM stands. What the guest says of itself is guest text:
// escape it before showing.
type Status struct {
	VM        uuid.UUID
	Session   uuid.UUID // the live or the last one; uuid.Nil: never heard
	State     State
	Reason    string    // why it is not live, or halted
	Transport string    // of the last connection
	Since     time.Time // when the session began
	LastSeen  time.Time // when the last frame arrived
	Resumed   uint64    // connections after the session's first

	Kernel, Build string // guest text
	BootID        uuid.UUID
	CPUs          uint32
	Version       uint16
	Hooks         []vsockproto.Hook

	Frames, Bytes uint64 // of the session
	Index         uint64 // evidence index of the last frame
	Received      ByClass
	Lost          ByClass // declared lost
	Missing       ByClass // neither received nor declared
	Unsettled     uint64  // numbers above the last watermarks

	Wanted       []vsockproto.EventType // what the policy asks for, ascending
	Policy       uint64                 // sent
	PolicyAcked  uint64                 // in force in the guest
	PolicyReason string                 // why the last one is not; guest text
	Filters      []vsockproto.Filter    // of the policy
	Filtering    vsockproto.Filtering   // what the guest's kernel left out, as it says

	Clock Clock
}

// ByClass counts records.
type ByClass struct{ Critical, Bulk uint64 }

func (b *ByClass) add(c vsockproto.Class, n uint64) {
	if c == vsockproto.Critical {
		b.Critical += n
		return
	}
	b.Bulk += n
}

// status is called with v.mu held.
func (v *vm) status() Status {
	s := Status{VM: v.id, State: v.state(), Reason: v.reason, LastSeen: v.seen, Index: v.index, Clock: v.clock.get()}
	if v.halted {
		s.Reason = "its events wait for room on the host's disk"
	}
	if v.sess == nil {
		return s
	}
	k := v.sess
	s.Session, s.Transport, s.Since, s.Resumed = k.ID, v.transport, k.Since, k.Resumed
	s.Kernel, s.Build, s.BootID, s.CPUs, s.Hooks = k.Kernel, k.Build, k.BootID, k.CPUs, k.Hooks
	s.Version = vsockproto.Version
	s.Frames, s.Bytes = k.Next-1, k.Bytes
	s.Wanted = v.policy.Hooks
	s.Policy, s.PolicyAcked, s.PolicyReason = v.policy.Number, k.PolicyAcked, k.PolicyReason
	s.Filters, s.Filtering = v.policy.Filters, v.filtering
	s.Unsettled = v.ledger.Unsettled()
	for _, a := range v.ledger.Accounts() {
		s.Received.add(a.Class, a.Received)
		s.Lost.add(a.Class, a.Lost)
		s.Missing.add(a.Class, a.Unaccounted)
	}
	return s
}

func (v *vm) state() State {
	switch {
	case v.silent:
		return Silent
	case v.live != nil:
		return Live
	case v.sess == nil:
		return Absent
	}
	return Ended
}
