package monitor

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/respond"
	"github.com/outguard/outguard/plugins/engine"
)

// lives tells what orders do to domains from what somebody else does. Libvirt's
// events do not say who asked.
type lives struct {
	mu       sync.Mutex
	expected map[expectation]wait
	stands   map[uuid.UUID]time.Time // paused by an order of this process, since when, and not resumed by one
	reverted map[uuid.UUID]time.Time // when somebody else's revert was told of last
}

// expectation is an event that an order causes.
type expectation struct {
	vm   uuid.UUID
	kind domain.EventKind
}

// wait is for an expected event.
type wait struct {
	until  time.Time // zero: the call is under way
	failed bool      // it was, and may have come to something
}

// revertTakes is longer than libvirt takes over a revert.
const revertTakes = 30 * time.Second

// eventWithin is how long after a call libvirt's event of it may arrive.
const eventWithin = 5 * time.Second

func newLives() *lives {
	return &lives{expected: map[expectation]wait{}, stands: map[uuid.UUID]time.Time{}, reverted: map[uuid.UUID]time.Time{}}
}

// during carries out a call that causes an event of that kind.
func (l *lives) during(vm uuid.UUID, kind domain.EventKind, call func() error) error {
	e := expectation{vm, kind}
	l.mu.Lock()
	l.expected[e] = wait{}
	l.mu.Unlock()
	err := call()
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, waits := l.expected[e]; waits {
		l.expected[e] = wait{time.Now().Add(eventWithin), err != nil}
	}
	switch {
	case err != nil:
	case kind == domain.SuspendedEvent:
		l.stands[vm] = time.Now()
	default:
		delete(l.stands, vm)
	}
	return err
}

// reverting carries out a revert: the domain's process ends and another begins,
// which stands or runs.
func (l *lives) reverting(vm uuid.UUID, paused bool, call func() error) error {
	kinds := []domain.EventKind{domain.Stopped, domain.Started, domain.SuspendedEvent, domain.ResumedEvent}
	if paused { // the last is what it is afterwards
		kinds[2], kinds[3] = kinds[3], kinds[2]
	}
	for _, kind := range kinds {
		inner := call
		call = func() error { return l.during(vm, kind, inner) }
	}
	return call()
}

// ours reports whether an order caused an event, which it is asked once, and
// whether an order had the domain stand until then.
func (l *lives) ours(e domain.Event) (caused, stood bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := expectation{e.VM, e.Kind}
	w, caused := l.expected[x]
	delete(l.expected, x)
	if caused && !w.until.IsZero() && e.At.After(w.until) {
		caused = false
	}
	_, stood = l.stands[e.VM]
	if caused && !w.until.IsZero() && !w.failed {
		return caused, stood // its call has noted what it did, and the next order may have, too
	}
	if e.Kind == domain.ResumedEvent || e.Kind == domain.Started || e.Kind == domain.Stopped {
		delete(l.stands, e.VM)
	}
	return caused, stood
}

// tellsOfRevert reports whether an event is the first of a revert: libvirt says
// several, of the process that ends and of the one that begins.
func (l *lives) tellsOfRevert(e domain.Event) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	last, told := l.reverted[e.VM]
	l.reverted[e.VM] = e.At
	return !told || e.At.Sub(last) > revertTakes
}

// ranOn returns the domains of a list that run although an order had them stand
// when it was asked for: nobody was told when that changed.
func (l *lives) ranOn(list []domain.Domain, asked time.Time) (out []uuid.UUID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range list {
		_, resuming := l.expected[expectation{d.UUID, domain.ResumedEvent}]
		since, stands := l.stands[d.UUID]
		if d.State == domain.Running && stands && since.Before(asked) && !resuming {
			delete(l.stands, d.UUID)
			out = append(out, d.UUID)
		}
	}
	return out
}

// hands are what orders act with: libvirt, and a note of what they cause.
type hands struct {
	*domain.Client
	lives *lives
}

