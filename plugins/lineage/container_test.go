package lineage

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/outguard/outguard/vsockproto"
)

// checkCgroups holds the table of cgroups against what must always be so.
func checkCgroups(t *testing.T, tree *Tree) {
	t.Helper()
	g := &tree.cgroups
	bytes, dead, there := 0, 0, 0
	for i, c := range g.order {
		if c == nil {
			continue
		}
		if there++; g.byID[c.id] != c || c.place != i {
			t.Fatalf("cgroup %d is out of place", c.id)
		}
		if bytes += len(c.path); c.removed || c.stale {
			dead++
		}
	}
	if there != len(g.byID) || bytes != g.bytes || dead != g.dead || there > maxCgroups || bytes > maxCgroupText {
		t.Fatalf("%d cgroups, %d bytes, %d dead; counted %d, %d, %d", there, bytes, dead, len(g.byID), g.bytes, g.dead)
	}
	for _, k := range g.owners {
		if !k.Begun || g.byPath[k.Path] != k {
			t.Fatalf("container %s owns namespaces and is not there", k.Name())
		}
	}
}

func TestRuntimeOf(t *testing.T) {
	hex := strings.Repeat("0123456789abcdef", 4)
	for path, want := range map[string][3]string{
		"/": {}, "": {}, "/init.scope": {}, "/user.slice/user-0.slice/session-1.scope": {},
		"/system.slice/nginx.service":                                          {},
		"/system.slice/docker-" + hex + ".scope":                               {"docker", hex, "/system.slice/docker-" + hex + ".scope"},
		"/system.slice/docker.service":                                         {},
		"/docker/" + hex:                                                       {"docker", hex, "/docker/" + hex},
		"/docker/" + hex + "/init.scope":                                       {"docker", hex, "/docker/" + hex},
		"/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + hex + ".scope": {"containerd", hex, "/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + hex + ".scope"},
		"/kubepods.slice/kubepods-pod1.slice/crio-" + hex + ".scope":           {"cri-o", hex, "/kubepods.slice/kubepods-pod1.slice/crio-" + hex + ".scope"},
		"/kubepods.slice/kubepods-pod1.slice/crio-conmon-" + hex + ".scope":    {},
		"/kubepods/burstable/pod1/" + hex:                                      {"kubernetes", hex, "/kubepods/burstable/pod1/" + hex},
		"/kubepods/burstable/pod1":                                             {},
		"/machine.slice/libpod-" + hex + ".scope/container":                    {"podman", hex, "/machine.slice/libpod-" + hex + ".scope"},
		"/machine.slice/libpod-conmon-" + hex + ".scope":                       {},
		"/machine.slice/crun-web.scope":                                        {"crun", "web", "/machine.slice/crun-web.scope"},
		"/crun-web":                                                            {"crun", "web", "/crun-web"},
		"/lxc.payload.db/system.slice/x.service":                               {"lxc", "db", "/lxc.payload.db"},
		"/lxc.monitor.db":                                                      {},
		"/machine.slice/machine-deb.scope/payload":                             {"systemd", "deb", "/machine.slice/machine-deb.scope"},
		"/machine.slice/machine-qemu\\x2d1\\x2dvm.scope":                       {},
		"/machine.slice/systemd-nspawn@deb.service/payload":                    {"systemd", "deb", "/machine.slice/systemd-nspawn@deb.service"},
		"/default/web":                           {"containerd", "web", "/default/web"},
		"/docker/" + hex + "/docker/inner":       {"docker", "inner", "/docker/" + hex + "/docker/inner"},
		strings.Repeat("/a", 1000) + "/crun-web": {},
	} {
		runtime, id, at := RuntimeOf(path)
		if got := [3]string{runtime, id, at}; got != want {
			t.Errorf("%.80q: %q, want %q", path, got, want)
		}
	}
}

// Places of the machine and of two containers in it.
var (
	host    = where{1, Namespaces{100, initialPidNS, 300, 400}}
	inWeb   = where{11, Namespaces{101, 201, 300, 401}}
	inDB    = where{12, Namespaces{102, 202, 300, 402}}
	between = where{11, host.Namespaces} // the runtime's own, in a container's cgroup
)

