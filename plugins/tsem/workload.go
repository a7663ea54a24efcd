package tsem

import (
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/lineage"
)

// workload is what one model covers, as far as one VM goes: the VM itself, or one
// kind of container in it.
type workload struct {
	name       string // printable; "" is the VM's own
	group      string // that shares the model; "": nobody does
	model      *Model
	events     uint64
	violations uint64
	lastNew    time.Time
	rate       rate
	forensics  []Forensic
	full       bool              // said that the model is full
	leaves     lineage.Departure // in what its tasks left it while it learned
}

// words are the model in a sentence.
func (w *workload) words() string {
	if w.name == "" {
		return "the model"
	}
	return "the model of container \"" + w.name + "\""
}

func upper(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// maxWorkloadName bounds a name that is made of a guest's text.
const maxWorkloadName = 200

// WorkloadOf is the name of the workload of a container: its kind, printable. ""
// is the VM's own, where there is no container.
func WorkloadOf(c *lineage.Container) string {
	if c == nil {
		return ""
	}
	name := printable(c.Kind())
	return name[:min(len(name), maxWorkloadName)]
}

// all are the VM's workloads, its own first and then by name.
func (v *vm) all() iter.Seq[*workload] {
	return func(yield func(*workload) bool) {
		if !yield(&v.workload) {
			return
		}
		for _, name := range slices.Sorted(maps.Keys(v.workloads)) {
			if !yield(v.workloads[name]) {
				return
			}
		}
	}
}

// find returns a workload by its name, nil if there is none.
func (v *vm) find(name string) *workload {
	if name == "" {
		return &v.workload
	}
	return v.workloads[name]
}

// workloadOf is the workload of an event's container. A kind of container that
// comes first has a model as the VM's own: it learns while that learns, and where
// that is sealed, it has nothing that it may do. Where there are as many as there
// may be, the VM's own model judges it; refused says that this is so the first
// time.
func (e *Engine) workloadOf(v *vm, c *lineage.Container) (w *workload, refused bool) {
	if c == nil || v.whole {
		return &v.workload, false
	}
	if c == v.lastIn {
		return v.lastOf, false // events come in runs of one container
	}
	if w = v.of[c]; w != nil {
		v.lastIn, v.lastOf = c, w
		return w, false
	}
	name := WorkloadOf(c)
	w = v.workloads[name]
	switch {
	case w != nil:
	case len(v.workloads) < e.opts.MaxWorkloads:
		w = e.newWorkload(v, name)
		v.workloads[name] = w
	default:
		v.refused++
		w, refused = &v.workload, v.refused == 1
	}
	if len(v.of) >= 2*engine.MaxPlaces {
		v.forgetPlaces() // of containers that are gone, most of them
	}
	v.of[c] = w
	return w, refused
}

// forgetPlaces has each container's workload found anew.
func (v *vm) forgetPlaces() {
	clear(v.of)
	v.lastIn, v.lastOf = nil, nil
}

func (e *Engine) newWorkload(v *vm, name string) *workload {
	m := NewModelOf(v.model.Mapping(), e.containerPoints())
	if v.model.Sealed() {
		m.Seal()
	}
	return &workload{name: name, model: m}
}

// containerPoints bounds the points of one container's model, so that all of
// them have no more than a VM's own.
func (e *Engine) containerPoints() int { return max(e.opts.MaxPoints/e.opts.MaxWorkloads, 1) }

// limit is how many points a workload's model may have.
func (e *Engine) limit(name string) int {
	if name == "" {
		return e.opts.MaxPoints
	}
	return e.containerPoints()
}

func (w *workload) describe(id uuid.UUID, seen time.Time) engine.Model {
	w.model.State()
	return w.known(id, seen)
}

// known describes the model without computing its state.
func (w *workload) known(id uuid.UUID, seen time.Time) engine.Model {
	m := w.model
	aggregate := ""
	if a, has := m.Aggregate(); has {
		aggregate = hexOf(a)
	}
	return engine.Model{
		Workload: w.name, Group: w.group,
		Aggregate: aggregate, Version: m.Version(), Forensics: uint64(len(m.Points())) - m.Valid(),
		SinceNew: w.rate.sinceNew, Quiet: w.rate.quiet(w.lastNew, seen), Hours: w.rate.list(),
		VM: id, Mapping: m.Mapping().String(), Sealed: m.Sealed(), Points: m.Valid(),
		Events: w.events, Violations: w.violations,
		Measurement: hexOf(m.Measurement()), State: hexOf(m.state), LastNew: w.lastNew,
	}
}

// describe is the VM's own model.
func (v *vm) describe(id uuid.UUID) engine.Model { return v.workload.describe(id, v.seen) }
