package monitor

import (
	"context"
	"encoding/hex"
	"os"
	"slices"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/host/engines"
	"github.com/outguard/outguard/host/session"
	"github.com/outguard/outguard/vsockproto"
)

// backend answers the API from the monitor's parts.
type backend struct{ m *Monitor }

var _ api.Backend = backend{}

func (b backend) Status(ctx context.Context) (*apipb.StatusResponse, error) {
	m := b.m
	s := &apipb.StatusResponse{
		Version: m.version, Started: api.FormatTime(m.started), Pid: uint32(os.Getpid()),
		StateDir: m.cfg.StateDir, HostKey: m.store.Key().Public, Libvirt: "qemu:///system",
		Listeners: m.doors.names(), InForce: playbookOf(m.judge.inForce()),
	}
	s.Playbook = s.InForce.File
	if _, err := m.libvirt.Version(ctx); err != nil {
		s.LibvirtError = err.Error()
	}
	for _, st := range m.sessions.Status() {
		if st.State == session.Live {
			s.Sessions++
		}
	}
	for i, e := range m.engines {
		s.Engines = append(s.Engines, engineStatus(e.Status(), m.cfg.Engines[i].SHA256))
	}
	return s, nil
}

func engineStatus(s engines.Status, pin string) *apipb.Engine {
	e := &apipb.Engine{
		Name: s.Name, Version: s.Version, State: "running", Sha256: pin, Models: s.Models,
		Judged: s.Records, Behind: uint64(s.Pending),
	}
	if s.Starts > 0 {
		e.Restarts = s.Starts - 1
	}
	switch {
	case s.CircuitOpen:
		e.State, e.Error = "down", "it failed again and again: see outguard findings"
	case !s.Running:
		e.State = "starting"
	}
	return e
}

func (b backend) VMs(ctx context.Context) ([]*apipb.VM, error) {
	models, err := b.Models(ctx)
	if err != nil {
		b.m.log.Warn("models", "error", err)
	}
	isolated, err := b.m.journal.AllIsolated()
	if err != nil {
		return nil, err
	}
	var out []*apipb.VM
	for _, w := range b.m.domains.list() {
		v := b.vm(w, models)
		v.Isolated = len(isolated[w.UUID]) > 0
		out = append(out, v)
	}
	return out, nil
}

func (b backend) vm(w watched, models []api.Model) *apipb.VM {
	v := &apipb.VM{Name: w.Name, Uuid: w.UUID.String(), State: w.State.String(), Enrolled: w.Enrolment != nil, Findings: w.Findings}
	if w.Enrolment == nil {
		return v
	}
	v.Transport = string(w.Enrolment.Transport)
	if s, ok := b.m.sessions.StatusOf(w.UUID); ok {
		v.Session, v.Classes = sessionStatus(&s), classCounts(&s)
		if v.Session != nil {
			v.Session.Profile = b.m.profileOf(w.UUID)
		}
	}
	for i := range models {
		if models[i].VM == w.UUID {
			v.Models = append(v.Models, api.ModelOf(&models[i]))
		}
	}
	if s, err := b.m.store.Stream(w.UUID); err == nil {
		st := s.Stats()
		v.EvidenceBytes, v.EvidenceNext = uint64(st.Used), st.Next
	}
	return v
}

func sessionStatus(s *session.Status) *apipb.Session {
	if s.Session == uuid.Nil {
		return nil
	}
	out := &apipb.Session{
		Id: s.Session.String(), State: string(s.State), Started: api.FormatTime(s.Since), LastSeen: api.FormatTime(s.LastSeen),
		Reason: s.Reason, Kernel: s.Kernel, Build: s.Build, BootId: s.BootID.String(), Cpus: s.CPUs, Version: uint32(s.Version),
	}
	for _, h := range s.Hooks {
		hook := &apipb.Hook{Name: h.Type.String(), Available: h.Available, Attached: h.Attached}
		if h.Tag != [8]byte{} {
			hook.Tag = hex.EncodeToString(h.Tag[:])
		}
		_, hook.Wanted = slices.BinarySearch(s.Wanted, h.Type)
		out.Hooks = append(out.Hooks, hook)
	}
	out.Policy, out.PolicyAcked, out.PolicyReason = s.Policy, s.PolicyAcked, safe.Text(s.PolicyReason)
	out.Filtered, out.FiltersPolicy = s.Filtering.Filtered, s.Filtering.Number
	for _, f := range s.Filters {
		out.Filters = append(out.Filters, f.String())
	}
	return out
}

func classCounts(s *session.Status) []*apipb.ClassCount {
	return []*apipb.ClassCount{
		{Class: vsockproto.Critical.String(), Received: s.Received.Critical, Lost: s.Lost.Critical, Missing: s.Missing.Critical},
		{Class: vsockproto.Bulk.String(), Received: s.Received.Bulk, Lost: s.Lost.Bulk, Missing: s.Missing.Bulk},
	}
}
