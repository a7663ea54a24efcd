package cost

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// host is the other end of the agent's channel: it takes everything at once, so
// that what is measured is the guest's.
type host struct {
	*prototest.Host
	listener net.Listener
	done     chan error
	acks     chan vsockproto.PolicyAck
	number   uint64

	wire   atomic.Uint64 // bytes that came from the agent
	events atomic.Uint64

	mu     sync.Mutex // guards what follows
	byType map[vsockproto.EventType]tally
	since  uint64 // wire when the tallies began
}

// tally is how many records of a type came, and how long they were.
type tally struct{ count, bytes uint64 }

// listen takes the agent's connections on a hybrid socket.
func listen(hybrid string) (*host, error) {
	h := &host{done: make(chan error, 1), acks: make(chan vsockproto.PolicyAck, 1), byType: map[vsockproto.EventType]tally{}}
	h.Host = prototest.NewHost(&prototest.HostOptions{
		Heartbeat: 10 * time.Second,
		Credit:    16 << 20,
		OnEvent:   h.take,
		OnPolicyAck: func(a *vsockproto.PolicyAck) {
			h.acks <- *a
		},
	})
	path := hybrid + "_6820"
	var err error
	if h.listener, err = net.Listen("unix", path); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil { // the device is QEMU's user's
		return nil, errors.Join(err, h.listener.Close())
	}
	go h.serve()
	return h, nil
}

func (h *host) serve() {
	for {
		conn, err := h.listener.Accept()
		if err != nil {
			h.done <- nil
			return
		}
		if err := h.Serve(&counted{conn, &h.wire}); err != nil && h.events.Load() > 0 {
			h.done <- fmt.Errorf("the agent's connection: %w", err)
			return
		}
	}
}

func (h *host) close() error {
	h.Break()
	return h.listener.Close()
}

func (h *host) take(e *vsockproto.Event) {
	h.events.Add(1)
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.byType[e.Type]
	h.byType[e.Type] = tally{t.count + 1, t.bytes + uint64(e.Length)}
}

// forget begins the tallies anew, and tellTypes returns them.
func (h *host) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.byType)
	h.since = h.wire.Load()
}

// delivered is what has come since the tallies began, of which there is some.
func (h *host) delivered() Delivery {
	d, count := Delivery{Types: map[vsockproto.EventType]float64{}}, uint64(0)
	for t, n := range h.types() {
		d.Types[t] = float64(n.bytes) / float64(n.count)
		count += n.count
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	d.Wire = float64(h.wire.Load()-h.since) / float64(max(count, 1))
	return d
}

func (h *host) types() map[vsockproto.EventType]tally {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make(map[vsockproto.EventType]tally, len(h.byType))
	for t, n := range h.byType {
		all[t] = n
	}
	return all
}

// typesOf are those of a profile, or of hooks joined by +.
func typesOf(profile string) (types []vsockproto.EventType, err error) {
	if slices.Contains(vsockproto.ProfileNames(), profile) {
		return vsockproto.ParseProfile(profile)
	}
	for name := range strings.SplitSeq(profile, "+") {
		t, err := vsockproto.ParseEventType(name)
		if err != nil {
			return nil, fmt.Errorf("profile %q is none of %s, and as hooks: %w", profile, strings.Join(vsockproto.ProfileNames(), ", "), err)
		}
		types = append(types, t)
	}
	slices.Sort(types)
	return slices.Compact(types), nil
}

// put has the agent put a profile into force.
func (h *host) put(ctx context.Context, profile string) error {
	types, err := typesOf(profile)
	if err != nil {
		return err
	}
	h.number++
	if err := h.SendPolicy(&vsockproto.Policy{Number: h.number, Hooks: types}); err != nil {
		return fmt.Errorf("policy %s: %w", profile, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	select {
	case a := <-h.acks:
		if a.Reason != "" || a.Number != h.number {
			return fmt.Errorf("policy %s: the agent answers %+v", profile, a)
		}
		return nil
	case err := <-h.done:
		return fmt.Errorf("policy %s: %w", profile, err)
	case <-ctx.Done():
		return fmt.Errorf("policy %s: %w", profile, ctx.Err())
	}
}

// counted counts what is read from a connection.
type counted struct {
	net.Conn
	bytes *atomic.Uint64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.bytes.Add(uint64(n))
	return n, err
}
