package api

import (
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/outguard/outguard/vsockproto"
)

// asked is what an EventsRequest asks of single events, and what has to be
// known of one VM to tell: which tasks run the program and which cgroups are
// the container's is in events before those that are asked for.
type asked struct {
	*eventFilter
	tasks   map[taskKey]*task // that run the program, or did
	cgroups map[uint64]bool   // that match
	session uuid.UUID
	block   int // of the record, counted as it is asked about
}

// taskKey names a process in one session.
type taskKey struct {
	tgid    uint32
	startNs uint64 // of its leader
}

// task is a process that runs the program, or did.
type task struct {
	execs []uint32 // its exec ids at which it does; few
	ended int      // the block at which it ended, 0 while it runs
}

const (
	// maxTasks bounds what is known of one VM. A guest starts as many as it likes.
	maxTasks = 1 << 16
	// manyTasks is from how many on every block is read.
	manyTasks = 256
	// lateBlocks is for how many blocks after its end a record of a task may come:
	// twice what the guest's rings hold.
	lateBlocks = 64
)

func (f *eventFilter) of() *asked {
	return &asked{eventFilter: f, tasks: map[taskKey]*task{}, cgroups: map[uint64]bool{}}
}

func isPattern(s string) bool { return strings.ContainsAny(s, "*?") }

// tracks reports whether the events before those that are asked for are needed.
func (f *eventFilter) tracks() bool {
	return f.program != "" || f.container != "" || f.cgroup != ""
}

// begin takes a batch of this session. named are the cgroups that are known
// before its first record.
func (a *asked) begin(session uuid.UUID, named *cgroupNames) error {
	if a.session == session {
		return nil
	}
	a.session = session
	clear(a.tasks)
	clear(a.cgroups)
	if a.container == "" && a.cgroup == "" {
		return nil
	}
	for id, path := range named.paths {
		if err := a.name(id, path); err != nil {
			return err
		}
	}
	return nil
}

// note takes what an event says of tasks and cgroups.
func (a *asked) note(e *vsockproto.Event) error {
	if a.program != "" {
		a.noteTask(e)
		if len(a.tasks) > maxTasks {
			return a.tooMany("processes run " + a.program)
		}
	}
	if (a.container != "" || a.cgroup != "") && namesCgroup(e) {
		if err := a.name(e.Cgroup.ID, string(e.Path.Data)); err != nil {
			return err
		}
	}
	return nil
}

func (a *asked) tooMany(what string) error {
	return invalid("ask for what is about fewer, or leave it out", "more than %d %s", maxTasks, what)
}

func (a *asked) noteTask(e *vsockproto.Event) {
	key := taskKey{e.TGID, e.LeaderStartNs}
	switch {
	case startsProgram(e):
		if glob(a.program, e.Path.Data) {
			a.runs(key, e.ExecID)
		}
	case e.Type == vsockproto.TaskNewtask && e.Child.PID == e.Child.TGID:
		if a.running(key, e.ExecID) {
			a.runs(taskKey{e.Child.TGID, e.ChildLeaderStartNs}, e.ChildExecID)
		}
	case e.Type == vsockproto.SchedProcessExit && e.GroupDead:
		if t := a.tasks[key]; t != nil {
			t.ended = max(a.block, 1)
		}
	}
}

func (a *asked) runs(key taskKey, exec uint32) {
	t := a.tasks[key]
	if t == nil {
		t = &task{}
		a.tasks[key] = t
	}
	if t.execs = append(t.execs, exec); len(t.execs) > 8 {
		t.execs = t.execs[1:]
	}
}

// running reports whether a process runs the program at that exec of its.
func (a *asked) running(key taskKey, exec uint32) bool {
	if t := a.tasks[key]; t != nil {
		for _, e := range t.execs {
			if e == exec {
				return true
			}
		}
	}
	return false
}

// name says which path a cgroup has.
func (a *asked) name(id uint64, path string) error {
	if (a.cgroup != "" && !glob(a.cgroup, []byte(path))) || (a.container != "" && !a.isContainer(path)) {
		return nil
	}
	if a.cgroups[id] = true; len(a.cgroups) > maxTasks {
		return a.tooMany("cgroups match")
	}
	return nil
}

