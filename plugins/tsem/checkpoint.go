package tsem

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/lineage"
)

// A checkpoint of one VM, little endian:
//
//	"OGTSEM" | version u16 | flags u8 (1 whole) | unknown u64 | seen i64 | marks u64 | refused u64 |
//	violating, untrusted, leaving: second i64 | passed u32 | suppressed u64 |
//	workloads u32, the VM's own first, the others ascending by name, each:
//	    name: u8, bytes | group: u8, bytes | leaves u8 | model |
//	    events u64 | violations u64 | last_new i64 |
//	    since_new u64 | hours u8, each: at i64 | events u64 | new points u64 |
//	    forensics u32, each: ref 37 | boot_ns u64 | point 32 | task_id 32 | name: u8, bytes |
//	firsts u32, each: mark u64 | ref 37 | point 32 | workload: u8, bytes, ascending by mark |
//	lineage u32, bytes
//
// Times are ns since 1970, 0: never. A model is
//
//	mapping u8 (1 quixote) | flags u8 (1 aggregate, 2 sealed, 4 platform, 16 said full) |
//	base 32 | measurement 32 | platform 32 | aggregate 32 | model version u64 |
//	trajectory u64 | forensics u64 | overflow u64 |
//	points u32, each: value 32 | valid u8 | count u64 | note u32 | notes u32, bytes: see notes |
//	pseudonyms u32, each: 32, ascending |
//
// Version 2 had one model and its numbers in another order, see oldVM; version
// 1 had neither mapping, platform, model version, notes, seen, since_new, hours
// nor the points of firsts. What they are of goes on as it was: all of the VM is
// its own workload, until its model is to learn.
const (
	checkpointMagic   = "OGTSEM"
	checkpointVersion = 3

	flagAggregate = 1 << 0
	flagSealed    = 1 << 1
	flagPlatform  = 1 << 2
	flagFull      = 1 << 4
)

// ErrCheckpoint is for bytes that are no checkpoint of this engine.
var ErrCheckpoint = errors.New("not a checkpoint of this engine")

// Checkpoint returns the VM's model, lineage and counters.
func (e *Engine) Checkpoint(id uuid.UUID) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := e.vms[id]
	if v == nil {
		return nil, fmt.Errorf("checkpoint: no model of %s", id)
	}
	return v.append(nil)
}

// Restore makes the VM what it was at that checkpoint.
func (e *Engine) Restore(id uuid.UUID, b []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.parse(b)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	before := e.vms[id]
	e.vms[id] = v
	for w := range v.all() {
		if w.group != "" {
			e.shared(w)
		}
	}
	if before != nil {
		for w := range before.all() {
			e.drop(w.group)
		}
	}
	return nil
}

func (v *vm) append(b []byte) ([]byte, error) {
	b = append(b, checkpointMagic...)
	b = le.AppendUint16(b, checkpointVersion)
	b = append(b, boolByte(v.whole))
	for _, n := range [...]uint64{v.unknown, nanos(v.seen), v.marks, v.refused} {
		b = le.AppendUint64(b, n)
	}
	for _, l := range [...]*limiter{&v.violating, &v.untrusted, &v.leaving} {
		b = le.AppendUint64(b, uint64(l.second))
		b = le.AppendUint32(b, l.passed)
		b = le.AppendUint64(b, l.suppressed)
	}
	b = le.AppendUint32(b, uint32(1+len(v.workloads)))
	for w := range v.all() {
		b = w.append(b)
	}
	b = le.AppendUint32(b, uint32(len(v.firsts)))
	for i := range v.firsts {
		b = le.AppendUint64(b, v.firsts[i].mark)
		b = appendRef(b, &v.firsts[i].ref)
		b = append(b, v.firsts[i].point[:]...)
		b = appendName(b, v.firsts[i].of)
	}
	start := len(b)
	b, err := v.tree.AppendBinary(le.AppendUint32(b, 0))
	if err != nil {
		return nil, err
	}
	le.PutUint32(b[start:], uint32(len(b)-start-4))
	return b, nil
}

func appendName(b []byte, name string) []byte { return append(append(b, byte(len(name))), name...) }

func (w *workload) append(b []byte) []byte {
	b = append(appendName(appendName(b, w.name), w.group), byte(w.leaves))
	b = w.appendModel(b)
	for _, n := range [...]uint64{w.events, w.violations, nanos(w.lastNew), w.rate.sinceNew} {
		b = le.AppendUint64(b, n)
	}
	b = append(b, byte(len(w.rate.hours)))
	for _, h := range w.rate.hours {
		b = le.AppendUint64(b, uint64(h.at))
		b = le.AppendUint64(b, h.events)
		b = le.AppendUint64(b, h.added)
	}
	b = le.AppendUint32(b, uint32(len(w.forensics)))
	for i := range w.forensics {
		b = w.forensics[i].append(b)
	}
	return b
}

// nanos is a time as it is kept: 0 is never.
func nanos(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixNano())
}

