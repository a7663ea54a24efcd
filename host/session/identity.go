package session

import (
	"time"

	"github.com/outguard/outguard/plugins/engine"
)

// misplaced returns a finding when an agent goes on speaking for a VM that has
// been off for a while, by libvirt's word: a clone, or a domain whose UUID was
// changed, has its channel and its key. Called with v.mu held, after follow.
func (m *Manager) misplaced(v *vm, now time.Time) *engine.Finding {
	switch {
	case v.domain != DomainOff:
		v.offSince = time.Time{}
		return nil
	case v.offSince.IsZero():
		v.offSince = now
		return nil
	case v.live == nil || v.seen.Sub(v.offSince) < time.Duration(m.o.Silence)*m.o.Heartbeat:
		return nil
	}
	f := finding(RuleMisplaced, "An agent speaks for the VM, which libvirt says does not run: another domain has its channel.")
	f.Detail["session"] = v.sess.ID.String()
	return &f
}

// leapt reports whether the host's wall clock went another way than the clock
// that stands while the host sleeps.
func leapt(wall, awake time.Duration) bool {
	return (wall - awake).Abs() > time.Second
}

// woke begins to listen anew after the host has slept, or its clock was set:
// nobody could be heard meanwhile, and what related the guests' clocks to the
// host's does no longer.
func (m *Manager) woke(now time.Time) {
	m.log.Info("the host's clock leapt, as after a sleep: silence counts from now")
	m.each(func(v *vm) {
		v.due = latest(v.due, now)
		v.clock.reset()
	})
}

// lagged takes what the monitor itself was late off every silence: while it got
// no time, it heard nobody.
func (m *Manager) lagged(late time.Duration, now time.Time) {
	m.each(func(v *vm) {
		if v.due.Before(now) { // else it has its grace
			v.due = v.due.Add(min(late, now.Sub(v.due)))
		}
	})
}

// each calls do for every VM, with its lock held.
func (m *Manager) each(do func(*vm)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range m.vms {
		v.mu.Lock()
		do(v)
		v.mu.Unlock()
	}
}
