package monitor

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/apipb/apipbconnect"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// guestRecord puts events on the record of a VM as a session does: of a machine
// with long-lived services, which open files, and with programs that come and
// go, a few of them in containers.
type guestRecord struct {
	t       testing.TB
	rand    *rand.Rand
	stream  *evidence.Stream
	session uuid.UUID
	at      time.Time
	frame   uint64
	seq     uint64
	pid     uint32
	records []byte
	count   int
	opened  *vsockproto.Event
	total   int
}

const frameEvents = 100

func (g *guestRecord) add(e *vsockproto.Event) {
	g.seq++
	e.Sequence = g.seq
	var err error
	if g.records, err = e.Append(g.records); err != nil {
		g.t.Fatal(err)
	}
	g.total++
	if g.count++; g.count == frameEvents {
		g.flush()
	}
}

func (g *guestRecord) flush() {
	if g.count == 0 {
		return
	}
	g.frame++
	var e [envelopeSize]byte
	putEnvelope(&e, g.session, true)
	body := vsockproto.AppendEventsHeader(nil, g.count)
	frame := vsockproto.AppendFrame(nil, vsockproto.FrameEvents, g.frame, len(body)+len(g.records))
	g.at = g.at.Add(100 * time.Millisecond)
	if _, err := g.stream.Append(evidence.KindFrame, g.at, e[:], append(append(frame, body...), g.records...)); err != nil {
		g.t.Fatal(err)
	}
	g.records, g.count = g.records[:0], 0
}

func (g *guestRecord) by(e *vsockproto.Event, pid uint32, exec uint32, cgroup uint64) *vsockproto.Event {
	e.PID, e.TGID, e.StartNs, e.LeaderStartNs = pid, pid, uint64(pid)*1000, uint64(pid)*1000
	e.ExecID, e.CgroupID = exec, cgroup
	return e
}

// run is a program that is started, opens files and ends.
func (g *guestRecord) run(program string, cgroup uint64) {
	g.pid++
	pid := g.pid
	fork := g.by(prototest.Sample(vsockproto.TaskNewtask), 1, 1, 1)
	fork.Child = vsockproto.Task{PID: pid, TGID: pid, StartNs: uint64(pid) * 1000}
	fork.ChildLeaderStartNs, fork.ChildExecID = uint64(pid)*1000, 1
	g.add(fork)
	exec := g.by(prototest.Sample(vsockproto.BprmCommittedCreds), pid, 2, cgroup)
	exec.Path.Data, exec.Filename.Data = []byte(program), []byte(program)
	g.add(exec)
	for i := range 3 {
		e := g.by(g.opened, pid, 2, cgroup)
		e.Path.Data = fmt.Appendf(e.Path.Data[:0], "/usr/lib/x86_64-linux-gnu/lib-%d.so", i)
		g.add(e)
	}
	end := g.by(prototest.Sample(vsockproto.SchedProcessExit), pid, 2, cgroup)
	end.GroupDead = true
	g.add(end)
}

func (g *guestRecord) container(id uint64, name string) {
	e := g.by(prototest.Sample(vsockproto.CgroupMkdir), 1, 1, 1)
	e.Cgroup.ID, e.Path.Data = id, []byte("/docker/"+name)
	g.add(e)
}

// fill adds n events, of which a few are rare: a file, a program, a container.
func (g *guestRecord) fill(n int) {
	g.opened = prototest.Sample(vsockproto.FileOpen)
	g.container(77, "common")
	for g.total < n {
		switch g.rand.IntN(2000) {
		case 0:
			id := 100 + uint64(g.total)
			g.container(id, fmt.Sprintf("job-%d", id))
			g.run("/usr/bin/job", id)
		case 1, 2, 3, 4, 5, 6, 7, 8:
			g.run(fmt.Sprintf("/usr/bin/tool-%d", g.rand.IntN(40)), 77)
		default:
			pid := 100 + uint32(g.rand.IntN(20))
			e := g.by(g.opened, pid, 3, 1)
			e.Path.Data = fmt.Appendf(e.Path.Data[:0], "/srv/www/%d/data/file-%d", pid, g.rand.IntN(5000))
			g.add(e)
		}
		if g.total%(n/4) == n/8 {
			g.rare()
		}
	}
	g.flush()
}

func (g *guestRecord) rare() {
	id := 1<<40 + uint64(g.total)
	g.container(id, "rare")
	g.run("/opt/rare/bin/wiper", id)
	e := g.by(g.opened, 4_000_000, 3, 1)
	e.Path.Data = append(e.Path.Data[:0], "/etc/shadow"...)
	g.add(e)
}

