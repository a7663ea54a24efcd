package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

var vmID = uuid.MustParse("6f1d7f5e-3c0a-4b0e-9a53-0d8a2b0f6c11")

// world is all that a Manager stands on, in memory.
type world struct {
	mu       sync.Mutex
	key      map[uuid.UUID][32]byte
	record   []entry
	facts    []string
	batches  []string // what was delivered, as text
	findings []engine.Finding
	state    DomainState
	store    map[uuid.UUID][]byte
	refuse   error         // what Record answers
	noRoom   bool          // what Room answers, turned round
	full     bool          // Record has no room for what a proven agent sends
	gate     chan struct{} // what Deliver waits for, if it is set
	slow     chan struct{} // what Opened waits for, if it is set

	held    time.Time     // when Record was given what is held, zero when that is Recorded
	longest time.Duration // from the one to the other
}

type entry struct {
	session uuid.UUID
	whole   bool
	raw     []byte
}

func newWorld() *world {
	return &world{key: map[uuid.UUID][32]byte{vmID: prototest.Key}, state: DomainRunning, store: map[uuid.UUID][]byte{}}
}

// manager sends no canaries unless the options say how often.
func (w *world) manager(o *Options) *Manager {
	if o == nil {
		o = &Options{}
	}
	if o.Canary == 0 {
		o.Canary = 1 << 62
	}
	return New(Parts{
		Keys: w, Recorder: w, Sink: w, Domains: w, Store: w, Replayer: w,
		Findings: func(f engine.Finding) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.findings = append(w.findings, f)
		},
		Log: slog.New(slog.DiscardHandler),
	}, o)
}

func (w *world) Key(vm uuid.UUID) ([32]byte, error) {
	if k, ok := w.key[vm]; ok {
		return k, nil
	}
	return [32]byte{}, fmt.Errorf("%s: %w", vm, ErrNotEnrolled)
}

func (w *world) Record(r *Received) (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.full && r.Proven() {
		return 0, ErrFull
	}
	w.record = append(w.record, entry{r.Session, r.Whole, bytes.Clone(r.Raw)})
	if r.Held {
		w.held = time.Now()
	}
	if errors.Is(w.refuse, ErrNotKept) && r.Critical {
		return uint64(len(w.record) - 1), nil
	}
	return uint64(len(w.record) - 1), w.refuse
}

func (w *world) Recorded(uuid.UUID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.longest, w.held = max(w.longest, time.Since(w.held)), time.Time{}
	return nil
}

func (w *world) Room(uuid.UUID, int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.noRoom
}

func (w *world) setRoom(room bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noRoom = !room
}

func (w *world) Opened(s *Status) error {
	if w.slow != nil {
		<-w.slow
	}
	return w.fact("opened", s)
}

func (w *world) Closed(s *Status) error { return w.fact("closed", s) }

func (w *world) fact(what string, s *Status) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.facts = append(w.facts, what+" "+string(s.State))
	return nil
}

func (w *world) Deliver(ctx context.Context, b *engine.Batch) error {
	w.mu.Lock()
	gate := w.gate
	var e vsockproto.Event
	rest, n := b.Records, 0
	for ; len(rest) > 0; n++ {
		rest, _ = e.Parse(rest)
		w.batches = append(w.batches, fmt.Sprintf("%s/%d", e.Type, e.Sequence))
	}
	// The batch's bytes must be on record, under its index, already.
	if raw := w.record[b.Index].raw; !bytes.Contains(raw, b.Records) || n != b.Count || b.VM != vmID {
		w.batches = append(w.batches, "not as recorded")
	}
	w.mu.Unlock()
	if gate == nil {
		return nil
	}
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *world) DomainState(uuid.UUID) DomainState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

func (w *world) setState(s DomainState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state = s
}

func (w *world) Save(vm uuid.UUID, b []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if b == nil {
		delete(w.store, vm)
		return nil
	}
	w.store[vm] = bytes.Clone(b)
	return nil
}

func (w *world) Load(vm uuid.UUID) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.store[vm], nil
}

func (w *world) Replay(vm, session uuid.UUID, after uint64, frame func(uint64, []byte) error) error {
	for i, e := range w.record {
		if uint64(i) > after && e.session == session && e.whole {
			if err := frame(uint64(i), e.raw); err != nil {
				return err
			}
		}
	}
	return nil
}

// rules lists the findings so far as "rule" or "rule!" for the highest severity.
func (w *world) rules() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for _, f := range w.findings {
		mark := ""
		if f.Severity == engine.Severest {
			mark = "!"
		}
		if f.VM != vmID || f.Engine != "monitor" || f.At.IsZero() || f.Reason == "" || f.Severity == 0 {
			mark += " (incomplete)"
		}
		all = append(all, strings.TrimPrefix(f.Rule, "session/")+mark)
	}
	return strings.Join(all, " ")
}

func (w *world) delivered() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.batches, " ")
}

// call connects an agent to the manager until one of them ends it.
type call struct {
	agentEnd, hostEnd chan error
	agent, host       net.Conn
}

func dial(ctx context.Context, m *Manager, a *prototest.Agent) *call {
	return dialOver(ctx, m, a, func(nc net.Conn) net.Conn { return nc })
}

// dialOver has the manager serve what over makes of its end.
func dialOver(ctx context.Context, m *Manager, a *prototest.Agent, over func(net.Conn) net.Conn) *call {
	c := &call{agentEnd: make(chan error, 1), hostEnd: make(chan error, 1)}
	c.agent, c.host = prototest.Pipe()
	c.host = over(c.host)
	go func() { c.agentEnd <- a.Run(ctx, c.agent) }()
	go func() { c.hostEnd <- m.Serve(ctx, c.host, vmID, "hybrid") }()
	return c
}

func (c *call) hangUp() {
	c.agent.Close()
	<-c.agentEnd
	<-c.hostEnd
}

func send(t *testing.T, a *prototest.Agent, types ...vsockproto.EventType) {
	t.Helper()
	var events []*vsockproto.Event
	for _, k := range types {
		events = append(events, prototest.Sample(k))
	}
	if err := a.Send(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
}

func settle(t *testing.T, a *prototest.Agent) {
	t.Helper()
	if err := a.Link().Wait(t.Context(), 4096); err != nil {
		t.Fatal(err)
	}
	if err := a.Heartbeat(); err != nil {
		t.Fatal(err)
	}
	if err := a.Drained(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}
