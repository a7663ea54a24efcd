package session

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
)

// Manager holds the sessions of all VMs.
type Manager struct {
	p   Parts
	o   Options
	log *slog.Logger

	examining chan struct{}  // held while a silent VM is looked at
	running   sync.WaitGroup // of Run

	mu  sync.Mutex // guards vms
	vms map[uuid.UUID]*vm

	looked time.Time // Run's: when it last listened
}

// vm is what is known of one VM. Lock order: turn, mu; mu is never held while
// reading, writing or calling a part.
type vm struct {
	id   uuid.UUID
	turn chan struct{} // held while a connection takes over
	load sync.Once

	mu        sync.Mutex // guards what follows
	renewed   bool       // the session was forgotten on purpose
	sess      *kept
	entered   bool // a session of this boot was let in, and none since said Bye
	ledger    *link.Ledger
	starts    link.Starts
	unhooked  uint64    // Totals.Unhooked of the last mark
	counting  bool      // and there was one
	stale     time.Time // since when no heartbeat has said anew what the guest's kernel counts; zero: the last did
	lost      [2]uint64 // declared lost, by class, at the last heartbeat
	withheld  bool      // no bulk is wanted
	joining   bool      // what was lost before we heard of it is nothing new
	canary    time.Time // when the next is due
	live      *conn
	transport string
	reason    string // why nothing is live
	index     uint64
	clock     clock
	policy    vsockproto.Policy
	chosen    bool                 // policy is one that SetPolicy was given
	filtering vsockproto.Filtering // as the last heartbeat said
	misfits   int                  // heartbeats in a row whose filters are not the policy's
	repeats   map[string]*repeat
	savedAt   time.Time
	penalty   time.Time                             // no new session before
	connects  bucket                                // proven connections
	noise     bucket                                // bytes of others that are recorded
	unkept    uint64                                // and that were not
	control   bucket                                // frames of the agent that are no events
	records   bucket                                // and the records in those that are
	overrun   engine.Severity                       // of the last finding about the quota
	commanded uint64                                // number of the last command
	commands  map[uint64]chan vsockproto.CommandAck // by number: who waits for its answer

	expected bool      // it is to have an agent, see Expect
	seen     time.Time // last frame
	due      time.Time // silence counts from here
	domain   DomainState
	offSince time.Time // since when libvirt has said that it is off; zero: it does not
	halted   bool      // its frames wait for room on the host
	silent   bool      // found so
	worse    bool      // and found so with the highest severity
	look     *look     // of an agent that is overdue
}

// New makes a manager. It starts nothing.
func New(p Parts, o *Options) *Manager {
	m := &Manager{p: p, o: o.defaults(), log: p.Log, vms: map[uuid.UUID]*vm{}, examining: make(chan struct{}, examinations)}
	if m.log == nil {
		m.log = slog.Default()
	}
	return m
}

func (m *Manager) vm(id uuid.UUID) *vm {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.vms[id]
	if v == nil {
		v = &vm{id: id, turn: make(chan struct{}, 1), repeats: map[string]*repeat{}, domain: DomainOff}
		v.policy = vsockproto.Policy{Number: 1, Hooks: m.o.Policy}
		v.canary = time.Now().Add(rand.N(m.o.Canary))
		v.connects = bucket{burst: connectBurst, rate: connectRate}
		v.noise = bucket{burst: noiseBurst, rate: noiseRate}
		v.control = bucket{burst: controlBurst, rate: controlRate / m.o.Heartbeat.Seconds()}
		v.records = bucket{burst: floodBurst * float64(m.o.Flood), rate: float64(m.o.Flood)}
		m.vms[id] = v
	}
	return v
}

// known returns the VM if anything is known of it.
func (m *Manager) known(id uuid.UUID) *vm {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.vms[id]
}

// Expect tells that a VM is enrolled: from now on its silence is a finding
// whenever it runs. It has Options.Grace to come up.
func (m *Manager) Expect(id uuid.UUID) {
	v := m.vm(id)
	m.loadOnce(v)
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.expected {
		v.expected, v.due = true, time.Now().Add(m.o.Grace)
	}
}

// Booted tells that libvirt has seen the VM start, reboot or be reset: its
// agent has Options.Grace to come up again.
func (m *Manager) Booted(id uuid.UUID) {
	v := m.vm(id)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.due, v.silent, v.worse = time.Now().Add(m.o.Grace), false, false
}

