package lineage

import "slices"

// forget gives up ended tasks, the oldest first, while more says so.
func (t *Tree) forget(more func() bool) {
	for t.ended.first != nil && more() {
		t.evict(t.ended.first)
	}
}

// evict gives up an ended task. Its children become its parent's, and count
// it as skipped.
func (t *Tree) evict(task *Task) {
	t.ended.remove(task)
	delete(t.tasks, task.Key)
	if t.last == task {
		t.last = nil
	}
	for _, g := range task.generations {
		t.drop(g.program)
	}
	up := task.parent
	task.leave()
	for child := task.children; child != nil; child = task.children {
		child.leave()
		child.Skipped += task.Skipped + 1
		if child.ParentKey = task.ParentKey; up != nil {
			child.ParentKey = up.Key
		}
		child.join(up)
	}
}

// join makes t a child of p, leave ends that.
func (t *Task) join(p *Task) {
	if t.parent = p; p == nil {
		return
	}
	t.siblings = link{next: p.children}
	if p.children != nil {
		p.children.siblings.prev = t
	}
	p.children = t
}

func (t *Task) leave() {
	if t.parent == nil {
		return
	}
	if t.siblings.prev != nil {
		t.siblings.prev.siblings.next = t.siblings.next
	} else {
		t.parent.children = t.siblings.next
	}
	if t.siblings.next != nil {
		t.siblings.next.siblings.prev = t.siblings.prev
	}
	t.parent, t.siblings = nil, link{}
}

// Mark marks a task and those of its descendants that began at since (ns
// since boot) or later: a record of what a task did can come after that of the
// child which it made thereafter. What is marked already keeps its mark.
func (t *Tree) Mark(task *Task, mark, since uint64) {
	if task.Mark == 0 {
		task.Mark = mark
	}
	stack := []*Task{task}
	for len(stack) > 0 {
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for c := at.children; c != nil; c = c.siblings.next {
			if c.Mark == 0 && c.StartNs >= since {
				c.Mark = mark
				stack = append(stack, c)
			}
		}
	}
}

// Unmark takes every mark away.
func (t *Tree) Unmark() {
	for _, task := range t.tasks {
		task.Mark = 0
	}
}

// UnmarkFunc takes the marks of those tasks away for which f says so.
func (t *Tree) UnmarkFunc(f func(*Task) bool) {
	for _, task := range t.tasks {
		if task.Mark != 0 && f(task) {
			task.Mark = 0
		}
	}
}

// maxDepth bounds an ancestry.
const maxDepth = 128

// Ancestry lists the task and its ancestors, the nearest first, as far as they
// are known. Skipped tells where some between are not.
func (t *Tree) Ancestry(task *Task) []*Task {
	var all []*Task
	for at := task; at != nil && len(all) < maxDepth; {
		all = append(all, at)
		up := at.parent
		if up == nil {
			up = t.tasks[at.ParentKey]
		}
		if slices.Contains(all, up) {
			break // a guest's nonsense
		}
		at = up
	}
	return all
}

// ageList is a list of tasks in the order in which they came.
type ageList struct {
	first, last *Task
	n           int
}

func (l *ageList) add(t *Task) {
	t.age = link{prev: l.last}
	if l.last != nil {
		l.last.age.next = t
	} else {
		l.first = t
	}
	l.last = t
	l.n++
}

func (l *ageList) remove(t *Task) {
	if t.age.prev != nil {
		t.age.prev.age.next = t.age.next
	} else {
		l.first = t.age.next
	}
	if t.age.next != nil {
		t.age.next.age.prev = t.age.prev
	} else {
		l.last = t.age.prev
	}
	t.age = link{}
	l.n--
}
