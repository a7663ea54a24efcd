package monitor

import (
	"context"
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/domain"
)

// stages are the parts in the order in which they start. What comes later is
// stopped earlier: first nobody is let in any more, then what is under way is
// judged, then what was ordered is carried out, and the record closes last.
func (m *Monitor) stages() stages {
	s := stages{
		{name: "evidence", run: m.store.Run},
		{name: "owed", run: m.payOwed},
		{name: "recall", ready: m.recall},
		{name: "responder", ready: m.responder.Recover, run: m.responder.Run},
	}
	for _, e := range m.engines {
		s = append(s, stage{name: "engine " + e.Name(), run: e.Run})
	}
	s = append(s,
		stage{name: "host key", ready: m.tellRotations},
		stage{name: "domains", ready: m.look}, // a finding of what is judged again knows its domain
		stage{name: "findings", ready: m.judge.settleEarlier},
		stage{name: "playbook", ready: m.tellPlaybook, run: m.followPlaybook},
		stage{name: "replay", ready: m.replay},
		stage{name: "retention", ready: func(context.Context) error { m.settled.Store(true); return nil }},
		stage{name: "counters", run: newCounters(m).run},
		stage{name: "sessions", run: m.sessions.Run},
		stage{name: "standing", ready: m.standing.take, run: m.standing.run},
		stage{name: "list", run: m.keepList},
		stage{name: "libvirt", run: func(ctx context.Context) error { return m.libvirt.Watch(ctx, m.happened) }},
		stage{name: "enrolments", run: m.watchEnrolments},
		stage{name: "groups", run: newGrouping(m).run},
		stage{name: "listeners", ready: m.doors.prepare, run: m.doors.run},
	)
	if m.cfg.Metrics.Listen != "" {
		s = append(s, m.metricsStage())
	}
	return append(s, m.apiStage(), stage{name: "ready", ready: m.ready, run: m.serving})
}

func (m *Monitor) metricsStage() stage {
	var l net.Listener
	return stage{
		name:  "metrics",
		ready: func(context.Context) (err error) { l, err = net.Listen("tcp", m.cfg.Metrics.Listen); return err },
		run:   func(ctx context.Context) error { return m.metrics.Serve(ctx, l) },
	}
}

func (m *Monitor) apiStage() stage {
	var l net.Listener
	server := api.New(backend{m}, &api.Options{Log: m.log, Metrics: m.metrics.Handler()})
	return stage{
		name:  "api",
		ready: func(context.Context) (err error) { l, err = api.Listen(m.cfg.APISocket(), apiGroup()); return err },
		run:   func(ctx context.Context) error { return server.Serve(ctx, l) },
	}
}

// apiGroup is the group that may give orders: outguard, where it exists and
// this process can hand a file to it.
func apiGroup() int {
	g, err := user.LookupGroup("outguard")
	if err != nil {
		return -1
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return -1
	}
	groups, _ := unix.Getgroups()
	if unix.Geteuid() == 0 || unix.Getegid() == gid || slices.Contains(groups, gid) {
		return gid
	}
	return -1
}

// ready tells the service manager, if there is one, and the log.
func (m *Monitor) ready(context.Context) error {
	m.notify(daemon.SdNotifyReady)
	m.log.Info("ready", "version", m.version, "api", m.cfg.APISocket(), "listeners", m.doors.names(), "took", time.Since(m.started).Round(time.Millisecond))
	return nil
}

// serving is the first to end: it says that the rest will.
func (m *Monitor) serving(ctx context.Context) error {
	<-ctx.Done()
	m.notify(daemon.SdNotifyStopping)
	return nil
}

// notify tells the service manager, if there is one.
func (m *Monitor) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		m.log.Warn("sd_notify", "error", err)
	}
}

// look reads libvirt's list and the enrolments for the first time. A libvirtd
// that is away is no reason not to start: Watch goes on trying, and what guests
// send is recorded and judged meanwhile.
func (m *Monitor) look(ctx context.Context) error {
	m.readEnrolments()
	if err := m.readDomains(ctx); err != nil {
		m.log.Error("libvirt is away: events are recorded and judged, orders wait", "error", err)
	}
	return nil
}

func (m *Monitor) readDomains(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	asked := time.Now()
	list, err := m.libvirt.List(ctx)
	m.metrics.LibvirtUp(err == nil)
	if err != nil {
		return err
	}
	m.domains.setDomains(list, asked, time.Now())
	m.stillStanding(list, asked)
	m.standing.followAll()
	return nil
}

// listAgain is how long after a list that failed the next one is asked for.
const listAgain = 5 * time.Second

// keepList reads libvirt's list whenever an event says that it has changed, once for
// as many as have come meanwhile. A list takes as long as libvirt takes over its
// slowest domain, and events of all others go on.
func (m *Monitor) keepList(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.stale:
		}
		if err := m.readDomains(ctx); err != nil && ctx.Err() == nil {
			m.log.Warn("list domains", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(listAgain):
				m.relist()
			}
		}
	}
}

// relist has the list read again.
func (m *Monitor) relist() {
	select {
	case m.stale <- struct{}{}:
	default: // it will be
	}
}

// happened takes libvirt's events.
func (m *Monitor) happened(e domain.Event) {
	stale := m.domains.apply(e)
	m.standing.follow(e.VM)
	m.lifecycle(e)
	m.somebodyElse(e)
	m.isolation(e)
	switch {
	case e.Kind == domain.Started && (e.Reason == "from snapshot" || e.Reason == "restored"):
		m.sessions.Renew(e.VM) // it goes on from numbers and a secret of an earlier time
	case e.Kind == domain.Started || e.Kind == domain.Rebooted:
		m.sessions.Booted(e.VM)
	}
	if stale {
		m.relist()
	}
}

// enrolmentsEvery is how long an enrolment may go unseen: `outguard enroll`
// needs no daemon, so the daemon has to look.
const enrolmentsEvery = time.Second

func (m *Monitor) watchEnrolments(ctx context.Context) error {
	t := time.NewTicker(enrolmentsEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		m.readEnrolments()
		m.doors.update(m.domains.list())
	}
}

// readEnrolments takes what is enrolled now. A broken file is said once and
// costs its own domain only. An enrolment that is new or has a new key begins
// anew with the next session.
func (m *Monitor) readEnrolments() {
	list, changed, err := m.enrolled.Read()
	if text := fmt.Sprint(err); text != m.enrolError {
		if m.enrolError = text; err != nil {
			m.log.Error("enrolments", "error", err)
		}
	}
	if !changed {
		return
	}
	before := map[uuid.UUID]*domain.Enrolment{}
	for _, w := range m.domains.list() {
		if w.Enrolment != nil {
			before[w.UUID] = w.Enrolment
		}
	}
	m.domains.setEnrolments(list)
	for _, e := range list {
		was := before[e.UUID]
		delete(before, e.UUID)
		if was != nil && was.Key == e.Key {
			continue
		}
		m.metrics.VM(e.UUID, e.Name) // its label, before its first frame
		m.log.Info("enrolled", "vm", e.Name, "uuid", e.UUID, "transport", e.Transport, "again", was != nil)
		if was != nil {
			m.sessions.Renew(e.UUID)
		}
		m.sessions.Expect(e.UUID)
	}
	for vm, e := range before {
		m.log.Info("no longer enrolled", "vm", e.Name, "uuid", vm)
		m.sessions.Forget(vm)
		m.judge.drop(vm)
	}
}

// maySetUser reports whether this process can start another as another user.
func maySetUser() bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if unix.Capget(&h, &d[0]) != nil {
		return false
	}
	const need = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	return d[0].Effective&need == need
}