func (w *workload) appendModel(b []byte) []byte {
	m := w.model
	flags := byte(0)
	for bit, set := range [...]bool{m.hasAggregate, m.sealed, m.hasPlatform, false, w.full} {
		if set {
			flags |= 1 << bit
		}
	}
	b = append(b, byte(m.mapping), flags)
	for _, id := range [...]*ID{&m.base, &m.measurement, &m.platform, &m.aggregate} {
		b = append(b, id[:]...)
	}
	for _, n := range [...]uint64{m.version, m.trajectory, m.forensics, m.overflow} {
		b = le.AppendUint64(b, n)
	}
	b = le.AppendUint32(b, uint32(len(m.points.all)))
	for i := range m.points.all {
		p := &m.points.all[i]
		b = append(b, p.Value[:]...)
		b = append(b, boolByte(p.Valid))
		b = le.AppendUint64(b, p.Count)
		b = le.AppendUint32(b, p.note)
	}
	b = append(le.AppendUint32(b, uint32(len(m.notes))), m.notes...)
	names := m.Pseudonyms()
	b = le.AppendUint32(b, uint32(len(names)))
	for i := range names {
		b = append(b, names[i][:]...)
	}
	return b
}

func boolByte(v bool) byte {
	if v {
		return 1
	}
	return 0
}

func appendRef(b []byte, r *engine.Ref) []byte {
	b = append(b, r.Session[:]...)
	b = le.AppendUint64(b, r.Index)
	b = le.AppendUint32(b, r.CPU)
	b = append(b, r.Class)
	return le.AppendUint64(b, r.Sequence)
}

func (f *Forensic) append(b []byte) []byte {
	b = appendRef(b, &f.Ref)
	b = le.AppendUint64(b, f.BootNs)
	b = append(b, f.Point[:]...)
	b = append(b, f.TaskID[:]...)
	b = append(b, byte(len(f.Name)))
	return append(b, f.Name...)
}

// parse reads a checkpoint. No count is believed that the bytes cannot hold.
func (e *Engine) parse(b []byte) (*vm, error) {
	r := reader{b: b}
	magic := string(r.take(len(checkpointMagic)))
	if r.version = r.u16(); magic != checkpointMagic || r.version == 0 || r.version > checkpointVersion {
		return nil, fmt.Errorf("header: %w", ErrCheckpoint)
	}
	v := e.newVM(NewModel(e.opts.MaxPoints), nil)
	if r.version < 3 {
		r.oldVM(v)
	} else {
		r.vm(e, v)
	}
	tree := r.take(int(r.u32()))
	if r.bad || len(r.b) > 0 {
		return nil, ErrCheckpoint
	}
	var err error
	if v.tree, err = lineage.Parse(tree, identify, &e.opts.Lineage); err != nil {
		return nil, err
	}
	return v, nil
}

func (r *reader) vm(e *Engine, v *vm) {
	v.whole = r.flag()
	v.unknown, v.seen, v.marks, v.refused = r.u64(), r.time(), r.u64(), r.u64()
	r.limiters(&v.violating, &v.untrusted, &v.leaving)
	n := r.count(1+e.opts.MaxWorkloads, 200)
	r.bad = r.bad || n == 0
	last := ""
	for i := range n {
		w := &v.workload
		if i > 0 {
			w = &workload{model: NewModel(e.containerPoints())}
		}
		if r.workload(w, e.opts.MaxPoints); r.bad || (i == 0) != (w.name == "") || len(w.name) > maxWorkloadName || w.name < last {
			r.bad = true
			return
		}
		if i > 0 {
			v.workloads[w.name], last = w, w.name+"\x00"
		}
	}
	r.firsts(v)
}

func (r *reader) workload(w *workload, most int) {
	w.name, w.group, w.leaves = r.name(), r.name(), lineage.Departure(r.u8())
	limit := w.model.limit
	w.model.limit = most // a model that came from elsewhere may have more
	r.model(w)
	w.model.limit = max(limit, len(w.model.points.all))
	w.events, w.violations, w.lastNew = r.u64(), r.u64(), r.time()
	r.rate(&w.rate)
	r.forensics(w)
}

func (r *reader) name() string { return string(r.take(int(r.u8()))) }

// oldVM reads versions 1 and 2, but for the lineage:
//
//	model | events u64 | violations u64 | unknown u64 | last_new i64, seen i64 | marks u64 | since_new u64 |
//	hours | violating, untrusted | firsts, without workloads | forensics
func (r *reader) oldVM(v *vm) {
	v.whole = true
	r.model(&v.workload)
	v.events, v.violations, v.unknown, v.lastNew = r.u64(), r.u64(), r.u64(), r.time()
	if r.version > 1 {
		v.seen = r.time()
	}
	v.marks = r.u64()
	r.rate(&v.rate)
	r.limiters(&v.violating, &v.untrusted)
	r.firsts(v)
	r.forensics(&v.workload)
}

