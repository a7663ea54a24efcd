package session

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/outguard/outguard/plugins/engine"
)

// deafBeats is for how many heartbeats' time an agent may take nothing of what
// it is sent.
const deafBeats = 10

// stands reports whether the VM's vCPUs do, as far as libvirt says: then it
// cannot help being slow.
func (m *Manager) stands(v *vm) bool {
	return m.p.Domains != nil && m.p.Domains.DomainState(v.id) == DomainPaused
}

// pace holds a VM that has sent n records to Options.Flood. While it is held
// its agent has no new credit, and no other VM waits for it.
func (c *conn) pace(n int) {
	v := c.v
	v.mu.Lock()
	over := v.records.put(time.Now(), float64(n))
	v.mu.Unlock()
	if over < time.Millisecond { // no timer is finer: the rest is owed with the next frame
		return
	}
	f := finding(RuleFlood, fmt.Sprintf("The VM sends more than %d records a second and is held to that.", c.m.o.Flood))
	f.Detail["rate"] = fmt.Sprint(c.m.o.Flood)
	c.report(f)
	t := time.NewTimer(over)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.ctx.Done():
	}
}

// deaf reports an agent that takes nothing of what it is sent. Its session may
// go on: a transport that stood still looks the same.
func (c *conn) deaf(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) && !c.m.stands(c.v) {
		c.report(finding(RuleDeaf, fmt.Sprintf("The agent has taken nothing of what it is sent for %s; its connection was closed.", deafBeats*c.m.o.Heartbeat)))
	}
	return err
}

// fill takes note of how much of a frame has come. Called with v.mu held.
func (c *conn) fill(now time.Time) {
	if c == nil || c.link == nil {
		return
	}
	if n := c.link.Begun(); n != c.begun {
		c.begun, c.grew = n, now
	}
}

// within completes a finding of silence with what has come of a frame that has
// not come to its end. If more of it has come within a heartbeat its agent is not
// silent, but slow. Called with v.mu held.
func (c *conn) within(f *engine.Finding, silence time.Duration, now time.Time) {
	if c == nil || c.begun == 0 {
		return
	}
	f.Detail["bytes"] = fmt.Sprint(c.begun)
	silence = silence.Round(time.Millisecond)
	if now.Sub(c.grew) <= c.m.o.Heartbeat+c.m.lookEvery() {
		f.Rule = RuleSlow
		f.Reason = fmt.Sprintf("The agent has sent %d bytes of a frame in %s, and not the rest.", c.begun, silence)
		return
	}
	f.Reason = fmt.Sprintf("The VM runs, and its agent has said nothing for %s, but for %d bytes of a frame.", silence, c.begun)
}
