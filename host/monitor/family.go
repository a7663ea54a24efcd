package monitor

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/outguard/outguard/host/bundle"
	"github.com/outguard/outguard/plugins/lineage"
	"github.com/outguard/outguard/vsockproto"
)

// maxProcesses bounds a bundle's tree.
const maxProcesses = 4000

// family makes of a lineage's threads the processes that a person knows.
type family struct {
	s        *story
	holders  map[uint32][]*lineage.Task // who had a pid, by start
	children map[*lineage.Task][]*lineage.Task
	parts    map[*lineage.Task]bool // of the incident
	part     map[lineage.Key]bool   // those, and their threads
	tree     *bundle.Tree
}

func (s *story) family() *family {
	f := &family{
		s: s, holders: map[uint32][]*lineage.Task{}, children: map[*lineage.Task][]*lineage.Task{},
		parts: map[*lineage.Task]bool{}, part: map[lineage.Key]bool{},
		tree: &bundle.Tree{From: s.from, Next: s.next, Gaps: s.gaps},
	}
	byStart := func(a, b *lineage.Task) int {
		return cmp.Or(cmp.Compare(a.StartNs, b.StartNs), cmp.Compare(a.PID, b.PID))
	}
	all := slices.SortedFunc(s.tree.All(), byStart)
	for _, t := range all {
		f.holders[t.PID] = append(f.holders[t.PID], t)
	}
	var roots []*lineage.Task
	for _, t := range all {
		if !f.stands(t) {
			continue
		}
		if up := f.parent(t); up != nil {
			f.children[up] = append(f.children[up], t)
		} else {
			roots = append(roots, t)
		}
	}
	for _, t := range all {
		if f.own(t) || len(s.found[t.Key]) > 0 {
			f.mark(t)
		}
	}
	for _, t := range all {
		f.part[t.Key] = f.parts[f.process(t)] || f.parts[t]
	}
	for _, t := range roots {
		f.walk(t, -1, 0)
	}
	return f
}

func (f *family) own(t *lineage.Task) bool { return f.s.subject != nil && t.Key == *f.s.subject }

// stands reports whether a task stands in the tree: a process, or the thread
// that this is about.
func (f *family) stands(t *lineage.Task) bool { return f.process(t) == t || f.own(t) }

// process is the process of a thread: who had its number when it began. A thread
// whose leader was never heard of stands for it.
func (f *family) process(t *lineage.Task) *lineage.Task {
	if t.PID == t.TGID {
		return t
	}
	var found *lineage.Task
	for _, l := range f.holders[t.TGID] {
		if l.StartNs <= t.StartNs {
			found = l
		}
	}
	if found == nil {
		return t
	}
	return found
}

// parent is the process that made one, nil where that is not known.
func (f *family) parent(t *lineage.Task) *lineage.Task {
	if p := f.process(t); p != t {
		return p
	}
	for _, up := range f.s.tree.Ancestry(t)[1:] {
		if p := f.process(up); p != t && p.StartNs <= t.StartNs {
			return p
		}
	}
	return nil
}

// mark marks a task, its ancestors and its descendants as parts of the incident.
func (f *family) mark(t *lineage.Task) {
	for at, n := t, 0; at != nil && n < 256; at, n = f.parent(at), n+1 {
		f.parts[at] = true
	}
	if !f.own(t) {
		return
	}
	below := []*lineage.Task{t}
	if p := f.process(t); p != t { // what another of its threads made it may have ordered
		below = append(below, p)
	}
	for len(below) > 0 {
		at := below[0]
		below = below[1:]
		f.parts[at] = true
		for _, c := range f.children[at] {
			if !f.parts[c] {
				below = append(below, c)
			}
		}
	}
}

// walk adds a process and what descends from it. Beyond the bound there is room
// for the incident alone; kernel threads have none.
func (f *family) walk(t *lineage.Task, parent, depth int) {
	part := f.parts[t]
	if !part && (len(f.tree.Processes) >= maxProcesses || f.kernel(t)) {
		f.hide(t)
		return
	}
	if len(f.tree.Processes) >= 2*maxProcesses || depth > 200 {
		f.hide(t)
		return
	}
	at := len(f.tree.Processes)
	p := f.told(t)
	p.Parent, p.Depth, p.Part = parent, depth, part
	f.tree.Processes = append(f.tree.Processes, p)
	for _, c := range f.children[t] {
		f.walk(c, at, depth+1)
	}
}

func (f *family) kernel(t *lineage.Task) bool {
	p := t.Program()
	return p.Origin == lineage.Snapshot && p.Path == ""
}

func (f *family) hide(t *lineage.Task) {
	if !f.kernel(t) {
		f.tree.Hidden++
	}
	for _, c := range f.children[t] {
		f.hide(c)
	}
}

func (f *family) told(t *lineage.Task) bundle.Process {
	prog := t.Program()
	p := bundle.Process{
		PID: t.PID, TGID: t.TGID, StartNs: t.StartNs, ExitNs: t.ExitNs, Skipped: t.Skipped, Origin: prog.Origin.String(),
		Path: prog.Path, Argv: argvOf(prog.Argv), Findings: f.s.found[t.Key], Subject: f.own(t),
	}
	if prog.Origin != lineage.Unknown && prog.BootNs < t.StartNs {
		p.Origin = "fork" // the program was there before the task was
	}
	if prog.Digest != ([32]byte{}) {
		p.SHA256 = hex.EncodeToString(prog.Digest[:])
	}
	if c := t.Container(); c != nil {
		p.Where = c.Name()
	}
	if seen, ok := f.s.seen[t.Key]; ok {
		p.Comm, p.UID = seen.comm, &seen.uid
	}
	return p
}

// argvOf splits arguments, each ended by a NUL; the last may lack it.
func argvOf(argv string) []string {
	if argv == "" {
		return []string{}
	}
	return strings.Split(strings.TrimSuffix(argv, "\x00"), "\x00")
}

func commOf(e *vsockproto.Event) string {
	name, _, _ := bytes.Cut(e.Comm[:], []byte{0})
	return string(name)
}