func (a *asked) isContainer(cgroup string) bool {
	for _, name := range containerNames(cgroup) {
		if glob(a.container, []byte(name)) {
			return true
		}
	}
	return false
}

// matches reports whether an event is asked for.
func (a *asked) matches(e *vsockproto.Event) bool {
	return a.match(e) &&
		(a.program == "" || a.running(taskKey{e.TGID, e.LeaderStartNs}, e.ExecID)) &&
		(a.cgroup == "" && a.container == "" || a.cgroups[e.CgroupID])
}

// may says whether a block of the record may hold an event that is asked for, or
// that is needed to tell, from whether any of its events may have a key.
func (a *asked) may(has func(uint64) bool) bool {
	a.block++
	return a.mayStart(has) || a.mayName(has) || a.mayMatch(has)
}

// mayStart: a process may begin to run the program.
func (a *asked) mayStart(has func(uint64) bool) bool {
	return a.program != "" && (has(numberKey(keyHook, uint64(vsockproto.BprmCommittedCreds))) || has(numberKey(keyHook, uint64(vsockproto.TaskSnapshot)))) &&
		hasAll(has, patternKeys(keyProgram, keyProgDir, keyProgBase, a.program))
}

// mayName: a cgroup may be named that matches.
func (a *asked) mayName(has func(uint64) bool) bool {
	if a.container == "" && a.cgroup == "" || !a.hasAny(has, vsockproto.CgroupMkdir, vsockproto.CgroupSnapshot) {
		return false
	}
	return (a.container == "" || isPattern(a.container) || has(textKey(keyContainer, a.container))) && hasAll(has, patternKeys(keyPath, keyDir, keyBase, a.cgroup))
}

func (a *asked) mayMatch(has func(uint64) bool) bool {
	switch {
	case a.pid != 0 && !has(numberKey(keyPID, uint64(a.pid))),
		len(a.types) > 0 && !a.hasAny(has, a.types...),
		!hasAll(has, patternKeys(keyPath, keyDir, keyBase, a.path)):
		return false
	}
	return (a.program == "" || a.mayRun(has)) && (a.cgroup == "" && a.container == "" || a.mayBeIn(has))
}

// mayRun: one of the processes that run the program may act. Those that have
// ended long ago are forgotten.
func (a *asked) mayRun(has func(uint64) bool) bool {
	for key, t := range a.tasks {
		if t.ended != 0 && a.block-t.ended > lateBlocks {
			delete(a.tasks, key)
		}
	}
	if len(a.tasks) > manyTasks {
		return true
	}
	for key := range a.tasks {
		if has(numberKey(keyPID, uint64(key.tgid))) {
			return true
		}
	}
	return false
}

func (a *asked) mayBeIn(has func(uint64) bool) bool {
	if len(a.cgroups) > manyTasks {
		return true
	}
	for id := range a.cgroups {
		if has(numberKey(keyCgroup, id)) {
			return true
		}
	}
	return false
}

func (*asked) hasAny(has func(uint64) bool, types ...vsockproto.EventType) bool {
	for _, t := range types {
		if has(numberKey(keyHook, uint64(t))) {
			return true
		}
	}
	return false
}

func hasAll(has func(uint64) bool, keys []uint64) bool {
	for _, k := range keys {
		if !has(k) {
			return false
		}
	}
	return true
}

// NamesCgroups says, as Query.May, whether a block may name one of these cgroups.
func NamesCgroups(ids []uint64) func(has func(uint64) bool) bool {
	return func(has func(uint64) bool) bool {
		return slices.ContainsFunc(ids, func(id uint64) bool { return has(numberKey(keyNamed, id)) })
	}
}

// CgroupsNamed calls name with each cgroup that a batch's records name.
func CgroupsNamed(records []byte, name func(id uint64, path []byte)) {
	var e vsockproto.Event
	for len(records) > 0 {
		rest, err := e.Parse(records)
		if err != nil {
			return
		}
		if namesCgroup(&e) {
			name(e.Cgroup.ID, e.Path.Data)
		}
		records = rest
	}
}
