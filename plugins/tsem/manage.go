package tsem

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/lineage"
)

// of is the engine as far as the workloads of one name go.
type of struct {
	e    *Engine
	name string
}

// Workload is what can be done to the models of that workload, "" being the VMs'
// own.
func (e *Engine) Workload(name string) engine.Modelled { return of{e, name} }

// find returns the VM's workload, with e.mu held.
func (o of) find(what string, id uuid.UUID) (*vm, *workload, error) {
	v := o.e.vms[id]
	if v == nil {
		return nil, nil, fmt.Errorf("%s: no model of %s yet: it begins with the first event", what, id)
	}
	w := v.find(o.name)
	if w == nil {
		return nil, nil, fmt.Errorf("%s: no workload %.80q of %s has a model; it begins with its container", what, o.name, id)
	}
	return v, w, nil
}

// make is the same, where a model that is not there yet begins.
func (o of) make(what string, id uuid.UUID) (*vm, *workload, error) {
	v := o.e.vm(id)
	if w := v.find(o.name); w != nil {
		return v, w, nil
	}
	switch {
	case len(o.name) > maxWorkloadName || printable(o.name) != o.name:
		return nil, nil, fmt.Errorf("%s: workload %.80q: no container has such a name", what, o.name)
	case len(v.workloads) >= o.e.opts.MaxWorkloads:
		return nil, nil, fmt.Errorf("%s: workload %.80q: the VM has %d: %w", what, o.name, len(v.workloads), ErrFull)
	}
	w := o.e.newWorkload(v, o.name)
	v.workloads[o.name] = w
	v.forgetPlaces()
	return v, w, nil
}

// Learn lets the model learn, from now on or again. No task of the workload is
// untrusted any more.
func (o of) Learn(_ context.Context, id uuid.UUID) (engine.Model, error) {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	v, w, err := o.make("learn", id)
	if err != nil {
		return engine.Model{}, err
	}
	if o.name == "" {
		v.whole = false
	}
	w.model.Unseal()
	w.model.Touch()
	v.unmark(o.name)
	return w.describe(id, v.seen), nil
}

// Seal ends learning.
func (o of) Seal(_ context.Context, id uuid.UUID) (engine.Model, error) {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	v, w, err := o.find("seal", id)
	if err != nil {
		return engine.Model{}, err
	}
	w.model.Seal()
	w.model.Touch()
	return w.describe(id, v.seen), nil
}

// unmark trusts the tasks again that a violation of that workload's model made
// untrusted; of the VM's own those too whose violation is not known any more.
func (v *vm) unmark(name string) {
	others := map[uint64]bool{} // marks that are another workload's
	own := map[uint64]bool{}
	for _, f := range v.firsts {
		if f.of == name {
			own[f.mark] = true
		} else {
			others[f.mark] = true
		}
	}
	v.tree.UnmarkFunc(func(t *lineage.Task) bool { return own[t.Mark] || name == "" && !others[t.Mark] })
}

// Export returns the VM's own model as a file.
func (e *Engine) Export(ctx context.Context, id uuid.UUID) ([]byte, error) {
	return e.Workload("").Export(ctx, id)
}

// Export returns the model as a file.
func (o of) Export(_ context.Context, id uuid.UUID) ([]byte, error) {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	_, w, err := o.find("export", id)
	if err != nil {
		return nil, err
	}
	return w.model.AppendText(nil), nil
}

// Import makes the model of a file the VM's own.
func (e *Engine) Import(ctx context.Context, id uuid.UUID, file []byte) (engine.Model, error) {
	return e.Workload("").Import(ctx, id, file)
}

