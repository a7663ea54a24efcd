package monitor

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/listen"
)

// libvirtCIDs is what libvirt would answer, and how often it was asked.
type libvirtCIDs struct {
	cids  map[uuid.UUID]uint32
	asked int
}

var errNoCID = errors.New("no vsock device")

func (l *libvirtCIDs) CID(_ context.Context, vm uuid.UUID) (uint32, error) {
	l.asked++
	if cid, ok := l.cids[vm]; ok {
		return cid, nil
	}
	return 0, errNoCID
}

func runs(vm uuid.UUID, id int, state domain.State, transport domain.Transport) watched {
	w := watched{Domain: domain.Domain{UUID: vm, ID: id, State: state}}
	if transport != "" {
		w.Enrolment = &domain.Enrolment{UUID: vm, Transport: transport}
	}
	return w
}

func TestDomainByCID(t *testing.T) {
	a, b := uuid.UUID{1}, uuid.UUID{2}
	given := map[uuid.UUID]uint32{a: 3, b: 4}
	for name, tt := range map[string]struct {
		list  []watched
		cid   uint32
		want  uuid.UUID
		err   error
		asked int
	}{
		"known":           {[]watched{runs(a, 1, domain.Running, domain.KernelVsock), runs(b, 2, domain.Running, domain.KernelVsock)}, 4, b, nil, 2},
		"paused":          {[]watched{runs(a, 1, domain.Paused, domain.KernelVsock)}, 3, a, nil, 1},
		"unknown CID":     {[]watched{runs(a, 1, domain.Running, domain.KernelVsock)}, 9, uuid.Nil, listen.ErrStranger, 1},
		"not enrolled":    {[]watched{runs(a, 1, domain.Running, "")}, 3, uuid.Nil, listen.ErrStranger, 0},
		"other transport": {[]watched{runs(a, 1, domain.Running, domain.VhostUser)}, 3, uuid.Nil, listen.ErrStranger, 0},
		"shut off":        {[]watched{runs(a, -1, domain.ShutOff, domain.KernelVsock)}, 3, uuid.Nil, listen.ErrStranger, 0},
		"no domain":       {nil, 3, uuid.Nil, listen.ErrStranger, 0},
		"one without":     {[]watched{runs(uuid.UUID{9}, 1, domain.Running, domain.KernelVsock), runs(b, 2, domain.Running, domain.KernelVsock)}, 4, b, nil, 2},
		"libvirt's error": {[]watched{runs(uuid.UUID{9}, 1, domain.Running, domain.KernelVsock)}, 4, uuid.Nil, errNoCID, 1},
	} {
		t.Run(name, func(t *testing.T) {
			l := &libvirtCIDs{cids: given}
			c := newCIDs(func() []watched { return tt.list }, l)
			got, err := c.DomainByCID(t.Context(), tt.cid)
			if got != tt.want || !errors.Is(err, tt.err) || l.asked != tt.asked {
				t.Errorf("got %v, %v after asking %d times", got, err, l.asked)
			}
		})
	}
}

// A CID is asked for once in a run, and forgotten with it: libvirt may give it
// to another domain, and the next run may have the same id.
func TestCIDsAreKeptForARun(t *testing.T) {
	a, b := uuid.UUID{1}, uuid.UUID{2}
	l := &libvirtCIDs{cids: map[uuid.UUID]uint32{a: 3}}
	var list []watched
	c := newCIDs(func() []watched { return list }, l)
	look := func(cid uint32, want uuid.UUID, asked int, why string) {
		t.Helper()
		if got, _ := c.DomainByCID(t.Context(), cid); got != want || l.asked != asked {
			t.Errorf("%s: got %v after asking %d times, want %v after %d", why, got, l.asked, want, asked)
		}
	}
	list = []watched{runs(a, 1, domain.Running, domain.KernelVsock)}
	look(3, a, 1, "first")
	look(3, a, 1, "again in the same run")
	l.cids = map[uuid.UUID]uint32{a: 5}
	list = []watched{runs(a, 2, domain.Running, domain.KernelVsock)}
	look(3, uuid.Nil, 2, "the old CID in a new run")
	look(5, a, 2, "the new one")

	list = []watched{runs(a, -1, domain.ShutOff, domain.KernelVsock), runs(b, 3, domain.Running, domain.KernelVsock)}
	l.cids = map[uuid.UUID]uint32{a: 7, b: 5}
	look(5, b, 3, "its CID, given to another domain")
	list = []watched{runs(a, 2, domain.Running, domain.KernelVsock)}
	look(7, a, 4, "it runs again under the id that it had")

	c.drop(nil) // as when the list changes
	look(7, a, 5, "after it had stopped")
}

// TestAllAgentsAtOnce: libvirt is asked once for each domain, however many agents come
// before the first is known, and of a run whose id is not known nothing is kept.
func TestAllAgentsAtOnce(t *testing.T) {
	l := &libvirtCIDs{cids: map[uuid.UUID]uint32{}}
	var list []watched
	for i := range 100 {
		vm := uuid.UUID{byte(i + 1)}
		l.cids[vm] = uint32(i + 3)
		list = append(list, runs(vm, i+1, domain.Running, domain.KernelVsock))
	}
	c := newCIDs(func() []watched { return list }, l)
	var all sync.WaitGroup
	for vm, cid := range l.cids {
		all.Go(func() {
			if got, err := c.DomainByCID(t.Context(), cid); got != vm || err != nil {
				t.Errorf("CID %d: %v, %v", cid, got, err)
			}
		})
	}
	all.Wait()
	if l.asked != len(list) {
		t.Errorf("libvirt was asked %d times of %d domains", l.asked, len(list))
	}

	list = []watched{runs(uuid.UUID{1}, -1, domain.Running, domain.KernelVsock)}
	for range 2 {
		if got, err := c.DomainByCID(t.Context(), 3); got != list[0].UUID || err != nil {
			t.Errorf("just started: %v, %v", got, err)
		}
	}
	if want := 102; l.asked != want {
		t.Errorf("asked %d times, want %d", l.asked, want)
	}
}
