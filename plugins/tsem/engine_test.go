package tsem

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/engine/enginetest"
	"github.com/outguard/outguard/plugins/lineage"
	"github.com/outguard/outguard/vsockproto"
)

var id = uuid.UUID{1}

func judge(t testing.TB, e *Engine, b *engine.Batch) []engine.Finding {
	t.Helper()
	var all []engine.Finding
	if err := e.Judge(b, func(f engine.Finding) { all = append(all, f) }); err != nil {
		t.Fatal(err)
	}
	return all
}

// sealed is an engine that has learned a web service.
func sealed(t testing.TB, opts *Options) (*Engine, *enginetest.Guest, *enginetest.Process) {
	t.Helper()
	e, g := New(opts), enginetest.NewGuest(id)
	server := g.Running("/usr/sbin/httpd")
	g.Serve(server, 5)
	if f := judge(t, e, g.Batch()); len(f) > 0 {
		t.Fatalf("findings while learning: %+v", f)
	}
	if _, err := e.Seal(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return e, g, server
}

func summary(findings []engine.Finding) string {
	var b strings.Builder
	for _, f := range findings {
		fmt.Fprintf(&b, "%s %d %s: %s\n", f.Rule, f.Severity, f.Technique, f.Reason)
	}
	return b.String()
}

// The first unknown event makes its task untrusted; what that task and its
// children do after it is told under another rule.
func TestExploit(t *testing.T) {
	e, g, server := sealed(t, nil)
	g.Serve(server, 3)
	g.Exploit(server)
	got := judge(t, e, g.Batch())
	want := `tsem/violation 4 T1059: "/srv/cgi/search" ran "/bin/sh" (pid 111), which the model has not seen.
tsem/untrusted 3 T1059: "/bin/sh" ran "/tmp/.x" (pid 112), which the model has not seen; it was untrusted already.
tsem/untrusted 3 T1071: "/tmp/.x" (pid 112, from "/bin/sh") connected to 203.0.113.9:4444, which the model has not seen; it was untrusted already.
tsem/untrusted 3 T1489: "/tmp/.x" (pid 112, from "/bin/sh") sent signal 15 to pid 101 ("/usr/sbin/httpd"), which the model has not seen; it was untrusted already.
`
	if diff := cmp.Diff(want, summary(got)); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	if d := got[1].Detail["ancestry"]; d != "/tmp/.x(112) < /bin/sh(111) < /srv/cgi/search(110) < /usr/sbin/httpd(101)" {
		t.Errorf("ancestry %q", d)
	}
	if first := got[1].Detail["first"]; !strings.Contains(first, fmt.Sprint("sequence ", got[0].Ref.Sequence)) {
		t.Errorf("first %q of %+v", first, got[0].Ref)
	}
	// The same again is a violation again: it is another task.
	g.Exploit(server)
	if again := judge(t, e, g.Batch()); len(again) != 4 || again[0].Rule != RuleViolation {
		t.Errorf("the second time: %s", summary(again))
	}
	if n := len(e.Forensics(id)); n != 8 {
		t.Errorf("%d forensics", n)
	}
}

// A child's record can come before that of what its parent did before making
// it: bulk records come after critical ones.
func TestUntrustedChildren(t *testing.T) {
	e, g, server := sealed(t, nil)
	early := g.Run(server, "/srv/cgi/search")
	bad := g.Event(server, vsockproto.FileOpen)
	bad.File, bad.Path.Data = enginetest.File("/etc/shadow"), []byte("/etc/shadow")
	late := g.Run(server, "/srv/cgi/search")
	g.Add(&bad)
	for _, p := range []*enginetest.Process{early, late} {
		g.Open(p, "/root/x")
	}
	got := judge(t, e, g.Batch())
	if len(got) != 3 || got[1].Rule != RuleViolation || got[2].Rule != RuleUntrusted || got[1].PID != early.Task.PID {
		t.Errorf("findings %s", summary(got))
	}
}

func TestLearnAgain(t *testing.T) {
	e, g, server := sealed(t, nil)
	g.Exploit(server)
	judge(t, e, g.Batch())
	if m, err := e.Learn(t.Context(), id); err != nil || m.Sealed {
		t.Fatalf("model %+v, error %v", m, err)
	}
	g.Exploit(server)
	if f := judge(t, e, g.Batch()); len(f) > 0 {
		t.Errorf("findings while learning: %s", summary(f))
	}
	if _, err := e.Seal(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	g.Exploit(server)
	if f := judge(t, e, g.Batch()); len(f) > 0 {
		t.Errorf("findings for what was learned: %s", summary(f))
	}
}

func TestSealWithoutModel(t *testing.T) {
	if _, err := New(nil).Seal(t.Context(), id); err == nil {
		t.Error("no error")
	}
}

// A flood of violations is counted, not listed, and the count is told.
func TestSuppressed(t *testing.T) {
	e, g, server := sealed(t, &Options{MaxViolations: 3, MaxUntrusted: 2})
	for range 5 {
		g.Exploit(server)
	}
	b := g.Batch()
	got := judge(t, e, b)
	if len(got) != 5 {
		t.Fatalf("findings %s", summary(got))
	}
	next := g.Batch()
	next.Received = b.Received.Add(time.Second)
	got = judge(t, e, next)
	want := `tsem/suppressed 4 : 2 more findings of tsem/violation in one second before this are not listed one by one.
tsem/suppressed 3 : 13 more findings of tsem/untrusted in one second before this are not listed one by one.
`
	if diff := cmp.Diff(want, summary(got)); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	if v := e.Models()[0].Violations; v != 20 {
		t.Errorf("%d violations counted", v)
	}
}

func TestUndecodable(t *testing.T) {
	e, g, server := sealed(t, nil)
	before := g.Event(server, vsockproto.FileOpen)
	bad, err := before.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	bad[len(bad)-1], bad[163] = 1, 0xff // inside the body: the header still says how long it is
	g.AddBytes(bad)
	g.Open(server, "/etc/shadow")
	got := judge(t, e, g.Batch())
	if len(got) != 2 || got[0].Rule != RuleUndecodable || got[1].Rule != RuleViolation {
		t.Errorf("findings %s", summary(got))
	}
	b := g.Batch()
	b.Count = 3
	if got := judge(t, e, b); len(got) != 1 || got[0].Rule != RuleUndecodable {
		t.Errorf("findings of a wrong count %s", summary(got))
	}
}

func TestModelled(t *testing.T) {
	file := func(t vsockproto.EventType, mode uint16, magic, prot uint32, has bool) vsockproto.Event {
		e := vsockproto.Event{Header: vsockproto.Header{Type: t}, HasFile: has, Prot: prot}
		e.File.Mode, e.File.Magic = mode, magic
		return e
	}
	const ext4 = 0xef53
	for name, c := range map[string]struct {
		e    vsockproto.Event
		want bool
	}{
		"open regular":           {file(vsockproto.FileOpen, 0o100644, ext4, 0, false), true},
		"open on proc":           {file(vsockproto.FileOpen, 0o100444, procMagic, 0, false), true},
		"open directory":         {file(vsockproto.FileOpen, 0o040755, ext4, 0, false), false},
		"open device":            {file(vsockproto.FileOpen, 0o020666, ext4, 0, false), false},
		"map regular":            {file(vsockproto.MmapFile, 0o100644, ext4, 1, true), true},
		"map on tmpfs":           {file(vsockproto.MmapFile, 0o100644, tmpfsMagic, protExec, true), false},
		"map device":             {file(vsockproto.MmapFile, 0o020666, ext4, 1, true), false},
		"map anonymous":          {file(vsockproto.MmapFile, 0, 0, 3, false), false},
		"map anonymous, execute": {file(vsockproto.MmapFile, 0, 0, 7, false), true},
		"signal":                 {vsockproto.Event{Header: vsockproto.Header{Type: vsockproto.TaskKill}, Signal: 9}, true},
		"signal SIGURG":          {vsockproto.Event{Header: vsockproto.Header{Type: vsockproto.TaskKill}, Signal: sigURG}, false},
		"fork":                   {vsockproto.Event{Header: vsockproto.Header{Type: vsockproto.TaskNewtask}}, false},
	} {
		if got := modelled(&c.e); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestTranslate(t *testing.T) {
	tree := lineage.New(identify, nil)
	var tr translator
	e := vsockproto.Event{Header: vsockproto.Header{Type: vsockproto.FileOpen}}
	e.TGID, e.PID = 77, 78
	path := func(p string, magic uint32) string {
		e.File.Magic, e.Path.Data = magic, []byte(p)
		return string(tr.translate(&e, tree.Apply(&e), tree).File.Path)
	}
	for _, c := range []struct {
		path  string
		magic uint32
		want  string
	}{
		{"/proc/77/status", procMagic, "/proc/self/status"},
		{"/proc/77/task/78/comm", procMagic, "/proc/self/task/self/comm"},
		{"/proc/1/cmdline", procMagic, "/proc/pid/cmdline"},
		{"/proc/meminfo", procMagic, "/proc/meminfo"},
		{"/proc/", procMagic, "/proc/"},
		{"", procMagic, ""},
		{"/var/77/x", 0xef53, "/var/77/x"},
	} {
		if got := path(c.path, c.magic); got != c.want {
			t.Errorf("%q becomes %q, want %q", c.path, got, c.want)
		}
	}
	digest := func(s vsockproto.DigestState, flags uint32) ID {
		e.File.Digested, e.File.Flags = s, flags
		return tr.translate(&e, tree.Apply(&e), tree).File.Digest
	}
	e.File.Digest = ID{9}
	if digest(vsockproto.DigestSHA256, 0) != (ID{9}) || digest(vsockproto.DigestSHA256, 1) != zero ||
		digest(vsockproto.DigestNoFile, 0) != zero || digest(vsockproto.DigestFailed, 0) != DigestFailed || digest(vsockproto.DigestAbsent, 0) != DigestAbsent {
		t.Error("digests by their state")
	}
	if got := pathType(vsockproto.PathChroot, vsockproto.TailTruncated|vsockproto.TailUnreachable); got != "chroot+truncated+unreachable" {
		t.Errorf("path type %q", got)
	}
	e.Type, e.Address = vsockproto.SocketAccept, vsockproto.Address{Family: afInet, Port: [2]byte{0, 80}}
	e.Socket.Family = afInet
	if a := tr.translate(&e, tree.Apply(&e), tree); a.Address.Port != 80 || a.Socket.Owner != lineage.UnknownID {
		t.Errorf("accept: %+v", a)
	}
	e.Type = vsockproto.SocketConnect
	if a := tr.translate(&e, tree.Apply(&e), tree).Address; a.Port != 20480 {
		t.Errorf("connect: %+v", a)
	}
	mapped := [16]byte{10: 0xff, 11: 0xff, 12: 192, 14: 2, 15: 1}
	e.Socket.Family, e.Address = afInet6, vsockproto.Address{Family: afInet, Addr4: [4]byte{192, 0, 2, 1}}
	if a := tr.translate(&e, tree.Apply(&e), tree).Address; a.IP6 != mapped {
		t.Errorf("an AF_INET address of an AF_INET6 socket: %+v", a)
	}
	e.Socket.Family, e.Address = afUnix, vsockproto.Address{Family: afUnix}
	e.RawAddr.Data = []byte("\x00bus\x00x")
	if a := tr.translate(&e, tree.Apply(&e), tree).Address; string(a.Path) != "@bus@x" {
		t.Errorf("abstract name %q", a.Path)
	}
}

// A model that has no room says so once, and still knows what it has.
func TestFull(t *testing.T) {
	e, g := New(&Options{MaxPoints: 3}), enginetest.NewGuest(id)
	server := g.Running("/usr/sbin/httpd")
	g.Serve(server, 5)
	if f := judge(t, e, g.Batch()); len(f) != 1 || f[0].Rule != RuleFull {
		t.Errorf("findings %s", summary(f))
	}
}

func TestCheckpointWhole(t *testing.T) {
	e, g, server := sealed(t, nil)
	g.Exploit(server)
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
	for cut := range saved {
		if New(nil).Restore(id, saved[:cut]) == nil {
			t.Fatalf("a checkpoint cut at %d of %d bytes was taken", cut, len(saved))
		}
	}
}

func FuzzRestore(f *testing.F) {
	e, g, server := sealed(f, nil)
	g.Exploit(server)
	judge(f, e, g.Batch())
	saved, err := e.Checkpoint(id)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(saved)
	e = New(nil)
	learned(f, e, id)
	if _, err := e.Join(f.Context(), id, "db", "databases"); err != nil {
		f.Fatal(err)
	}
	if saved, err = e.Checkpoint(id); err != nil {
		f.Fatal(err)
	}
	f.Add(saved)
	f.Fuzz(func(t *testing.T, b []byte) {
		e := New(nil)
		if e.Restore(id, b) != nil {
			return
		}
		once, err := e.Checkpoint(id)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Restore(id, once); err != nil {
			t.Fatal(err)
		}
		if again, err := e.Checkpoint(id); err != nil || !cmp.Equal(once, again) {
			t.Errorf("not stable, error %v", err)
		}
		judge(t, e, enginetest.NewGuest(id).Batch())
	})
}

// FuzzJudge: no bytes break the engine, and all that is not understood is told.
func FuzzJudge(f *testing.F) {
	g := enginetest.NewGuest(id)
	server := g.Running("/usr/sbin/httpd")
	g.Serve(server, 1)
	g.Exploit(server)
	f.Add(g.Batch().Records, true)
	f.Add([]byte("no record"), false)
	runtime := g.Run(g.Init(), "/usr/bin/crun")
	web := g.Contain(runtime, 11, "/crun-web", "/srv/web")
	web.Place = &enginetest.Machine
	g.Open(web, "/etc/shadow")
	g.Contain(runtime, 12, "/db", "/srv/db")
	f.Add(g.Batch().Records, true)
	f.Fuzz(func(t *testing.T, records []byte, seal bool) {
		e := New(&Options{Lineage: lineage.Options{MaxTasks: 8, MaxExited: 2}})
		b := &engine.Batch{VM: id, Count: -1, Records: records}
		for range 2 {
			if f := judge(t, e, b); len(records) > 0 && len(f) == 0 {
				t.Error("a wrong count went unnoticed")
			}
			if seal {
				if _, err := e.Seal(t.Context(), id); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

func repeat(t testing.TB, records int) (*Engine, *engine.Batch) {
	e, g, server := sealed(t, nil)
	cgi := g.Run(server, "/srv/cgi/search")
	judge(t, e, g.Batch())
	for i := 0; i < records; i += 3 {
		g.Map(cgi, "/lib/libc.so.6")
		g.Open(cgi, fmt.Sprintf("/srv/data/%d", i%3))
		g.Connect(cgi, [4]byte{127, 0, 0, 1}, 5432)
	}
	return e, g.Batch()
}

func TestRepeatAllocs(t *testing.T) {
	e, b := repeat(t, 300)
	report := func(f engine.Finding) { t.Error(f.Reason) }
	if n := testing.AllocsPerRun(10, func() { _ = e.Judge(b, report) }); n != 0 {
		t.Errorf("%g allocations", n)
	}
}

// BenchmarkJudge judges repeats, as almost all events of a sealed model are.
func BenchmarkJudge(b *testing.B) {
	e, batch := repeat(b, 300)
	report := func(f engine.Finding) { b.Error(f.Reason) }
	b.ReportAllocs()
	for b.Loop() {
		_ = e.Judge(batch, report)
	}
	b.ReportMetric(float64(batch.Count)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkMapNew maps events that were never seen: three SHA-256 each.
func BenchmarkMapNew(b *testing.B) {
	m := NewMapper()
	e := Event{Name: "file_open", TaskID: make([]byte, 32), File: File{Path: []byte("/usr/lib/x86_64-linux-gnu/libc.so.6"), PathType: "root"}}
	for b.Loop() {
		e.File.Instance = 0
		le.PutUint64(e.TaskID, le.Uint64(e.TaskID)+1)
		if _, err := m.Map(&e); err != nil {
			b.Fatal(err)
		}
	}
}

// A file that a task made has no name of its own to quixote, which its kernel
// calls a temporary one: another of the kind at the next run is no violation. To
// full it is what it is called.
func TestTemporary(t *testing.T) {
	for _, c := range []struct {
		mapping Mapping
		new     int
	}{{Quixote, 0}, {Full, 2}} {
		e, g := New(&Options{Mapping: c.mapping}), enginetest.NewGuest(id)
		run := func(name string) []engine.Finding {
			p := g.Running("/usr/bin/sort")
			made := g.Event(p, vsockproto.FileOpen)
			made.File, made.Path = enginetest.File(name), vsockproto.Tail{Flags: vsockproto.TailMade, Data: []byte("/tmp/" + name)}
			g.Add(&made)
			read := g.Event(p, vsockproto.FileOpen)
			read.File, read.Path.Data = made.File, []byte("/tmp/"+name)
			g.Add(&read)
			b := g.Batch()
			b.Session[0] = name[0] // of another boot
			return judge(t, e, b)
		}
		run("aXk2")
		if _, err := e.Seal(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if got := run("b9Qz"); len(got) != c.new {
			t.Errorf("%s: %d findings, want %d: %s", c.mapping, len(got), c.new, summary(got))
		}
	}
}
