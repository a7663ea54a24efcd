package tsem

import (
	"context"
	"fmt"
	"iter"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
)

// maxGroups bounds the models that are shared.
const maxGroups = 1 << 12

// sharing are the workloads whose model is that of w, with their VMs.
func (e *Engine) sharing(v *vm, w *workload) iter.Seq2[*vm, *workload] {
	return func(yield func(*vm, *workload) bool) {
		if w.group == "" {
			yield(v, w)
			return
		}
		for _, other := range e.vms {
			for member := range other.all() {
				if member.group == w.group && !yield(other, member) {
					return
				}
			}
		}
	}
}

// Join makes a workload share the model of a group. The first one brings its own
// model; whoever joins later brings its points where the group's model learns, and
// nothing where that is sealed. With no group it goes on with a model of its own,
// which is as the shared one was.
func (e *Engine) Join(_ context.Context, id uuid.UUID, name, group string) (engine.Model, error) {
	if len(group) > maxWorkloadName || printable(group) != group {
		return engine.Model{}, fmt.Errorf("join: group %.80q: a name is printable, of at most %d bytes", group, maxWorkloadName)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	v, w, err := of{e, name}.make("join", id)
	if err != nil {
		return engine.Model{}, err
	}
	if w.group == group {
		return w.describe(id, v.seen), nil
	}
	if group == "" {
		w.model = w.model.clone()
	} else if err := e.join(v, w, group); err != nil {
		return engine.Model{}, fmt.Errorf("join %s: %w", group, err)
	}
	left := w.group
	w.group = group
	w.model.Touch()
	e.drop(left)
	return w.describe(id, v.seen), nil
}

func (e *Engine) join(v *vm, w *workload, group string) error {
	m := e.groups[group]
	switch {
	case m == nil && len(e.groups) >= maxGroups:
		return fmt.Errorf("%d groups: %w", len(e.groups), ErrFull)
	case m == nil:
		if w.group != "" {
			w.model = w.model.clone()
		}
		e.groups[group] = w.model
		return nil
	case m.mapping != w.model.mapping && len(w.model.points.all) > 0:
		return fmt.Errorf("its model maps events by %s, this one by %s: no point of one is one of the other's", m.mapping, w.model.mapping)
	}
	if !m.sealed {
		m.take(w.model)
	}
	w.begin(m)
	v.unmark(w.name)
	v.forgetFirsts(w.name)
	return nil
}

// drop gives a group up that nobody shares any more.
func (e *Engine) drop(group string) {
	if group == "" {
		return
	}
	for _, v := range e.vms {
		for w := range v.all() {
			if w.group == group {
				return
			}
		}
	}
	delete(e.groups, group)
}

// shared finds the model of a restored workload's group, which the checkpoints of
// all its VMs have, each as it was when that was taken: the newest version of it
// counts, and every point of any. Their order, and the measurement with it, is
// that of the version that counts and then of the others.
func (e *Engine) shared(w *workload) {
	m := e.groups[w.group]
	if m == nil || w.model.version > m.version || w.model.version == m.version && len(w.model.points.all) > len(m.points.all) {
		if m != nil {
			w.model.merge(m)
		}
		e.groups[w.group] = w.model
		for _, v := range e.vms {
			for member := range v.all() {
				if member.group == w.group {
					member.model = w.model
				}
			}
		}
		return
	}
	if m != w.model {
		m.merge(w.model)
		w.model = m
	}
}

// take adds what other has learned.
func (m *Model) take(other *Model) {
	for i := range other.points.all {
		if p := &other.points.all[i]; p.Valid {
			m.bring(other, p)
		}
	}
	for p := range other.pseudonyms {
		_ = m.AddPseudonym(p) // as many as there is room for
	}
}

// merge adds every point that an older version of the same model has.
func (m *Model) merge(older *Model) {
	if m.mapping != older.mapping {
		return
	}
	for i := range older.points.all {
		m.bring(older, &older.points.all[i])
	}
}

// bring adds a point of another model's, with what made it.
func (m *Model) bring(other *Model, p *Point) {
	if at, has := m.points.find(&p.Value); has {
		mine := &m.points.all[at]
		mine.Count = max(mine.Count, p.Count)
		return
	}
	if m.restore(Point{Value: p.Value, Count: p.Count, Valid: p.Valid}) != nil {
		m.overflow++
		return
	}
	if n, has := other.Note(p); has {
		m.Annotate(&n)
	}
}

// clone is a model that goes on by itself.
func (m *Model) clone() *Model {
	c := *m
	c.points, c.notes, c.pseudonyms = points{}, append(notes(nil), m.notes...), nil
	for i := range m.points.all {
		c.points.add(m.points.all[i])
	}
	for p := range m.pseudonyms {
		_ = c.AddPseudonym(p)
	}
	return &c
}
