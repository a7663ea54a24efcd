package monitor

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/session"
	"github.com/outguard/outguard/vsockproto"
)

// countEvery is how old the numbers that parts count for themselves may be in
// the metrics.
const countEvery = time.Second

// counters carries what sessions, record and engines count into the metrics.
type counters struct {
	m      *Monitor
	seen   map[uuid.UUID]session.Status // as last counted
	starts map[string]uint64            // of each engine
}

func newCounters(m *Monitor) *counters {
	return &counters{m: m, seen: map[uuid.UUID]session.Status{}, starts: map[string]uint64{}}
}

func (c *counters) run(ctx context.Context) error {
	t := time.NewTicker(countEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			c.count() // what came last
			return ctx.Err()
		case <-t.C:
			c.count()
		}
	}
}

func (c *counters) count() {
	c.m.metrics.EvidenceFull(c.m.store.Full())
	present := map[uuid.UUID]bool{}
	for _, s := range c.m.sessions.Status() {
		present[s.VM] = true
		c.vm(s)
	}
	for vm := range c.seen {
		if !present[vm] {
			delete(c.seen, vm)
			c.m.metrics.Forget(vm)
		}
	}
	for _, e := range c.m.engines {
		s := e.Status()
		out := c.m.metrics.Engine(s.Name)
		out.Up(s.Running)
		out.Queue(s.Pending)
		for ; c.starts[s.Name] < s.Starts; c.starts[s.Name]++ {
			if c.starts[s.Name] > 0 {
				out.Restarted()
			}
		}
	}
}

func (c *counters) vm(s session.Status) {
	was := c.seen[s.VM]
	if was.Session != s.Session {
		was = session.Status{} // the numbers begin anew
	}
	c.seen[s.VM] = s
	out := c.m.metrics.VM(s.VM, c.m.domains.name(s.VM))
	for class, n := range map[vsockproto.Class][3]uint64{
		vsockproto.Critical: {s.Received.Critical - was.Received.Critical, s.Lost.Critical - was.Lost.Critical, s.Missing.Critical - was.Missing.Critical},
		vsockproto.Bulk:     {s.Received.Bulk - was.Received.Bulk, s.Lost.Bulk - was.Lost.Bulk, s.Missing.Bulk - was.Missing.Bulk},
	} {
		out.Received(class, int(n[0]))
		out.Lost(class, n[1])
		out.Missing(class, n[2])
	}
	if stream, err := c.m.store.Stream(s.VM); err == nil {
		st := stream.Stats()
		out.Evidence(uint64(st.Used), st.Next)
	}
}
