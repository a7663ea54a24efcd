package tsem

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/engine/enginetest"
	"github.com/outguard/outguard/vsockproto"
)

// containers is a guest whose runtime runs a web service and a database, each in
// a container, and the engine that has learned them.
type containers struct {
	*enginetest.Guest
	init, runtime, web, db *enginetest.Process
}

func learned(t testing.TB, e *Engine, vm uuid.UUID) *containers {
	t.Helper()
	g := &containers{Guest: enginetest.NewGuest(vm)}
	g.init = g.Init()
	g.runtime = g.Run(g.init, "/usr/bin/crun")
	g.web = g.Contain(g.runtime, 11, "/machine.slice/crun-web.scope", "/srv/web")
	g.db = g.Contain(g.runtime, 12, "/db", "/srv/db")
	g.work()
	if f := judge(t, e, g.Batch()); len(f) > 0 {
		t.Fatalf("findings while learning: %s", summary(f))
	}
	return g
}

func (g *containers) work() {
	g.Serve(g.web, 3)
	g.Open(g.db, "/srv/table")
	g.Open(g.init, "/etc/inittab")
}

func sealAll(t testing.TB, e *Engine, vm uuid.UUID, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := e.Workload(name).Seal(t.Context(), vm); err != nil {
			t.Fatal(err)
		}
	}
}

func names(e *Engine) string {
	var all []string
	for _, m := range e.Models() {
		all = append(all, fmt.Sprintf("%q", m.Workload))
	}
	return strings.Join(all, " ")
}

// TestWorkloads: each container has a model of its own, a violation in one is its
// own finding, and no other knows of it.
func TestWorkloads(t *testing.T) {
	e := New(nil)
	g := learned(t, e, id)
	if got := names(e); got != `"" "crun/web" "db"` {
		t.Fatalf("workloads %s", got)
	}
	sealAll(t, e, id, "", "crun/web", "db")
	g.work()
	if f := judge(t, e, g.Batch()); len(f) > 0 {
		t.Errorf("findings of what was learned: %s", summary(f))
	}
	// What web may do, db may not, and the other way round.
	shell := g.Run(g.web, "/bin/sh")
	g.Open(g.db, "/srv/data/1")
	g.work()
	f := judge(t, e, g.Batch())
	if len(f) != 2 || f[0].Rule != RuleViolation || f[0].Detail["workload"] != "crun/web" || f[0].Detail["container"] != "web" || f[0].Detail["runtime"] != "crun" ||
		f[0].Detail["cgroup_path"] != "/machine.slice/crun-web.scope" || f[1].Rule != RuleViolation || f[1].Detail["workload"] != "db" {
		t.Fatalf("%s%v", summary(f), f)
	}
	for _, m := range e.Models() {
		if want := map[string]uint64{"crun/web": 1, "db": 1}[m.Workload]; m.Violations != want || m.Forensics != want {
			t.Errorf("%q has %d violations, %d points of such", m.Workload, m.Violations, m.Forensics)
		}
	}
	// One is accepted: its task is trusted again, the other's is not.
	point := pointOf(t, &f[0])
	if _, err := e.Workload("db").Accept(t.Context(), id, [][engine.PointSize]byte{point}); err == nil {
		t.Error("a point of another workload was accepted")
	}
	if m, err := e.Workload("crun/web").Accept(t.Context(), id, [][engine.PointSize]byte{point}); err != nil || m.Workload != "crun/web" || m.Forensics != 0 {
		t.Errorf("accept: %+v, %v", m, err)
	}
	g.Open(shell, "/new")
	g.Open(g.db, "/new")
	if f := judge(t, e, g.Batch()); len(f) != 2 || f[0].Rule != RuleViolation || f[1].Rule != RuleUntrusted {
		t.Errorf("after accepting: %s", summary(f))
	}
	if _, err := e.Workload("nobody").Seal(t.Context(), id); err == nil {
		t.Error("a workload that there is not was sealed")
	}
}

