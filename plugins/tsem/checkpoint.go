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
//	"OGTSEM" | version u16 |
//	flags u8 (1 aggregate, 2 sealed, 16 said full) | base 32 | measurement 32 | aggregate 32 |
//	trajectory u64 | forensics u64 | overflow u64 |
//	points u32, each: value 32 | valid u8 | count u64 | pseudonyms u32, each: 32, ascending |
//	events u64 | violations u64 | unknown u64 | last_new i64, ns since 1970, 0: never | marks u64 |
//	violating, untrusted: second i64 | passed u32 | suppressed u64 |
//	firsts u32, each: mark u64 | ref 37, ascending by mark |
//	forensics u32, each: ref 37 | boot_ns u64 | point 32 | task_id 32 | name: u8, bytes |
//	lineage u32, bytes
const (
	checkpointMagic   = "OGTSEM"
	checkpointVersion = 1

	flagAggregate = 1 << 0
	flagSealed    = 1 << 1
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
	e.vms[id] = v
	return nil
}

func (v *vm) append(b []byte) ([]byte, error) {
	b = append(b, checkpointMagic...)
	b = le.AppendUint16(b, checkpointVersion)
	b = v.appendModel(b)
	lastNew := int64(0)
	if !v.lastNew.IsZero() {
		lastNew = v.lastNew.UnixNano()
	}
	for _, n := range [...]uint64{v.events, v.violations, v.unknown, uint64(lastNew), v.marks} {
		b = le.AppendUint64(b, n)
	}
	for _, l := range [...]*limiter{&v.violating, &v.untrusted} {
		b = le.AppendUint64(b, uint64(l.second))
		b = le.AppendUint32(b, l.passed)
		b = le.AppendUint64(b, l.suppressed)
	}
	b = le.AppendUint32(b, uint32(len(v.firsts)))
	for i := range v.firsts {
		b = le.AppendUint64(b, v.firsts[i].mark)
		b = appendRef(b, &v.firsts[i].ref)
	}
	b = le.AppendUint32(b, uint32(len(v.forensics)))
	for i := range v.forensics {
		b = v.forensics[i].append(b)
	}
	start := len(b)
	b, err := v.tree.AppendBinary(le.AppendUint32(b, 0))
	if err != nil {
		return nil, err
	}
	le.PutUint32(b[start:], uint32(len(b)-start-4))
	return b, nil
}

func (v *vm) appendModel(b []byte) []byte {
	m := v.model
	flags := byte(0)
	for bit, set := range [...]bool{m.hasAggregate, m.sealed, false, false, v.full} {
		if set {
			flags |= 1 << bit
		}
	}
	b = append(b, flags)
	for _, id := range [...]*ID{&m.base, &m.measurement, &m.aggregate} {
		b = append(b, id[:]...)
	}
	for _, n := range [...]uint64{m.trajectory, m.forensics, m.overflow} {
		b = le.AppendUint64(b, n)
	}
	b = le.AppendUint32(b, uint32(len(m.points.all)))
	for i := range m.points.all {
		p := &m.points.all[i]
		b = append(b, p.Value[:]...)
		b = append(b, boolByte(p.Valid))
		b = le.AppendUint64(b, p.Count)
	}
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
	if string(r.take(len(checkpointMagic))) != checkpointMagic || r.u16() != checkpointVersion {
		return nil, fmt.Errorf("header: %w", ErrCheckpoint)
	}
	v := e.newVM(NewModel(e.opts.MaxPoints), nil)
	r.model(v)
	v.events, v.violations, v.unknown = r.u64(), r.u64(), r.u64()
	if ns := int64(r.u64()); ns != 0 {
		v.lastNew = time.Unix(0, ns)
	}
	v.marks = r.u64()
	for _, l := range [...]*limiter{&v.violating, &v.untrusted} {
		l.second, l.passed, l.suppressed = int64(r.u64()), r.u32(), r.u64()
	}
	for range r.count(maxFirsts, 45) {
		f := first{mark: r.u64(), ref: r.ref()}
		if n := len(v.firsts); n > 0 && v.firsts[n-1].mark >= f.mark {
			r.bad = true
		}
		v.firsts = append(v.firsts, f)
	}
	for range r.count(maxForensics, 110) {
		v.forensics = append(v.forensics, r.forensic())
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

type reader struct {
	b   []byte
	bad bool
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

func (r *reader) model(v *vm) {
	m := v.model
	flags := r.u8()
	m.hasAggregate, m.sealed = flags&flagAggregate != 0, flags&flagSealed != 0
	v.full = flags&flagFull != 0
	m.base, m.measurement, m.aggregate = r.id(), r.id(), r.id()
	m.trajectory, m.forensics, m.overflow = r.u64(), r.u64(), r.u64()
	for range r.count(m.limit, 41) {
		p := Point{Value: r.id(), Valid: r.flag(), Count: r.u64()}
		if _, twice := m.points.find(&p.Value); twice {
			r.bad = true
			return
		}
		m.add(p)
	}
	last := ID{}
	for i := range r.count(maxPseudonyms, 32) {
		p := r.id()
		r.bad = r.bad || (i > 0 && slices.Compare(p[:], last[:]) <= 0) || m.AddPseudonym(p) != nil
		last = p
	}
	r.bad = r.bad || flags&^(flagAggregate|flagSealed|flagFull) != 0
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
	f.Name = string(r.take(int(r.u8())))
	return f
}
