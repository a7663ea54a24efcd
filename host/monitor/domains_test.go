package monitor

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/session"
)

// A domain is its UUID. Renamed it keeps its enrolment; with another UUID it is
// another domain, which is not enrolled, and the one that it was is off.
func TestADomainIsItsUUID(t *testing.T) {
	a, b := uuid.UUID{1}, uuid.UUID{2}
	d := newDomains()
	states := domainStates{d}
	d.setEnrolments([]domain.Enrolment{{UUID: a, Name: "web", Key: [32]byte{1}}})
	if s := states.DomainState(a); s != session.DomainUnknown {
		t.Errorf("before libvirt was heard: %v", s)
	}
	d.setDomains([]domain.Domain{{UUID: a, Name: "web", ID: 1, State: domain.Running}}, time.Now(), time.Now())
	if !d.apply(domain.Event{VM: a, Name: "shop", Kind: domain.Defined}) {
		t.Error("a rename does not have the list read again")
	}
	d.setDomains([]domain.Domain{{UUID: a, Name: "shop", ID: 1, State: domain.Running}}, time.Now(), time.Now())
	if w, ok := d.get(a); !ok || w.Name != "shop" || w.Enrolment == nil || states.DomainState(a) != session.DomainRunning {
		t.Errorf("renamed: %+v", w)
	}
	if k, err := (keys{d}).Key(a); err != nil || k != [32]byte{1} {
		t.Errorf("its key: %v, %v", k, err)
	}
	d.setDomains([]domain.Domain{{UUID: b, Name: "shop", ID: 2, State: domain.Running}}, time.Now(), time.Now())
	if s := states.DomainState(a); s != session.DomainOff {
		t.Errorf("who it was: %v", s)
	}
	if _, err := (keys{d}).Key(b); err == nil {
		t.Error("who it is now has a key")
	}
}

// TestEventsAreNewerThanTheList: a list is of the time at which it was asked for, and
// what events said since then it does not undo.
func TestEventsAreNewerThanTheList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := uuid.UUID{1}, uuid.UUID{2}, uuid.UUID{3}
		d := newDomains()
		running := []domain.Domain{{UUID: a, Name: "a", ID: 1, State: domain.Running}, {UUID: b, Name: "b", ID: 2, State: domain.Running}}
		d.setDomains(running, time.Now(), time.Now())
		state := func(vm uuid.UUID) domain.State { w, _ := d.get(vm); return w.State }
		time.Sleep(time.Second)
		asked := time.Now()
		time.Sleep(time.Second)
		d.apply(domain.Event{VM: a, Name: "a", Kind: domain.SuspendedEvent, At: time.Now()})
		d.apply(domain.Event{VM: c, Name: "c", Kind: domain.Started, At: time.Now()})
		d.setDomains(running, asked, time.Now())
		if state(a) != domain.Paused || state(b) != domain.Running || state(c) != domain.Running {
			t.Errorf("%s, %s and %s", state(a), state(b), state(c))
		}
		time.Sleep(time.Second)
		d.setDomains(running, time.Now(), time.Now())
		if state(a) != domain.Running || state(c) == domain.Running {
			t.Errorf("by a list of now: %s and %s", state(a), state(c))
		}
	})
}
