// Package apitest has a monitor in memory: what the API's callers see of one,
// with nothing behind it. It is for unit tests of programs that speak the API.
package apitest

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

// Backend answers from its fields. It is safe for use by many goroutines as
// long as its fields are changed by its methods only.
type Backend struct {
	State StatusFunc // default: a running monitor with one engine
	Now   func() time.Time

	mu       sync.Mutex // guards what follows
	changed  chan struct{}
	vms      []*apipb.VM
	batches  []*engine.Batch
	findings []*engine.Finding
	orders   []*apipb.Order
	models   []api.Model

	modelFiles map[uuid.UUID][]byte
	bundles    []*apipb.Bundle
	rotations  uint64
	cgroups    *api.Cgroups
	places     engine.Places
	saved      map[string]bool // states, by their names
}

// StatusFunc is what Status answers with.
type StatusFunc func() (*apipb.StatusResponse, error)

var _ api.Backend = (*Backend)(nil)

// New returns a backend that knows no VM. Its clock stands at 2026-01-02
// 03:04:05 UTC and goes on by a millisecond each time it is asked.
func New() *Backend {
	b := &Backend{changed: make(chan struct{}), saved: map[string]bool{}}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	b.Now = func() time.Time { at = at.Add(time.Millisecond); return at }
	return b
}

