// Package lineage keeps a VM's tasks, the programs they run and who made them, and
// for who asks which files they made, from events alone: pure, without I/O, in bounded memory.
//
// A task is named by pid and start time, a program in it by the exec
// generation (exec_id), so that a record from before an exec that arrives
// after it still gets the old program. TASK_IDs are never the guest's to say:
// an injected function computes them at exec (see TSEM's SPEC, section 4.4).
//
// What is not known has a value that everyone can see: UnknownID is the
// TASK_ID of a task whose history was lost, SnapshotID the parent's TASK_ID of
// a task that ran before the agent did. Origin says which it was.
package lineage

import (
	"crypto/sha256"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/outguard/outguard/vsockproto"
)

// ID is a TASK_ID.
type ID = [32]byte

// Identities with a meaning of their own. A kernel thread has the zero ID, as
// the first task has in TSEM.
var (
	UnknownID  ID = sha256.Sum256([]byte("outguard: a task of unknown history"))
	SnapshotID ID = sha256.Sum256([]byte("outguard: a parent from before the agent"))
)

// Identify computes the TASK_ID of the program that e started, an exec or a
// snapshot record, in a task whose p_task_id is parent.
type Identify func(e *vsockproto.Event, parent ID) ID

// Origin says how a program came to be known.
type Origin uint8

const (
	Unknown  Origin = 0 // its start was not seen; its TASK_ID is UnknownID
	Exec     Origin = 1 // seen at exec
	Snapshot Origin = 2 // it ran before the agent did
)

func (o Origin) String() string {
	switch o {
	case Exec:
		return "exec"
	case Snapshot:
		return "snapshot"
	}
	return "unknown"
}

// Key names a task for good.
type Key struct {
	PID     uint32
	StartNs uint64
}

// KeyOf is the key of t.
func KeyOf(t vsockproto.Task) Key { return Key{t.PID, t.StartNs} }

// Program is one program that a task and its children run. Text is the
// guest's: escape it before showing.
type Program struct {
	ID     ID
	Origin Origin
	Path   string // at most 512 bytes
	Argv   string // arguments, each ended by a NUL, at most 512 bytes
	Digest [32]byte
	BootNs uint64 // when it started; of a snapshot, when that was taken

	refs int
}

// Limits of a program's text, bytes, and of a task's generations.
const (
	maxText        = 512
	maxGenerations = 4
)

func (p *Program) size() int { return len(p.Path) + len(p.Argv) }

type generation struct {
	execID  uint32
	program *Program
}

// Task is one thread.
type Task struct {
	Key
	TGID      uint32
	ParentKey Key    // who made it
	ParentID  ID     // p_task_id: the TASK_ID of who made it, at that time
	Mark      uint64 // the user's own; its later children inherit it (see Tree.Mark)
	ExitNs    uint64 // 0: runs
	Skipped   uint32 // forgotten ancestors between it and Parent

	home  *Container // to which it belongs; nil: the machine
	left  Departure  // how it has left that
	where where      // what its last event said
	lost  bool       // of a cgroup that nothing names

	generations []generation // ascending
	parent      *Task
	children    *Task // first
	siblings    link  // among the parent's children
	age         link  // in the tree's list of running or of ended tasks
}

type link struct{ prev, next *Task }

// Program is what the task runs now.
func (t *Task) Program() *Program { return t.generations[len(t.generations)-1].program }

// ExecID is the generation of Program.
func (t *Task) ExecID() uint32 { return t.generations[len(t.generations)-1].execID }

// Exited reports whether the task has ended.
func (t *Task) Exited() bool { return t.ExitNs != 0 }

// Container is that to which the task belongs, nil where it is the machine's own.
func (t *Task) Container() *Container { return t.home }

// Identity is a task and the program that it ran at the time in question, and
// where.
type Identity struct {
	Task    *Task // nil: never heard of, or no room for it
	Program *Program
	Place
}

// ID is the TASK_ID.
func (i Identity) ID() ID { return i.Program.ID }

