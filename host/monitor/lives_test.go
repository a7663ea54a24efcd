package monitor

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/domain"
)

// TestWhoseEvent: an event is an order's once, during its call or soon after, and
// of that domain and kind alone.
func TestWhoseEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := uuid.UUID{1}, uuid.UUID{2}
		l := newLives()
		event := func(vm uuid.UUID, k domain.EventKind) [2]bool {
			caused, stood := l.ours(domain.Event{VM: vm, Kind: k, At: time.Now()})
			return [2]bool{caused, stood}
		}
		pause := func(during func()) {
			_ = l.during(a, domain.SuspendedEvent, func() error { during(); return nil })
		}
		want := func(what string, got, want [2]bool) {
			t.Helper()
			if got != want {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
		}
		pause(func() { want("during the call", event(a, domain.SuspendedEvent), [2]bool{true, false}) })
		want("a second one", event(a, domain.SuspendedEvent), [2]bool{false, true})
		pause(func() {})
		time.Sleep(eventWithin - time.Second)
		want("of another domain", event(b, domain.SuspendedEvent), [2]bool{})
		want("soon after", event(a, domain.SuspendedEvent), [2]bool{true, true})
		pause(func() {})
		time.Sleep(eventWithin + time.Second)
		want("long after", event(a, domain.SuspendedEvent), [2]bool{false, true})
		want("resumed by somebody", event(a, domain.ResumedEvent), [2]bool{false, true})
		want("and again", event(a, domain.ResumedEvent), [2]bool{})

		pause(func() {})
		running := []domain.Domain{{UUID: a, State: domain.Running}, {UUID: b, State: domain.Running}}
		_ = l.during(a, domain.ResumedEvent, func() error {
			time.Sleep(time.Millisecond)
			if got := l.ranOn(running, time.Now()); len(got) != 0 {
				t.Errorf("an order resumes %v", got)
			}
			return nil
		})
		want("by the order", event(a, domain.ResumedEvent), [2]bool{true, false})
		before := time.Now()
		time.Sleep(time.Millisecond)
		pause(func() {})
		if got := l.ranOn(running, before); len(got) != 0 {
			t.Errorf("paused since the list was asked for: %v", got)
		}
		time.Sleep(time.Millisecond)
		if got := l.ranOn(running, time.Now()); !slices.Equal(got, []uuid.UUID{a}) || len(l.ranOn(running, time.Now())) != 0 {
			t.Errorf("ran on: %v", got)
		}

		resume := func(err error) {
			_ = l.during(a, domain.ResumedEvent, func() error { return err })
		}
		pause(func() {})
		want("paused", event(a, domain.SuspendedEvent), [2]bool{true, true})
		resume(nil)
		pause(func() {}) // before libvirt's event of the resume is seen
		want("of the order before", event(a, domain.ResumedEvent), [2]bool{true, true})
		want("paused again", event(a, domain.SuspendedEvent), [2]bool{true, true})
		want("resumed by somebody after all", event(a, domain.ResumedEvent), [2]bool{false, true})
		pause(func() {})
		want("paused", event(a, domain.SuspendedEvent), [2]bool{true, true})
		resume(errors.New("no answer in time"))
		want("it was resumed, late", event(a, domain.ResumedEvent), [2]bool{true, true})
		time.Sleep(time.Millisecond)
		if got := l.ranOn(running, time.Now()); len(got) != 0 {
			t.Errorf("an order had %v resumed", got)
		}
	})
}

// TestOneRevertIsToldOnce: of all that libvirt says of a revert one event makes a
// finding, and the next revert has its own.
func TestOneRevertIsToldOnce(t *testing.T) {
	l, vm, at := newLives(), uuid.UUID{1}, time.Unix(1000, 0)
	told := 0
	for _, after := range []time.Duration{0, time.Millisecond, time.Second, time.Minute, time.Minute + time.Second} {
		if l.tellsOfRevert(domain.Event{VM: vm, At: at.Add(after)}) {
			told++
		}
	}
	if told != 2 || !l.tellsOfRevert(domain.Event{VM: uuid.UUID{2}, At: at}) {
		t.Errorf("two reverts were told %d times", told)
	}
}

// TestRevertIsOurs: all that a revert has libvirt say is its order's, and then
// nothing is any more.
func TestRevertIsOurs(t *testing.T) {
	for _, paused := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			vm, l := uuid.UUID{1}, newLives()
			kinds := []domain.EventKind{domain.Stopped, domain.Started, domain.SuspendedEvent, domain.ResumedEvent}
			said := func(want bool) {
				t.Helper()
				for _, k := range kinds {
					if caused, _ := l.ours(domain.Event{VM: vm, Kind: k, Reason: "from snapshot", At: time.Now()}); caused != want {
						t.Errorf("paused %v: %s by the order: %v", paused, k, caused)
					}
				}
			}
			if err := l.reverting(vm, paused, func() error { said(true); return nil }); err != nil {
				t.Fatal(err)
			}
			if _, stands := l.stands[vm]; stands != paused {
				t.Errorf("paused %v: stands %v", paused, stands)
			}
			time.Sleep(eventWithin + time.Second)
			said(false)
		})
	}
}
