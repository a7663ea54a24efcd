package monitor

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/respond"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// written is a VM's record that a test writes.
type written struct {
	t       *testing.T
	stream  *evidence.Stream
	session uuid.UUID
	frames  uint64
	at      time.Time
}

func write(t *testing.T) *written {
	t.Helper()
	key, err := evidence.LoadOrCreateKey(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	store, err := evidence.Open(t.TempDir(), key, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	stream, err := store.Stream(uuid.UUID{1})
	if err != nil {
		t.Fatal(err)
	}
	return &written{t: t, stream: stream, session: uuid.UUID{7}, at: time.Date(2026, 11, 23, 17, 0, 0, 0, time.UTC)}
}

// frame puts events on record and returns the frame's index.
func (w *written) frame(events ...*vsockproto.Event) uint64 {
	w.t.Helper()
	w.frames++
	var records []byte
	for i, e := range events {
		e.Sequence = w.frames<<16 | uint64(i)
		var err error
		if records, err = e.Append(records); err != nil {
			w.t.Fatal(err)
		}
	}
	payload := append(vsockproto.AppendEventsHeader(nil, len(events)), records...)
	frame := append(vsockproto.AppendFrame(nil, vsockproto.FrameEvents, w.frames, len(payload)), payload...)
	var e [envelopeSize]byte
	putEnvelope(&e, w.session, true)
	return w.append(evidence.KindFrame, e[:], frame)
}

func (w *written) append(k evidence.Kind, parts ...[]byte) uint64 {
	w.t.Helper()
	w.at = w.at.Add(time.Second)
	index, err := w.stream.Append(k, w.at, parts...)
	if err != nil {
		w.t.Fatal(err)
	}
	return index
}

func (w *written) json(k evidence.Kind, v any) {
	w.t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		w.t.Fatal(err)
	}
	w.append(k, text)
}

// of makes an event of a process that began a second after its pid.
func of(kind vsockproto.EventType, pid uint32, set func(*vsockproto.Event)) *vsockproto.Event {
	e := prototest.Sample(kind)
	e.Task = vsockproto.Task{PID: pid, TGID: pid, StartNs: uint64(pid) * 1e9}
	e.BootNs = e.StartNs + 1e6
	e.LeaderStartNs, e.ParentTGID, e.ParentStartNs, e.ExecID, e.KernelThread = e.StartNs, 0, 0, 1, false
	copy(e.Comm[:], fmt.Sprintf("comm%d\x00\x00\x00\x00\x00\x00\x00\x00", pid))
	if set != nil {
		set(e)
	}
	return e
}

func snapshot(pid, parent uint32, path string) *vsockproto.Event {
	return of(vsockproto.TaskSnapshot, pid, func(e *vsockproto.Event) {
		e.Path.Data = []byte(path)
		e.ParentTGID, e.ParentStartNs = parent, uint64(parent)*1e9
	})
}

func fork(parent, child uint32) *vsockproto.Event {
	return of(vsockproto.TaskNewtask, parent, func(e *vsockproto.Event) {
		e.Child = vsockproto.Task{PID: child, TGID: child, StartNs: uint64(child) * 1e9}
		e.ChildLeaderStartNs, e.ChildExecID = e.Child.StartNs, 1
	})
}

func execs(pid uint32, path string, argv ...string) *vsockproto.Event {
	return of(vsockproto.BprmCommittedCreds, pid, func(e *vsockproto.Event) {
		e.ExecID = 2
		e.Path.Data, e.Filename.Data = []byte(path), []byte(path)
		e.Argv.Data, e.Argc = []byte(strings.Join(append([]string{path}, argv...), "\x00")+"\x00"), uint32(1+len(argv))
	})
}

func opens(pid, execID uint32, path string) *vsockproto.Event {
	return of(vsockproto.FileOpen, pid, func(e *vsockproto.Event) { e.ExecID, e.Path.Data = execID, []byte(path) })
}

func refOf(e *vsockproto.Event, session uuid.UUID, index uint64) *engine.Ref {
	return &engine.Ref{Session: session, Index: index, CPU: e.CPU, Class: uint8(e.Class), Sequence: e.Sequence}
}

// incident is a record of a web service that is made to run a program, which
// runs another.
func incident(w *written) (about *engine.Finding, window uint64) {
	w.append(evidence.KindNote, []byte(`{}`))
	w.frame(snapshot(1, 0, "/sbin/init"), snapshot(20, 1, "/usr/sbin/cron"), snapshot(30, 1, "/usr/sbin/httpd"))
	w.frame(fork(30, 40), fork(30, 41))
	window = w.frame(opens(30, 1, "/srv/a"), opens(20, 1, "/etc/crontab"))
	bad := execs(40, "/tmp/x", "<script>", "a\x1b[2J", "b\u202ec")
	index := w.frame(opens(40, 1, "/tmp"), bad)
	about = &engine.Finding{ID: "f-1", Engine: "tsem", VM: uuid.UUID{1}, Ref: refOf(bad, w.session, index), PID: 40, Severity: engine.High}
	child := execs(50, "/tmp/y")
	index = w.frame(fork(40, 50), child, opens(50, 2, "/etc/shadow"), opens(41, 1, "/srv/b"))
	w.json(evidence.KindFinding, about)
	w.json(evidence.KindFinding, engine.Finding{ID: "f-2", Engine: "tsem", VM: uuid.UUID{1}, Ref: refOf(child, w.session, index), PID: 50})
	return about, window
}

func TestStory(t *testing.T) {
	w := write(t)
	about, window := incident(w)
	s := tell(evidence.NewReader(w.stream.Dir()), uuid.UUID{1}, w.session, about, window, time.Time{}.Add(time.Hour))
	if s.broken != nil {
		t.Fatal(s.broken)
	}
	p := s.page(respond.Order{}, nil)
	var got []string
	for _, q := range p.Tree.Processes {
		got = append(got, fmt.Sprintf("%d %d %s %s part=%t subject=%t %v", q.Depth, q.PID, q.Path, q.Origin, q.Part, q.Subject, q.Findings))
	}
	want := []string{
		"0 1 /sbin/init snapshot part=true subject=false []",
		"1 20 /usr/sbin/cron snapshot part=false subject=false []",
		"1 30 /usr/sbin/httpd snapshot part=true subject=false []",
		"2 40 /tmp/x exec part=true subject=true [f-1]",
		"3 50 /tmp/y exec part=true subject=false [f-2]",
		"2 41 /usr/sbin/httpd fork part=false subject=false []",
	}
	if !slices.Equal(got, want) {
		t.Errorf("tree\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if argv := p.Tree.Processes[3].Argv; !slices.Equal(argv, []string{"/tmp/x", "<script>", "a\x1b[2J", "b\u202ec"}) {
		t.Errorf("arguments %q", argv)
	}
	got = nil
	for _, e := range p.Events {
		got = append(got, fmt.Sprintf("%d %s %s subject=%t", e.PID, e.Type, e.What[0].Value, e.Subject))
	}
	want = []string{
		"30 file_open /srv/a subject=false", "40 file_open /tmp subject=false", "40 bprm_committed_creds /tmp/x subject=true",
		"40 task_newtask 50 subject=false", "50 bprm_committed_creds /tmp/y subject=false", "50 file_open /etc/shadow subject=false",
	}
	if !slices.Equal(got, want) {
		t.Errorf("events\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	lines := strings.Split(strings.TrimSuffix(string(s.lines("web")), "\n"), "\n")
	if len(lines) != 8 || !strings.HasPrefix(lines[0], `{"vm":"web",`) || !strings.Contains(lines[3], `"b\\u202ec"`) || strings.Contains(lines[3], "\x1b") {
		t.Errorf("%d lines: %s", len(lines), lines)
	}
	for _, line := range lines {
		if !json.Valid([]byte(line)) {
			t.Errorf("no JSON: %s", line)
		}
	}
	if len(p.Findings) != 2 || p.More != 0 || len(p.Missing) != 0 {
		t.Errorf("%d findings, %d more, missing %q", len(p.Findings), p.More, p.Missing)
	}
}

// TestStoryOfACapture: nothing was found, and the tree is there.
func TestStoryOfACapture(t *testing.T) {
	w := write(t)
	_, window := incident(w)
	s := tell(evidence.NewReader(w.stream.Dir()), uuid.UUID{1}, w.session, nil, window, time.Time{})
	if s.broken != nil {
		t.Fatal(s.broken)
	}
	p := s.page(respond.Order{}, nil)
	if p.Tree == nil || p.Tree.From != window || len(s.events()) != 8 {
		t.Errorf("tree %+v, %d events", p.Tree, len(s.events()))
	}
}

// TestStoryIsBounded: a session that is too long is read at both ends, and that
// is said; of a flood the events next to the subject's are kept.
func TestStoryIsBounded(t *testing.T) {
	s := &story{from: 10, window: 900_000, next: 1_000_000}
	if got := s.spans(); len(got) != 2 || got[0] != [2]uint64{10, 10 + maxBeginning} || got[1] != [2]uint64{1_000_000 - maxRead, 1_000_000} || len(s.gaps) != 1 {
		t.Errorf("%v, %q", got, s.gaps)
	}
	s = &story{from: 10, window: 20, next: 1_000_000} // the evidence in the bundle is told whole
	if got := s.spans(); len(got) != 1 || got[0] != [2]uint64{10, 1_000_000} || len(s.gaps) != 0 {
		t.Errorf("%v, %q", got, s.gaps)
	}
}

// TestRecent: the last events are kept, bounded by their number and by their bytes.
func TestRecent(t *testing.T) {
	for _, c := range []struct{ events, size, kept int }{
		{10, 100, 10},
		{3 * maxTold, 100, maxTold},
		{3000, 8 << 10, maxToldBytes / (8 << 10)},
		{1, maxToldBytes + 1, 0},
	} {
		var r recent
		record := make([]byte, c.size)
		for i := range c.events {
			r.add(kept{index: uint64(i), record: record})
		}
		list := r.list()
		if len(list) != c.kept || r.dropped != c.events-c.kept {
			t.Errorf("%d events of %d bytes: %d kept, %d dropped", c.events, c.size, len(list), r.dropped)
		}
		for i, k := range list {
			if want := uint64(c.events - c.kept + i); k.index != want || k.record == nil {
				t.Fatalf("event %d in the place of %d", k.index, want)
			}
		}
	}
}

// TestStoryOfABrokenRecord: what is there beside what cannot be read is told, and
// that there is more.
func TestStoryOfABrokenRecord(t *testing.T) {
	w := write(t)
	about, window := incident(w)
	w.append(evidence.KindFinding, []byte("no JSON"))
	s := tell(evidence.NewReader(w.stream.Dir()), uuid.UUID{1}, w.session, about, window, time.Time{})
	p := s.page(respond.Order{}, nil)
	if s.broken == nil || len(p.Missing) != 1 || !strings.Contains(p.Missing[0], "not read to its end") || len(p.Findings) != 2 || p.Tree == nil {
		t.Errorf("%v, missing %q, %d findings", s.broken, p.Missing, len(p.Findings))
	}
}

// TestThreadsAreTheirProcess: a thread's child is its process's, and the thread
// that was found stands in the tree itself.
func TestThreadsAreTheirProcess(t *testing.T) {
	w := write(t)
	w.frame(snapshot(1, 0, "/sbin/init"), snapshot(30, 1, "/usr/sbin/httpd"))
	thread := of(vsockproto.TaskNewtask, 30, func(e *vsockproto.Event) {
		e.Child = vsockproto.Task{PID: 31, TGID: 30, StartNs: 31e9}
		e.ChildLeaderStartNs, e.ChildExecID = 30e9, 1
	})
	inThread := func(e *vsockproto.Event) *vsockproto.Event { e.TGID, e.LeaderStartNs = 30, 30e9; return e }
	bad := inThread(opens(31, 1, "/etc/shadow"))
	made := inThread(fork(31, 60))
	index := w.frame(thread, bad, made)
	about := &engine.Finding{ID: "f-1", Engine: "tsem", Ref: refOf(bad, w.session, index)}
	s := tell(evidence.NewReader(w.stream.Dir()), uuid.UUID{1}, w.session, about, 0, time.Time{})
	if s.broken != nil {
		t.Fatal(s.broken)
	}
	var got []string
	for _, q := range s.family().tree.Processes {
		got = append(got, fmt.Sprintf("%d %d part=%t subject=%t", q.Depth, q.PID, q.Part, q.Subject))
	}
	want := []string{"0 1 part=true subject=false", "1 30 part=true subject=false", "2 31 part=true subject=true", "2 60 part=true subject=false"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