// ParentID is the p_task_id.
func (i Identity) ParentID() ID {
	if i.Task == nil {
		return UnknownID
	}
	return i.Task.ParentID
}

// Options bound a Tree; nil and zero mean the defaults.
type Options struct {
	MaxTasks   int           // running and ended; default 16384
	MaxExited  int           // ended; default 4096
	KeepExited time.Duration // how long an ended task is kept, guest time; default 10 min
	MaxBytes   int           // of program texts; beyond it programs have none; default 16 MiB
}

// Stats count what a Tree had to do without.
type Stats struct {
	Tasks    int
	Exited   int
	Unknown  uint64 // times that a task or program of unknown history was met first
	Refused  uint64 // tasks for which there was no room
	Textless uint64 // programs kept without path and arguments for want of room
	Nameless uint64 // cgroups for whose paths there was no room
	Unplaced uint64 // times that a task came to be in a cgroup that nothing names
}

// Tree is the lineage of one VM. It is not safe for concurrent use.
type Tree struct {
	opts     Options
	identify Identify
	tasks    map[Key]*Task
	last     *Task            // whose event was the last one; nil if it is given up
	holders  map[uint32]*Task // who has a pid now
	running  ageList
	ended    ageList
	unknown  *Program
	kernel   *Program
	bytes    int
	session  [16]byte
	machine  Namespaces // of its first process
	cgroups  cgroups
	makers   makers

	keepsMade bool
	stats     Stats
}

// New makes an empty tree.
func New(identify Identify, opts *Options) *Tree {
	t := &Tree{
		identify: identify, cgroups: newCgroups(), tasks: map[Key]*Task{}, holders: map[uint32]*Task{},
		unknown: &Program{ID: UnknownID, refs: 1}, kernel: &Program{Origin: Snapshot, refs: 1},
	}
	if opts != nil {
		t.opts = *opts
	}
	for at, or := range map[*int]int{&t.opts.MaxTasks: 16384, &t.opts.MaxExited: 4096, &t.opts.MaxBytes: 16 << 20} {
		if *at == 0 {
			*at = or
		}
	}
	if t.opts.KeepExited == 0 {
		t.opts.KeepExited = 10 * time.Minute
	}
	return t
}

// Stats says how the tree is.
func (t *Tree) Stats() Stats {
	s := t.stats
	s.Tasks, s.Exited = len(t.tasks), t.ended.n
	return s
}

// Apply takes the next event and returns its subject: task and program as they
// were when the event happened. After an exec the program is the new one.
func (t *Tree) Apply(e *vsockproto.Event) Identity {
	who := t.identity(e)
	if task := who.Task; task != nil {
		if task.moved(e) {
			t.settle(e, task, &who)
		}
		t.reach(e, task, &who)
		who.Container, who.Unknown = task.home, task.lost
	}
	return who
}

// identity takes the event, but for the place.
func (t *Tree) identity(e *vsockproto.Event) Identity {
	switch e.Type {
	case vsockproto.BprmCommittedCreds:
		return t.exec(e)
	case vsockproto.TaskNewtask:
		return t.newtask(e)
	case vsockproto.SchedProcessExit:
		return t.exit(e)
	case vsockproto.TaskSnapshot:
		return t.snapshot(e)
	case vsockproto.CgroupMkdir, vsockproto.CgroupSnapshot:
		t.nameCgroup(e)
	case vsockproto.CgroupRmdir:
		t.cgroups.remove(e.Cgroup.ID)
	case vsockproto.FileOpen:
		who := t.subject(e)
		t.made(e, who.ID())
		return who
	}
	return t.subject(e)
}

// Lookup returns the task of that key, nil if it is not known.
func (t *Tree) Lookup(k Key) *Task { return t.tasks[k] }

// All yields every task that is known, in no order.
func (t *Tree) All() iter.Seq[*Task] { return maps.Values(t.tasks) }

