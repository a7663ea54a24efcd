package lineage

import (
	"strings"

	"github.com/outguard/outguard/vsockproto"
)

// cgroup is what a number in records means.
type cgroup struct {
	id        uint64
	path      string
	cut       bool       // path is not the whole of it
	removed   bool       // it is gone; records of before can still come
	stale     bool       // named in an earlier session, and not in this one
	container *Container // to which it belongs; nil: none that is known
	place     int        // in order
}

// Bounds of a tree's cgroups. A guest can make as many as it likes.
const (
	maxCgroups     = 4096    // with those that are gone and not forgotten
	maxCgroupText  = 1 << 20 // bytes of their paths
	maxCgroupPath  = 2048    // of one; as the protocol has it
	maxCgroupDepth = 64
)

// cgroups are those of one machine in the order in which they were named, and
// the containers that live in them.
type cgroups struct {
	byID   map[uint64]*cgroup
	order  []*cgroup             // with holes: nil
	byPath map[string]*Container // those that are not gone
	owners map[uint32]*Container // by their namespaces' numbers: who had one first
	bytes  int
	dead   int    // removed or stale
	last   uint32 // number of the last container
}

func newCgroups() cgroups {
	return cgroups{byID: map[uint64]*cgroup{}, byPath: map[string]*Container{}, owners: map[uint32]*Container{}}
}

// SetSession says of which session the next events are. Another boot gives the
// same numbers to other cgroups; those that are not named again are the first
// to be forgotten. A container of theirs begins anew with a task that runs in it.
// Who made which file is a session's too: TSEM has it for as long as the kernel
// keeps the inode in memory.
func (t *Tree) SetSession(id [16]byte) {
	if t.session == id {
		return
	}
	t.session = id
	for _, c := range t.cgroups.byID {
		c.stale = true
	}
	t.cgroups.dead = len(t.cgroups.byID)
	for _, k := range t.cgroups.byPath {
		k.Begun = false // until a task that runs in it is met
	}
	clear(t.cgroups.byPath)
	clear(t.cgroups.owners)
	t.makers = makers{}
}

// Session is the one that was set last.
func (t *Tree) Session() [16]byte { return t.session }

// nameCgroup takes a cgroup_mkdir or cgroup_snapshot record.
func (t *Tree) nameCgroup(e *vsockproto.Event) {
	g := &t.cgroups
	path := e.Path.Data[:min(len(e.Path.Data), maxCgroupPath)]
	if c := g.byID[e.Cgroup.ID]; c != nil && c.path == string(path) {
		g.renew(c)
		return
	} else if c != nil {
		g.forget(c)
	}
	c := &cgroup{id: e.Cgroup.ID, path: string(path), cut: e.Path.Flags != 0}
	if !g.room(len(c.path)) {
		t.stats.Nameless++
		return
	}
	if !c.cut {
		c.container = g.containerAt(c)
	}
	g.add(c)
}

// renew says that a cgroup is there after all.
func (g *cgroups) renew(c *cgroup) {
	if !c.stale && !c.removed {
		return
	}
	c.stale, c.removed = false, false
	g.dead--
	if k := c.container; k != nil {
		k.Removed = false
		g.live(k)
	}
}

// live enters a container.
func (g *cgroups) live(k *Container) {
	if g.byPath[k.Path] != nil {
		return
	}
	g.byPath[k.Path] = k
	if k.Begun {
		g.own(k)
	}
}

func (g *cgroups) own(k *Container) {
	for _, n := range k.numbers() {
		if g.owners[n] == nil {
			g.owners[n] = k
		}
	}
}

// gone takes a container out.
func (g *cgroups) gone(k *Container) {
	if g.byPath[k.Path] == k {
		delete(g.byPath, k.Path)
	}
	for _, n := range k.numbers() {
		if g.owners[n] == k {
			delete(g.owners, n)
		}
	}
}

// remove keeps a cgroup that is gone, for records that are still to come.
func (g *cgroups) remove(id uint64) {
	c := g.byID[id]
	if c == nil || c.removed {
		return
	}
	if !c.stale {
		g.dead++
	}
	c.removed = true
	if k := c.container; k != nil && k.Path == c.path {
		k.Removed = true
		g.gone(k)
	}
}

