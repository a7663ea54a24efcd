package tsem

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/lineage"
	"github.com/outguard/outguard/vsockproto"
)

// Version is the engine's own.
const Version = "1"

// Options bound an Engine; nil and zero mean the defaults.
type Options struct {
	Mapping       Mapping // of new models; default Full
	MaxPoints     int     // of one model; default DefaultMaxPoints
	MaxViolations int     // findings of tsem/violation of one VM in one second; default 100
	MaxUntrusted  int     // findings of tsem/untrusted of one VM in one second; default 20
	MaxWorkloads  int     // of one VM with a model of their own, beside the VM; together they have as many points as one; default 64
	Lineage       lineage.Options
}

// Engine is the engine: one lineage for each VM, and a model for each workload of
// it: for the VM itself, and for each kind of container in it.
type Engine struct {
	opts Options

	mu     sync.Mutex // guards what follows; held for each batch
	vms    map[uuid.UUID]*vm
	groups map[string]*Model // that workloads share, by name
	mapper *Mapper
	full   *fullMapper
	tr     translator
	record vsockproto.Event
}

// vm is what the engine keeps of one VM. Embedded is its own workload: what is in
// no container.
type vm struct {
	workload
	tree      *lineage.Tree
	unknown   uint64    // records of a type without a layout
	seen      time.Time // the last batch
	marks     uint64    // tasks that were judged untrusted, each numbered
	firsts    []first
	violating limiter
	untrusted limiter
	leaving   limiter

	workloads map[string]*workload             // of containers, by name
	of        map[*lineage.Container]*workload // found before
	lastIn    *lineage.Container               // and of those the last one
	lastOf    *workload
	whole     bool   // containers are the VM's own, as when its model was learned
	refused   uint64 // kinds of container that there was no room for
}

// first is the violation that made a task untrusted.
type first struct {
	mark  uint64
	ref   engine.Ref
	point ID
	of    string // the workload's name
}

// maxFirsts and maxForensics bound what is kept of violations.
const (
	maxFirsts    = 1 << 10
	maxForensics = 1 << 10
)

// Forensic is an event that violated a model.
type Forensic struct {
	Ref    engine.Ref
	BootNs uint64
	Point  ID
	TaskID ID
	Name   string
}

// New makes an Engine that knows no VM yet.
func New(opts *Options) *Engine {
	e := &Engine{vms: map[uuid.UUID]*vm{}, groups: map[string]*Model{}, mapper: NewMapper(), full: newFullMapper()}
	if opts != nil {
		e.opts = *opts
	}
	e.opts.Mapping = cmp.Or(e.opts.Mapping, Full)
	e.opts.MaxPoints = cmp.Or(e.opts.MaxPoints, DefaultMaxPoints)
	e.opts.MaxViolations = cmp.Or(e.opts.MaxViolations, 100)
	e.opts.MaxUntrusted = cmp.Or(e.opts.MaxUntrusted, 20)
	e.opts.MaxWorkloads = cmp.Or(e.opts.MaxWorkloads, 64)
	return e
}

// Describe says what the engine is.
func (e *Engine) Describe() engine.Description {
	return engine.Description{Name: "tsem", Version: Version, Models: true}
}

func (e *Engine) vm(id uuid.UUID) *vm {
	v := e.vms[id]
	if v == nil {
		v = e.newVM(NewModelOf(e.opts.Mapping, e.opts.MaxPoints), lineage.New(identify, &e.opts.Lineage))
		e.vms[id] = v
	}
	return v
}

func (e *Engine) newVM(m *Model, tree *lineage.Tree) *vm {
	return &vm{
		workload: workload{model: m}, tree: tree,
		workloads: map[string]*workload{}, of: map[*lineage.Container]*workload{},
		violating: limiter{limit: uint32(e.opts.MaxViolations)}, untrusted: limiter{limit: uint32(e.opts.MaxUntrusted)},
		leaving: limiter{limit: uint32(e.opts.MaxUntrusted)},
	}
}

