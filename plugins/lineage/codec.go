package lineage

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A tree as bytes, little endian:
//
//	"OGLIN\x00" | version u16 | programs u32 | tasks u32 | ended u32 | unknown u64 | refused u64 | textless u64 |
//	nameless u64 | unplaced u64 | session 16 | namespaces 16, of the machine | containers u32 | cgroups u32 |
//	container: number u32 | flags u8 (1 begun, 2 removed) | nested u8 | namespaces 16 | cgroup u64 | boot_ns u64 | digest 32 |
//	         path, runtime, id, program: u16, bytes
//	cgroup:  id u64 | flags u8 (1 cut, 2 removed, 4 stale) | container u32, its number, 0 for none | path: u16, bytes
//	program: id 32 | origin u8 | digest 32 | boot_ns u64 | path: u16, bytes | argv: u16, bytes
//	task:    pid u32 | start_ns u64 | tgid u32 | parent pid u32 | parent start_ns u64 | parent id 32 |
//	         mark u64 | exit_ns u64 | skipped u32 | parent: u32, 1 + its place among tasks, 0 for none |
//	         generations u8 | each: exec_id u32, program u32 |
//	         home u32, a container's number, 0 for none | left u8 | lost u8 | cgroup u64 | namespaces 16
//	made:    files u32 | counts u32, both the oldest first
//	file:    inode u64 | dev u32 | generation u32 | owner 32 | instance u64
//	count:   SHA-256 of owner and directory 32 | files made u64
//
// Namespaces are mnt, pid, user and net, u32 each. Version 1 had neither them nor
// containers, cgroups and what names these; version 2 had not who made files.
//
// Running tasks come first, then the ended ones, each the oldest first.
// Program 0 is the unknown one and 1 the kernel's; the count leaves them out.
const (
	magic      = "OGLIN\x00"
	version    = 3
	headerSize = len(magic) + 2 + 12 + 24
)

// ErrInvalid is for bytes that are no tree.
var ErrInvalid = errors.New("not a lineage")

var le = binary.LittleEndian

// AppendBinary appends the tree as Parse reads it.
func (t *Tree) AppendBinary(b []byte) ([]byte, error) {
	programs := map[*Program]uint32{t.unknown: 0, t.kernel: 1}
	places := make(map[*Task]uint32, len(t.tasks))
	var order []*Program
	t.each(func(task *Task) {
		places[task] = uint32(len(places) + 1)
		for _, g := range task.generations {
			if _, has := programs[g.program]; !has {
				programs[g.program] = uint32(len(programs))
				order = append(order, g.program)
			}
		}
	})
	b = append(b, magic...)
	b = le.AppendUint16(b, version)
	for _, n := range [...]int{len(order), len(t.tasks), t.ended.n} {
		b = le.AppendUint32(b, uint32(n))
	}
	for _, n := range [...]uint64{t.stats.Unknown, t.stats.Refused, t.stats.Textless} {
		b = le.AppendUint64(b, n)
	}
	b = t.appendPlaces(b)
	for _, p := range order {
		b = p.append(b)
	}
	t.each(func(task *Task) { b = task.append(b, places, programs) })
	return t.makers.append(b), nil
}

// each goes through the tasks, the running ones first.
func (t *Tree) each(do func(*Task)) {
	for _, l := range [...]*ageList{&t.running, &t.ended} {
		for task := l.first; task != nil; task = task.age.next {
			do(task)
		}
	}
}