func (r *reader) limiters(all ...*limiter) {
	for _, l := range all {
		l.second, l.passed, l.suppressed = int64(r.u64()), r.u32(), r.u64()
	}
}

func (r *reader) firsts(v *vm) {
	for range r.count(maxFirsts, 45) {
		f := first{mark: r.u64(), ref: r.ref()}
		if r.version > 1 {
			f.point = r.id()
		}
		if r.version > 2 {
			f.of = r.name()
		}
		if n := len(v.firsts); n > 0 && v.firsts[n-1].mark >= f.mark {
			r.bad = true
		}
		v.firsts = append(v.firsts, f)
	}
}

func (r *reader) forensics(w *workload) {
	for range r.count(maxForensics, 110) {
		w.forensics = append(w.forensics, r.forensic())
	}
}

type reader struct {
	b       []byte
	bad     bool
	version uint16
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.bad, r.b = true, nil
		return make([]byte, min(max(n, 0), 64)) // the fixed sizes that are asked for
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u8() uint8   { return r.take(1)[0] }
func (r *reader) u16() uint16 { return le.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return le.Uint32(r.take(4)) }
func (r *reader) u64() uint64 { return le.Uint64(r.take(8)) }
func (r *reader) id() ID      { return ID(r.take(len(ID{}))) }

// count reads a count of things of at least so many bytes each.
func (r *reader) count(limit, size int) int {
	n := int(r.u32())
	if n > limit || n*size > len(r.b) {
		r.bad = true
		return 0
	}
	return n
}

func (r *reader) time() time.Time {
	ns := int64(r.u64())
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

func (r *reader) rate(to *rate) {
	if r.version == 1 {
		return
	}
	to.sinceNew = r.u64()
	n := int(r.u8())
	r.bad = r.bad || n > maxHours
	for range min(n, maxHours) {
		h := hour{at: int64(r.u64()), events: r.u64(), added: r.u64()}
		if n := len(to.hours); n > 0 && to.hours[n-1].at >= h.at {
			r.bad = true
		}
		to.hours = append(to.hours, h)
	}
}

func (r *reader) model(w *workload) {
	m := w.model
	if r.version > 1 {
		m.mapping = Mapping(r.u8())
		r.bad = r.bad || !m.mapping.known()
	}
	flags := r.u8()
	m.hasAggregate, m.sealed, m.hasPlatform = flags&flagAggregate != 0, flags&flagSealed != 0, flags&flagPlatform != 0
	w.full = flags&flagFull != 0
	m.base, m.measurement = r.id(), r.id()
	if r.version > 1 {
		m.platform = r.id()
	}
	if m.aggregate = r.id(); r.version > 1 {
		m.version = r.u64()
	}
	m.trajectory, m.forensics, m.overflow = r.u64(), r.u64(), r.u64()
	r.points(m)
	r.bad = r.bad || flags&^(flagAggregate|flagSealed|flagPlatform|flagFull) != 0
	r.pseudonyms(m)
}

func (r *reader) points(m *Model) {
	size := 41
	if r.version > 1 {
		size += 4
	}
	last := uint32(0)
	for range r.count(m.limit, size) {
		p := Point{Value: r.id(), Valid: r.flag(), Count: r.u64()}
		if r.version > 1 {
			p.note = r.u32()
		}
		if _, twice := m.points.find(&p.Value); twice || p.note != 0 && p.note <= last {
			r.bad = true
			return
		}
		last = max(last, p.note)
		m.add(p)
	}
	if r.version > 1 {
		r.notes(m)
	}
}

// notes reads notes: one behind the other, each of a point.
func (r *reader) notes(m *Model) {
	n := int(r.u32())
	if n > maxNotes || n > len(r.b) {
		r.bad = true
		return
	}
	if n > 0 {
		m.notes = append(notes(nil), r.take(n)...)
	}
	at := uint32(0)
	for i := range m.points.all {
		note := m.points.all[i].note
		if note == 0 {
			continue
		}
		_, next, ok := m.notes.get(at)
		if !ok || note != at+1 {
			r.bad = true
			return
		}
		at = next
	}
	r.bad = r.bad || int(at) != len(m.notes)
}

func (r *reader) pseudonyms(m *Model) {
	last := ID{}
	for i := range r.count(maxPseudonyms, 32) {
		p := r.id()
		r.bad = r.bad || (i > 0 && slices.Compare(p[:], last[:]) <= 0) || m.AddPseudonym(p) != nil
		last = p
	}
}

func (r *reader) flag() bool {
	v := r.u8()
	r.bad = r.bad || v > 1
	return v == 1
}

func (r *reader) ref() engine.Ref {
	return engine.Ref{Session: uuid.UUID(r.take(16)), Index: r.u64(), CPU: r.u32(), Class: r.u8(), Sequence: r.u64()}
}

func (r *reader) forensic() Forensic {
	f := Forensic{Ref: r.ref(), BootNs: r.u64(), Point: r.id(), TaskID: r.id()}
	f.Name = r.name()
	return f
}
