package monitor

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/engines"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/respond"
	"github.com/outguard/outguard/host/session"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

// backend answers the API from the monitor's parts.
type backend struct{ m *Monitor }

var _ api.Backend = backend{}

func (b backend) Status(ctx context.Context) (*apipb.StatusResponse, error) {
	m := b.m
	s := &apipb.StatusResponse{
		Version: m.version, Started: api.FormatTime(m.started), Pid: uint32(os.Getpid()),
		StateDir: m.cfg.StateDir, HostKey: m.key.Public, Libvirt: "qemu:///system",
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

// streams returns the VMs whose records q asks for.
func (b backend) streams(q api.Query) ([]uuid.UUID, error) {
	if q.VM != uuid.Nil {
		return []uuid.UUID{q.VM}, nil
	}
	return evidence.Streams(b.m.store.Dir())
}

// read hands every record that q asks for to yield, stream after stream, and
// with Follow all of them side by side, one call at a time. A stream that
// cannot be read stops no other: its error comes at the end.
func (b backend) read(ctx context.Context, q api.Query, yield func(uuid.UUID, *evidence.Record) error) error {
	if q.Follow {
		return b.follow(ctx, q, yield)
	}
	vms, err := b.streams(q)
	if err != nil {
		return err
	}
	var rotten []error
	for _, vm := range vms {
		var stop error
		err := b.readOne(ctx, vm, q, func(vm uuid.UUID, r *evidence.Record) error {
			stop = yield(vm, r)
			return stop
		})
		if stop == nil {
			stop = ctx.Err()
		}
		if stop != nil {
			return stop
		}
		if err != nil {
			rotten = append(rotten, recordError(vm, err))
		}
	}
	return errors.Join(rotten...)
}

// recordError says whose record it is that cannot be read.
func recordError(vm uuid.UUID, err error) error { return fmt.Errorf("record of VM %s: %w", vm, err) }

func (b backend) readOne(ctx context.Context, vm uuid.UUID, q api.Query, yield func(uuid.UUID, *evidence.Record) error) error {
	s := evidence.Selection{Since: q.Since, Until: q.Until, Index: b.m.indexes(vm)}
	if q.May != nil {
		s.May = func(has func(uint64) bool) bool { return q.May(vm, has) }
	}
	done, err := b.m.reader(vm).Select(&s, func(r *evidence.Record) error { return errors.Join(ctx.Err(), yield(vm, r)) })
	if q.GivenUp != nil && done.GivenUp > 0 {
		q.GivenUp(vm, done.GivenUp)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// ofKind is what of a record may hold records of that kind.
func ofKind(q api.Query, kind evidence.Kind) api.Query {
	key := api.KindKey(uint16(kind))
	q.May = func(_ uuid.UUID, has func(uint64) bool) bool { return has(key) }
	return q
}

// CgroupPaths looks for them in what a session's records say.
func (b backend) CgroupPaths(ctx context.Context, vm, session uuid.UUID, ids []uint64, upTo uint64) (map[uint64]string, error) {
	found := map[uint64]string{}
	s := evidence.Selection{To: upTo + 1, Index: b.m.indexes(vm), May: api.NamesCgroups(ids)}
	_, err := b.m.reader(vm).Select(&s, func(r *evidence.Record) error {
		batch, ok := frameBatch(vm, r)
		if r.Kind != evidence.KindFrame || !ok || batch.Session != session {
			return ctx.Err()
		}
		api.CgroupsNamed(batch.Records, func(id uint64, path []byte) {
			if slices.Contains(ids, id) {
				found[id] = string(path)
			}
		})
		return ctx.Err()
	})
	return found, err
}

// followEvery is how soon a VM that is new on record is followed too.
const followEvery = time.Second

// follow reads on in the streams of vms, and with no VM named in those that
// come to be later, until ctx ends or yield fails. A stream that cannot be read
// ends it only where its VM was named.
func (b backend) follow(ctx context.Context, q api.Query, yield func(uuid.UUID, *evidence.Record) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if q.Since.IsZero() {
		q.Since = time.Now()
	}
	var mu sync.Mutex
	one := func(vm uuid.UUID, r *evidence.Record) error {
		mu.Lock()
		defer mu.Unlock()
		err := yield(vm, r)
		if err != nil {
			cancel(err)
		}
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	followed := map[uuid.UUID]bool{}
	for {
		vms, err := b.streams(q)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			cancel(err)
		}
		for _, vm := range vms {
			if followed[vm] {
				continue
			}
			followed[vm] = true
			wg.Go(func() {
				err := b.followOne(ctx, vm, q, one)
				if err == nil || ctx.Err() != nil {
					return
				}
				if q.VM == uuid.Nil { // the others go on
					b.m.log.Error("record cannot be followed", "vm", vm, "error", err)
					return
				}
				cancel(recordError(vm, err))
			})
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func (b backend) followOne(ctx context.Context, vm uuid.UUID, q api.Query, yield func(uuid.UUID, *evidence.Record) error) error {
	r := b.m.reader(vm)
	from, err := r.Since(q.Since)
	if errors.Is(err, fs.ErrNotExist) {
		from, err = 0, nil // no record yet: Follow waits
	}
	if err != nil {
		return err
	}
	return r.Follow(ctx, from, func(r *evidence.Record) error {
		if r.Time.Before(q.Since) {
			return nil
		}
		return yield(vm, r)
	})
}

func (b backend) Batches(ctx context.Context, q api.Query, yield func(*engine.Batch) error) error {
	return b.read(ctx, q, func(vm uuid.UUID, r *evidence.Record) error {
		if r.Kind != evidence.KindFrame {
			return nil
		}
		if batch, ok := frameBatch(vm, r); ok {
			return yield(&batch)
		}
		return nil
	})
}

// Findings hands findings on as they come where it follows. Otherwise each
// stream is read in the order of its record, and of the streams' next findings
// the earliest goes first: one finding of each stream is in memory. A stream
// that cannot be read on gives what is before, and its error comes at the end.
func (b backend) Findings(ctx context.Context, q api.Query, yield func(*engine.Finding) error) error {
	if q.Follow {
		return b.follow(ctx, q, func(_ uuid.UUID, r *evidence.Record) error { return findingIn(r, yield) })
	}
	vms, err := b.streams(q)
	if err != nil {
		return err
	}
	return b.merge(ctx, vms, q, yield)
}

// findingIn hands a record's finding on, if it is one.
func findingIn(r *evidence.Record, yield func(*engine.Finding) error) error {
	if r.Kind != evidence.KindFinding {
		return nil
	}
	f, err := unmarshal[engine.Finding](r)
	if err != nil {
		return err
	}
	return yield(&f)
}

// findingsHead is a stream's next finding.
type findingsHead struct {
	vm   uuid.UUID
	f    *engine.Finding
	pull func() (*engine.Finding, error, bool)
}

func (b backend) merge(ctx context.Context, vms []uuid.UUID, q api.Query, yield func(*engine.Finding) error) error {
	var rotten []error
	var heads []*findingsHead
	advance := func(h *findingsHead) bool {
		f, err, ok := h.pull()
		if err != nil {
			rotten = append(rotten, recordError(h.vm, err))
		}
		h.f = f
		return ok && err == nil
	}
	for _, vm := range vms {
		pull, stop := iter.Pull2(b.findingsOf(ctx, vm, q))
		defer stop()
		if h := (&findingsHead{vm: vm, pull: pull}); advance(h) {
			heads = append(heads, h)
		}
	}
	for len(heads) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		first := slices.MinFunc(heads, func(a, b *findingsHead) int { return a.f.At.Compare(b.f.At) })
		if err := yield(first.f); err != nil {
			return err
		}
		if !advance(first) {
			heads = slices.DeleteFunc(heads, func(h *findingsHead) bool { return h == first })
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return errors.Join(rotten...)
}

// findingsOf is one stream's findings, and why there are no more of them if
// that is not its end.
func (b backend) findingsOf(ctx context.Context, vm uuid.UUID, q api.Query) iter.Seq2[*engine.Finding, error] {
	q = ofKind(q, evidence.KindFinding)
	return func(yield func(*engine.Finding, error) bool) {
		stopped := false
		err := b.readOne(ctx, vm, q, func(_ uuid.UUID, r *evidence.Record) error {
			return findingIn(r, func(f *engine.Finding) error {
				if stopped = !yield(f, nil); stopped {
					return evidence.ErrStop
				}
				return nil
			})
		})
		if err != nil && !stopped {
			yield(nil, err)
		}
	}
}

func (b backend) Orders(_ context.Context, q api.Query) ([]*apipb.Order, error) {
	var out []*apipb.Order
	err := b.m.journal.Entries(func(e respond.Entry) bool {
		if e.Order.Given.Before(q.Since) {
			return false
		}
		if (q.VM == uuid.Nil || q.VM == e.Order.VM) && (q.Order == "" || q.Order == e.Order.ID.String()) {
			out = append(out, orderOf(e))
		}
		return q.Limit == 0 || uint64(len(out)) < q.Limit
	})
	slices.Reverse(out)
	return out, err
}

func orderOf(e respond.Entry) *apipb.Order {
	o := e.Order
	p := &apipb.Order{
		Id: o.ID.String(), Group: o.Group.String(), Vm: o.Name, Uuid: o.VM.String(), Step: string(o.Kind), State: "pending",
		Target: o.Target, By: o.Asked, Reason: o.Reason, Rule: o.Rule, Finding: o.Finding,
		Received: api.FormatTime(o.Received), Found: api.FormatTime(o.Found), Decided: api.FormatTime(o.Decided),
	}
	if o.VM == uuid.Nil {
		p.Uuid = "" // the host's own
	}
	if w := e.Waiting; w != nil {
		p.State, p.Error = "waiting", w.Error
		p.Detail = fmt.Sprintf("since %s, until %s", api.FormatTime(w.Since), api.FormatTime(o.Deadline))
	}
	if r := e.Result; r != nil {
		p.State, p.Error = string(r.Status), r.Error
		p.Journalled, p.Started = api.FormatTime(r.Journaled), api.FormatTime(r.Started)
		p.Effect, p.Ended = api.FormatTime(r.Effect), api.FormatTime(r.Finished)
		p.Attempts, p.Already, p.Recovered, p.Bundle, p.Detail = uint32(r.Attempts), r.Already, r.Recovered, r.Bundle, r.Detail
	}
	return p
}

func (b backend) Models(ctx context.Context) ([]api.Model, error) {
	var out []api.Model
	var errs error
	for _, e := range b.m.engines {
		if !e.Status().Models {
			continue
		}
		models, err := e.Models(ctx)
		errs = errors.Join(errs, err)
		for _, m := range models {
			out = append(out, api.Model{Engine: e.Name(), Model: m})
		}
	}
	return out, errs
}

// Cgroups asks the first engine that tells. What no engine knows is no error: the
// events' own records may name it.
func (b backend) Cgroups(ctx context.Context, vm uuid.UUID) (*api.Cgroups, error) {
	places, err := b.places(ctx, vm)
	if err != nil {
		return nil, err
	}
	out := &api.Cgroups{Session: places.Session, Paths: make(map[uint64]string, len(places.Cgroups))}
	for _, c := range places.Cgroups {
		out.Paths[c.ID] = c.Path
	}
	return out, nil
}

func (b backend) places(ctx context.Context, vm uuid.UUID) (engine.Places, error) {
	for _, e := range b.m.engines {
		places, err := e.Places(ctx, vm)
		if !errors.Is(err, errors.ErrUnsupported) {
			return places, err
		}
	}
	return engine.Places{}, fmt.Errorf("containers: %w", errors.ErrUnsupported)
}

// modeller finds the engine called name, or the only one with models.
func (b backend) modeller(name string) (*engines.Supervisor, error) {
	var found []*engines.Supervisor
	for _, e := range b.m.engines {
		if e.Name() == name || (name == "" && e.Status().Models) {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 0:
		return nil, api.Error(connect.CodeFailedPrecondition, "outguardd's log says why; it is started again by itself", fmt.Errorf("no engine with models runs"))
	case 1:
		return found[0], nil
	}
	return nil, api.Error(connect.CodeInvalidArgument, "say which with --engine", fmt.Errorf("%d engines have models", len(found)))
}

func (b backend) Learn(ctx context.Context, of api.ModelRef, by api.Caller) (api.Model, error) {
	return b.model(ctx, of, by, "learn", func(w engines.Workload) (engine.Model, error) { return w.Learn(ctx, of.VM) })
}

func (b backend) Seal(ctx context.Context, of api.ModelRef, by api.Caller) (api.Model, error) {
	return b.model(ctx, of, by, "seal", func(w engines.Workload) (engine.Model, error) { return w.Seal(ctx, of.VM) })
}

func (b backend) ExportModel(ctx context.Context, of api.ModelRef) ([]byte, error) {
	e, err := b.modeller(of.Engine)
	if err != nil {
		return nil, err
	}
	file, err := e.Of(of.Workload).Export(ctx, of.VM)
	if err != nil {
		return nil, modelError(err)
	}
	return file, nil
}

func (b backend) ImportModel(ctx context.Context, of api.ModelRef, file []byte, by api.Caller) (api.Model, error) {
	return b.model(ctx, of, by, "import", func(w engines.Workload) (engine.Model, error) { return w.Import(ctx, of.VM, file) })
}

func (b backend) AcceptModel(ctx context.Context, of api.ModelRef, points [][engine.PointSize]byte, by api.Caller) (api.Model, error) {
	return b.model(ctx, of, by, "accept", func(w engines.Workload) (engine.Model, error) { return w.Accept(ctx, of.VM, points) })
}

func (b backend) SetModel(ctx context.Context, of api.ModelRef, s engine.Settings, by api.Caller) (api.Model, error) {
	return b.model(ctx, of, by, "set", func(w engines.Workload) (engine.Model, error) { return w.Set(ctx, of.VM, s) })
}

func (b backend) JoinModel(ctx context.Context, of api.ModelRef, group string, by api.Caller) (api.Model, error) {
	return b.model(ctx, of, by, "join", func(w engines.Workload) (engine.Model, error) { return w.Join(ctx, of.VM, group) })
}

func (b backend) Containers(ctx context.Context, vm uuid.UUID) (*engine.Places, error) {
	places, err := b.places(ctx, vm)
	return &places, err
}

// modelError is what an engine says of a model, with the next thing to do.
func modelError(err error) error {
	if errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return api.Error(connect.CodeFailedPrecondition, "outguard vms shows whether its agent is live, outguard model list what was learnt", err)
}

func (b backend) model(ctx context.Context, of api.ModelRef, by api.Caller, what string,
	do func(engines.Workload) (engine.Model, error)) (api.Model, error) {
	e, err := b.modeller(of.Engine)
	if err != nil {
		return api.Model{}, err
	}
	m, err := do(e.Of(of.Workload))
	if err != nil {
		return api.Model{}, modelError(err)
	}
	text := fmt.Sprintf("%s, by %s", e.Name(), by)
	if of.Workload != "" {
		text = fmt.Sprintf("%s, workload %s, by %s", e.Name(), of.Workload, by)
	}
	b.m.keep(of.VM, evidence.KindNote, time.Now(), note{What: "model-" + what, Text: text})
	return api.Model{Engine: e.Name(), Model: m}, nil
}

func (b backend) Pause(ctx context.Context, vm uuid.UUID, by api.Caller) (*apipb.Order, error) {
	return b.order(ctx, vm, by, respond.Pause)
}

func (b backend) Resume(ctx context.Context, vm uuid.UUID, by api.Caller) (*apipb.Order, error) {
	return b.order(ctx, vm, by, respond.Resume)
}

func (b backend) Contain(ctx context.Context, vm uuid.UUID, step, state string, by api.Caller) (*apipb.Order, error) {
	o, err := b.orderOn(ctx, vm, by, respond.Kind(step), state)
	if err != nil && o != nil && (step == string(respond.Revert) || step == string(respond.Unsave)) {
		err = b.whatIsSaved(ctx, vm, err)
	}
	return o, err
}

// Saved asks libvirt: a domain's snapshots go with its images.
func (b backend) Saved(ctx context.Context, vm uuid.UUID) ([]*apipb.Saved, error) {
	all, err := b.m.libvirt.SavedStates(ctx, vm)
	if err != nil {
		return nil, libvirtError(err)
	}
	out := make([]*apipb.Saved, len(all))
	for i, s := range all {
		out[i] = &apipb.Saved{Name: s.Name, Created: api.FormatTime(s.Created), State: s.State.String()}
	}
	return out, nil
}

// whatIsSaved says beside an error of revert or unsave what there is.
func (b backend) whatIsSaved(ctx context.Context, vm uuid.UUID, err error) error {
	all, listed := b.m.libvirt.SavedStates(ctx, vm)
	if listed != nil {
		return err
	}
	names := make([]string, len(all))
	for i, s := range all {
		names[i] = s.Name
	}
	next := "saved are: " + strings.Join(names, ", ")
	if len(names) == 0 {
		next = "nothing is saved of it; outguard save does that"
	}
	return api.Error(connect.CodeFailedPrecondition, next, err)
}

// Capture leaves a VM running that ran before: pause and resume are orders too.
// What makes it revertible is of the same moment, and is called as the order is.
func (b backend) Capture(ctx context.Context, vm uuid.UUID, revertible bool, by api.Caller, progress func(*apipb.Progress)) (*apipb.Order, error) {
	paused, err := b.m.libvirt.Paused(ctx, vm)
	if err != nil {
		return nil, libvirtError(err)
	}
	defer b.m.captures.watch(vm, progress)()
	if paused {
		return b.capture(ctx, vm, revertible, by)
	}
	if o, err := b.order(ctx, vm, by, respond.Pause); err != nil {
		return o, err
	}
	o, err := b.capture(ctx, vm, revertible, by)
	_, resumed := b.order(context.WithoutCancel(ctx), vm, by, respond.Resume)
	return o, errors.Join(err, resumed)
}

func (b backend) capture(ctx context.Context, vm uuid.UUID, revertible bool, by api.Caller) (*apipb.Order, error) {
	o, err := b.order(ctx, vm, by, respond.Capture)
	if err != nil || !revertible {
		return o, err
	}
	if _, err = b.orderOn(ctx, vm, by, respond.Save, o.Id); err != nil {
		err = api.Error(connect.CodeFailedPrecondition, "outguard bundle show "+o.Bundle+" shows the capture", fmt.Errorf("captured, and not kept for revert: %w", err))
	}
	return o, err
}

func (b backend) order(ctx context.Context, vm uuid.UUID, by api.Caller, step respond.Kind) (*apipb.Order, error) {
	return b.orderOn(ctx, vm, by, step, "")
}

func (b backend) orderOn(ctx context.Context, vm uuid.UUID, by api.Caller, step respond.Kind, state string) (*apipb.Order, error) {
	orders, err := b.m.responder.Submit(ctx, respond.Request{
		State: state, VM: vm, Name: b.m.domains.name(vm), Steps: []respond.Kind{step}, Asked: by.String(), Reason: by.Reason, Decided: time.Now(),
	})
	if err != nil {
		return nil, err
	}
	r, err := b.m.responder.WaitUnlessAway(ctx, orders[0].ID)
	if errors.Is(err, respond.ErrAway) {
		return orderOf(respond.Entry{Order: orders[0]}), api.Error(connect.CodeUnavailable, "start libvirtd; outguard orders "+orders[0].ID.String()+" shows what came of it", err)
	}
	if err != nil {
		return nil, err
	}
	o := orderOf(respond.Entry{Order: orders[0], Result: &r})
	if r.Status != respond.Done && r.Status != respond.Asked {
		err = api.Error(connect.CodeFailedPrecondition, "outguard orders --vm "+o.Vm+" shows it", fmt.Errorf("%s %s: %s", step, o.Vm, r.Error))
	}
	return o, err
}

func libvirtError(err error) error {
	switch {
	case errors.Is(err, domain.ErrUnreachable):
		return api.Error(connect.CodeUnavailable, "start libvirtd", err)
	case errors.Is(err, domain.ErrNotFound), errors.Is(err, domain.ErrNotRunning):
		return api.Error(connect.CodeFailedPrecondition, "outguard vms shows each domain's state", err)
	}
	return err
}

func (b backend) Bundles(context.Context) ([]*apipb.Bundle, error) {
	all, err := b.m.shelf.list()
	return bundlesOf(all), err
}

func bundlesOf(all []*capture) []*apipb.Bundle {
	out := make([]*apipb.Bundle, len(all))
	for i, c := range all {
		out[i] = bundleOf(c)
	}
	return out
}

func bundleOf(c *capture) *apipb.Bundle {
	man := c.manifest
	b := &apipb.Bundle{
		Id: c.name(), Dir: c.dir, Vm: man.VMName, Uuid: man.VM.String(), Created: api.FormatTime(man.Created), Order: man.Order,
		Disk: c.disk, Pinned: c.pinned,
	}
	if man.Finding != "" {
		b.Findings = []string{man.Finding}
	}
	for _, p := range man.Parts {
		b.Bytes += uint64(p.Size)
	}
	return b
}

func (b backend) PinBundle(_ context.Context, id string, pinned bool, by api.Caller) (*apipb.Bundle, error) {
	c, err := b.m.shelf.setPinned(id, pinned)
	if errors.Is(err, fs.ErrNotExist) {
		err = api.Error(connect.CodeNotFound, "outguard captures lists them", err)
	}
	if err != nil {
		return nil, err
	}
	what := "capture-pinned"
	if !pinned {
		what = "capture-unpinned"
	}
	b.m.keep(c.manifest.VM, evidence.KindNote, time.Now(), note{What: what, Text: fmt.Sprintf("%s, by %s", c.name(), by)})
	return bundleOf(c), nil
}

func (b backend) PruneBundles(_ context.Context, p api.Prune, by api.Caller) ([]*apipb.Bundle, error) {
	gone, err := b.m.shelf.prune(wish{vm: p.VM, before: p.Before, keep: p.Keep, bytes: p.Bytes, dry: p.DryRun, by: by.String()})
	return bundlesOf(gone), err
}