// containerAt finds or makes the container of a cgroup by its path.
func (g *cgroups) containerAt(c *cgroup) *Container {
	runtime, id, path := RuntimeOf(c.path)
	in := g.around(c.path)
	if id == "" || in != nil && len(in.Path) >= len(path) {
		return in.at(c)
	}
	k := g.newContainer(path, runtime, id)
	return k.at(c)
}

// around is the innermost container that a path is of.
func (g *cgroups) around(path string) *Container {
	for range maxCgroupDepth {
		if k := g.byPath[path]; k != nil {
			return k
		}
		slash := strings.LastIndexByte(path, '/')
		if slash <= 0 {
			break
		}
		path = path[:slash]
	}
	return nil
}

func (g *cgroups) newContainer(path, runtime, id string) *Container {
	g.last++
	k := &Container{Path: path, Runtime: runtime, ID: id, number: g.last}
	g.live(k)
	return k
}

// at says that c is one of its cgroups.
func (k *Container) at(c *cgroup) *Container {
	if k != nil && k.Path == c.path {
		k.Cgroup = c.id
	}
	return k
}

// room makes room for one more: of those that are gone or of an earlier session
// the oldest are given up, down to three quarters. Those that live are not.
func (g *cgroups) room(size int) bool {
	fits := func(most, bytes int) bool { return len(g.byID) < most && g.bytes+size <= bytes }
	if fits(maxCgroups, maxCgroupText) {
		return true
	}
	for i := 0; i < len(g.order) && g.dead > 0 && !fits(maxCgroups*3/4, maxCgroupText*3/4); i++ {
		if c := g.order[i]; c != nil && (c.removed || c.stale) {
			g.forget(c)
		}
	}
	g.compact()
	return fits(maxCgroups, maxCgroupText)
}

func (g *cgroups) add(c *cgroup) {
	c.place = len(g.order)
	g.byID[c.id] = c
	g.order = append(g.order, c)
	g.bytes += len(c.path)
	if c.removed || c.stale {
		g.dead++
	}
}

// forget takes a cgroup out of the table. Its container stays with the tasks
// that belong to it.
func (g *cgroups) forget(c *cgroup) {
	delete(g.byID, c.id)
	g.order[c.place] = nil
	g.bytes -= len(c.path)
	if c.removed || c.stale {
		g.dead--
	}
	if k := c.container; k != nil && k.Path == c.path {
		g.gone(k)
	}
	if len(g.order) > 2*maxCgroups {
		g.compact()
	}
}

func (g *cgroups) compact() {
	kept := g.order[:0]
	for _, c := range g.order {
		if c != nil {
			c.place = len(kept)
			kept = append(kept, c)
		}
	}
	clear(g.order[len(kept):])
	g.order = kept
}

// CgroupPath is the path of a cgroup, false where nothing names it.
func (t *Tree) CgroupPath(id uint64) (string, bool) {
	c := t.cgroups.byID[id]
	if c == nil {
		return "", false
	}
	return c.path, true
}

// Cgroup is a cgroup that is known, for who has to name those of records.
type Cgroup struct {
	ID        uint64
	Path      string
	Container *Container // nil: none
}

// Cgroups lists those of the present session, the oldest first.
func (t *Tree) Cgroups() (all []Cgroup) {
	for _, c := range t.cgroups.order {
		if c != nil && !c.stale {
			all = append(all, Cgroup{c.id, c.path, c.container})
		}
	}
	return all
}

// Containers lists the containers whose cgroups are there, and how many running
// tasks belong to each, in the order in which they came.
func (t *Tree) Containers() (all []*Container, tasks []int) {
	places := map[*Container]int{}
	for _, c := range t.cgroups.order {
		if c == nil || c.stale || c.removed || c.container == nil {
			continue
		}
		if _, has := places[c.container]; !has {
			places[c.container] = len(all)
			all = append(all, c.container)
		}
	}
	tasks = make([]int, len(all))
	for task := t.running.first; task != nil; task = task.age.next {
		if i, has := places[task.home]; has && task.home != nil {
			tasks[i]++
		}
	}
	return all, tasks
}
