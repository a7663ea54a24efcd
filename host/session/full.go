package session

import (
	"errors"
	"fmt"
	"time"
)

// fullBackoff is how often at least a frame is tried for which there is no room.
const fullBackoff = time.Second

// record records what was received. A frame of a proven agent for which the host
// has no room is waited with, for as long as the connection lives: meanwhile
// nothing is read, acked or given credit for, so that the agent comes to a halt
// and its kernel counts what finds no room there. Nothing of it is lost unseen.
func (c *conn) record() (uint64, error) {
	index, err := c.m.p.Recorder.Record(&c.got)
	if !errors.Is(err, ErrFull) || !c.got.Whole || !c.in { // what is no frame of its session is never judged
		return index, err
	}
	began := time.Now()
	c.halt(err)
	for wait := fullBackoff / 16; errors.Is(err, ErrFull); wait = min(2*wait, fullBackoff) {
		select {
		case <-c.ctx.Done():
			return 0, errors.Join(err, c.ctx.Err())
		case <-c.kicked:
			return 0, err
		case <-time.After(wait):
			index, err = c.m.p.Recorder.Record(&c.got)
		}
	}
	if err == nil || errors.Is(err, ErrNotKept) {
		c.goesOn(time.Since(began))
	}
	return index, err
}

// halt acks what is on record, without credit for more, and says that the VM's
// events wait. That its agent is not heard meanwhile is the host's doing.
func (c *conn) halt(why error) {
	v := c.v
	v.mu.Lock()
	c.busy, v.halted = true, true
	withheld := v.withheld
	v.mu.Unlock()
	if next := c.link.Next(); next > 1 {
		_ = c.link.Ack(next-1, 0, withheld) // a connection that broke is found when it is read again
	}
	f := finding(RuleFull, "The host has no room to record what the VM sends: its events wait in the guest, unjudged, and what finds no room there is counted.")
	f.Detail["error"] = why.Error()
	c.m.report(v, f)
}

func (c *conn) goesOn(after time.Duration) {
	c.v.mu.Lock()
	c.v.halted = false
	c.v.mu.Unlock()
	c.m.report(c.v, finding(RuleRoom, fmt.Sprintf("The host has room again: the VM's events are recorded and judged, after %s.", after.Round(time.Millisecond))))
}