func (w where) of(e *vsockproto.Event) *vsockproto.Event {
	e.CgroupID, e.MntNS, e.PidNS, e.UserNS, e.NetNS = w.cgroup, w.Mnt, w.PID, w.User, w.Net
	return e
}

func (g *guest) cgroup(typ vsockproto.EventType, by Key, id uint64, path string) *vsockproto.Event {
	e := host.of(g.event(typ, by, 0))
	e.Cgroup.ID, e.Path.Data = id, []byte(path)
	return e
}

// machine is a tree with a first process, a runtime that it started, and cgroups
// for two containers.
func machine() (*Tree, *guest, Key) {
	t, g := New(identify, nil), &guest{}
	init := Key{1, 1}
	t.Apply(g.cgroup(vsockproto.CgroupSnapshot, init, 1, "/"))
	t.Apply(host.of(g.snapshot(init, "/sbin/init")))
	fork, runtime := g.fork(init, 0, 10)
	t.Apply(host.of(fork))
	t.Apply(host.of(g.exec(runtime, 1, "/usr/bin/crun")))
	t.Apply(g.cgroup(vsockproto.CgroupMkdir, runtime, 11, "/crun-web"))
	t.Apply(g.cgroup(vsockproto.CgroupMkdir, runtime, 12, "/crun-db"))
	return t, g, runtime
}

// start has the runtime start a program in a container, as runtimes do.
func start(t *Tree, g *guest, runtime Key, pid uint32, in where, path string) (Key, Identity) {
	fork, child := g.fork(runtime, 1, pid)
	t.Apply(host.of(fork))
	t.Apply(where{in.cgroup, host.Namespaces}.of(g.open(child, 1)))
	t.Apply(in.of(g.open(child, 1)))
	return child, t.Apply(in.of(g.exec(child, 2, path)))
}

func TestContainers(t *testing.T) {
	tree, g, runtime := machine()
	fork, child := g.fork(runtime, 1, 20)
	tree.Apply(host.of(fork))
	if who := tree.Apply(between.of(g.open(child, 1))); who.Container != nil || who.Unknown || who.Left != 0 {
		t.Errorf("the runtime in a container's cgroup: %+v", who.Place)
	}
	if who := tree.Apply(inWeb.of(g.open(child, 1))); who.Container != nil {
		t.Errorf("before its first program it is a container: %+v", who.Place)
	}
	who := tree.Apply(inWeb.of(g.exec(child, 2, "/srv/web")))
	web := who.Container
	if web == nil || web.Name() != "crun/web" || web.Kind() != "crun/web" || !web.Begun || web.Namespaces != inWeb.Namespaces || web.Program != "/srv/web" || web.Cgroup != 11 {
		t.Fatalf("its first program: %+v", web)
	}
	_, who = start(tree, g, runtime, 30, inDB, "/srv/db")
	if who.Container == nil || who.Container.Name() != "crun/db" {
		t.Errorf("the second one: %+v", who.Place)
	}
	fork, worker := g.fork(child, 2, 21)
	tree.Apply(inWeb.of(fork))
	if who = tree.Apply(inWeb.of(g.open(worker, 2))); who.Container != web || who.Left != 0 {
		t.Errorf("a child: %+v", who.Place)
	}
	all, tasks := tree.Containers()
	if got := fmt.Sprint(all[0].Name(), tasks[0], all[1].Name(), tasks[1]); got != "crun/web2crun/db1" && got != "crun/web 2 crun/db 1" {
		t.Errorf("containers %s", got)
	}
	// Who comes in later, and a program that the runtime starts there later.
	if _, who = start(tree, g, runtime, 40, inWeb, "/bin/sh"); who.Container != web || who.Left != 0 {
		t.Errorf("who came in: %+v", who.Place)
	}
	tree.Apply(g.cgroup(vsockproto.CgroupRmdir, runtime, 12, ""))
	if all, _ := tree.Containers(); len(all) != 1 {
		t.Errorf("%d containers when one is gone", len(all))
	}
}

