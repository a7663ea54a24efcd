package tsem

import (
	"testing"

	"github.com/outguard/outguard/plugins/engine/enginetest"
	"github.com/outguard/outguard/vsockproto"
)

// A workload is a modelling namespace: it has a number, and a signal from one to another
// crosses. Who made a task is known by when its program began.
func TestExporterNamespaces(t *testing.T) {
	g := &containers{Guest: enginetest.NewGuest(id)}
	g.init = g.Init()
	g.runtime = g.Run(g.init, "/usr/bin/crun")
	g.web = g.Contain(g.runtime, 11, "/machine.slice/crun-web.scope", "/srv/web")
	g.db = g.Contain(g.runtime, 12, "/db", "/srv/db")
	kill := func(from, to *enginetest.Process) {
		e, target := g.Event(from, vsockproto.TaskKill), g.Event(to, vsockproto.TaskKill)
		e.Signal, e.Target, e.TargetExecID = 15, target.Task, target.ExecID
		g.Add(&e)
	}
	kill(g.init, g.web)
	kill(g.web, g.db)
	kill(g.db, g.db)
	kill(g.init, g.runtime)
	unknown := g.Event(g.web, vsockproto.TaskKill)
	unknown.Signal, unknown.Target.PID = 15, 99999
	g.Add(&unknown)
	type kills struct {
		context uint64
		crosses uint32
	}
	var got []kills
	began := map[ID]uint64{}
	if err := NewExporter().Batch(g.Batch(), func(err error) { t.Error(err) }, func(x *Exported) error {
		began[ID(x.TaskID)] = x.TTD
		if x.Name == "task_kill" {
			got = append(got, kills{x.Context, x.Kill.CrossNS})
		}
		if x.Name == "bprm_committed_creds" && x.ParentTTD == x.TTD {
			t.Errorf("%s: made by itself, at %d", x.Record.Path.Data, x.TTD)
		}
		if want, is := began[x.ParentID]; is && x.ParentTTD != want {
			t.Errorf("%s: made by a program of %d, want %d", x.Name, x.ParentTTD, want)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := []kills{{0, 1}, {1, 1}, {2, 0}, {0, 0}, {1, 0}}
	if len(got) != len(want) {
		t.Fatalf("%v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("signal %d: %v, want %v", i, got[i], want[i])
		}
	}
}

// What a guest calls its containers takes no more room than there is.
func TestExporterContexts(t *testing.T) {
	x := NewExporter()
	for i := range uint64(maxContexts + 10) {
		name := ""
		if i > 0 {
			name = string(rune(i))
		}
		if got := x.context(name); got != min(i, maxContexts+1) {
			t.Fatalf("workload %d has %d", i, got)
		}
	}
	if got := x.context(string(rune(7))); got != 7 || len(x.contexts) != maxContexts+1 {
		t.Errorf("%d, of %d", got, len(x.contexts))
	}
}
