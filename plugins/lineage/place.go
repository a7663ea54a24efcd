package lineage

import (
	"strings"

	"github.com/outguard/outguard/vsockproto"
)

// where is what a task's last event said of its place. It is compared at each
// event, so it has what a record has and no more.
type where struct {
	cgroup uint64
	Namespaces
}

func whereOf(s *vsockproto.Subject) where { return where{s.CgroupID, namespacesOf(s)} }

func (w *where) is(s *vsockproto.Subject) bool {
	return w.cgroup == s.CgroupID && w.Mnt == s.MntNS && w.PID == s.PidNS && w.User == s.UserNS && w.Net == s.NetNS
}

// moved reports whether an event may say something new of its task's place.
func (t *Task) moved(e *vsockproto.Event) bool {
	return !t.where.is(&e.Subject) || e.Type == vsockproto.BprmCommittedCreds || e.Type == vsockproto.TaskSnapshot
}

// settle finds the container of an event's task.
//
// A task belongs to a container once it was seen in its cgroup and in its
// namespaces, or began there; its children belong there from the start. What a
// runtime does in a container's cgroup before that is the machine's. A task
// that has left still belongs there: that is where it has to be held to.
func (t *Tree) settle(e *vsockproto.Event, task *Task, who *Identity) {
	task.where = whereOf(&e.Subject)
	if e.PID == 1 && e.PidNS == initialPidNS && (e.Type == vsockproto.TaskSnapshot || t.machine == Namespaces{}) {
		t.machine = task.where.Namespaces
	}
	c := t.cgroups.byID[e.CgroupID]
	task.lost = c == nil
	if task.lost {
		t.stats.Unplaced++
	}
	if e.KernelThread {
		return
	}
	var in *Container
	if c != nil {
		in = t.beginIn(e, task, c, who.Program)
	}
	if in != nil && in != task.home && in.Begun && in.differs(task.where.Namespaces)&(LeftMnt|LeftPID) == 0 && (task.home == nil || in.within(task.home)) {
		// Who comes in with some namespaces of where it was has not left.
		task.home, task.left = in, in.differs(task.where.Namespaces)
	}
	if task.home != nil {
		t.depart(task, in, c, who)
	}
}

// beginIn returns the container of a cgroup, which begins with the first
// program that is started in it and not in the machine's mount namespace.
func (t *Tree) beginIn(e *vsockproto.Event, task *Task, c *cgroup, p *Program) *Container {
	starts := e.Type == vsockproto.BprmCommittedCreds || e.Type == vsockproto.TaskSnapshot
	foreign := t.machine.Mnt != 0 && e.MntNS != t.machine.Mnt
	in := c.container
	elsewhere := task.home != nil && task.home != in && (in == nil || !in.within(task.home))
	left := task.home != nil && task.home == in && task.left != 0
	if !starts || !foreign || in != nil && in.Begun || elsewhere || left {
		return in
	}
	if in == nil {
		if c.cut || c.path == "/" || e.PidNS == initialPidNS {
			return nil // mount namespaces alone are a service's as well
		}
		in = t.cgroups.newContainer(c.path, "", c.path[strings.LastIndexByte(c.path, '/')+1:]).at(c)
		t.cgroups.adopt(in)
	}
	in.Begun, in.Namespaces, in.Program, in.Digest, in.BootNs = true, task.where.Namespaces, p.Path, p.Digest, e.BootNs
	if name := text(e.Filename.Data); len(name) > 0 && name[0] == '/' {
		in.Program = string(name) // of a script itself, and not of its interpreter
	}
	t.cgroups.own(in)
	return in
}

// adopt gives the cgroups below a new container's to it.
func (g *cgroups) adopt(in *Container) {
	for _, c := range g.order {
		if c != nil && !c.stale && c.container == nil && (c.path == in.Path || strings.HasPrefix(c.path, in.Path+"/")) {
			c.container = in
		}
	}
}

// within reports whether a container is one inside another.
func (k *Container) within(outer *Container) bool {
	return strings.HasPrefix(k.Path, outer.Path+"/")
}

// depart notes in what a task is no longer where its container is.
func (t *Tree) depart(task *Task, in *Container, c *cgroup, who *Identity) {
	d := task.home.differs(task.where.Namespaces)
	if in != task.home && (in == nil || !in.within(task.home)) && c != nil {
		d |= LeftCgroup
	}
	task.left &= d | Deeds // where it is back, it can leave again
	if d &^= task.left; d == 0 {
		return
	}
	outside := d&LeftCgroup != 0 || t.others(task, d)
	task.left |= d
	if !outside {
		d &^= task.home.nested // said once of a container
		task.home.nested |= d
	}
	who.Left, who.Outside = d, outside && d != 0
}

// reach notes what a container's task does beyond its container, though its place
// says nothing: a door that leads out needs no namespace. Each is told once of a task.
func (t *Tree) reach(e *vsockproto.Event, task *Task, who *Identity) {
	if task.home == nil || !task.home.Begun {
		return
	}
	if d := deedOf(e) &^ task.left; d != 0 {
		task.left |= d
		who.Left, who.Outside = who.Left|d, true
	}
}

func deedOf(e *vsockproto.Event) Departure {
	const kind, directory, regular = 0o170000, 0o040000, 0o100000
	switch e.Type {
	case vsockproto.SbKernMount:
		if needs, _ := e.Arg("has_device"); needs != 0 {
			return LeftDevice
		}
	case vsockproto.TaskSnapshot: // of a program that was started before its task went elsewhere
	default:
		// A terminal and a pipe that it was given are the machine's as well.
		if m := e.File.Mode & kind; e.Path.Flags&vsockproto.TailForeign != 0 && (m == regular || m == directory) {
			return LeftFiles
		}
	}
	return 0
}

// others reports whether a task is in a namespace of the machine's or of another
// container's.
func (t *Tree) others(task *Task, d Departure) bool {
	machine := t.machine.numbers()
	for i, n := range task.where.numbers() {
		if d&(LeftMnt<<i) == 0 {
			continue
		}
		k := t.cgroups.owners[n]
		if n == machine[i] || k != nil && k != task.home && !k.within(task.home) {
			return true
		}
	}
	return false
}