// TestLeaving: each way out is told once, and a task that is out still belongs
// where it came from, with its children.
func TestLeaving(t *testing.T) {
	tree, g, runtime := machine()
	child, who := start(tree, g, runtime, 20, inWeb, "/srv/web")
	web := who.Container
	start(tree, g, runtime, 30, inDB, "/srv/db")
	for name, c := range map[string]struct {
		to      where
		left    Departure
		outside bool
	}{
		"nsenter":       {where{11, host.Namespaces}, LeftMnt | LeftPID | LeftNet, true},
		"setns again":   {where{11, Namespaces{100, 201, 300, 401}}, LeftMnt, true},
		"the other one": {where{11, Namespaces{101, 201, 300, 402}}, LeftNet, true},
		"moved":         {where{1, inWeb.Namespaces}, LeftCgroup, true},
		"moved over":    {where{12, inWeb.Namespaces}, LeftCgroup, true},
	} {
		fork, task := g.fork(child, 2, 50)
		tree.Apply(inWeb.of(fork))
		who := tree.Apply(c.to.of(g.open(task, 2)))
		if who.Container != web || who.Left != c.left || who.Outside != c.outside {
			t.Errorf("%s: %+v", name, who.Place)
		}
		fork, grandchild := g.fork(task, 2, 51)
		if who := tree.Apply(c.to.of(fork)); who.Left != 0 {
			t.Errorf("%s: told again: %+v", name, who.Place)
		}
		if who := tree.Apply(c.to.of(g.exec(grandchild, 3, "/bin/sh"))); who.Container != web || who.Left != 0 {
			t.Errorf("%s: its child: %+v", name, who.Place)
		}
	}
	// Namespaces of its own, and a cgroup below: that is within.
	tree.Apply(g.cgroup(vsockproto.CgroupMkdir, runtime, 13, "/crun-web/below"))
	fork, task := g.fork(child, 2, 60)
	tree.Apply(inWeb.of(fork))
	if who := tree.Apply(where{13, Namespaces{999, 201, 300, 401}}.of(g.open(task, 2))); who.Left != LeftMnt || who.Outside {
		t.Errorf("its own namespace: %+v", who.Place)
	}
}

// TestReaching: what a container's task does beyond it without leaving its place is
// told once of it, and of each child, and nothing of what a container does within, nor
// of the machine's tasks.
func TestReaching(t *testing.T) {
	tree, g, runtime := machine()
	child, who := start(tree, g, runtime, 20, inWeb, "/srv/web")
	web := who.Container
	const unreachable, foreign = vsockproto.TailUnreachable, vsockproto.TailUnreachable | vsockproto.TailForeign
	file := func(of uint16, mode uint16) func(*vsockproto.Event) {
		return func(e *vsockproto.Event) { e.Path.Flags, e.File.Mode = of, mode }
	}
	mount := func(device uint64) func(*vsockproto.Event) {
		return func(e *vsockproto.Event) { e.Type, e.Args[1] = vsockproto.SbKernMount, device }
	}
	const regular, directory, terminal = 0o100644, 0o040755, 0o020620
	for name, c := range map[string]struct {
		change func(*vsockproto.Event)
		left   Departure
	}{
		"the machine's file":      {file(foreign, regular), LeftFiles},
		"the machine's directory": {file(foreign, directory), LeftFiles},
		"a terminal it was given": {file(foreign, terminal), 0},
		"a memfd":                 {file(unreachable, regular), 0},
		"its own file":            {file(0, regular), 0},
		"a disk":                  {mount(1), LeftDevice},
		"a tmpfs":                 {mount(0), 0},
	} {
		fork, task := g.fork(child, 2, 50)
		tree.Apply(inWeb.of(fork))
		e := g.open(task, 2)
		c.change(e)
		if who := tree.Apply(inWeb.of(e)); who.Container != web || who.Left != c.left || who.Outside != (c.left != 0) {
			t.Errorf("%s: %+v", name, who.Place)
		}
		tree.Apply(where{13, Namespaces{999, 201, 300, 401}}.of(g.open(task, 2))) // elsewhere, and back
		again := g.open(task, 2)
		c.change(again)
		if who := tree.Apply(inWeb.of(again)); who.Left != 0 {
			t.Errorf("%s: told again: %+v", name, who.Place)
		}
		fork, below := g.fork(task, 2, 51)
		tree.Apply(inWeb.of(fork))
		e = g.open(below, 2)
		c.change(e)
		if who := tree.Apply(inWeb.of(e)); who.Left != c.left {
			t.Errorf("%s: its child: %+v", name, who.Place)
		}
		e = g.open(below, 2)
		c.change(e)
		e.Type = vsockproto.TaskSnapshot
		if who := tree.Apply(inWeb.of(e)); who.Left != 0 {
			t.Errorf("%s: in a snapshot: %+v", name, who.Place)
		}
		e = g.open(runtime, 1)
		c.change(e)
		if who := tree.Apply(host.of(e)); who.Left != 0 {
			t.Errorf("%s: the machine's own: %+v", name, who.Place)
		}
	}
}

