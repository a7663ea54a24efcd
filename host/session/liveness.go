package session

import (
	"context"
	"fmt"
	"time"

	"github.com/outguard/outguard/plugins/engine"
)

// listenTo finds a VM silent that runs and should have spoken.
//
// Silence counts from due: the last frame, or the end of the grace for a boot,
// or the last moment at which the vCPUs stood or the host itself was busy with
// the VM's last frame.
func (m *Manager) listenTo(ctx context.Context, v *vm) {
	state := DomainRunning
	if m.p.Domains != nil {
		state = m.p.Domains.DomainState(v.id)
	}
	now := time.Now()
	v.mu.Lock()
	v.follow(state, now, m.o.Grace)
	if now.Sub(v.due) > m.o.Heartbeat && v.live.behind() {
		v.due = now // it has spoken, and the host has not come to read it
	}
	v.live.fill(now)
	m.lookAhead(ctx, v, now)
	f, elsewhere := m.quiet(v, now), m.misplaced(v, now)
	connected, l := v.live != nil, v.look
	if f != nil && l == nil && m.p.Examiner != nil {
		l = m.examine(ctx, v) // this VM was not looked at for a while
	}
	if f != nil {
		v.look = nil
	}
	v.mu.Unlock()
	for _, f := range []*engine.Finding{f, elsewhere} {
		switch {
		case f == nil:
		case f.Rule == RuleSilent && m.p.Examiner != nil:
			m.running.Go(func() { m.diagnose(v, *f, connected, l) })
		default:
			m.report(v, *f)
		}
	}
}

// follow takes note of the domain's state. Called with v.mu held.
func (v *vm) follow(state DomainState, now time.Time, grace time.Duration) {
	was := v.domain
	v.domain = state
	switch {
	case state == DomainPaused:
		v.due = latest(v.due, now)
		v.clock.reset() // its boot clock may stand as well
	case state == DomainOff:
		v.due, v.silent, v.worse = now, false, false
	case was == DomainOff && v.live == nil:
		v.due = latest(v.due, now.Add(grace))
	case v.live != nil && v.live.busy:
		v.due = latest(v.due, now)
	}
}

// mayBeSilent reports whether a VM's silence means anything. Called with v.mu held.
func (v *vm) mayBeSilent() bool {
	switch {
	case v.domain == DomainPaused, v.domain == DomainOff, v.sess == nil && !v.expected:
		return false
	case v.domain == DomainUnknown && v.live == nil: // found when libvirt says that it runs
		return false
	}
	return true
}

// lookAhead has a VM examined whose agent is overdue, so that its silence has a
// cause by the time it is one. Called with v.mu held.
func (m *Manager) lookAhead(ctx context.Context, v *vm, now time.Time) {
	beats := m.o.Silence
	if v.silent {
		beats = m.o.Escalate
	}
	switch {
	case now.Sub(v.due) < m.silence(beats)-m.o.Heartbeat*3/4:
		v.look = nil // of an earlier silence that was none
	case m.p.Examiner == nil, v.look != nil, v.worse, !v.mayBeSilent(), v.seen.IsZero() && v.sess == nil:
	default:
		v.look = m.examine(ctx, v)
	}
}

// silence is how long the agent has said nothing when it is found silent: at the
// last look within that many heartbeats.
func (m *Manager) silence(beats int) time.Duration {
	return time.Duration(beats)*m.o.Heartbeat - m.lookEvery()
}

func (m *Manager) lookEvery() time.Duration { return m.o.Heartbeat / 4 }

// behind reports whether the host has not read what has come already.
func (c *conn) behind() bool {
	if c == nil {
		return false
	}
	w, ok := c.nc.(interface{ Unread() int })
	return ok && w.Unread() > 0
}

// quiet returns the finding that is due, if one is. Called with v.mu held.
func (m *Manager) quiet(v *vm, now time.Time) *engine.Finding {
	if !v.mayBeSilent() {
		return nil
	}
	for _, step := range []struct {
		beats    int
		done     *bool
		severity engine.Severity
	}{{m.o.Silence, &v.silent, engine.High}, {m.o.Escalate, &v.worse, engine.Severest}} {
		if *step.done || now.Sub(v.due) < m.silence(step.beats) {
			continue
		}
		*step.done = true
		if v.seen.IsZero() && v.sess == nil {
			v.silent, v.worse = true, true
			f := finding(RuleAbsent, "The VM is enrolled and runs, and no agent has come up in it.")
			return &f
		}
		f := finding(RuleSilent, fmt.Sprintf("The VM runs, and its agent has said nothing for %s.", now.Sub(v.due).Round(time.Millisecond)))
		f.Severity = step.severity
		f.Detail["last_seen"] = v.seen.UTC().Format(time.RFC3339Nano)
		f.Detail["connected"] = fmt.Sprint(v.live != nil)
		v.live.within(&f, now.Sub(v.due), now)
		return &f
	}
	return nil
}

// heard takes note of a frame. Called with v.mu held.
func (v *vm) heard(at time.Time) {
	v.seen, v.due = at, at
	v.silent, v.worse, v.look = false, false, nil
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
