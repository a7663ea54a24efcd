package serial

import (
	"context"
	"fmt"
	"net"
	"time"
)

// Host is the host's end of a port: one connection after another. A guest that
// opens another one has ended the one before.
type Host struct {
	port
	nonce uint64

	greeted bool   // rmu: hello was sent
	wanted  uint64 // rmu: the guest's, that opened while another was there
	before  uint64 // rmu: the last one's
	over    uint64 // mu: the one's that was closed here, and was not told yet
}

// NewHost makes the host's end of s. It starts nothing.
func NewHost(s Stream) *Host {
	return &Host{port: port{s: s, r: reader{src: s}}, nonce: nonce()}
}

// Accept says who has the host's end, waits until the guest opens a connection,
// and returns it. An earlier one has to be closed. After an error other than
// ctx's the stream is of no more use.
func (h *Host) Accept(ctx context.Context) (net.Conn, error) {
	guest, err := h.wait(ctx)
	if err != nil {
		return nil, fmt.Errorf("wait for the guest: %w", err)
	}
	c := &conn{p: &h.port, guest: guest, host: h.nonce}
	c.other = func(p Header) bool { return h.other(c, p) }
	c.end = func() error { return h.ended(c) }
	h.mu.Lock()
	h.owner = c
	h.mu.Unlock()
	return c, nil
}

// Counts are of what was passed over so far. Not to be called while a
// connection is read from.
func (h *Host) Counts() Counts {
	h.rmu.Lock()
	defer h.rmu.Unlock()
	return h.r.counts
}

// Close closes the stream.
func (h *Host) Close() error { return h.s.Close() }

// wait returns the nonce of a guest that has been told that it is accepted.
func (h *Host) wait(ctx context.Context) (guest uint64, err error) {
	h.rmu.Lock()
	defer h.rmu.Unlock()
	h.mu.Lock()
	over := h.over
	h.owner, h.over = nil, 0
	h.mu.Unlock()
	if err := h.s.SetReadDeadline(time.Time{}); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { h.s.SetReadDeadline(past) })
	guest, err = h.open(over)
	if !stop() {
		return 0, ctx.Err()
	}
	return guest, err
}

func (h *Host) open(over uint64) (guest uint64, err error) {
	if over != 0 {
		if err := h.control(Close, over, h.nonce, false); err != nil {
			return 0, err
		}
	}
	if !h.greeted {
		if err := h.control(Hello, 0, h.nonce, true); err != nil {
			return 0, err
		}
		h.greeted = true
	}
	for h.wanted == 0 {
		p, _, err := h.r.next(0, 0)
		if err != nil {
			return 0, err
		}
		if err := h.called(p); err != nil {
			return 0, err
		}
	}
	guest, h.wanted = h.wanted, 0
	h.before = guest
	return guest, h.control(Accept, guest, h.nonce, false)
}

// called takes a packet while there is no connection.
func (h *Host) called(p Header) error {
	switch {
	case p.Type != Open:
		h.r.counts.Stale++
	case p.Host != h.nonce:
		return h.control(Hello, 0, h.nonce, false)
	case p.Guest == h.before: // it has not heard yet that this one has ended
		return h.control(Close, p.Guest, h.nonce, false)
	default:
		h.wanted = p.Guest
	}
	return nil
}

// other takes a packet while c is there.
func (h *Host) other(c *conn, p Header) (ended bool) {
	switch {
	case p.Type == Close:
		return p.Guest == c.guest && p.Host == c.host
	case p.Type != Open || p.Guest == c.guest:
		return false
	case p.Host == h.nonce:
		h.wanted = p.Guest
		return true
	}
	h.answer()
	return false
}

// answer says who has the host's end. Where a write is under way it does not: who
// asked will ask again.
func (h *Host) answer() {
	if !h.wmu.TryLock() {
		return
	}
	defer h.wmu.Unlock()
	if h.s.SetWriteDeadline(time.Now().Add(controlTime)) == nil {
		_ = h.put(Hello, 0, h.nonce, nil) // the connection's next write says what is wrong
	}
}

func (h *Host) ended(c *conn) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = c.guest
	return nil
}