// TestComingIn: a program that the machine's root lets in keeps some of the
// machine's namespaces, which is no departure; to leave then is one, each time.
func TestComingIn(t *testing.T) {
	tree, g, runtime := machine()
	start(tree, g, runtime, 20, inWeb, "/srv/web")
	fork, child := g.fork(runtime, 1, 40)
	tree.Apply(host.of(fork))
	partly := where{11, Namespaces{101, 201, 300, host.Net}}
	if who := tree.Apply(partly.of(g.exec(child, 2, "/bin/sh"))); who.Container == nil || who.Left != 0 {
		t.Fatalf("let in: %+v", who.Place)
	}
	for range 2 {
		if who := tree.Apply(where{11, host.Namespaces}.of(g.open(child, 2))); who.Left != LeftMnt|LeftPID || !who.Outside {
			t.Errorf("out: %+v", who.Place)
		}
		if who := tree.Apply(inWeb.of(g.open(child, 2))); who.Left != 0 {
			t.Errorf("back: %+v", who.Place)
		}
		tree.Apply(partly.of(g.open(child, 2)))
	}
}

// TestUnnamedContainer: a path that says nothing is a container's where both
// namespaces are another's.
func TestUnnamedContainer(t *testing.T) {
	tree, g, runtime := machine()
	tree.Apply(g.cgroup(vsockproto.CgroupMkdir, runtime, 14, "/jobs/one"))
	tree.Apply(g.cgroup(vsockproto.CgroupMkdir, runtime, 15, "/jobs/service"))
	if _, who := start(tree, g, runtime, 20, where{14, Namespaces{150, 250, 300, 400}}, "/x"); who.Container == nil || who.Container.Name() != "one" {
		t.Errorf("unnamed: %+v", who.Place)
	}
	if _, who := start(tree, g, runtime, 21, where{15, Namespaces{151, initialPidNS, 300, 400}}, "/x"); who.Container != nil {
		t.Errorf("a service with a mount namespace: %+v", who.Place)
	}
}

// TestUnknownCgroup: what nothing names is said to be unknown, and is no
// container's.
func TestUnknownCgroup(t *testing.T) {
	tree, g, runtime := machine()
	fork, child := g.fork(runtime, 1, 20)
	tree.Apply(host.of(fork))
	who := tree.Apply(where{77, inWeb.Namespaces}.of(g.exec(child, 2, "/x")))
	if !who.Unknown || who.Container != nil || tree.Stats().Unplaced != 1 {
		t.Errorf("place %+v, stats %+v", who.Place, tree.Stats())
	}
}

