package lineage

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/outguard/outguard/vsockproto"
)

// identify gives a program the first bytes of its path and of its parent's.
func identify(e *vsockproto.Event, parent ID) ID {
	var id ID
	n := copy(id[:16], e.Path.Data)
	copy(id[n:], parent[:])
	return id
}

// guest makes events by hand; each takes a nanosecond.
type guest struct{ now uint64 }

func (g *guest) event(t vsockproto.EventType, k Key, execID uint32) *vsockproto.Event {
	g.now++
	e := &vsockproto.Event{Header: vsockproto.Header{Type: t, BootNs: g.now}}
	e.Subject.Task = vsockproto.Task{PID: k.PID, TGID: k.PID, StartNs: k.StartNs}
	e.LeaderStartNs, e.ExecID = k.StartNs, execID
	return e
}

func (g *guest) fork(parent Key, execID uint32, pid uint32) (*vsockproto.Event, Key) {
	e := g.event(vsockproto.TaskNewtask, parent, execID)
	child := Key{pid, g.now}
	e.Child, e.ChildExecID = vsockproto.Task{PID: pid, TGID: pid, StartNs: child.StartNs}, execID
	return e, child
}

func (g *guest) exec(k Key, execID uint32, path string) *vsockproto.Event {
	e := g.event(vsockproto.BprmCommittedCreds, k, execID)
	e.Path.Data = []byte(path)
	return e
}

func (g *guest) open(k Key, execID uint32) *vsockproto.Event {
	return g.event(vsockproto.FileOpen, k, execID)
}

func (g *guest) exit(k Key, execID uint32) *vsockproto.Event {
	return g.event(vsockproto.SchedProcessExit, k, execID)
}

func (g *guest) snapshot(k Key, path string) *vsockproto.Event {
	e := g.event(vsockproto.TaskSnapshot, k, 0)
	e.Path.Data = []byte(path)
	return e
}

// shell is a tree with a shell, from the snapshot, that forked and execed.
func shell() (*Tree, *guest, Key, Key) {
	t, g := New(identify, nil), &guest{}
	sh := Key{10, 1}
	t.Apply(g.snapshot(sh, "/sh"))
	fork, child := g.fork(sh, 0, 11)
	t.Apply(fork)
	return t, g, sh, child
}

func TestExecGenerations(t *testing.T) {
	tree, g, sh, child := shell()
	before := g.open(child, 0) // happens before the exec, arrives after it
	who := tree.Apply(g.exec(child, 1, "/cat"))
	if who.Program.Path != "/cat" || who.Program.Origin != Exec || who.ParentID() != tree.Lookup(sh).Program().ID {
		t.Errorf("after exec: %+v", who.Program)
	}
	if p := tree.Apply(before).Program; p.Path != "/sh" {
		t.Errorf("before exec it ran %q", p.Path)
	}
	if p := tree.Apply(g.open(child, 1)).Program; p != who.Program {
		t.Errorf("after exec it runs %q", p.Path)
	}
	// Exec does not touch p_task_id, so the chain is the maker's.
	if again := tree.Apply(g.exec(child, 2, "/dog")); again.ParentID() != who.ParentID() || !bytes.HasPrefix(again.Program.ID[4:], []byte("/sh")) {
		t.Errorf("second exec: %+v", again)
	}
	for i := range uint32(2 * maxGenerations) {
		tree.Apply(g.exec(child, 3+i, fmt.Sprint("/x", i)))
	}
	if p := tree.Apply(before).Program; p.Origin != Unknown || p.ID != UnknownID {
		t.Errorf("a forgotten generation is %+v", p)
	}
	if got := tree.Lookup(child).Program().Path; got != "/x7" {
		t.Errorf("an old record made it run %q", got)
	}
}

func TestExecIDWraps(t *testing.T) {
	tree, g, _, child := shell()
	for _, id := range []uint32{1<<32 - 1, 0, 1} {
		tree.Apply(g.exec(child, id, fmt.Sprint("/", id)))
	}
	if task := tree.Lookup(child); task.Program().Path != "/1" || task.at(1<<32-1).Path != "/4294967295" {
		t.Errorf("program %+v", task.Program())
	}
}