// Renew forgets the VM's session: it was reverted to an earlier state, or
// enrolled anew. Its agent proves the key again, and the account starts where
// that agent's numbers do. Not to be called from a Sink.
func (m *Manager) Renew(id uuid.UUID) {
	v := m.vm(id)
	v.turn <- struct{}{}
	defer func() { <-v.turn }()
	m.loadOnce(v)
	v.kick("renewed")
	v.mu.Lock()
	v.sess, v.ledger, v.renewed, v.due = nil, nil, true, time.Now().Add(m.o.Grace)
	v.mu.Unlock()
	if m.p.Store != nil {
		if err := m.p.Store.Save(id, nil); err != nil {
			m.log.Error("save session", "vm", id, "err", err)
		}
	}
}

// Forget drops all that is held of a VM that is no longer there. Not to be
// called from a Sink.
func (m *Manager) Forget(id uuid.UUID) {
	v := m.known(id)
	if v == nil {
		return
	}
	v.turn <- struct{}{}
	defer func() { <-v.turn }()
	v.kick("forgotten")
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.vms, id)
}

// SetPolicy replaces the record types that the VM's agent reports, and what of them
// its kernel leaves out, and sends that to it if it is connected. A VM that stands
// is sent it after its next sign of life: bytes for a guest that does not run leave
// vhost-device-vsock 0.3.0 unable to carry any when it does. It returns the policy's
// number.
func (m *Manager) SetPolicy(id uuid.UUID, types []vsockproto.EventType, filters ...vsockproto.Filter) (uint64, error) {
	types = slices.Compact(slices.Sorted(slices.Values(types)))
	v := m.vm(id)
	m.loadOnce(v)
	v.mu.Lock()
	number := v.policy.Number + 1
	v.policy = vsockproto.Policy{Number: number, Hooks: types, Filters: filters}
	v.chosen = true
	live := v.live
	in := live != nil && live.in
	v.mu.Unlock()
	if !in || m.stands(v) {
		return number, nil
	}
	return number, live.sendPolicy()
}

// Descriptor is a copy of the descriptor of the VM's connection, which the caller closes;
// nil where there is none.
func (m *Manager) Descriptor(id uuid.UUID) (*os.File, error) {
	v := m.known(id)
	if v == nil {
		return nil, nil
	}
	v.mu.Lock()
	live := v.live
	v.mu.Unlock()
	if live == nil {
		return nil, nil
	}
	if c, ok := live.nc.(interface{ File() (*os.File, error) }); ok {
		return c.File()
	}
	return nil, nil
}

// decide brings the VM's policy up to date with what the configuration says of
// it, unless it was given one.
func (m *Manager) decide(v *vm) {
	if m.o.PolicyOf == nil {
		return
	}
	types := m.o.PolicyOf(v.id)
	if types == nil {
		types = m.o.Policy
	}
	var filters []vsockproto.Filter
	if m.o.FiltersOf != nil {
		filters = m.o.FiltersOf(v.id)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.chosen && (!slices.Equal(types, v.policy.Hooks) || !slices.Equal(filters, v.policy.Filters)) {
		v.policy = vsockproto.Policy{Number: v.policy.Number + 1, Hooks: types, Filters: filters}
	}
}

// Status lists every VM that was heard or is expected, by UUID.
func (m *Manager) Status() []Status {
	m.mu.Lock()
	vms := make([]*vm, 0, len(m.vms))
	for _, v := range m.vms {
		vms = append(vms, v)
	}
	m.mu.Unlock()
	slices.SortFunc(vms, func(a, b *vm) int { return bytes.Compare(a.id[:], b.id[:]) })
	all := make([]Status, 0, len(vms))
	for _, v := range vms {
		v.mu.Lock()
		if v.sess != nil || v.expected {
			all = append(all, v.status())
		}
		v.mu.Unlock()
	}
	return all
}

// StatusOf is that of one VM; false if it was never heard and is not expected.
func (m *Manager) StatusOf(id uuid.UUID) (Status, bool) {
	v := m.known(id)
	if v == nil {
		return Status{VM: id, State: Absent}, false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.status(), v.sess != nil || v.expected
}

// Run watches for silence until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	defer m.running.Wait()
	tick := time.NewTicker(m.lookEvery())
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			now := time.Now()
			switch since := now.Sub(m.looked); {
			case m.looked.IsZero():
			case leapt(now.Round(0).Sub(m.looked.Round(0)), since):
				m.woke(now)
			case since > 2*m.lookEvery():
				m.lagged(since-m.lookEvery(), now)
			}
			m.looked = now
			m.listen(ctx)
		}
	}
}

func (m *Manager) listen(ctx context.Context) {
	m.mu.Lock()
	vms := make([]*vm, 0, len(m.vms))
	for _, v := range m.vms {
		vms = append(vms, v)
	}
	m.mu.Unlock()
	for _, v := range vms {
		m.listenTo(ctx, v)
	}
}
