// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"context"
	"time"

	"github.com/outguard/outguard/vsockproto"
)

// connect keeps a connection up until ctx ends.
func (u *Uplink) connect(ctx context.Context) {
	delay := u.minDelay
	for ctx.Err() == nil {
		began := time.Now()
		err := u.connectOnce(ctx)
		if ctx.Err() != nil || u.hasEnded() {
			return
		}
		if time.Since(began) > u.maxDelay {
			delay = u.minDelay
		}
		u.log.Warn("no connection to the host", "error", err, "next", delay)
		pause(ctx, delay)
		delay = min(2*delay, u.maxDelay)
	}
}

func (u *Uplink) connectOnce(ctx context.Context) error {
	conn, err := u.Dial(ctx)
	if err != nil {
		return err
	}
	return u.Link.Run(ctx, conn, u.Hello(), handler{u})
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// handler takes what the host sends.
type handler struct{ u *Uplink }

func (h handler) Welcome(ack vsockproto.HelloAck, resumed bool) {
	u := h.u
	if state, ok := u.Link.State(); ok {
		if err := u.Save(state); err != nil {
			u.log.Warn("a restart will not go on with this session", "error", err)
		}
	}
	u.mu.Lock()
	u.beat, u.fresh = time.Duration(ack.HeartbeatMs)*time.Millisecond, true
	if !resumed {
		u.begun, u.policy, u.answers = true, nil, nil
	}
	again := !resumed && u.stale
	u.stale = true // from here on another new session begins without one
	u.again = u.again || again
	u.mu.Unlock()
	if !resumed {
		u.order()
	}
	u.log.Info("connected", "resumed", resumed, "next_frame", ack.Next, "credit", ack.Credit, "heartbeat_ms", ack.HeartbeatMs)
	u.wake()
}

// Policy is put into force beside everything else: programs may have to be
// loaded for it, which takes its time. A newer one takes the place of one that
// still waits.
func (h handler) Policy(p vsockproto.Policy) {
	h.u.mu.Lock()
	h.u.policy = &p
	h.u.mu.Unlock()
	h.u.order()
}

// order makes obey look.
func (u *Uplink) order() {
	select {
	case u.orders <- struct{}{}:
	default: // it will
	}
}

// obey puts policies into force until ctx ends.
func (u *Uplink) obey(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-u.orders:
			u.apply()
		}
	}
}

// apply puts the newest policy into force, and has it answered unless the
// session in which it came has ended meanwhile.
func (u *Uplink) apply() {
	u.mu.Lock()
	p, begun := u.policy, u.begun
	u.policy, u.begun = nil, false
	u.mu.Unlock()
	if begun {
		u.Policies.Begin()
	}
	if p == nil {
		return
	}
	ack := u.Policies.Apply(*p)
	u.log.Info("policy", "number", p.Number, "hooks", len(p.Hooks), "refused", ack.Reason)
	u.mu.Lock()
	if !u.begun {
		u.answers = &ack
	}
	u.mu.Unlock()
	u.wake()
}

// Canary answers the newest: the host waits for no other.
func (h handler) Canary(q vsockproto.Canary) {
	ack := h.u.Policies.Canary(q)
	ack.BootNs, _ = h.u.Clock()
	if ack.Reason != "" {
		h.u.log.Warn("canary", "error", ack.Reason)
	}
	h.u.mu.Lock()
	h.u.sung = &ack
	h.u.mu.Unlock()
	h.u.wake()
}

// Command does each that comes, in their order.
func (h handler) Command(c vsockproto.Command) {
	ack := h.u.Policies.Command(c)
	ack.BootNs, _ = h.u.Clock()
	h.u.log.Info("command", "kind", c.Kind, "pid", c.TGID, "cgroup", c.Cgroup, "tasks", ack.Tasks, "refused", ack.Reason)
	h.u.mu.Lock()
	if len(h.u.obeyed) < maxObeyed {
		h.u.obeyed = append(h.u.obeyed, &ack)
	}
	h.u.mu.Unlock()
	h.u.wake()
}

func (u *Uplink) wake() {
	if err := u.Source.Wake(); err != nil {
		u.log.Warn("wake the reader", "error", err)
	}
}

func (u *Uplink) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ended = true
}

func (u *Uplink) hasEnded() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.ended
}
