package api

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/vsockproto"
)

// machine makes the events of a guest: programs that fork, open files and end,
// some of them in containers.
type machine struct {
	*rand.Rand
	pid   uint32
	clock uint64
	tasks []vsockproto.Subject
}

func (m *machine) event(t vsockproto.EventType, s vsockproto.Subject, path string) *vsockproto.Event {
	e := &vsockproto.Event{Header: vsockproto.Header{Type: t}, Subject: s}
	e.Path.Data = []byte(path)
	return e
}

// burst is what one process does: it is forked, executes, opens files and ends.
func (m *machine) burst() (out []*vsockproto.Event) {
	if len(m.tasks) == 0 {
		m.tasks = append(m.tasks, vsockproto.Subject{Task: vsockproto.Task{PID: 1, TGID: 1}, CgroupID: 1})
	}
	parent := m.tasks[m.IntN(len(m.tasks))]
	m.pid++
	m.clock++
	s := parent
	s.PID, s.TGID, s.StartNs, s.LeaderStartNs = m.pid, m.pid, m.clock, m.clock
	fork := m.event(vsockproto.TaskNewtask, parent, "")
	fork.Child, fork.ChildLeaderStartNs, fork.ChildExecID = s.Task, s.LeaderStartNs, s.ExecID
	out = append(out, fork)
	if m.IntN(50) == 0 {
		s.CgroupID = 1000 + m.clock
		named := m.event(vsockproto.CgroupMkdir, parent, fmt.Sprintf("/system.slice/docker-%064x.scope", m.IntN(20)))
		named.Cgroup.ID = s.CgroupID
		out = append(out, named)
	}
	if m.IntN(2) == 0 {
		s.ExecID++
		out = append(out, m.event(vsockproto.BprmCommittedCreds, s, fmt.Sprintf("/usr/bin/program-%d", m.IntN(200))))
	}
	for range m.IntN(20) {
		out = append(out, m.event(vsockproto.FileOpen, s, fmt.Sprintf("/srv/%d/data/file-%d", m.IntN(500), m.IntN(3))))
	}
	if m.IntN(10) == 0 && len(m.tasks) < 50 {
		m.tasks = append(m.tasks, s)
		return out
	}
	end := m.event(vsockproto.SchedProcessExit, s, "")
	end.GroupDead = true
	return append(out, end)
}

// TestPassingOverHidesNothing asks questions of a record by its blocks' keys,
// and of the whole record: the answers are the same, and most blocks are not read.
func TestPassingOverHidesNothing(t *testing.T) {
	m := &machine{Rand: rand.New(rand.NewPCG(1, 2)), pid: 10}
	var blocks [][]*vsockproto.Event
	for range 400 {
		var b []*vsockproto.Event
		for len(b) < 200 {
			b = append(b, m.burst()...)
		}
		blocks = append(blocks, b)
	}
	for name, tc := range map[string]struct {
		r    *apipb.EventsRequest
		most int // blocks that are read
	}{
		"pid":                 {&apipb.EventsRequest{Pid: 777}, 5},
		"path":                {&apipb.EventsRequest{Path: "/srv/77/data/file-1"}, 60},
		"directory":           {&apipb.EventsRequest{Path: "/srv/77/*"}, 130},
		"directory and name":  {&apipb.EventsRequest{Path: "/srv/7?/*/file-1"}, 400},
		"program's path":      {&apipb.EventsRequest{Program: "/usr/bin/program-7"}, 250},
		"program":             {&apipb.EventsRequest{Program: "program-7", Types: []string{"file_open"}}, 250},
		"program by its name": {&apipb.EventsRequest{Program: "*/program-70", Path: "/srv/7*"}, 300},
		"container":           {&apipb.EventsRequest{Container: "docker/" + fmt.Sprintf("%064x", 7)}, 200},
		"container, short":    {&apipb.EventsRequest{Container: "000000000000", Types: []string{"sched_process_exit"}}, 400},
		"cgroup":              {&apipb.EventsRequest{Cgroup: "/system.slice/docker-*7.scope"}, 390},
		"hook":                {&apipb.EventsRequest{Types: []string{"cgroup_mkdir"}, Pid: 1}, 200},
		"nothing":             {&apipb.EventsRequest{Path: "/no/such", Pid: 5}, 0},
	} {
		f, err := newEventFilter(tc.r)
		if err != nil {
			t.Fatal(err)
		}
		want, _ := answer(t, &f, blocks, false)
		got, read := answer(t, &f, blocks, true)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %d events, want %d", name, len(got), len(want))
		}
		if len(want) == 0 && name != "nothing" {
			t.Errorf("%s: no such event", name)
		}
		if read > tc.most {
			t.Errorf("%s: %d blocks read of %d, want at most %d, for %d events", name, read, len(blocks), tc.most, len(want))
		}
	}
}

func answer(t *testing.T, f *eventFilter, blocks [][]*vsockproto.Event, index bool) (found []*vsockproto.Event, read int) {
	t.Helper()
	a := f.of()
	if err := a.begin(uuid.UUID{1}, &cgroupNames{}); err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		keys := map[uint64]bool{}
		for _, e := range b {
			EventKeys(e, func(k uint64) { keys[k] = true })
		}
		if index && !a.may(func(k uint64) bool { return keys[k] }) {
			continue
		}
		read++
		for _, e := range b {
			if err := a.note(e); err != nil {
				t.Fatal(err)
			}
			if a.matches(e) {
				found = append(found, e)
			}
		}
	}
	return found, read
}

// TestPatternKeys: what a pattern matches has its keys.
func TestPatternKeys(t *testing.T) {
	paths := []string{
		"", "/", "/a", "/a/b", "a", "a/b/", "/tmp/x/y/z", "/1/2/3/4/5/6/7/8/9/10/11/x", "//", "/tmp//x", "relative/file", "\x00abstract",
	}
	patterns := []string{
		"*", "/*", "/a*", "*/b", "*b", "/a/?", "?", "/tmp/*/z", "/1/2/3/4/5/6/7/8/9/10/*", "/1/2/3/4/5/6/7/8/9/10/11/x", "*/", "//", "/tmp//*", "relative/*", "**", "*/*/*", "\x00abs*",
	}
	matched := 0
	for _, path := range paths {
		keys := map[uint64]bool{}
		pathKeys(keyPath, keyDir, keyBase, []byte(path), func(k uint64) { keys[k] = true })
		for _, pattern := range patterns {
			if !glob(pattern, []byte(path)) {
				continue
			}
			matched++
			// A pattern of stars alone matches an event without a path as well.
			if !hasAll(func(k uint64) bool { return keys[k] }, patternKeys(keyPath, keyDir, keyBase, pattern)) {
				t.Errorf("%q matches %q, whose keys it has not", pattern, path)
			}
		}
	}
	if matched < 30 {
		t.Errorf("%d pairs match", matched)
	}
}
