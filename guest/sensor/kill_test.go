// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/guest/uplink"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// machine is a guest without its agent: programs that write, and what is pinned.
type machine struct {
	*desk
	t   testing.TB
	rng *rand.Rand

	mu       sync.Mutex // guards what follows
	counters [2]bpf.ProbeCounter
	state    *link.State
}

func (m *machine) counter(slot uint32, into *bpf.ProbeCounter) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	*into = m.counters[slot]
	return nil
}

// emit writes a record, or counts it lost.
func (m *machine) emit(class vsockproto.Class) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, into := &m.counters[class-1], m.critical
	if class == vsockproto.Bulk {
		into = m.bulk
	}
	c.Emitted++
	e := prototest.Sample(vsockproto.FileOpen)
	e.Class, e.Sequence = class, c.Emitted
	e.Path.Data = make([]byte, m.rng.IntN(3000))
	b, err := e.Append(nil)
	if err != nil {
		m.t.Error(err)
	}
	if into.put(b) {
		c.Submitted++
	} else {
		c.Lost++
	}
}

// victim is an agent that dies after so many steps: whatever it does then, no
// trace of it is left. Fuse 0 is a long life.
type victim struct {
	m *machine
	b *batcher
	j *Journal
	a *account

	dead chan struct{}
	wake chan struct{}

	mu   sync.Mutex // a step is one thing; guards what follows
	fuse int
	conn net.Conn
}

var errKilled = errors.New("killed")

