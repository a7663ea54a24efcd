package tsem

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/outguard/outguard/plugins/engine/enginetest"
)

// numbered is the nth of many points.
func numbered(n uint64) (v ID) {
	for i := 0; i < len(v); i += 8 {
		n = n*0x9e3779b97f4a7c15 + 0x632be59bd9b4e019
		binary.LittleEndian.PutUint64(v[i:], n^n>>29)
	}
	return v
}

// The same events in another order: the same state and counts, another
// measurement.
func TestOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	events := make([]uint64, 2000)
	for i := range events {
		events[i] = uint64(r.IntN(300))
	}
	learn := func() *Model {
		m := NewModel(0)
		for _, n := range events {
			if _, err := m.Update(numbered(n)); err != nil {
				t.Fatal(err)
			}
		}
		return m
	}
	one := learn()
	for range 5 {
		r.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
		two := learn()
		if one.State() != two.State() || one.Valid() != two.Valid() || one.Measurement() == two.Measurement() {
			t.Fatalf("state %x and %x, %d and %d points", one.State(), two.State(), one.Valid(), two.Valid())
		}
		for _, p := range one.Points() {
			if other, has := two.Find(p.Value); !has || other.Count != p.Count {
				t.Fatalf("%+v and %+v", p, other)
			}
		}
	}
}

// What the state says is what the sum over sorted points says, whatever was
// asked in between.
func TestStateFollows(t *testing.T) {
	m, again := NewModel(0), NewModel(0)
	for n := range uint64(50) {
		for _, m := range []*Model{m, again} {
			if _, err := m.Update(numbered(n)); err != nil {
				t.Fatal(err)
			}
		}
		_ = m.State()
	}
	m.SetBase(ID{1})
	again.SetBase(ID{1})
	if m.State() != again.State() {
		t.Error("the state depends on when it was asked for")
	}
}

// An aggregate that comes with the first event is the one that comes after it,
// in what the file of such a model says.
func TestPlatform(t *testing.T) {
	m := NewModel(0)
	if _, has := m.Platform(); has {
		t.Error("an empty model has an aggregate")
	}
	_, _ = m.Update(ID{1})
	if p, has := m.Platform(); !has || p != (ID{}) {
		t.Errorf("%x, %v", p, has)
	}
	m.SetAggregate(ID{2})
	if p, has := m.Platform(); !has || p != (ID{2}) {
		t.Errorf("%x, %v", p, has)
	}
	m.Seal()
	m.SetAggregate(ID{3})
	if p, _ := m.Platform(); p != (ID{2}) {
		t.Errorf("a sealed model took %x", p)
	}
	m = NewModel(0)
	if err := m.AddState(ID{1}); err != nil {
		t.Fatal(err)
	}
	_, _ = m.Update(ID{1})
	if _, has := m.Platform(); has {
		t.Error("points came before the aggregate, and yet it can be told")
	}
}

func TestPoints(t *testing.T) {
	var p points
	for n := range uint64(5000) {
		v := numbered(n)
		if _, has := p.find(&v); has {
			t.Fatalf("%d is there", n)
		}
		p.add(Point{Value: v})
	}
	for n := range uint64(5000) {
		v := numbered(n)
		if at, has := p.find(&v); !has || at != int(n) {
			t.Fatalf("%d is at %d, %v", n, at, has)
		}
	}
}

// A million points, each with what made it, in less than 100 MB.
func TestMillion(t *testing.T) {
	const n, most = 1_000_000, 100 << 20
	before := heap()
	m := NewModel(n)
	for i := range uint64(n) {
		m.add(Point{Value: numbered(i), Valid: true, Count: 1}) // the digests of a million updates say nothing of memory
		m.Annotate(&Note{Program: "/usr/sbin/httpd", What: "file_open root /srv/www/index.html flags 0100000"})
	}
	if used := heap() - before; used > most {
		t.Errorf("%d bytes of heap, limit %d", used, most)
	} else {
		t.Logf("%d points: %.1f MB", n, float64(used)/1e6)
	}
	if _, err := m.Update(ID{1}); err == nil {
		t.Error("there was room for one more")
	}
	runtime.KeepAlive(m)
}

func heap() uint64 {
	var s runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

func TestNotes(t *testing.T) {
	m := NewModel(0)
	want := Note{Received: time.Unix(7, 8), BootNs: 9, PID: 10, Program: "/bin/x", What: strings.Repeat("w", 300)}
	for n := range uint64(3) {
		_, _ = m.Update(numbered(n))
		if n == 1 {
			m.Annotate(&want)
			m.Annotate(&Note{Program: "later"})
		}
	}
	want.What = want.What[:maxNoteText]
	for i := range m.Points() {
		got, has := m.Note(&m.Points()[i])
		if has != (i == 1) || has && got != want {
			t.Errorf("point %d: %+v, %v", i, got, has)
		}
	}
}

// A checkpoint of version 1 is read, and is of version 2 from then on.
func TestCheckpointVersion1(t *testing.T) {
	f, err := os.Open("testdata/checkpoint-v1.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	saved, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	e := New(nil)
	if err := e.Restore(id, saved); err != nil {
		t.Fatal(err)
	}
	m := e.Models()[0]
	if !m.Sealed || m.Violations != 4 || m.Points == 0 || len(e.Forensics(id)) != 4 {
		t.Errorf("%+v", m)
	}
	again, err := e.Checkpoint(id)
	if err != nil || bytes.Equal(saved, again) {
		t.Errorf("error %v", err)
	}
	for cut := range saved {
		if New(nil).Restore(id, saved[:cut]) == nil {
			t.Fatalf("cut at %d of %d bytes it was taken", cut, len(saved))
		}
	}
}

// A model that nothing new came to for an hour of events is quiet.
func TestQuiet(t *testing.T) {
	e, g := New(nil), enginetest.NewGuest(id)
	server := g.Running("/usr/sbin/httpd")
	start := time.Unix(1e9, 0)
	serve := func(at time.Duration, n int) *vm {
		g.Serve(server, n)
		b := g.Batch()
		b.Received = start.Add(at)
		judge(t, e, b)
		return e.vms[id]
	}
	for _, step := range []struct {
		at    time.Duration
		n     int
		quiet bool
	}{{0, 5, false}, {30 * time.Minute, 50, false}, {61 * time.Minute, 50, true}, {5 * time.Hour, 1, true}} {
		v := serve(step.at, step.n)
		if got := v.rate.quiet(v.lastNew, v.seen); got != step.quiet {
			t.Errorf("after %v: quiet %v", step.at, got)
		}
	}
	hours := e.vms[id].rate.hours
	text := ""
	for _, h := range hours {
		text += fmt.Sprintf("%d:%d ", h.at-hours[0].at, min(h.added, 1))
	}
	if text != "0:1 1:0 5:0 " {
		t.Errorf("hours %s", text)
	}
}
