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

// Export returns the VM's model as a file.
func (e *Engine) Export(_ context.Context, id uuid.UUID) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := e.vms[id]
	if v == nil {
		return nil, fmt.Errorf("export: no model of %s yet: it begins with the first event", id)
	}
	return v.model.AppendText(nil), nil
}

// Import makes the model of a file the VM's own. Its tasks stay, and none is
// untrusted any more; what counted events counts on, but for those of the old
// model's learning.
func (e *Engine) Import(_ context.Context, id uuid.UUID, file []byte) (engine.Model, error) {
	m, rest, err := ParseModel(file, e.opts.MaxPoints)
	if err == nil && len(bytes.TrimSpace(rest)) > 0 {
		err = fmt.Errorf("%d bytes behind `end`: %w", len(rest), ErrModelFile)
	}
	if err != nil {
		return engine.Model{}, fmt.Errorf("import: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	v := e.vm(id)
	m.version = max(m.version, v.model.version)
	m.Touch()
	v.model, v.rate, v.lastNew, v.full = m, rate{}, time.Time{}, false
	v.tree.Unmark()
	v.firsts = nil
	return v.describe(id), nil
}

// Accept makes points that came as violations the model's own. What was
// untrusted because of nothing else is trusted again.
func (e *Engine) Accept(_ context.Context, id uuid.UUID, accepted [][engine.PointSize]byte) (engine.Model, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := e.vms[id]
	if v == nil {
		return engine.Model{}, fmt.Errorf("accept: no model of %s", id)
	}
	for i := range accepted {
		if _, has := v.model.Find(accepted[i]); !has {
			return engine.Model{}, fmt.Errorf("accept: the model has no point %.16x…: it was changed since", accepted[i])
		}
	}
	for i := range accepted {
		v.model.Validate(accepted[i])
	}
	v.model.Touch()
	v.trust()
	return v.describe(id), nil
}

// trust unmarks the tasks whose first violation is none any more.
func (v *vm) trust() {
	pardoned := map[uint64]bool{}
	for _, f := range v.firsts {
		if p, has := v.model.Find(f.point); has && p.Valid {
			pardoned[f.mark] = true
		}
	}
	if len(pardoned) > 0 {
		v.tree.UnmarkFunc(func(t *lineage.Task) bool { return pardoned[t.Mark] })
	}
}

// Set sets the base, the aggregate, pseudonyms. All of it is checked before any
// of it is set.
func (e *Engine) Set(_ context.Context, id uuid.UUID, s engine.Settings) (engine.Model, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := e.vm(id)
	m := v.model
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
	return v.describe(id), nil
}
