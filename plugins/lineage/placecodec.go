package lineage

import (
	"maps"
	"slices"
)

// appendPlaces appends containers and cgroups.
func (t *Tree) appendPlaces(b []byte) []byte {
	b = le.AppendUint64(b, t.stats.Nameless)
	b = le.AppendUint64(b, t.stats.Unplaced)
	b = append(b, t.session[:]...)
	b = t.machine.append(b)
	all := t.kept()
	b = le.AppendUint32(b, uint32(len(all)))
	b = le.AppendUint32(b, uint32(len(t.cgroups.byID)))
	for _, number := range slices.Sorted(maps.Keys(all)) {
		b = all[number].append(b)
	}
	for _, c := range t.cgroups.order {
		if c != nil {
			b = c.append(b)
		}
	}
	return b
}

// kept are the containers of cgroups and of tasks.
func (t *Tree) kept() map[uint32]*Container {
	all := map[uint32]*Container{}
	for _, c := range t.cgroups.byID {
		if c.container != nil {
			all[c.container.number] = c.container
		}
	}
	for _, task := range t.tasks {
		if task.home != nil {
			all[task.home.number] = task.home
		}
	}
	return all
}

func (n *Namespaces) append(b []byte) []byte {
	for _, v := range n.numbers() {
		b = le.AppendUint32(b, v)
	}
	return b
}

func bits(set ...bool) (b byte) {
	for i, is := range set {
		if is {
			b |= 1 << i
		}
	}
	return b
}

func (k *Container) append(b []byte) []byte {
	b = le.AppendUint32(b, k.number)
	b = append(b, bits(k.Begun, k.Removed), byte(k.nested))
	b = k.Namespaces.append(b)
	b = le.AppendUint64(b, k.Cgroup)
	b = le.AppendUint64(b, k.BootNs)
	b = append(b, k.Digest[:]...)
	for _, s := range [...]string{k.Path, k.Runtime, k.ID, k.Program} {
		b = le.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return b
}

func (c *cgroup) append(b []byte) []byte {
	b = le.AppendUint64(b, c.id)
	b = append(b, bits(c.cut, c.removed, c.stale))
	b = le.AppendUint32(b, numberOf(c.container))
	b = le.AppendUint16(b, uint16(len(c.path)))
	return append(b, c.path...)
}

func numberOf(k *Container) uint32 {
	if k == nil {
		return 0
	}
	return k.number
}

func (t *Task) appendPlace(b []byte) []byte {
	b = le.AppendUint32(b, numberOf(t.home))
	b = append(b, byte(t.left), bits(t.lost))
	b = le.AppendUint64(b, t.where.cgroup)
	return t.where.Namespaces.append(b)
}

// Sizes of what is read at the least, bytes.
const (
	containerSize = 4 + 2 + 16 + 8 + 8 + 32 + 4*2
	cgroupSize    = 8 + 1 + 4 + 2
)

func (r *reader) places(t *Tree) {
	t.stats.Nameless, t.stats.Unplaced = r.u64(), r.u64()
	t.session, t.machine = [16]byte(r.take(16)), r.namespaces()
	nContainers, nCgroups := int(r.u32()), int(r.u32())
	if r.bad || nCgroups > maxCgroups || nContainers*containerSize > len(r.b) || nCgroups*cgroupSize > len(r.b) {
		r.bad = true
		return
	}
	r.containers = make(map[uint32]*Container, nContainers)
	for range nContainers {
		k := r.container()
		if r.bad || k.number <= t.cgroups.last {
			r.bad = true
			return
		}
		r.containers[k.number], t.cgroups.last = k, k.number
	}
	for range nCgroups {
		c := r.cgroup()
		if r.bad || t.cgroups.byID[c.id] != nil || t.cgroups.bytes+len(c.path) > maxCgroupText {
			r.bad = true
			return
		}
		if t.cgroups.add(c); c.container != nil && !c.removed && !c.stale {
			t.cgroups.live(c.container)
		}
	}
}

func (r *reader) namespaces() Namespaces {
	return Namespaces{Mnt: r.u32(), PID: r.u32(), User: r.u32(), Net: r.u32()}
}

func (r *reader) container() *Container {
	k := &Container{number: r.u32()}
	flags := r.u8()
	k.Begun, k.Removed, k.nested = flags&1 != 0, flags&2 != 0, Departure(r.u8())
	k.Namespaces, k.Cgroup, k.BootNs, k.Digest = r.namespaces(), r.u64(), r.u64(), [32]byte(r.take(32))
	k.Path, k.Runtime, k.ID, k.Program = r.text(maxCgroupPath), r.text(maxText), r.text(maxCgroupPath), r.text(maxText)
	r.bad = r.bad || flags > 3 || k.nested&^departures != 0
	return k
}

func (r *reader) cgroup() *cgroup {
	c := &cgroup{id: r.u64()}
	flags := r.u8()
	c.cut, c.removed, c.stale = flags&1 != 0, flags&2 != 0, flags&4 != 0
	c.container = r.numbered()
	c.path = r.text(maxCgroupPath)
	r.bad = r.bad || flags > 7
	return c
}

// numbered reads a container's number.
func (r *reader) numbered() *Container {
	n := r.u32()
	k := r.containers[n]
	r.bad = r.bad || n != 0 && k == nil
	return k
}

func (r *reader) place(t *Task) bool {
	t.home, t.left = r.numbered(), Departure(r.u8())
	lost := r.u8()
	t.lost = lost == 1
	t.where = where{r.u64(), r.namespaces()}
	r.bad = r.bad || lost > 1 || t.left&^departures != 0
	return !r.bad
}