// Judge judges a batch. Its only errors would be of the engine's own making,
// and it makes none.
func (e *Engine) Judge(b *engine.Batch, report func(engine.Finding)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := e.vm(b.VM)
	v.begin(b, report)
	v.tree.SetSession(b.Session)
	v.tree.KeepMade(v.maps(Quixote))
	rest, n := b.Records, 0
	for ; len(rest) > 0; n++ {
		next, err := e.record.Parse(rest)
		if err != nil {
			report(undecodable(b, n, rest, err))
			if rest = afterBad(rest); rest == nil {
				return nil
			}
			continue
		}
		rest = next
		e.event(v, b, report)
	}
	if n != b.Count {
		report(miscounted(b, n))
	}
	return nil
}

// maps reports whether a model of the VM's is of that mapping.
func (v *vm) maps(m Mapping) bool {
	if v.model.Mapping() == m {
		return true
	}
	for _, w := range v.workloads {
		if w.model.Mapping() == m {
			return true
		}
	}
	return false
}

// afterBad skips a record whose header is sound, nil where it is not.
func afterBad(b []byte) []byte {
	h, err := vsockproto.ParseHeader(b)
	if err != nil {
		return nil
	}
	return b[h.Length:]
}

// event takes e.record.
func (e *Engine) event(v *vm, b *engine.Batch, report func(engine.Finding)) {
	r := &e.record
	if !r.Type.Known() {
		v.events++
		v.unknown++
		return
	}
	who := v.tree.Apply(r)
	w, fresh := e.workloadOf(v, who.Container)
	if who.Left != 0 {
		v.departs(w, b, r, who, report)
	}
	if fresh {
		report(tooMany(b, r, who.Container, len(v.workloads)))
	}
	w.events++
	w.rate.begin(b.Received)
	c, is, err := e.coefficients(v, w, who)
	switch {
	case err != nil:
		report(unmappable(b, r, err))
		return
	case !is:
		return
	}
	outcome, err := w.model.Update(c.Point)
	w.rate.event(outcome.Added)
	if outcome.Added {
		w.model.Annotate(&Note{
			Received: b.Received, BootNs: r.BootNs, PID: r.PID,
			Program: cmp.Or(who.Program.Path, comm(r)), What: e.words(v, w, who),
		})
	}
	switch {
	case err != nil:
		if !w.full {
			w.full = true
			report(modelFull(w, b, r, err))
		}
	case outcome.Violation && !w.model.Sealed():
		if w.model.Validate(c.Point) {
			w.lastNew = b.Received
		}
	case outcome.Violation:
		v.violation(w, b, r, who, &c, report)
	case outcome.Added:
		w.lastNew = b.Received
	}
}

// words says what e.record is.
func (e *Engine) words(v *vm, w *workload, who lineage.Identity) string {
	ev := e.tr.translate(&e.record, who, v.tree)
	if w.model.Mapping() == Quixote {
		e.tr.temporary(&e.record, v.tree)
	}
	return ev.Words()
}

// coefficients maps e.record as the workload's model does; is is false where it
// has no part in the model.
func (e *Engine) coefficients(v *vm, w *workload, who lineage.Identity) (c Coefficients, is bool, err error) {
	r := &e.record
	if w.model.Mapping() == Full {
		if !fullMapped(r.Type) {
			return c, false, nil
		}
		ids := fullIDs(r, who, v.tree)
		return e.full.Map(r, &ids, w.model), true, nil
	}
	if !modelled(r) {
		return c, false, nil
	}
	ev := e.tr.translate(r, who, v.tree)
	e.tr.temporary(r, v.tree)
	ev.asQuixote()
	w.model.Level(ev)
	c, err = e.mapper.Map(ev)
	return c, true, err
}

