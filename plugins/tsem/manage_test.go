package tsem

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/engine/enginetest"
	"github.com/outguard/outguard/vsockproto"
)

// A model goes to another VM and knows there what it knew here.
func TestImport(t *testing.T) {
	e, g, server := sealed(t, nil)
	file, err := e.Export(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	other := uuid.UUID{2}
	g.Serve(server, 1)
	m, err := e.Import(t.Context(), other, file)
	if err != nil || !m.Sealed || m.VM != other {
		t.Fatalf("%+v, error %v", m, err)
	}
	if from := e.vms[id].describe(id); m.Points != from.Points || m.Measurement != from.Measurement || m.State != from.State || m.Version != from.Version+1 {
		t.Errorf("%+v of %+v", m, from)
	}
	twin := enginetest.NewGuest(other)
	same := twin.Running("/usr/sbin/httpd")
	twin.Serve(same, 3)
	if f := judge(t, e, twin.Batch()); len(f) > 0 {
		t.Errorf("what the model knows: %s", summary(f))
	}
	twin.Exploit(same)
	if f := judge(t, e, twin.Batch()); len(f) != 4 {
		t.Errorf("what it does not: %s", summary(f))
	}
	for _, bad := range [][]byte{nil, file[:len(file)-1], append(bytes.Clone(file), "more"...)} {
		if _, err := e.Import(t.Context(), other, bad); err == nil {
			t.Errorf("%d bytes were taken", len(bad))
		}
	}
	if e.vms[other].model.Valid() != m.Points {
		t.Error("what was refused left something behind")
	}
	if _, err := e.Export(t.Context(), uuid.UUID{3}); err == nil {
		t.Error("a model that is not there was taken out")
	}
}

// What a person accepted is normal, and who did nothing else is trusted again.
func TestAccept(t *testing.T) {
	e, g, server := sealed(t, nil)
	bad := g.Run(server, "/srv/cgi/search")
	g.Open(bad, "/etc/shadow")
	g.Exploit(server)
	found := judge(t, e, g.Batch())
	if len(found) != 5 || found[0].Rule != RuleViolation || found[0].Event != "file_open" {
		t.Fatal(summary(found))
	}
	point, err := parseID(found[0].Detail["point"])
	if err != nil {
		t.Fatal(err)
	}
	before := e.vms[id].describe(id)
	if _, err := e.Accept(t.Context(), id, [][engine.PointSize]byte{point, {9}}); err == nil || e.vms[id].model.Valid() != before.Points {
		t.Errorf("with a point that is not there: %v", err)
	}
	m, err := e.Accept(t.Context(), id, [][engine.PointSize]byte{point})
	if err != nil || m.Points != before.Points+1 || m.Forensics != before.Forensics-1 || !m.Sealed || m.Version != before.Version+1 {
		t.Fatalf("%+v after %+v, error %v", m, before, err)
	}
	// The same again is no finding; something else of that task is a violation
	// of its own, while the intruder stays untrusted.
	g.Open(bad, "/etc/shadow")
	g.Open(bad, "/etc/gshadow")
	again := judge(t, e, g.Batch())
	if len(again) != 1 || again[0].Rule != RuleViolation {
		t.Errorf("afterwards: %s", summary(again))
	}
	marked := 0
	for _, f := range e.vms[id].firsts {
		if f.mark != 0 {
			marked++
		}
	}
	if marked != 3 {
		t.Errorf("%d marks", marked)
	}
}

// A checkpoint in the middle, and the rest, are the whole.
func TestCheckpointAndRest(t *testing.T) {
	run := func(cut int) []byte {
		e, g := New(nil), enginetest.NewGuest(id)
		server := g.Running("/usr/sbin/httpd")
		var out strings.Builder
		for i := range 12 {
			g.Serve(server, 2)
			if i > 8 {
				g.Exploit(server)
			}
			out.WriteString(summary(judge(t, e, g.Batch())))
			if i == 7 {
				if _, err := e.Seal(t.Context(), id); err != nil {
					t.Fatal(err)
				}
			}
			if i == cut {
				saved, err := e.Checkpoint(id)
				if err != nil {
					t.Fatal(err)
				}
				e = New(nil)
				if err := e.Restore(id, saved); err != nil {
					t.Fatal(err)
				}
			}
		}
		end, err := e.Checkpoint(id)
		if err != nil {
			t.Fatal(err)
		}
		return append(end, out.String()...)
	}
	whole := run(-1)
	for cut := range 12 {
		if !bytes.Equal(run(cut), whole) {
			t.Errorf("cut after batch %d it is another", cut)
		}
	}
}

// A pseudonym lets a file change its content; a base has to come first of all.
func TestSet(t *testing.T) {
	for _, mapping := range []Mapping{Quixote, Full} {
		e, g := New(&Options{Mapping: mapping}), enginetest.NewGuest(id)
		base, aggregate := ID{0xba}, ID{0xa9}
		m, err := e.Set(t.Context(), id, engine.Settings{Base: &base, Aggregate: &aggregate, Pseudonyms: [][32]byte{Pseudonym([]byte("/etc/motd"))}})
		if err != nil || m.Version != 1 {
			t.Fatalf("%+v, error %v", m, err)
		}
		want := NewModel(0)
		want.SetBase(base)
		want.SetAggregate(aggregate)
		if m.Measurement != hexOf(want.Measurement()) || m.Aggregate != m.Measurement {
			t.Errorf("%+v", m)
		}
		server := g.Running("/usr/sbin/httpd")
		open := func(path string, digest byte) {
			r := g.Event(server, vsockproto.FileOpen)
			r.File, r.Path.Data = enginetest.File(path), []byte(path)
			r.File.Digest[0] = digest
			g.Add(&r)
		}
		open("/etc/motd", 1)
		open("/etc/passwd", 1)
		judge(t, e, g.Batch())
		if _, err := e.Seal(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		open("/etc/motd", 2)
		if f := judge(t, e, g.Batch()); len(f) > 0 {
			t.Errorf("%s: %s", mapping, summary(f))
		}
		open("/etc/passwd", 2)
		if f := judge(t, e, g.Batch()); len(f) != 1 {
			t.Errorf("%s: a file without a pseudonym changed: %s", mapping, summary(f))
		}
		before := e.vms[id].describe(id)
		for _, bad := range []engine.Settings{{Base: &base}, {Aggregate: &aggregate}, {Aggregate: &aggregate, Pseudonyms: [][32]byte{{1}}}} {
			if _, err := e.Set(t.Context(), id, bad); err == nil {
				t.Errorf("%+v was set", bad)
			}
		}
		if after := e.vms[id].describe(id); after.Version != before.Version || len(e.vms[id].model.pseudonyms) != 1 {
			t.Errorf("what was refused left something: %+v", after)
		}
	}
}

// Models are described while others are judged, and the state that is told is
// that of the points that are told.
func TestModelsWhileJudging(t *testing.T) {
	e, g := New(nil), enginetest.NewGuest(id)
	server := g.Running("/usr/sbin/httpd")
	judge(t, e, g.Batch())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 50 {
			for _, m := range e.Models() {
				if len(m.State) != 64 || len(m.Measurement) != 64 {
					t.Errorf("%+v", m)
				}
			}
		}
	}()
	for i := range 200 {
		r := g.Event(server, vsockproto.FileOpen)
		r.File, r.Path.Data = enginetest.File("/x"), []byte("/x")
		r.File.Digest[0] = byte(i)
		g.Add(&r)
		judge(t, e, g.Batch())
	}
	<-done
	m := e.Models()[0]
	if again := e.Models()[0]; again.State != m.State || m.Points != 200 || m.State != hexOf(e.vms[id].model.State()) {
		t.Errorf("%+v and %+v", m, again)
	}
}