func TestUnknownHistory(t *testing.T) {
	tree, g := New(identify, nil), &guest{}
	stray := Key{5, 5}
	who := tree.Apply(g.open(stray, 3))
	if who.ID() != UnknownID || who.ParentID() != UnknownID || who.Program.Origin != Unknown || who.Task == nil {
		t.Errorf("a stray task is %+v", who)
	}
	// A missed exec is seen by its generation, and mended by the next one.
	if p := tree.Apply(g.exec(stray, 4, "/a")).Program; p.Origin != Exec {
		t.Errorf("its exec is %+v", p)
	}
	if p := tree.Apply(g.open(stray, 6)).Program; p.Origin != Unknown {
		t.Errorf("after a missed exec: %+v", p)
	}
	if p := tree.Apply(g.exec(stray, 7, "/b")).Program; p.Path != "/b" {
		t.Errorf("after the next: %+v", p)
	}
	if id := tree.Resolve(vsockproto.Task{PID: 99, StartNs: 1}, 0); id.ID() != UnknownID || id.ParentID() != UnknownID || id.Task != nil {
		t.Errorf("nobody is %+v", id)
	}
	if n := tree.Stats().Unknown; n != 2 {
		t.Errorf("%d unknown", n)
	}
}

func TestResolve(t *testing.T) {
	tree, g, _, child := shell()
	tree.Apply(g.exec(child, 1, "/cat"))
	tree.Apply(g.exit(child, 1))
	task := vsockproto.Task{PID: child.PID, StartNs: child.StartNs}
	for execID, want := range map[uint32]string{0: "/sh", 1: "/cat", 9: ""} {
		if p := tree.Resolve(task, execID).Program; p.Path != want {
			t.Errorf("generation %d is %q, want %q", execID, p.Path, want)
		}
	}
}

func TestThreads(t *testing.T) {
	tree, g, sh, _ := shell()
	e := g.open(Key{77, 9}, 0) // its newtask was lost, its leader is known
	e.TGID, e.LeaderStartNs = sh.PID, sh.StartNs
	if p := tree.Apply(e).Program; p.Path != "/sh" {
		t.Errorf("a thread runs %+v", p)
	}
	// A thread that execs takes its leader's name after the leader's exit.
	tree.Apply(g.exit(sh, 0))
	if who := tree.Apply(g.exec(sh, 1, "/new")); who.Program.Path != "/new" || who.Task.Exited() {
		t.Errorf("after exec of a thread: %+v", who.Program)
	}
}

func TestKernelThreads(t *testing.T) {
	tree, g := New(identify, nil), &guest{}
	kthreadd := g.snapshot(Key{2, 0}, "")
	kthreadd.KernelThread = true
	if who := tree.Apply(kthreadd); who.ID() != (ID{}) || who.ParentID() != (ID{}) || who.Program.Origin != Snapshot {
		t.Errorf("a kernel thread is %+v", who)
	}
}

func TestSnapshotKeepsWhatWasSeen(t *testing.T) {
	tree, g, _, child := shell()
	e := g.snapshot(child, "/liar")
	if p := tree.Apply(e).Program; p.Path != "/sh" {
		t.Errorf("a snapshot made it %q", p.Path)
	}
	stray := Key{5, 5}
	tree.Apply(g.open(stray, 0))
	if who := tree.Apply(g.snapshot(stray, "/late")); who.Program.Path != "/late" || who.ParentID() != SnapshotID {
		t.Errorf("a late snapshot gave %+v", who)
	}
}

func names(tree *Tree, k Key) string {
	var all []string
	for _, task := range tree.Ancestry(tree.Lookup(k)) {
		name := task.Program().Path
		if task.Skipped > 0 {
			name += fmt.Sprintf("(+%d)", task.Skipped)
		}
		all = append(all, name)
	}
	return strings.Join(all, " < ")
}

func TestAncestry(t *testing.T) {
	g := &guest{}
	tree := New(identify, &Options{MaxExited: 1})
	at := Key{1, 1}
	tree.Apply(g.snapshot(at, "/init"))
	execID, chain := uint32(0), []Key{at}
	for i := range uint32(4) {
		fork, child := g.fork(at, execID, 100+i)
		tree.Apply(fork)
		execID++
		tree.Apply(g.exec(child, execID, fmt.Sprint("/", i)))
		at, chain = child, append(chain, child)
	}
	if got := names(tree, at); got != "/3 < /2 < /1 < /0 < /init" {
		t.Errorf("ancestry %s", got)
	}
	tree.Apply(g.exit(chain[2], 2)) // /1
	if got := names(tree, at); got != "/3 < /2 < /1 < /0 < /init" {
		t.Errorf("ancestry with an ended one %s", got)
	}
	tree.Apply(g.exit(chain[1], 1)) // /0, and /1 is given up
	if got := names(tree, at); got != "/3 < /2(+1) < /0 < /init" {
		t.Errorf("ancestry %s", got)
	}
	tree.Apply(g.exit(chain[3], 3)) // /2, and /0 is given up
	if got := names(tree, at); got != "/3 < /2(+2) < /init" {
		t.Errorf("ancestry %s", got)
	}
}

