package session

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
)

// Answer is what became of a connection from the host to a port of the VM at
// which nobody listens.
type Answer uint8

// Answers of a VM's vsock, or of QEMU for its port.
const (
	AnswerUnknown Answer = iota // it could not be tried
	AnswerRefused               // the guest's kernel lives: it refuses
	AnswerNone                  // nothing comes back
	AnswerGone                  // there is no vsock in the guest, or no way to it
	AnswerClosed                // nobody in the guest has its end of a virtio-serial port open
	AnswerOpen                  // somebody has: nothing past him can be asked
)

// Vitals are a VM's signs of life beside its agent's.
type Vitals struct {
	Vsock Answer
	CPU   float64 // vCPU time used, seconds in a second, over all vCPUs; negative: unknown
}

// Examiner looks at a VM whose agent has fallen silent. It returns within about
// a second; what it cannot tell is unknown.
type Examiner interface {
	Examine(ctx context.Context, vm uuid.UUID) Vitals
}

// Cause says why an agent is silent; the finding has it as its detail "cause".
type Cause string

// Causes of silence.
const (
	CauseUnknown Cause = "unknown"
	CauseEnded   Cause = "agent-ended"   // its connection has ended without a Bye, and the guest's kernel lives
	CauseStopped Cause = "agent-stopped" // its connection is there, and the guest's kernel lives
	CauseChannel Cause = "channel-gone"  // the guest's vsock does not answer, and its vCPUs are not busy
	CauseHung    Cause = "guest-hung"    // nor does it, and they are
	CauseClosed  Cause = "port-closed"   // nobody in the guest has its end of the port open
	CauseMute    Cause = "port-mute"     // its end of the port is open: it is stopped, or the guest hangs
)

var causeSentences = map[Cause]string{
	CauseUnknown: "Whether the guest's kernel lives could not be found out.",
	CauseEnded:   "The agent has ended or was killed: its connection is closed without a Bye, and the guest's kernel answers.",
	CauseStopped: "The agent is stopped or gets no time (SIGSTOP, cgroup.freeze, cpu.max): its connection is there, and the guest's kernel answers.",
	CauseChannel: "The channel is gone or stands still, by its transport's module, the device or the host's side of it: nothing answers at it, and the vCPUs are not busy.",
	CauseClosed:  "The agent has ended or was killed, or its driver was taken away: QEMU says that the guest's end of the virtio-serial port is closed.",
	CauseMute: "The guest's end of the virtio-serial port is open, and nothing comes over it: the agent is stopped or the guest hangs, " +
		"or another client has the port's socket on the host. A port has nobody past the agent who could be asked which.",
	CauseHung: "The guest hangs: its vCPUs spin, and its kernel does not answer at its vsock, either.",
}

// busy is how much vCPU time a kernel uses at least that hangs: after a panic, or
// in a loop with interrupts off, it spins on one vCPU. Half of it leaves room for
// a host that has other things to do. A guest that works as much, and has lost
// its channel, cannot be told from that.
const busy = 0.5

// causeOf tells what a silence comes from.
func causeOf(v Vitals, connected bool) Cause {
	switch v.Vsock {
	case AnswerClosed:
		return CauseClosed
	case AnswerOpen:
		return CauseMute
	case AnswerGone:
		return CauseChannel
	case AnswerNone:
		if v.CPU >= busy {
			return CauseHung
		}
		return CauseChannel
	case AnswerRefused:
		if connected {
			return CauseStopped
		}
		return CauseEnded
	}
	return CauseUnknown
}

// examinations is how many VMs may be examined at once. If more fall silent,
// what stands still is the host, and for those no cause is named.
const examinations = 32

// look is an examination of a VM; vitals are there when done is closed.
type look struct {
	began  time.Time
	vitals Vitals
	done   chan struct{}
}

// examine has a VM looked at, unless too many are.
func (m *Manager) examine(ctx context.Context, v *vm) *look {
	l := &look{began: time.Now(), vitals: Vitals{CPU: -1}, done: make(chan struct{})}
	select {
	case m.examining <- struct{}{}:
		m.running.Go(func() {
			l.vitals = m.p.Examiner.Examine(ctx, v.id)
			<-m.examining
			close(l.done)
		})
	default:
		close(l.done)
	}
	return l
}

// diagnose completes a finding of silence and reports it.
func (m *Manager) diagnose(v *vm, f engine.Finding, connected bool, l *look) {
	<-l.done
	if m.spoke(v, l.began) {
		return // it was late, and is there
	}
	cause := causeOf(l.vitals, connected)
	f.Reason += " " + causeSentences[cause]
	f.Detail["cause"] = string(cause)
	if l.vitals.CPU >= 0 {
		f.Detail["vcpu_seconds_per_second"] = fmt.Sprintf("%.2f", l.vitals.CPU)
	}
	m.report(v, f)
}

// spoke reports whether a frame has come since.
func (m *Manager) spoke(v *vm, since time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.seen.After(since)
}
