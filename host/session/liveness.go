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
	f, elsewhere := m.quiet(v, now), m.misplaced(v, now)
	connected := v.live != nil
	v.mu.Unlock()
	for _, f := range []*engine.Finding{f, elsewhere} {
		switch {
		case f == nil:
		case f.Rule == RuleSilent && m.p.Examiner != nil:
			m.running.Go(func() { m.diagnose(ctx, v, *f, connected) })
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

// quiet returns the finding that is due, if one is. Called with v.mu held.
func (m *Manager) quiet(v *vm, now time.Time) *engine.Finding {
	switch {
	case v.domain == DomainPaused, v.domain == DomainOff, v.sess == nil && !v.expected:
		return nil
	case v.domain == DomainUnknown && v.live == nil: // found when libvirt says that it runs
		return nil
	}
	for _, step := range []struct {
		beats    int
		done     *bool
		severity engine.Severity
	}{{m.o.Silence, &v.silent, engine.High}, {m.o.Escalate, &v.worse, engine.Severest}} {
		if *step.done || now.Sub(v.due) < time.Duration(step.beats)*m.o.Heartbeat {
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
		v.slow(&f, now)
		return &f
	}
	return nil
}

// heard takes note of a frame. Called with v.mu held.
func (v *vm) heard(at time.Time) {
	v.seen, v.due = at, at
	v.silent, v.worse = false, false
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