func pointOf(t testing.TB, f *engine.Finding) (p [engine.PointSize]byte) {
	t.Helper()
	id, err := parseID(f.Detail["point"])
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestNewContainer: where the VM's model is sealed, a container of a kind that it
// has not seen may do nothing.
func TestNewContainer(t *testing.T) {
	e := New(nil)
	g := learned(t, e, id)
	sealAll(t, e, id, "")
	g.work()
	if f := judge(t, e, g.Batch()); len(f) > 0 {
		t.Errorf("containers that learn: %s", summary(f))
	}
	runtime := g.Run(g.init, "/usr/bin/crun")
	judge(t, e, g.Batch())
	g.Contain(runtime, 20, "/docker/"+strings.Repeat("ab", 32), "/bin/miner")
	f := judge(t, e, g.Batch())
	if len(f) != 1 || f[0].Rule != RuleViolation || f[0].Detail["workload"] != "/bin/miner" {
		t.Errorf("a new container: %s", summary(f))
	}
}

// TestLeftContainer: who leaves is found, and is still held to what its container
// may do.
func TestLeftContainer(t *testing.T) {
	e := New(nil)
	g := learned(t, e, id)
	sealAll(t, e, id, "", "crun/web", "db")
	out := g.Fork(g.web)
	out.Place = &enginetest.Place{Cgroup: 11, Mnt: enginetest.Machine.Mnt, PID: 11001, User: enginetest.Machine.User, Net: 11002}
	g.Open(out, "/etc/shadow")
	f := judge(t, e, g.Batch())
	if len(f) != 2 || f[0].Rule != RuleLeft || f[0].Severity != engine.High || f[0].Technique != "T1611" || f[0].Detail["left"] != "mount namespace" ||
		f[0].Detail["workload"] != "crun/web" || f[1].Rule != RuleViolation || f[1].Detail["workload"] != "crun/web" {
		t.Errorf("%s%v", summary(f), f)
	}
	g.Open(out, "/etc/passwd")
	if f := judge(t, e, g.Batch()); len(f) != 1 || f[0].Rule != RuleUntrusted {
		t.Errorf("it is told again: %s", summary(f))
	}
	nested := g.Fork(g.db)
	nested.Place = &enginetest.Place{Cgroup: 12, Mnt: 777, PID: 12001, User: enginetest.Machine.User, Net: 12002}
	g.Open(nested, "/srv/table")
	if f := judge(t, e, g.Batch()); len(f) != 2 || f[0].Rule != RuleLeft || f[0].Severity != engine.Medium || f[1].Detail["workload"] != "db" {
		t.Errorf("namespaces of its own: %s", summary(f))
	}
}

// TestLeavingIsLearned: what a workload's tasks do while it learns is told, and
// stops nothing then, nor later.
func TestLeavingIsLearned(t *testing.T) {
	e := New(nil)
	g := learned(t, e, id)
	leave := func() []engine.Finding {
		out := g.Fork(g.db)
		out.Place = &enginetest.Place{Cgroup: 12, Mnt: enginetest.Machine.Mnt, PID: 12001, User: enginetest.Machine.User, Net: 12002}
		g.Open(out, "/etc/hosts")
		g.Exit(out)
		return judge(t, e, g.Batch())
	}
	if f := leave(); len(f) != 1 || f[0].Rule != RuleLeft || f[0].Severity != engine.Medium {
		t.Errorf("while it learns: %s", summary(f))
	}
	sealAll(t, e, id, "db")
	if f := leave(); len(f) != 1 || f[0].Rule != RuleLeft || f[0].Severity != engine.Low {
		t.Errorf("learned: %s", summary(f))
	}
}

// TestWorkloadsAreBounded: containers that churn share the model of their kind;
// kinds beyond the bound are the VM's, which is said once, and counted.
func TestWorkloadsAreBounded(t *testing.T) {
	e := New(&Options{MaxWorkloads: 4})
	g := enginetest.NewGuest(id)
	runtime := g.Run(g.Init(), "/usr/bin/crun")
	for i := range 3000 {
		id := fmt.Sprintf("%064x", i)
		p := g.Contain(runtime, uint64(100+i), "/docker/"+id, "/srv/job")
		g.Open(p, "/srv/data")
		g.Exit(p)
		gone := g.Event(runtime, vsockproto.CgroupRmdir)
		gone.Cgroup.ID = uint64(100 + i)
		g.Add(&gone)
	}
	if f := judge(t, e, g.Batch()); len(f) > 0 || names(e) != `"" "/srv/job"` {
		t.Fatalf("workloads %s, %s", names(e), summary(f))
	}
	for i := range 10 {
		g.Open(g.Contain(runtime, uint64(9000+i), fmt.Sprintf("/docker/job%d", i), "/srv/job"), "/srv/data")
	}
	f := judge(t, e, g.Batch())
	if len(f) != 1 || f[0].Rule != RuleWorkloads || e.vms[id].refused != 7 || len(e.vms[id].workloads) != 4 {
		t.Errorf("workloads %s, %d refused, %s", names(e), e.vms[id].refused, summary(f))
	}
	p := e.Places(id)
	if i := slices.IndexFunc(p.Containers, func(c engine.Container) bool { return c.ID == "job9" }); i < 0 || p.Containers[i].Workload != "" || p.Containers[i].Tasks != 1 {
		t.Errorf("places %+v", p.Containers)
	}
	if got := e.vms[id].workloads["/srv/job"].model.limit; got != DefaultMaxPoints/4 {
		t.Errorf("a container's model may have %d points", got)
	}
}

// TestWorkloadCheckpoint: a restored engine goes on as the first one, workloads,
// groups and departures included.
func TestWorkloadCheckpoint(t *testing.T) {
	e := New(nil)
	g := learned(t, e, id)
	if _, err := e.Join(t.Context(), id, "db", "databases"); err != nil {
		t.Fatal(err)
	}
	sealAll(t, e, id, "", "crun/web", "db")
	g.Run(g.web, "/bin/sh")
	judge(t, e, g.Batch())
	saved, err := e.Checkpoint(id)
	if err != nil {
		t.Fatal(err)
	}
	other := New(nil)
	if err := other.Restore(id, saved); err != nil {
		t.Fatal(err)
	}
	again, err := other.Checkpoint(id)
	if err != nil || !cmp.Equal(saved, again) {
		t.Errorf("the checkpoint of a restored engine differs, error %v", err)
	}
	if d := cmp.Diff(e.Models(), other.Models()); d != "" {
		t.Error(d)
	}
	g.work()
	out := g.Fork(g.web)
	out.Place = &enginetest.Machine
	g.Open(out, "/etc/shadow")
	g.Open(g.db, "/etc/shadow")
	b := g.Batch()
	if d := cmp.Diff(judge(t, e, b), judge(t, other, b)); d != "" {
		t.Error(d)
	}
	for cut := range saved {
		if New(nil).Restore(id, saved[:cut]) == nil {
			t.Fatalf("a checkpoint cut at %d of %d bytes was taken", cut, len(saved))
		}
	}
}

// TestGroup: workloads of two VMs share one model; what one learns the other
// knows, sealing and accepting are for both, and who leaves goes on alone.
func TestGroup(t *testing.T) {
	ctx, other := t.Context(), uuid.UUID{2}
	e := New(nil)
	a, b := learned(t, e, id), learned(t, e, other)
	a.Open(a.web, "/only/a")
	judge(t, e, a.Batch())
	for _, vm := range []uuid.UUID{id, other} {
		if _, err := e.Join(ctx, vm, "crun/web", "web"); err != nil {
			t.Fatal(err)
		}
	}
	b.Open(b.web, "/only/b")
	judge(t, e, b.Batch())
	sealAll(t, e, id, "crun/web")
	a.Open(a.web, "/only/b")
	b.Open(b.web, "/only/a")
	if f := append(judge(t, e, a.Batch()), judge(t, e, b.Batch())...); len(f) > 0 {
		t.Errorf("what one learned is a violation of the other: %s", summary(f))
	}
	b.Open(b.web, "/new")
	f := judge(t, e, b.Batch())
	if len(f) != 1 || f[0].Rule != RuleViolation || f[0].Detail["group"] != "web" {
		t.Fatalf("sealed through the other one: %s", summary(f))
	}
	if _, err := e.Workload("crun/web").Accept(ctx, id, [][engine.PointSize]byte{pointOf(t, &f[0])}); err != nil {
		t.Fatal(err)
	}
	b.Open(b.web, "/newer")
	if f := judge(t, e, b.Batch()); len(f) != 1 || f[0].Rule != RuleViolation {
		t.Errorf("accepted through the other one it is not trusted: %s", summary(f))
	}
	m, err := e.Join(ctx, other, "crun/web", "")
	if err != nil || m.Group != "" || !m.Sealed {
		t.Fatalf("leave: %+v, %v", m, err)
	}
	if _, err := e.Workload("crun/web").Learn(ctx, other); err != nil {
		t.Fatal(err)
	}
	if e.vms[id].workloads["crun/web"].model.Sealed() == false || len(e.groups) != 1 {
		t.Error("who left opened the group's model")
	}
	if _, err := e.Join(ctx, id, "crun/web", ""); err != nil || len(e.groups) != 0 {
		t.Errorf("%d groups that nobody shares, %v", len(e.groups), err)
	}
}

// TestGroupRestored: each VM's checkpoint has the group's model as it was then.
// Put together they have every point, and what was done to it last counts.
func TestGroupRestored(t *testing.T) {
	ctx, other := t.Context(), uuid.UUID{2}
	for _, order := range [][]uuid.UUID{{id, other}, {other, id}} {
		e := New(nil)
		a, b := learned(t, e, id), learned(t, e, other)
		for _, vm := range []uuid.UUID{id, other} {
			if _, err := e.Join(ctx, vm, "crun/web", "web"); err != nil {
				t.Fatal(err)
			}
		}
		b.Open(b.web, "/only/b")
		judge(t, e, b.Batch())
		early, err := e.Checkpoint(other)
		if err != nil {
			t.Fatal(err)
		}
		a.Open(a.web, "/only/a")
		judge(t, e, a.Batch())
		sealAll(t, e, id, "crun/web")
		late, err := e.Checkpoint(id)
		if err != nil {
			t.Fatal(err)
		}
		want := e.Models()
		again := New(nil)
		for _, vm := range order {
			if err := again.Restore(vm, map[uuid.UUID][]byte{id: late, other: early}[vm]); err != nil {
				t.Fatal(err)
			}
		}
		if again.vms[id].workloads["crun/web"].model != again.vms[other].workloads["crun/web"].model {
			t.Error("they do not share a model any more")
		}
		for i, m := range again.Models() {
			if m.State != want[i].State || m.Sealed != want[i].Sealed || m.Group != want[i].Group || m.Points != want[i].Points {
				t.Errorf("%s %q: %+v, want %+v", m.VM, m.Workload, m, want[i])
			}
		}
	}
}

// TestOldCheckpointIsWhole: a VM whose model was learned with its containers in it
// goes on so, until its model is to learn.
func TestOldCheckpointIsWhole(t *testing.T) {
	e := New(nil)
	g := learned(t, e, id)
	e.vms[id].whole = true
	saved, err := e.Checkpoint(id)
	if err != nil {
		t.Fatal(err)
	}
	e = New(nil)
	if err := e.Restore(id, saved); err != nil {
		t.Fatal(err)
	}
	c := g.Contain(g.runtime, 30, "/crun-late", "/srv/late")
	judge(t, e, g.Batch())
	if e.vms[id].find("crun/late") != nil {
		t.Error("it has a model of its own")
	}
	if _, err := e.Learn(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	g.Open(c, "/x")
	judge(t, e, g.Batch())
	if e.vms[id].find("crun/late") == nil {
		t.Error("learning anew it has none")
	}
}

// TestExportOfAWorkload: replayed, it measures to what the engine has.
func TestExportOfAWorkload(t *testing.T) {
	e := New(&Options{Mapping: Quixote})
	g := &containers{Guest: enginetest.NewGuest(id)}
	g.init = g.Init()
	g.runtime = g.Run(g.init, "/usr/bin/crun")
	g.web = g.Contain(g.runtime, 11, "/machine.slice/crun-web.scope", "/srv/web")
	g.db = g.Contain(g.runtime, 12, "/db", "/srv/db")
	g.work()
	b := g.Batch()
	judge(t, e, b)
	events := 0
	for _, m := range e.Models() {
		replay, x, mapper := NewModel(0), NewExporter(), NewMapper()
		x.Only(m.Workload)
		err := x.Batch(b, func(err error) { t.Error(err) }, func(ev *Exported) error {
			events++
			c, err := mapper.Map(ev.Event)
			if err != nil {
				return err
			}
			_, err = replay.Update(c.Point)
			return err
		})
		if err != nil || hexOf(replay.Measurement()) != m.Measurement || hexOf(replay.State()) != m.State {
			t.Errorf("%q: measurement %s, want %s, error %v", m.Workload, hexOf(replay.Measurement()), m.Measurement, err)
		}
	}
	whole := 0
	if err := NewExporter().Batch(b, func(err error) { t.Error(err) }, func(*Exported) error { whole++; return nil }); err != nil || whole != events {
		t.Errorf("%d events in all, %d of workloads, error %v", whole, events, err)
	}
}