// Resolve says who a task was that an event speaks of: a socket's owner, a
// signal's target.
func (t *Tree) Resolve(task vsockproto.Task, execID uint32) Identity {
	at := t.tasks[KeyOf(task)]
	if at == nil {
		return Identity{Program: t.unknown}
	}
	if p := at.at(execID); p != nil {
		return Identity{Task: at, Program: p}
	}
	return Identity{Task: at, Program: t.unknown}
}

// at returns the program of that generation, nil if it is not known.
func (t *Task) at(execID uint32) *Program {
	for i := len(t.generations) - 1; i >= 0; i-- {
		if t.generations[i].execID == execID {
			return t.generations[i].program
		}
	}
	return nil
}

// subject finds the event's own task, and takes in one that was never seen.
func (t *Tree) subject(e *vsockproto.Event) Identity {
	task := t.last // events come in runs of one task
	if task == nil || task.PID != e.PID || task.StartNs != e.StartNs {
		if task = t.tasks[KeyOf(e.Task)]; task == nil {
			task = t.meet(e)
		}
		if task == nil {
			return Identity{Program: t.unknown}
		}
		t.last = task
	}
	p := task.at(e.ExecID)
	if p == nil {
		p = t.missed(task, e.ExecID)
	}
	return Identity{Task: task, Program: p}
}

// meet takes in a task whose start was not seen. A thread has its leader's
// program; of anything else nothing is known.
func (t *Tree) meet(e *vsockproto.Event) *Task {
	t.stats.Unknown++
	task := &Task{
		Key: KeyOf(e.Task), TGID: e.TGID, ParentID: UnknownID,
		ParentKey: Key{e.ParentTGID, e.ParentStartNs},
	}
	p := t.unknown
	if e.KernelThread {
		p, task.ParentID = t.kernel, ID{}
	} else if leader := t.tasks[Key{e.TGID, e.LeaderStartNs}]; leader != nil {
		if of := leader.at(e.ExecID); of != nil {
			p, task.ParentID, task.ParentKey, task.Mark = of, of.ID, leader.Key, leader.Mark
			task.home, task.left = leader.home, leader.left
		}
	}
	return t.insert(task, e.ExecID, p)
}

// missed notes an exec that was not seen; a generation older than those that
// are kept is unknown without being noted.
func (t *Tree) missed(task *Task, execID uint32) *Program {
	t.stats.Unknown++
	if int32(execID-task.ExecID()) > 0 {
		t.setProgram(task, execID, t.unknown)
	}
	return t.unknown
}

func (t *Tree) newtask(e *vsockproto.Event) Identity {
	who := t.subject(e)
	key := KeyOf(e.Child)
	if t.tasks[key] != nil {
		return who // said twice
	}
	child := &Task{Key: key, TGID: e.Child.TGID, ParentKey: KeyOf(e.Task), ParentID: who.ID(), parent: who.Task}
	if who.Task != nil {
		child.Mark, child.home, child.left = who.Task.Mark, who.Task.home, who.Task.left&^Deeds
	}
	t.insert(child, e.ChildExecID, who.Program)
	return who
}

func (t *Tree) exec(e *vsockproto.Event) Identity {
	key := KeyOf(e.Task)
	task := t.tasks[key]
	if task == nil {
		// The program before is not known; the one that starts now is.
		if task = t.meet(e); task == nil {
			return Identity{Program: t.describe(e, UnknownID, Exec)}
		}
	}
	// A thread that execs takes its leader's name, after the leader has ended.
	if task.Exited() {
		t.revive(task)
	}
	p := t.describe(e, task.ParentID, Exec)
	t.setProgram(task, e.ExecID, p)
	return Identity{Task: task, Program: p}
}

// describe makes the program that an exec or a snapshot record tells of.
func (t *Tree) describe(e *vsockproto.Event, parent ID, o Origin) *Program {
	p := &Program{ID: t.identify(e, parent), Origin: o, Digest: e.File.Digest, BootNs: e.BootNs}
	path, argv := text(e.Path.Data), text(e.Argv.Data)
	tooMuch := func() bool { return t.bytes+len(path)+len(argv) > t.opts.MaxBytes }
	if t.forget(tooMuch); tooMuch() {
		t.stats.Textless++
		return p
	}
	p.Path, p.Argv = string(path), string(argv)
	return p
}