func TestMark(t *testing.T) {
	tree, g, sh, early := shell()
	since := g.now + 1
	fork, late := g.fork(sh, 0, 12)
	tree.Apply(fork)
	fork, grand := g.fork(late, 0, 13)
	tree.Apply(fork)
	tree.Mark(tree.Lookup(sh), 7, since)
	fork, later := g.fork(grand, 0, 14)
	tree.Apply(fork)
	for k, want := range map[Key]uint64{sh: 7, early: 0, late: 7, grand: 7, later: 7} {
		if got := tree.Lookup(k).Mark; got != want {
			t.Errorf("task %d has mark %d, want %d", k.PID, got, want)
		}
	}
	tree.Unmark()
	if tree.Lookup(later).Mark != 0 {
		t.Error("a mark is left")
	}
}

// A fork bomb makes no task unknown that was known before.
func TestBounds(t *testing.T) {
	g := &guest{}
	tree := New(identify, &Options{MaxTasks: 10, MaxExited: 5, MaxBytes: 4096})
	sh := Key{1, 1}
	tree.Apply(g.snapshot(sh, "/sh"))
	var last Key
	for i := range uint32(100) {
		var fork *vsockproto.Event
		fork, last = g.fork(sh, 0, 10+i)
		tree.Apply(fork)
		tree.Apply(g.exec(last, 1, strings.Repeat("x", 4096)))
	}
	s := tree.Stats()
	if s.Tasks != 10 || s.Refused == 0 || tree.bytes > 4096 || s.Textless == 0 {
		t.Errorf("stats %+v, %d bytes", s, tree.bytes)
	}
	if p := tree.Apply(g.open(sh, 0)).Program; p.Path != "/sh" {
		t.Errorf("the shell is %+v", p)
	}
	if who := tree.Apply(g.open(last, 1)); who.ID() != UnknownID || who.Task != nil {
		t.Errorf("the last is %+v", who)
	}
	// Whoever takes over a pid shows that its last holder has ended, even
	// where the exit was lost.
	for i := range uint32(9) {
		fork, _ := g.fork(sh, 0, 10+i)
		tree.Apply(fork)
	}
	if s := tree.Stats(); s.Tasks != 10 {
		t.Errorf("stats %+v", s)
	}
}

func TestKeepExited(t *testing.T) {
	g := &guest{}
	tree := New(identify, &Options{KeepExited: time.Second})
	a, b := Key{1, 1}, Key{2, 1}
	for _, k := range []Key{a, b} {
		tree.Apply(g.snapshot(k, "/x"))
		tree.Apply(g.exit(k, 0))
		g.now += uint64(time.Second)
	}
	if tree.Lookup(a) != nil || tree.Lookup(b) == nil {
		t.Errorf("kept %v and %v", tree.Lookup(a), tree.Lookup(b))
	}
}

func TestSubjectAllocs(t *testing.T) {
	tree, g, sh, _ := shell()
	e := g.open(sh, 0)
	if n := testing.AllocsPerRun(100, func() { tree.Apply(e) }); n != 0 {
		t.Errorf("%g allocations", n)
	}
}

// check holds a tree against what must always be so.
func check(t *testing.T, tree *Tree) {
	t.Helper()
	if len(tree.tasks) > tree.opts.MaxTasks || tree.ended.n > tree.opts.MaxExited || tree.running.n+tree.ended.n != len(tree.tasks) {
		t.Fatalf("%d tasks, %d running, %d ended", len(tree.tasks), tree.running.n, tree.ended.n)
	}
	checkCgroups(t, tree)
	bytes, seen := 0, map[*Program]int{}
	tree.each(func(task *Task) {
		if tree.tasks[task.Key] != task || len(task.generations) == 0 || len(task.generations) > maxGenerations {
			t.Fatalf("task %+v", task.Key)
		}
		if task.parent != nil && tree.tasks[task.parent.Key] != task.parent {
			t.Fatalf("task %+v has a parent that is gone", task.Key)
		}
		if !task.Exited() && tree.holders[task.PID] != task {
			t.Fatalf("task %+v runs and does not hold its pid", task.Key)
		}
		for _, g := range task.generations {
			if seen[g.program]++; seen[g.program] == 1 && g.program != tree.unknown && g.program != tree.kernel {
				bytes += g.program.size()
			}
		}
		for c := task.children; c != nil; c = c.siblings.next {
			if c.parent != task {
				t.Fatalf("a child of %+v has another parent", task.Key)
			}
		}
	})
	if bytes != tree.bytes {
		t.Fatalf("%d bytes counted, %d there", tree.bytes, bytes)
	}
}

