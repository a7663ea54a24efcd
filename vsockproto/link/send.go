package link

import (
	"context"
	"fmt"

	"github.com/outguard/outguard/vsockproto"
)

// Room returns how large a payload may be sent now, in bytes; 0 or less: none.
func (a *Agent) Room() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.room(spareFrames)
}

// spareFrames of those that may be held are for who sends without asking for
// room before: a sign of life.
const spareFrames = 16

func (a *Agent) room(spare int) int {
	if !a.connected || a.over || a.limit < a.hold.last || a.hold.count >= uint64(max(a.frames-spare, 1)) {
		return 0
	}
	n := min(uint64(a.hold.room()), a.limit-a.hold.last, vsockproto.MaxFrame)
	return int(n&^7) - vsockproto.FrameHeaderSize
}

// Wait returns when a payload of n bytes may be sent, or with ctx.
func (a *Agent) Wait(ctx context.Context, n int) error {
	return a.until(ctx, func() bool { return a.room(spareFrames) >= n })
}

// Drained returns when the host has recorded everything sent, or with ctx.
func (a *Agent) Drained(ctx context.Context) error {
	return a.until(ctx, func() bool { return a.hold.count == 0 })
}

func (a *Agent) until(ctx context.Context, done func() bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if done() {
		return nil
	}
	stop := context.AfterFunc(ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.changed.Broadcast()
	})
	defer stop()
	for !done() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		a.changed.Wait()
	}
	return nil
}

// SendEvents sends count records that stand one after another in records. When
// it returns nil the frame is held, and will be sent until it is recorded;
// ErrNoRoom leaves everything as it was.
func (a *Agent) SendEvents(count int, records []byte) error {
	var head [vsockproto.EventsHeader]byte
	return a.send(vsockproto.FrameEvents, vsockproto.AppendEventsHeader(head[:0], count), records)
}

// SendHeartbeat sends h in the same way.
func (a *Agent) SendHeartbeat(h *vsockproto.Heartbeat) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.scratch = vsockproto.AppendHeartbeat(a.scratch[:0], h)
	return a.put(vsockproto.FrameHeartbeat, a.scratch, nil)
}

// SendPolicyAck sends p in the same way.
func (a *Agent) SendPolicyAck(p *vsockproto.PolicyAck) error {
	return a.send(vsockproto.FramePolicyAck, vsockproto.AppendPolicyAck(nil, p), nil)
}

// SendCanaryAck sends c in the same way.
func (a *Agent) SendCanaryAck(c *vsockproto.CanaryAck) error {
	return a.send(vsockproto.FrameCanaryAck, vsockproto.AppendCanaryAck(nil, c), nil)
}

// SendCommandAck sends c in the same way.
func (a *Agent) SendCommandAck(c *vsockproto.CommandAck) error {
	return a.send(vsockproto.FrameCommandAck, vsockproto.AppendCommandAck(nil, c), nil)
}

// SendBye sends y in the same way. After it there is no room for anything,
// until a new session has begun.
func (a *Agent) SendBye(y *vsockproto.Bye) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.put(vsockproto.FrameBye, vsockproto.AppendBye(nil, y), nil)
	a.over = a.over || err == nil
	return err
}

func (a *Agent) send(t vsockproto.FrameType, x, y []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.put(t, x, y)
}

func (a *Agent) put(t vsockproto.FrameType, x, y []byte) error {
	n := len(x) + len(y)
	switch {
	case n%8 != 0:
		return fmt.Errorf("send %s of %d bytes: %w", t, n, vsockproto.ErrInvalid)
	case n > vsockproto.MaxFrame-vsockproto.FrameHeaderSize:
		return fmt.Errorf("send %s of %d bytes: %w", t, n, vsockproto.ErrTooLong)
	case n > a.room(0):
		return ErrNoRoom
	}
	a.journal.Sent(a.hold.next(), t)
	a.hold.put(t, n, x, y)
	a.changed.Broadcast()
	return nil
}