// newGuestRecord is a store whose one VM has n events, and an API over it.
func newGuestRecord(t testing.TB, n int, segment int64) (*guestRecord, backend, apipbconnect.OutguardClient) {
	t.Helper()
	dir := t.TempDir()
	key, err := evidence.LoadOrCreateKey(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	store, err := evidence.Open(filepath.Join(dir, "evidence"), key, &evidence.Options{
		SegmentSize: segment, Quota: 1 << 40, Keys: recordKeys(), Reserve: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	st, err := store.Stream(uuid.UUID{7})
	if err != nil {
		t.Fatal(err)
	}
	g := &guestRecord{
		t: t, rand: rand.New(rand.NewPCG(1, 2)), stream: st, session: uuid.UUID{9}, at: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), pid: 1000,
	}
	g.fill(n)
	b := backend{&Monitor{store: store, domains: newDomains(), log: slog.New(slog.DiscardHandler)}}
	socket := filepath.Join(dir, "api.sock")
	l, err := api.Listen(socket, -1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.New(b, nil).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return g, b, api.NewClient(socket)
}

// seal seals and indexes what is full.
func (b backend) seal(t testing.TB, want int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.m.store.Run(ctx) }()
	defer func() { cancel(); <-done }()
	for range 3000 {
		names, err := filepath.Glob(filepath.Join(evidence.StreamDir(b.m.store.Dir(), uuid.UUID{7}), "*.idx"))
		if err != nil {
			t.Fatal(err)
		}
		if len(names) >= want {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("not indexed")
}

var questions = map[string]*apipb.EventsRequest{
	"pid":       {Pid: 4_000_000},
	"path":      {Path: "/etc/*"},
	"program":   {Program: "wiper"},
	"hook":      {Types: []string{"bprm_committed_creds"}, Path: "/opt/*"},
	"container": {Container: "docker/rare"},
	"time":      {Since: "2026-11-01T00:00:20Z", Until: "2026-11-01T00:00:21Z", Types: []string{"sched_process_exit"}},
}

func ask(t testing.TB, c apipbconnect.OutguardClient, r *apipb.EventsRequest) (lines []string) {
	t.Helper()
	s, err := c.Events(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for s.Receive() {
		for _, e := range s.Msg().Events {
			lines = append(lines, fmt.Sprintf("%d %s %d %s %s", e.Index, e.Type, e.GetSubject().GetPid(), e.GetFile().GetPath(), e.GetSubject().GetContainer()))
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return lines
}

// TestEventsByIndex asks before anything is sealed and when it is indexed: the
// same answers, containers' names in them too; and when an index rots, which is
// made anew.
func TestEventsByIndex(t *testing.T) {
	_, b, c := newGuestRecord(t, 40_000, 2<<20)
	want := map[string]string{}
	for name, r := range questions {
		lines := ask(t, c, r)
		if len(lines) == 0 {
			t.Errorf("%s: no answer", name)
		}
		want[name] = strings.Join(lines, "\n")
	}
	if n := strings.Count(want["container"], " rare"); n != 4*5 {
		t.Errorf("%d events name their container:\n%s", n, want["container"])
	}
	b.seal(t, 5)
	check := func(when string) {
		t.Helper()
		for name, r := range questions {
			if got := strings.Join(ask(t, c, r), "\n"); got != want[name] {
				t.Errorf("%s, %s:\n%s\nwant:\n%s", when, name, got, want[name])
			}
		}
	}
	check("indexed")
	names, err := filepath.Glob(filepath.Join(evidence.StreamDir(b.m.store.Dir(), uuid.UUID{7}), "*.idx"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(names[1])
	if err != nil {
		t.Fatal(err)
	}
	clear(text[40 : len(text)-2000]) // no key
	if err := os.WriteFile(names[1], text, 0o640); err != nil {
		t.Fatal(err)
	}
	check("an index rotted")
	b.seal(t, len(names))
	check("indexed anew")
}

// BenchmarkEvents asks questions with few answers of a record of 10 million
// events; OUTGUARD_EVENTS is another number of them.
func BenchmarkEvents(b *testing.B) {
	n := 10_000_000
	if s := os.Getenv("OUTGUARD_EVENTS"); s != "" {
		if _, err := fmt.Sscan(s, &n); err != nil {
			b.Fatal(err)
		}
	}
	g, back, c := newGuestRecord(b, n, 64<<20)
	segments, err := filepath.Glob(filepath.Join(g.stream.Dir(), "*.seg"))
	if err != nil {
		b.Fatal(err)
	}
	back.seal(b, len(segments)-1)
	for _, name := range []string{"pid", "path", "program", "hook", "container", "time"} {
		b.Run(name, func(b *testing.B) {
			found := 0
			for b.Loop() {
				found = len(ask(b, c, questions[name]))
			}
			b.ReportMetric(float64(found), "found")
			b.ReportMetric(float64(b.Elapsed())/1e6/float64(b.N), "ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}