// Import makes the model of a file the workload's own, and that of all that share
// it. Their tasks stay, and none is untrusted any more; what counted events counts
// on, but for those of the old model's learning.
func (o of) Import(_ context.Context, id uuid.UUID, file []byte) (engine.Model, error) {
	m, rest, err := ParseModel(file, o.e.limit(o.name))
	if err == nil && len(bytes.TrimSpace(rest)) > 0 {
		err = fmt.Errorf("%d bytes behind `end`: %w", len(rest), ErrModelFile)
	}
	if err != nil {
		return engine.Model{}, fmt.Errorf("import: %w", err)
	}
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	v, w, err := o.make("import", id)
	if err != nil {
		return engine.Model{}, err
	}
	m.version = max(m.version, w.model.version)
	m.Touch()
	if w.group != "" {
		o.e.groups[w.group] = m
	}
	for other, member := range o.e.sharing(v, w) {
		member.begin(m)
		other.unmark(member.name)
		other.forgetFirsts(member.name)
	}
	return w.describe(id, v.seen), nil
}

// begin makes m the workload's model.
func (w *workload) begin(m *Model) {
	w.model, w.rate, w.lastNew, w.full = m, rate{}, time.Time{}, false
}

func (v *vm) forgetFirsts(name string) {
	kept := v.firsts[:0]
	for _, f := range v.firsts {
		if f.of != name {
			kept = append(kept, f)
		}
	}
	v.firsts = kept
}

// Accept makes points of the VM's own model that came as violations the model's
// own.
func (e *Engine) Accept(ctx context.Context, id uuid.UUID, accepted [][engine.PointSize]byte) (engine.Model, error) {
	return e.Workload("").Accept(ctx, id, accepted)
}

// Accept makes points that came as violations the model's own. What was
// untrusted because of nothing else is trusted again.
func (o of) Accept(_ context.Context, id uuid.UUID, accepted [][engine.PointSize]byte) (engine.Model, error) {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	v, w, err := o.find("accept", id)
	if err != nil {
		return engine.Model{}, err
	}
	for i := range accepted {
		if _, has := w.model.Find(accepted[i]); !has {
			return engine.Model{}, fmt.Errorf("accept: the model has no point %.16x…: it was changed since", accepted[i])
		}
	}
	for i := range accepted {
		w.model.Validate(accepted[i])
	}
	w.model.Touch()
	for other := range o.e.sharing(v, w) {
		other.trust()
	}
	return w.describe(id, v.seen), nil
}

// trust unmarks the tasks whose first violation is none any more.
func (v *vm) trust() {
	pardoned := map[uint64]bool{}
	for _, f := range v.firsts {
		w := v.find(f.of)
		if w == nil {
			continue
		}
		if p, has := w.model.Find(f.point); has && p.Valid {
			pardoned[f.mark] = true
		}
	}
	if len(pardoned) > 0 {
		v.tree.UnmarkFunc(func(t *lineage.Task) bool { return pardoned[t.Mark] })
	}
}

// Set sets what a person says of the VM's own model.
func (e *Engine) Set(ctx context.Context, id uuid.UUID, s engine.Settings) (engine.Model, error) {
	return e.Workload("").Set(ctx, id, s)
}

// Set sets the base, the aggregate, pseudonyms. All of it is checked before any
// of it is set.
func (o of) Set(_ context.Context, id uuid.UUID, s engine.Settings) (engine.Model, error) {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	v, w, err := o.make("set", id)
	if err != nil {
		return engine.Model{}, err
	}
	m := w.model
	switch _, has := m.Aggregate(); {
	case s.Base != nil && (has || len(m.Points()) > 0):
		return engine.Model{}, fmt.Errorf("set base: the model has begun without it; a base has to come before everything else")
	case s.Aggregate != nil && m.Sealed():
		return engine.Model{}, fmt.Errorf("set aggregate: %w", ErrSealed)
	case len(m.pseudonyms)+len(s.Pseudonyms) > maxPseudonyms:
		return engine.Model{}, fmt.Errorf("set pseudonyms: %w", ErrFull)
	}
	if s.Base != nil {
		m.SetBase(*s.Base)
	}
	if s.Aggregate != nil {
		m.SetAggregate(*s.Aggregate)
	}
	for _, p := range s.Pseudonyms {
		if err := m.AddPseudonym(p); err != nil {
			return engine.Model{}, err
		}
	}
	m.Touch()
	return w.describe(id, v.seen), nil
}
