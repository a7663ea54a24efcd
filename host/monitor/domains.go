package monitor

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/domain"
)

// watched is one domain as the monitor knows it.
type watched struct {
	domain.Domain
	Enrolment *domain.Enrolment // nil: not enrolled

	// RunSince is when its vCPUs last began to run: started, resumed, or found
	// running when the monitor began. Zero while they stand.
	RunSince time.Time
	Findings uint64 // since the monitor began

	told time.Time // when an event last said its state
}

// domains is what the monitor knows of every domain, from libvirt's list and
// events and from the enrolments. It makes no calls.
type domains struct {
	began time.Time // what libvirt's first list has running ran since then, as far as anyone here knows

	mu     sync.Mutex
	all    map[uuid.UUID]*watched
	listed bool // libvirt has been heard: who is not in its list is shut off
}

func newDomains() *domains { return &domains{began: time.Now(), all: map[uuid.UUID]*watched{}} }

// entry returns vm's, made if need be; mu is held.
func (d *domains) entry(vm uuid.UUID) *watched {
	w := d.all[vm]
	if w == nil {
		w = &watched{Domain: domain.Domain{UUID: vm, ID: -1}}
		d.all[vm] = w
	}
	return w
}

// setDomains takes libvirt's whole list, and when it was asked for: what events have
// told since then is newer.
func (d *domains) setDomains(list []domain.Domain, asked, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.listed {
		now, d.listed = d.began, true // libvirt may have been away until now
	}
	present := map[uuid.UUID]bool{}
	for _, dom := range list {
		present[dom.UUID] = true
		w := d.entry(dom.UUID)
		if w.told.After(asked) {
			dom.State, dom.ID = w.State, w.ID
		}
		w.Domain = dom
		w.running(dom.State == domain.Running, now)
	}
	for vm, w := range d.all {
		if !present[vm] && !w.told.After(asked) {
			d.gone(vm, w)
		}
	}
}

// gone keeps an enrolled domain that libvirt does not know, as shut off.
func (d *domains) gone(vm uuid.UUID, w *watched) {
	w.State, w.ID, w.RunSince = domain.ShutOff, -1, time.Time{}
	if w.Enrolment == nil {
		delete(d.all, vm)
	}
}

func (w *watched) running(runs bool, now time.Time) {
	switch {
	case !runs:
		w.RunSince = time.Time{}
	case w.RunSince.IsZero():
		w.RunSince = now
	}
}

// apply takes one of libvirt's events. It reports whether the list has to be
// read again.
func (d *domains) apply(e domain.Event) (stale bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	state, ok := map[domain.EventKind]domain.State{
		domain.Started: domain.Running, domain.ResumedEvent: domain.Running,
		domain.SuspendedEvent: domain.Paused, domain.Asleep: domain.Suspended,
		domain.Shutdown: domain.ShuttingDown, domain.Stopped: domain.ShutOff,
		domain.CrashedEvent: domain.Crashed,
	}[e.Kind]
	if !ok {
		return e.Kind != domain.Rebooted
	}
	w := d.entry(e.VM)
	w.Name, w.State, w.told = e.Name, state, time.Now()
	if e.Kind == domain.Started || e.Kind == domain.ResumedEvent {
		w.RunSince = time.Time{} // a new run
	}
	w.running(state == domain.Running, e.At)
	if e.Kind == domain.Started || e.Kind == domain.Stopped {
		w.ID = -1 // the list says which it has now
	}
	return e.Kind == domain.Started
}

// setEnrolments takes the whole list of enrolments.
func (d *domains) setEnrolments(list []domain.Enrolment) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.all {
		w.Enrolment = nil
	}
	for _, e := range list {
		w := d.entry(e.UUID)
		w.Enrolment = &e
		if w.Name == "" {
			w.Name = e.Name
			if d.listed {
				w.State = domain.ShutOff
			}
		}
	}
}

// get returns a copy of what is known of vm.
func (d *domains) get(vm uuid.UUID) (watched, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w := d.all[vm]; w != nil {
		return *w, true
	}
	return watched{Domain: domain.Domain{UUID: vm, ID: -1}}, false
}

func (d *domains) name(vm uuid.UUID) string {
	w, _ := d.get(vm)
	return w.Name
}

// list returns copies, by name.
func (d *domains) list() []watched {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []watched
	for _, w := range d.all {
		all = append(all, *w)
	}
	slices.SortFunc(all, func(a, b watched) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

func (d *domains) counted(vm uuid.UUID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w := d.all[vm]; w != nil {
		w.Findings++
	}
}