// Add adds to what the backend knows: *apipb.VM, *engine.Batch,
// *engine.Finding, *apipb.Order, api.Model, *api.Cgroups,
// engine.Container or *apipb.Bundle.
func (b *Backend) Add(things ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range things {
		switch t := t.(type) {
		case *apipb.VM:
			b.vms = append(b.vms, t)
		case *engine.Batch:
			b.batches = append(b.batches, t)
		case *engine.Finding:
			b.findings = append(b.findings, t)
		case *apipb.Order:
			b.orders = append(b.orders, t)
		case api.Model:
			b.models = append(b.models, t)
		case engine.Container:
			b.places.Containers = append(b.places.Containers, t)
		case *api.Cgroups:
			b.cgroups = t
		case *apipb.Bundle:
			b.bundles = append(b.bundles, t)
		default:
			panic(fmt.Sprintf("apitest: %T", t))
		}
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

// Status implements api.Backend.
func (b *Backend) Status(context.Context) (*apipb.StatusResponse, error) {
	if b.State != nil {
		return b.State()
	}
	return &apipb.StatusResponse{
		Version: "v1.2.3", Started: "2026-01-02T03:00:00.000000000Z", Pid: 42, StateDir: "/var/lib/outguard",
		Libvirt: "qemu:///system", Listeners: []string{"hybrid /run/outguard/vsock"},
		Engines: []*apipb.Engine{{Name: "tsem", Version: "v1.2.3", State: "running", Models: true}},
	}, nil
}

// Names implements api.Backend.
func (b *Backend) Names(context.Context) (map[uuid.UUID]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[uuid.UUID]string{}
	for _, v := range b.vms {
		out[uuid.MustParse(v.Uuid)] = v.Name
	}
	return out, nil
}

// VMs implements api.Backend.
func (b *Backend) VMs(context.Context) ([]*apipb.VM, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*apipb.VM
	for _, v := range b.vms {
		out = append(out, clone(v))
	}
	return out, nil
}

// Cgroups implements api.Backend.
func (b *Backend) Cgroups(context.Context, uuid.UUID) (*api.Cgroups, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cgroups == nil {
		return &api.Cgroups{}, nil
	}
	return b.cgroups, nil
}

// CgroupPaths implements api.Backend: nothing is passed over, so nothing is found.
func (b *Backend) CgroupPaths(context.Context, uuid.UUID, uuid.UUID, []uint64, uint64) (map[uint64]string, error) {
	return nil, nil
}

// Batches implements api.Backend.
func (b *Backend) Batches(ctx context.Context, q api.Query, yield func(*engine.Batch) error) error {
	return follow(ctx, b, q, func() []*engine.Batch { return b.batches }, func(v *engine.Batch) error {
		return wanted(q, v.VM, v.Received, v, yield)
	})
}

// Findings implements api.Backend.
func (b *Backend) Findings(ctx context.Context, q api.Query, yield func(*engine.Finding) error) error {
	return follow(ctx, b, q, func() []*engine.Finding { return b.findings }, func(v *engine.Finding) error {
		return wanted(q, v.VM, v.At, v, yield)
	})
}

func wanted[T any](q api.Query, vm uuid.UUID, at time.Time, v T, yield func(T) error) error {
	if (q.VM != uuid.Nil && q.VM != vm) || at.Before(q.Since) {
		return nil
	}
	return yield(v)
}

// follow goes through what list returns, and with q.Follow on through what is
// added to it.
func follow[T any](ctx context.Context, b *Backend, q api.Query, list func() []T, each func(T) error) error {
	next := 0
	if q.Follow && q.Since.IsZero() {
		b.mu.Lock()
		next = len(list())
		b.mu.Unlock()
	}
	for {
		b.mu.Lock()
		all, changed := list(), b.changed
		b.mu.Unlock()
		for ; next < len(all); next++ {
			if err := each(all[next]); err != nil {
				return err
			}
		}
		if !q.Follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Orders implements api.Backend.
func (b *Backend) Orders(_ context.Context, q api.Query) ([]*apipb.Order, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*apipb.Order
	for _, o := range b.orders {
		at, err := api.ParseTime(o.Decided)
		if err != nil {
			return nil, err
		}
		if (q.VM == uuid.Nil || q.VM.String() == o.Uuid) && !at.Before(q.Since) && (q.Order == "" || q.Order == o.Id) {
			out = append(out, clone(o))
		}
	}
	if n := uint64(len(out)); q.Limit > 0 && n > q.Limit {
		out = out[n-q.Limit:]
	}
	return out, nil
}

// Models implements api.Backend.
func (b *Backend) Models(context.Context) ([]api.Model, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]api.Model(nil), b.models...), nil
}

// Learn implements api.Backend.
func (b *Backend) Learn(_ context.Context, of api.ModelRef, _ api.Caller) (api.Model, error) {
	return b.setSealed(of, false)
}

// Seal implements api.Backend.
func (b *Backend) Seal(_ context.Context, of api.ModelRef, _ api.Caller) (api.Model, error) {
	return b.setSealed(of, true)
}

func (b *Backend) setSealed(of api.ModelRef, sealed bool) (api.Model, error) {
	return b.changeModel(of, func(m *api.Model) { m.Sealed = sealed })
}

var noModel = api.Error(connect.CodeNotFound, "outguard model list lists them", errors.New("no such model"))

func (b *Backend) changeModel(of api.ModelRef, change func(*api.Model)) (api.Model, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.models {
		m := &b.models[i]
		if m.VM == of.VM && m.Workload == of.Workload && (of.Engine == "" || of.Engine == m.Engine) {
			change(m)
			m.Version++
			return *m, nil
		}
	}
	return api.Model{}, noModel
}

// RotateKey implements api.Backend: of keys that are names.
func (b *Backend) RotateKey(_ context.Context, by api.Caller) (*apipb.RotateKeyResponse, error) {
	if by.UID != uint32(os.Geteuid()) {
		return nil, api.Error(connect.CodePermissionDenied, "", errors.New("rotate the host's key"))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rotations++
	return &apipb.RotateKeyResponse{
		Number: b.rotations, OldKey: fmt.Sprintf("key-%d", b.rotations-1), NewKey: fmt.Sprintf("key-%d", b.rotations),
		Time: "2026-01-02T03:04:05.678Z", KeysFile: "/var/lib/outguard/host.keys",
	}, nil
}

// SetPolicy implements api.Backend: of a VM with a session.
func (b *Backend) SetPolicy(_ context.Context, vm uuid.UUID, profile string, _ api.Caller) (string, uint64, error) {
	if profile == "" {
		profile = vsockproto.DefaultProfile
	}
	if _, err := vsockproto.ParseProfile(profile); err != nil {
		return "", 0, api.Error(connect.CodeInvalidArgument, "", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, v := range b.vms {
		if v.Uuid == vm.String() && v.Session != nil {
			v.Session.Profile = profile
			v.Session.Policy++
			v.Session.PolicyAcked = v.Session.Policy
			return profile, v.Session.Policy, nil
		}
	}
	return profile, 1, nil
}

// Pause implements api.Backend.
func (b *Backend) Pause(_ context.Context, vm uuid.UUID, by api.Caller) (*apipb.Order, error) {
	return b.carryOut("pause", vm, "running", "paused", by)
}

// Resume implements api.Backend.
func (b *Backend) Resume(_ context.Context, vm uuid.UUID, by api.Caller) (*apipb.Order, error) {
	return b.carryOut("resume", vm, "paused", "running", by)
}

// Capture implements api.Backend.
func (b *Backend) Capture(_ context.Context, vm uuid.UUID, revertible bool, by api.Caller, progress func(*apipb.Progress)) (*apipb.Order, error) {
	progress(&apipb.Progress{Step: "memory", Done: 256 << 20, Total: 512 << 20})
	progress(&apipb.Progress{Step: "memory", Done: 512 << 20, Total: 512 << 20})
	b.mu.Lock()
	defer b.mu.Unlock()
	o := b.order("capture", vm, by)
	o.State, o.Bundle = "done", "/var/lib/outguard/bundles/"+o.Id
	return clone(o), nil
}

// carryOut changes the state of a VM that is in from; it must hold nothing.
func (b *Backend) carryOut(step string, vm uuid.UUID, from, to string, by api.Caller) (*apipb.Order, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, v := range b.vms {
		if v.Uuid != vm.String() {
			continue
		}
		o := b.order(step, vm, by)
		if v.State != from {
			o.State, o.Error = "failed", "the domain is "+v.State
			return clone(o), api.Error(connect.CodeFailedPrecondition, "`outguard vms` shows its state",
				fmt.Errorf("%s %s: the domain is %s", step, v.Name, v.State))
		}
		v.State, o.State = to, "done"
		return clone(o), nil
	}
	return nil, fmt.Errorf("%s %s: no such domain", step, vm)
}

func (b *Backend) order(step string, vm uuid.UUID, by api.Caller) *apipb.Order {
	o := &apipb.Order{
		Id: fmt.Sprintf("order-%d", len(b.orders)+1), Uuid: vm.String(), Step: step,
		By: "api", Reason: by.Reason, Decided: api.FormatTime(b.Now()),
		Journalled: api.FormatTime(b.Now()), Started: api.FormatTime(b.Now()), Effect: api.FormatTime(b.Now()), Ended: api.FormatTime(b.Now()),
	}
	b.orders = append(b.orders, o)
	return o
}

// Saved implements api.Backend.
func (b *Backend) Saved(context.Context, uuid.UUID) (all []*apipb.Saved, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(b.saved)) {
		all = append(all, &apipb.Saved{Name: name, Created: api.FormatTime(b.Now()), State: "running"})
	}
	return all, nil
}

// Contain implements api.Backend.
func (b *Backend) Contain(_ context.Context, vm uuid.UUID, step, state string, by api.Caller) (*apipb.Order, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, v := range b.vms {
		if v.Uuid != vm.String() {
			continue
		}
		o := b.order(step, vm, by)
		o.State, o.Target = "done", state
		switch step {
		case "revert":
			if !b.saved[state] {
				o.State, o.Error = "failed", "nothing is saved under that name"
				return clone(o), api.Error(connect.CodeFailedPrecondition, "saved are: "+strings.Join(slices.Sorted(maps.Keys(b.saved)), ", "),
					fmt.Errorf("%s %s: %s", step, v.Name, o.Error))
			}
		case "save":
			b.saved[state] = true
		case "unsave":
			delete(b.saved, state)
		case "isolate":
			v.Isolated, o.Detail = true, "down: 52:54:00:00:00:01"
		case "connect":
			v.Isolated, o.Already = false, !v.Isolated
		case "destroy":
			v.State = "shut off"
		}
		return clone(o), nil
	}
	return nil, fmt.Errorf("%s %s: no such domain", step, vm)
}

// Bundles implements api.Backend.
func (b *Backend) Bundles(context.Context) ([]*apipb.Bundle, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*apipb.Bundle
	for _, v := range b.bundles {
		out = append(out, clone(v))
	}
	return out, nil
}

// PinBundle implements api.Backend.
func (b *Backend) PinBundle(_ context.Context, id string, pinned bool, _ api.Caller) (*apipb.Bundle, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, v := range b.bundles {
		if v.Id == id {
			v.Pinned = pinned
			return clone(v), nil
		}
	}
	return nil, api.Error(connect.CodeNotFound, "outguard captures lists them", fmt.Errorf("no capture %q", id))
}

// PruneBundles implements api.Backend: what is not pinned goes.
func (b *Backend) PruneBundles(_ context.Context, p api.Prune, _ api.Caller) ([]*apipb.Bundle, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var gone, left []*apipb.Bundle
	for _, v := range b.bundles {
		if v.Pinned || (p.VM != uuid.Nil && p.VM.String() != v.Uuid) {
			left = append(left, v)
		} else {
			gone = append(gone, clone(v))
		}
	}
	if !p.DryRun {
		b.bundles = left
	}
	return gone, nil
}

// ReloadPlaybook implements api.Backend.
func (b *Backend) ReloadPlaybook(context.Context, api.Caller) (*apipb.Playbook, error) {
	return &apipb.Playbook{File: "/etc/outguard/playbook.yaml", Sha256: "00ff", Loaded: api.FormatTime(b.Now()), Rules: 2}, nil
}

// ExportModel implements api.Backend.
func (b *Backend) ExportModel(_ context.Context, of api.ModelRef) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if file, has := b.modelFiles[of.VM]; has {
		return file, nil
	}
	return nil, noModel
}

// ImportModel implements api.Backend: whatever the file holds is the model.
func (b *Backend) ImportModel(_ context.Context, of api.ModelRef, file []byte, _ api.Caller) (api.Model, error) {
	b.mu.Lock()
	if b.modelFiles == nil {
		b.modelFiles = map[uuid.UUID][]byte{}
	}
	b.modelFiles[of.VM] = bytes.Clone(file)
	b.mu.Unlock()
	return b.changeModel(of, func(*api.Model) {})
}

// AcceptModel implements api.Backend.
func (b *Backend) AcceptModel(_ context.Context, of api.ModelRef, points [][engine.PointSize]byte, _ api.Caller) (api.Model, error) {
	return b.changeModel(of, func(m *api.Model) { m.Points += uint64(len(points)) })
}

// SetModel implements api.Backend.
func (b *Backend) SetModel(_ context.Context, of api.ModelRef, s engine.Settings, _ api.Caller) (api.Model, error) {
	return b.changeModel(of, func(m *api.Model) {
		if s.Aggregate != nil {
			m.Aggregate = hex.EncodeToString(s.Aggregate[:])
		}
	})
}

// JoinModel implements api.Backend.
func (b *Backend) JoinModel(_ context.Context, of api.ModelRef, group string, _ api.Caller) (api.Model, error) {
	return b.changeModel(of, func(m *api.Model) { m.Group = group })
}

// Containers implements api.Backend: those that were added are every VM's.
func (b *Backend) Containers(context.Context, uuid.UUID) (*engine.Places, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return &b.places, nil
}