func text(b []byte) []byte { return b[:min(len(b), maxText)] }

func (t *Tree) snapshot(e *vsockproto.Event) Identity {
	task := t.tasks[KeyOf(e.Task)]
	if task != nil {
		if p := task.at(e.ExecID); p != nil && p.Origin != Unknown {
			return Identity{Task: task, Program: p} // what was seen is better
		}
	} else if task = t.meet(e); task == nil {
		return Identity{Program: t.unknown}
	}
	if e.KernelThread {
		return Identity{Task: task, Program: task.Program()}
	}
	if task.Exited() {
		t.revive(task)
	}
	if task.ParentID == UnknownID || task.at(e.ExecID) == t.unknown {
		task.ParentID = SnapshotID
	}
	p := t.describe(e, SnapshotID, Snapshot)
	t.setProgram(task, e.ExecID, p)
	return Identity{Task: task, Program: p}
}

func (t *Tree) exit(e *vsockproto.Event) Identity {
	who := t.subject(e)
	if task := who.Task; task != nil && !task.Exited() {
		t.end(task, e.BootNs)
	}
	old := e.BootNs - min(e.BootNs, uint64(t.opts.KeepExited))
	t.forget(func() bool { return t.ended.n > t.opts.MaxExited || t.ended.first.ExitNs < old })
	return who
}

func (t *Tree) end(task *Task, at uint64) {
	task.ExitNs = max(at, 1)
	t.running.remove(task)
	t.ended.add(task)
	if t.holders[task.PID] == task {
		delete(t.holders, task.PID)
	}
}

func (t *Tree) revive(task *Task) {
	task.ExitNs = 0
	t.ended.remove(task)
	t.displace(task.PID, task.StartNs)
	t.running.add(task)
	t.holders[task.PID] = task
}

// displace ends whoever has the pid, which somebody else has now.
func (t *Tree) displace(pid uint32, at uint64) {
	if before := t.holders[pid]; before != nil {
		t.end(before, at)
		t.forget(func() bool { return t.ended.n > t.opts.MaxExited })
	}
}

// insert takes in a new task, nil where there is no room: those that are known
// are not given up for it.
func (t *Tree) insert(task *Task, execID uint32, p *Program) *Task {
	t.displace(task.PID, task.StartNs)
	if len(t.tasks) >= t.opts.MaxTasks {
		t.forget(func() bool { return len(t.tasks) >= t.opts.MaxTasks })
	}
	if len(t.tasks) >= t.opts.MaxTasks {
		t.stats.Refused++
		return nil
	}
	if task.parent == nil {
		task.parent = t.tasks[task.ParentKey]
	}
	if task.parent == task || (task.parent != nil && t.tasks[task.parent.Key] != task.parent) {
		task.parent = nil // given up to make room for its child
	}
	t.tasks[task.Key], t.holders[task.PID] = task, task
	t.running.add(task)
	task.join(task.parent)
	t.setProgram(task, execID, p)
	return task
}

// setProgram makes p the program of a generation.
func (t *Tree) setProgram(task *Task, execID uint32, p *Program) {
	t.hold(p)
	for i := range task.generations {
		if g := &task.generations[i]; g.execID == execID {
			t.drop(g.program)
			g.program = p
			return
		}
	}
	if len(task.generations) == maxGenerations {
		t.drop(task.generations[0].program)
		task.generations = append(task.generations[:0], task.generations[1:]...)
	}
	task.generations = append(task.generations, generation{execID, p})
	slices.SortStableFunc(task.generations, func(a, b generation) int { return int(int32(a.execID - b.execID)) })
}

func (t *Tree) hold(p *Program) {
	if p.refs == 0 {
		t.bytes += p.size()
	}
	p.refs++
}

func (t *Tree) drop(p *Program) {
	if p.refs--; p.refs == 0 {
		t.bytes -= p.size()
	}
}