func (p *Program) append(b []byte) []byte {
	b = append(b, p.ID[:]...)
	b = append(b, byte(p.Origin))
	b = append(b, p.Digest[:]...)
	b = le.AppendUint64(b, p.BootNs)
	for _, s := range [...]string{p.Path, p.Argv} {
		b = le.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return b
}

func (t *Task) append(b []byte, places map[*Task]uint32, programs map[*Program]uint32) []byte {
	b = le.AppendUint32(b, t.PID)
	b = le.AppendUint64(b, t.StartNs)
	b = le.AppendUint32(b, t.TGID)
	b = le.AppendUint32(b, t.ParentKey.PID)
	b = le.AppendUint64(b, t.ParentKey.StartNs)
	b = append(b, t.ParentID[:]...)
	b = le.AppendUint64(b, t.Mark)
	b = le.AppendUint64(b, t.ExitNs)
	b = le.AppendUint32(b, t.Skipped)
	b = le.AppendUint32(b, places[t.parent])
	b = append(b, byte(len(t.generations)))
	for _, g := range t.generations {
		b = le.AppendUint32(b, g.execID)
		b = le.AppendUint32(b, programs[g.program])
	}
	return t.appendPlace(b)
}

// Parse reads a tree. Its counts are held against opts before anything is
// allocated for them.
func Parse(b []byte, identify Identify, opts *Options) (*Tree, error) {
	t := New(identify, opts)
	r := reader{b: b}
	is := string(r.take(len(magic))) == magic
	if r.version = r.u16(); !is || r.version == 0 || r.version > version {
		return nil, fmt.Errorf("header: %w", ErrInvalid)
	}
	nPrograms, nTasks, nEnded := int(r.u32()), int(r.u32()), int(r.u32())
	t.stats.Unknown, t.stats.Refused, t.stats.Textless = r.u64(), r.u64(), r.u64()
	if r.bad || nTasks > t.opts.MaxTasks || nEnded > nTasks || nPrograms > nTasks*maxGenerations || nPrograms > len(b) {
		return nil, fmt.Errorf("%d programs, %d tasks, %d of them ended: %w", nPrograms, nTasks, nEnded, ErrInvalid)
	}
	if r.version > 1 {
		r.places(t)
	}
	programs := []*Program{t.unknown, t.kernel}
	for range nPrograms {
		programs = append(programs, r.program())
	}
	tasks, parents := make([]*Task, 0, nTasks), make([]uint32, 0, nTasks)
	for i := range nTasks {
		task, parent := r.task(t, programs, i >= nTasks-nEnded)
		if r.bad {
			return nil, fmt.Errorf("task %d: %w", i, ErrInvalid)
		}
		tasks, parents = append(tasks, task), append(parents, parent)
	}
	if r.version > 2 {
		t.makers = r.makers()
	}
	if r.bad || len(r.b) > 0 {
		return nil, fmt.Errorf("%d bytes after the end: %w", len(r.b), ErrInvalid)
	}
	return t, t.connect(tasks, parents, programs)
}

// connect joins children to parents and refuses a circle or a stray program.
func (t *Tree) connect(tasks []*Task, parents []uint32, programs []*Program) error {
	for i, up := range parents {
		if int(up) > len(tasks) {
			return fmt.Errorf("parent %d of %d: %w", up, len(tasks), ErrInvalid)
		}
		if up > 0 {
			tasks[i].join(tasks[up-1])
		}
	}
	seen := make(map[*Task]int, len(tasks)) // which walk met it
	for i, task := range tasks {
		for at := task; at != nil && seen[at] != i+1; at = at.parent {
			if seen[at] != 0 {
				break // known to end
			}
			seen[at] = i + 1
			if at.parent != nil && seen[at.parent] == i+1 {
				return fmt.Errorf("a task is its own ancestor: %w", ErrInvalid)
			}
		}
	}
	for _, p := range programs {
		if p.refs == 0 {
			return fmt.Errorf("a program that nobody runs: %w", ErrInvalid)
		}
	}
	return nil
}

type reader struct {
	b          []byte
	bad        bool
	version    uint16
	containers map[uint32]*Container // by their numbers
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.bad, r.b = true, nil
		return make([]byte, n)
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u8() uint8   { return r.take(1)[0] }
func (r *reader) u16() uint16 { return le.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return le.Uint32(r.take(4)) }
func (r *reader) u64() uint64 { return le.Uint64(r.take(8)) }

func (r *reader) program() *Program {
	p := &Program{ID: ID(r.take(32)), Origin: Origin(r.u8()), Digest: [32]byte(r.take(32)), BootNs: r.u64()}
	p.Path, p.Argv = r.text(maxText), r.text(maxText)
	r.bad = r.bad || p.Origin > Snapshot
	return p
}

func (r *reader) text(limit int) string {
	n := int(r.u16())
	if n > limit {
		r.bad = true
		return ""
	}
	return string(r.take(n))
}

// task reads one task into t.
func (r *reader) task(t *Tree, programs []*Program, ended bool) (*Task, uint32) {
	task := &Task{Key: Key{r.u32(), r.u64()}, TGID: r.u32(), ParentKey: Key{r.u32(), r.u64()}}
	task.ParentID = ID(r.take(32))
	task.Mark, task.ExitNs, task.Skipped = r.u64(), r.u64(), r.u32()
	parent, n := r.u32(), int(r.u8())
	if r.bad || n == 0 || n > maxGenerations || task.Exited() != ended || t.tasks[task.Key] != nil {
		r.bad = true
		return nil, 0
	}
	for i := range n {
		execID, p := r.u32(), int(r.u32())
		if r.bad || p >= len(programs) || (i > 0 && int32(execID-task.ExecID()) <= 0) {
			r.bad = true
			return nil, 0
		}
		t.hold(programs[p])
		task.generations = append(task.generations, generation{execID, programs[p]})
	}
	if r.version > 1 && !r.place(task) {
		return nil, 0
	}
	t.tasks[task.Key] = task
	if ended {
		t.ended.add(task)
		return task, parent
	}
	if t.holders[task.PID] != nil {
		r.bad = true
	}
	t.holders[task.PID] = task
	t.running.add(task)
	return task, parent
}