// apply makes events of fuzzed bytes: few pids, so that they meet.
func apply(tree *Tree, script []byte) {
	g := &guest{}
	types := []vsockproto.EventType{
		vsockproto.TaskNewtask, vsockproto.BprmCommittedCreds, vsockproto.FileOpen,
		vsockproto.SchedProcessExit, vsockproto.TaskSnapshot, vsockproto.CgroupMkdir, vsockproto.CgroupRmdir,
	}
	for ; len(script) >= 4; script = script[4:] {
		e := g.event(types[int(script[0])%len(types)], Key{uint32(script[1] & 15), uint64(script[1] >> 4)}, uint32(script[2]&7))
		e.Child = vsockproto.Task{PID: uint32(script[3] & 15), StartNs: uint64(script[3] >> 4)}
		e.ParentTGID, e.ParentStartNs = uint32(script[3]&15), uint64(script[3]>>4)
		e.KernelThread = script[2] > 250
		e.Path.Data = script[:4]
		e.CgroupID, e.MntNS, e.PidNS = uint64(script[3]&3), uint32(script[2]>>6), uint32(script[3]>>6)
		e.Cgroup.ID = uint64(script[1] & 3)
		if e.Type == vsockproto.CgroupMkdir {
			e.Path.Data = []byte("/docker/" + string(script[2:4]))
		}
		if script[0] == 255 {
			tree.SetSession([16]byte{script[3]})
		}
		who := tree.Apply(e)
		if who.Task != nil && script[2]&8 != 0 {
			tree.Mark(who.Task, 1, uint64(script[3]>>4))
		}
		tree.Ancestry(who.Task)
	}
}

func FuzzApply(f *testing.F) {
	f.Add([]byte("\x04\x01\x00\x00\x00\x01\x00\x12\x01\x12\x01\x00\x03\x12\x00\x00\x00\x12\x01\x01"))
	f.Fuzz(func(t *testing.T, script []byte) {
		tree := New(identify, &Options{MaxTasks: 12, MaxExited: 4, MaxBytes: 4000})
		for len(script) >= 4 {
			n := min(len(script), 64)
			apply(tree, script[:n])
			script = script[n:]
			check(t, tree)
		}
		saved, err := tree.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(saved, identify, &tree.opts)
		if err != nil {
			t.Fatal(err)
		}
		check(t, again)
		if b, err := again.AppendBinary(nil); err != nil || !bytes.Equal(b, saved) {
			t.Fatalf("bytes differ after a round trip, error %v", err)
		}
	})
}

func FuzzParse(f *testing.F) {
	tree, g, _, child := shell()
	tree.Apply(g.exec(child, 1, "/cat"))
	tree.Apply(g.exit(child, 1))
	saved, err := tree.AppendBinary(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(saved)
	f.Fuzz(func(t *testing.T, b []byte) {
		opts := &Options{MaxTasks: 12, MaxExited: 12}
		tree, err := Parse(b, identify, opts)
		if err != nil {
			return
		}
		check(t, tree)
		apply(tree, slices.Repeat([]byte{0, 1, 2, 3, 3, 17, 2, 1}, 20))
		check(t, tree)
	})
}

func TestParseCut(t *testing.T) {
	tree, g, _, child := shell()
	tree.Apply(g.exec(child, 1, "/cat"))
	saved, err := tree.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range saved {
		if _, err := Parse(saved[:cut], identify, nil); err == nil {
			t.Fatalf("a tree cut at %d of %d bytes was taken", cut, len(saved))
		}
	}
}

func BenchmarkSubject(b *testing.B) {
	tree, g, sh, _ := shell()
	e := g.open(sh, 0)
	for b.Loop() {
		tree.Apply(e)
	}
}