func (m *machine) start(fuse int) *victim {
	b, j := m.open()
	return &victim{m: m, b: b, j: j, a: newAccount(m, 1), fuse: fuse, dead: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// step does one thing, and may be killed before it or after it.
func (v *victim) step(do func()) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, f := range []func(){do, func() {}} {
		select {
		case <-v.dead:
			return errKilled
		default:
		}
		if v.fuse--; v.fuse == 0 {
			close(v.dead)
			if v.conn != nil {
				v.conn.Close()
			}
			return errKilled
		}
		f()
	}
	return nil
}

// Journal

func (v *victim) Sent(seq uint64, t vsockproto.FrameType) { _ = v.step(func() { v.j.Sent(seq, t) }) }
func (v *victim) Acked(seq uint64)                        { _ = v.step(func() { v.j.Acked(seq) }) }
func (v *victim) Begin()                                  { _ = v.step(v.j.Begin) }
func (v *victim) Resume(next uint64) (ok bool) {
	err := v.step(func() { ok = v.j.Resume(next) })
	return ok || err != nil
}

// Source

func (v *victim) Batch(b []byte) (out []byte, n int, err error) {
	out = b
	killed := v.step(func() {
		if at, ok := v.j.place(); ok {
			v.b.place(at)
		}
		out, n, err = v.b.next(b)
	})
	return out, n, errors.Join(err, killed)
}

func (v *victim) Wait(d time.Duration) error {
	t := time.NewTimer(min(d, 2*time.Millisecond))
	defer t.Stop()
	select {
	case <-v.wake:
	case <-v.dead:
	case <-t.C:
	}
	return nil
}

func (v *victim) Wake() error {
	select {
	case v.wake <- struct{}{}:
	default:
	}
	return nil
}

func (v *victim) Mark() (err error) {
	killed := v.step(func() { err = v.a.mark(v.b, vsockproto.Totals{}) })
	return errors.Join(err, killed)
}

func (v *victim) Settled() bool                                         { return v.a.settle(v.b) }
func (v *victim) Counters(to []vsockproto.Counter) []vsockproto.Counter { return v.a.append(to) }
func (v *victim) Withhold(withheld bool)                                { v.b.withheld = withheld }
func (v *victim) Snapshot() error                                       { return nil }
func (v *victim) Totals() vsockproto.Totals                             { return v.a.totals }
func (v *victim) Filtering() (vsockproto.Filtering, error)              { return vsockproto.Filtering{}, nil }

func (v *victim) save(s link.State) error {
	return v.step(func() {
		v.m.mu.Lock()
		defer v.m.mu.Unlock()
		v.m.state, v.m.origin = &s, v.j.base()
	})
}

// wire is a connection that a kill cuts, also in the middle of a frame.
type wire struct {
	net.Conn
	v *victim
}

func (w wire) Write(b []byte) (n int, err error) {
	for _, part := range [][]byte{b[:len(b)/2], b[len(b)/2:]} {
		if err := w.v.step(func() {}); err != nil {
			return n, err
		}
		m, err := w.Conn.Write(part)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, w.v.step(func() {})
}

// city is a machine and its host.
type city struct {
	*machine
	host     *prototest.Host
	received uint64
	served   sync.WaitGroup
}

func newCity(t testing.TB, seed uint64) *city {
	c := &city{machine: &machine{desk: newDesk(), t: t, rng: rand.New(rand.NewPCG(seed, 0))}}
	c.kernel = &kernel{critical: newMemRing(128 << 10), bulk: newMemRing(128 << 10)}
	c.host = prototest.NewHost(&prototest.HostOptions{
		Heartbeat: 5 * time.Millisecond,
		OnEvent:   func(*vsockproto.Event) { c.received++ },
	})
	return c
}

// dial connects an agent; the host takes one connection after the other.
func (c *city) dial(v *victim) uplink.DialFunc {
	return func(context.Context) (net.Conn, error) {
		agent, host := prototest.Pipe()
		err := v.step(func() { v.conn = agent })
		if err != nil {
			return nil, err
		}
		c.served.Wait()
		c.served.Add(1)
		go func() {
			defer c.served.Done()
			switch err := c.host.Serve(host); {
			case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe), errors.Is(err, net.ErrClosed):
			default:
				c.t.Errorf("the host: %v", err)
			}
		}()
		return wire{agent, v}, nil
	}
}

// live is one agent's life: until its fuse, or until ctx ends.
func (c *city) live(ctx context.Context, fuse int) error {
	v := c.start(fuse)
	agent := link.NewAgent(prototest.Key, &link.AgentOptions{Frames: MaxFrames, Hold: 512 << 10, Journal: v})
	if c.state != nil {
		agent.Restore(*c.state)
	}
	return uplink.New(uplink.Config{
		Link:     agent,
		Source:   v,
		Policies: noPolicies{},
		Dial:     c.dial(v),
		Hello:    func() *vsockproto.Hello { return &vsockproto.Hello{CPUs: 1, Kernel: "test"} },
		Clock:    func() (uint64, uint64) { return 1, 1 },
		Save:     v.save,
	}, &uplink.Options{MinDelay: time.Millisecond}).Run(ctx)
}

type noPolicies struct{}

func (noPolicies) Begin() {}
func (noPolicies) Command(c vsockproto.Command) vsockproto.CommandAck {
	return vsockproto.CommandAck{Number: c.Number}
}

func (noPolicies) Canary(vsockproto.Canary) vsockproto.CanaryAck { return vsockproto.CanaryAck{} }
func (noPolicies) Apply(p vsockproto.Policy) vsockproto.PolicyAck {
	return vsockproto.PolicyAck{Number: p.Number}
}

// burst writes for a while.
func (c *city) burst() {
	for range 1 + c.rng.IntN(20) {
		for range c.rng.IntN(30) {
			c.emit(vsockproto.Class(1 + c.rng.IntN(2)))
		}
		time.Sleep(time.Duration(c.rng.IntN(1000)) * time.Microsecond)
	}
}

// TestKilledAgents: agents die at random, some while they say Bye, and their
// connections break. The host has every record once that found room, and all
// the account says so.
func TestKilledAgents(t *testing.T) {
	for range 10 {
		seed := rand.Uint64()
		synctest.Test(t, func(t *testing.T) { killAgents(t, seed) })
	}
}

func killAgents(t *testing.T, seed uint64) {
	c := newCity(t, seed)
	kills := 0
	for range 30 {
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		fuse := 1 + c.rng.IntN(150)
		go func() { ended <- c.live(ctx, fuse) }()
		c.burst()
		switch c.rng.IntN(3) {
		case 0:
			stop()
		case 1:
			c.host.Break()
			c.burst()
		}
		time.Sleep(10 * time.Millisecond)
		stop()
		if err := <-ended; errors.Is(err, errKilled) {
			kills++
		} else if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	if kills < 10 {
		t.Errorf("seed %d: %d kills", seed, kills)
	}
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	if err := c.live(ctx, 0); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	c.served.Wait()
	t.Logf("seed %d: %d kills, programs %+v", seed, kills, c.counters)
	c.settled(seed)
}

// settled holds the host's account against the programs' own.
func (c *city) settled(seed uint64) {
	c.t.Helper()
	var submitted uint64
	for _, a := range c.host.Accounts() {
		k := c.counters[a.Class-1]
		submitted += k.Submitted
		if a.Watermark != k.Emitted || a.Received != k.Submitted || a.Lost != k.Lost || a.Unaccounted != 0 {
			c.t.Errorf("seed %d: account %+v of %+v", seed, a, k)
		}
	}
	if c.received != submitted || submitted == 0 {
		c.t.Errorf("seed %d: received %d of %d", seed, c.received, submitted)
	}
}