func (h hands) Pause(ctx context.Context, vm uuid.UUID) error {
	return h.lives.during(vm, domain.SuspendedEvent, func() error { return h.Client.Pause(ctx, vm) })
}

func (h hands) Resume(ctx context.Context, vm uuid.UUID) error {
	return h.lives.during(vm, domain.ResumedEvent, func() error { return h.Client.Resume(ctx, vm) })
}

func (h hands) Destroy(ctx context.Context, vm uuid.UUID) error {
	return h.lives.during(vm, domain.Stopped, func() error { return h.Client.Destroy(ctx, vm) })
}

func (h hands) Revert(ctx context.Context, vm uuid.UUID, name string, paused bool) error {
	return h.lives.reverting(vm, paused, func() error { return h.Client.Revert(ctx, vm, name, paused) })
}

// somebodyElse makes a finding of what somebody did to an enrolled domain that is
// not by an order and that a responder has to know.
func (m *Monitor) somebodyElse(e domain.Event) {
	caused, stood := m.lives.ours(e)
	if w, ok := m.domains.get(e.VM); !ok || w.Enrolment == nil || caused {
		return
	}
	f := engine.Finding{VM: e.VM, Severity: engine.Medium, Detail: map[string]string{"event": e.Kind.String(), "why": e.Reason}}
	switch {
	case e.Reason == "from snapshot" && e.Kind != domain.Defined:
		if !m.lives.tellsOfRevert(e) {
			return
		}
		f.Rule, f.Reason = "domain/reverted", "The VM was reverted to a snapshot, not by an order: what happened in it since is undone."
	case e.Kind == domain.ResumedEvent && stood:
		f.Rule, f.Severity, f.Reason = "domain/resumed", engine.High, "The VM was resumed, not by an order, while an order had it stand."
	case e.Kind == domain.Stopped && e.Reason == "migrated":
		f.Rule, f.Reason = "domain/migrated", "The VM was migrated away: this host watches it no more."
	case e.Kind == domain.Stopped && (e.Reason == "crashed" || e.Reason == "failed"):
		f.Rule, f.Reason = "domain/crashed", fmt.Sprintf("The VM's QEMU ended, libvirt says: %s.", e.Reason)
	case e.Kind == domain.Stopped && stood:
		f.Rule, f.Severity, f.Reason = "domain/stopped", engine.High, fmt.Sprintf("The VM was ended (%s), not by an order, while an order had it stand: its memory is gone.", e.Reason)
	default:
		return // it is on record
	}
	m.loose.Go(func() { m.judge.found(f) }) // events wait behind this one
}

// stillStanding finds what was resumed while libvirt could not be heard.
func (m *Monitor) stillStanding(list []domain.Domain, asked time.Time) {
	for _, vm := range m.lives.ranOn(list, asked) {
		f := engine.Finding{
			VM: vm, Rule: "domain/resumed", Severity: engine.High,
			Reason: "The VM runs, not by an order, although an order had it stand; libvirt could not be heard meanwhile.",
		}
		m.loose.Go(func() { m.judge.found(f) })
	}
}

// isolation has a domain that is started stay isolated: a transient one has its
// links as whoever started it described them.
func (m *Monitor) isolation(e domain.Event) {
	if e.Kind != domain.Started {
		return
	}
	macs, err := m.journal.Isolated(e.VM)
	if err != nil {
		m.log.Error("is it isolated?", "vm", e.Name, "error", err)
	}
	if len(macs) == 0 {
		return
	}
	_, err = m.responder.Submit(context.Background(), respond.Request{
		VM: e.VM, Name: e.Name, Steps: []respond.Kind{respond.Isolate}, Asked: "isolation",
		Reason: "It was started while it is isolated; outguard connect ends that.", Decided: e.At,
	})
	if err != nil {
		m.log.Error("not isolated again", "vm", e.Name, "error", err)
		m.keep(e.VM, evidence.KindNote, time.Now(), note{What: orderRefused, Text: fmt.Sprintf("isolate again: %v", err)})
	}
}