// violation reports an event that a sealed model does not know. The first of a
// task makes it untrusted for good, with all its later children; what those do
// after that is reported under a rule of its own.
func (v *vm) violation(w *workload, b *engine.Batch, r *vsockproto.Event, who lineage.Identity, c *Coefficients, report func(engine.Finding)) {
	w.violations++
	at := refOf(b, r)
	if len(w.forensics) < maxForensics {
		w.forensics = append(w.forensics, Forensic{Ref: at, BootNs: r.BootNs, Point: c.Point, TaskID: who.ID(), Name: r.Type.String()})
	}
	if task := who.Task; task != nil && task.Mark != 0 {
		if v.untrusted.take() {
			report(v.again(w, b, r, who, c))
		}
		return
	}
	if who.Task != nil {
		v.marks++
		v.tree.Mark(who.Task, v.marks, r.BootNs)
		if len(v.firsts) == maxFirsts {
			v.firsts = append(v.firsts[:0], v.firsts[1:]...)
		}
		v.firsts = append(v.firsts, first{v.marks, at, c.Point, w.name})
	}
	if v.violating.take() {
		report(v.firstOf(w, b, r, who, c))
	}
}

// first finds the violation of that mark.
func (v *vm) first(mark uint64) (engine.Ref, bool) {
	i, has := slices.BinarySearchFunc(v.firsts, mark, func(f first, m uint64) int { return cmp.Compare(f.mark, m) })
	if !has {
		return engine.Ref{}, false
	}
	return v.firsts[i].ref, true
}

// begin renews the limits with each second, and reports what they kept back.
func (v *vm) begin(b *engine.Batch, report func(engine.Finding)) {
	v.rate.begin(b.Received)
	v.seen = b.Received
	second := b.Received.Unix()
	if n := v.violating.renew(second); n > 0 {
		report(suppressed(b, "tsem/violation", engine.High, n))
	}
	if n := v.untrusted.renew(second); n > 0 {
		report(suppressed(b, "tsem/untrusted", engine.Medium, n))
	}
	if n := v.leaving.renew(second); n > 0 {
		report(suppressed(b, RuleLeft, engine.High, n))
	}
}

// limiter lets so many findings through in one second and counts the others.
type limiter struct {
	second     int64
	passed     uint32
	suppressed uint64
	limit      uint32
}

func (l *limiter) take() bool {
	if l.passed >= l.limit {
		l.suppressed++
		return false
	}
	l.passed++
	return true
}

// renew begins another second and returns what the last one kept back.
func (l *limiter) renew(second int64) uint64 {
	if second == l.second {
		return 0
	}
	n := l.suppressed
	l.second, l.passed, l.suppressed = second, 0, 0
	return n
}

// Models lists the models.
func (e *Engine) Models() []engine.Model {
	all, later := e.describeAll()
	for i, c := range later {
		s := c.chain.state()
		all[i].State = hexOf(s)
		e.mu.Lock()
		if c.chain.is(c.model) {
			c.model.state, c.model.stateKnown = s, true
		}
		e.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b engine.Model) int {
		return cmp.Or(slices.Compare(a.VM[:], b.VM[:]), cmp.Compare(a.Workload, b.Workload))
	})
	return all
}

// stateless is a model whose state has to be computed.
type stateless struct {
	model *Model
	chain chain
}

// describeAll describes the models, and says which of them lack their state:
// nothing is judged while it is computed by who holds the lock.
func (e *Engine) describeAll() (all []engine.Model, later map[int]stateless) {
	e.mu.Lock()
	defer e.mu.Unlock()
	later = map[int]stateless{}
	for id, v := range e.vms {
		for w := range v.all() {
			if !w.model.stateKnown {
				later[len(all)] = stateless{w.model, w.model.chain()}
			}
			all = append(all, w.known(id, v.seen))
		}
	}
	return all, later
}

// Learn lets the VM's own model learn, from now on or again. No task of it is
// untrusted any more.
func (e *Engine) Learn(ctx context.Context, id uuid.UUID) (engine.Model, error) {
	return e.Workload("").Learn(ctx, id)
}

// Seal ends learning.
func (e *Engine) Seal(ctx context.Context, id uuid.UUID) (engine.Model, error) {
	return e.Workload("").Seal(ctx, id)
}

// Forensics lists the events that violated the VM's model, the first ones.
func (e *Engine) Forensics(id uuid.UUID) []Forensic {
	e.mu.Lock()
	defer e.mu.Unlock()
	if v := e.vms[id]; v != nil {
		return slices.Clone(v.forensics)
	}
	return nil
}