// TestAnotherBoot gives the same numbers to the same paths, with namespaces of
// other numbers.
func TestAnotherBoot(t *testing.T) {
	tree, g, runtime := machine()
	start(tree, g, runtime, 20, inWeb, "/srv/web")
	tree.SetSession([16]byte{1})
	if all, _ := tree.Containers(); len(all) != 0 {
		t.Errorf("%d containers that nobody has named yet", len(all))
	}
	g.now = 1 << 40
	other := where{11, Namespaces{901, 902, 300, 903}}
	tree.Apply(g.cgroup(vsockproto.CgroupSnapshot, Key{1, 2}, 1, "/"))
	tree.Apply(host.of(g.snapshot(Key{1, 2}, "/sbin/init")))
	tree.Apply(g.cgroup(vsockproto.CgroupSnapshot, Key{1, 2}, 11, "/crun-web"))
	e := other.of(g.snapshot(Key{20, 1 << 39}, "/srv/web"))
	if who := tree.Apply(e); who.Container == nil || who.Container.Name() != "crun/web" || who.Container.Namespaces != other.Namespaces || who.Left != 0 {
		t.Errorf("place %+v", who.Place)
	}
	checkCgroups(t, tree)
}

// TestCgroupBounds: those that live are not given up for new ones, those that
// are gone are.
func TestCgroupBounds(t *testing.T) {
	tree, g, runtime := machine()
	for i := range uint64(2 * maxCgroups) {
		tree.Apply(g.cgroup(vsockproto.CgroupMkdir, runtime, 1000+i, fmt.Sprintf("/docker/%d", i)))
		checkBound(t, tree)
	}
	if n := tree.Stats().Nameless; n != maxCgroups+3 {
		t.Errorf("%d refused", n)
	}
	for i := range uint64(maxCgroups) {
		tree.Apply(g.cgroup(vsockproto.CgroupRmdir, runtime, 1000+i, ""))
	}
	for i := range uint64(10 * maxCgroups) {
		id := 1<<20 + i
		tree.Apply(g.cgroup(vsockproto.CgroupMkdir, runtime, id, fmt.Sprintf("/docker/%d", id)))
		tree.Apply(g.cgroup(vsockproto.CgroupRmdir, runtime, id, ""))
		checkBound(t, tree)
	}
	if _, has := tree.CgroupPath(11); !has {
		t.Error("one that lives was given up")
	}
	checkCgroups(t, tree)
	long := strings.Repeat("x", maxCgroupPath+100)
	for i := range uint64(2000) {
		tree.Apply(g.cgroup(vsockproto.CgroupMkdir, runtime, 1<<30+i, long))
	}
	checkCgroups(t, tree)
}

func checkBound(t *testing.T, tree *Tree) {
	t.Helper()
	if g := &tree.cgroups; len(g.byID) > maxCgroups || len(g.order) > 2*maxCgroups+1 || len(g.byPath) > maxCgroups {
		t.Fatalf("%d cgroups in %d places, %d containers", len(g.byID), len(g.order), len(g.byPath))
	}
}

func TestPlacesCodec(t *testing.T) {
	tree, g, runtime := machine()
	tree.SetSession([16]byte{7})
	tree.Apply(g.cgroup(vsockproto.CgroupSnapshot, runtime, 1, "/"))
	tree.Apply(g.cgroup(vsockproto.CgroupSnapshot, runtime, 11, "/crun-web"))
	child, _ := start(tree, g, runtime, 20, inWeb, "/srv/web")
	tree.Apply(where{11, host.Namespaces}.of(g.open(child, 2)))
	saved, err := tree.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(saved, identify, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := again.AppendBinary(nil); err != nil || !bytes.Equal(b, saved) {
		t.Errorf("bytes differ after a round trip, error %v", err)
	}
	fork, other := g.fork(child, 2, 21)
	for _, tr := range []*Tree{tree, again} {
		tr.Apply(where{11, host.Namespaces}.of(fork))
		who := tr.Apply(where{1, host.Namespaces}.of(g.open(other, 2)))
		if who.Container == nil || who.Container.Name() != "crun/web" || who.Left != LeftCgroup || !who.Outside {
			t.Errorf("place %+v", who.Place)
		}
	}
	for cut := range saved {
		if _, err := Parse(saved[:cut], identify, nil); err == nil {
			t.Fatalf("a tree cut at %d of %d bytes was taken", cut, len(saved))
		}
	}
}
