package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	osexec "os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/apitest"
	"github.com/outguard/outguard/host/bundle"
	"github.com/outguard/outguard/host/cli"
	"github.com/outguard/outguard/host/decide"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

var update = flag.Bool("update", false, "write the scripts' golden parts and docs/CLI.md anew")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"outguard": func() {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		os.Exit(cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}})
}

// TestScript runs each script against a real server on a unix socket, with a
// monitor in memory behind it, and real evidence and a real bundle on disk.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		Setup:               setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"emit": emit, "exitcode": exitcode, "flip": flip, "monitor-ends": monitorEnds, "held": held,
			"contain": contain, "tsemdata": tsemdata, "measured": measured, "replayed": replayed,
		},
	})
}

var (
	web = uuid.MustParse("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
	db  = uuid.MustParse("7f9619ff-8b86-4d01-b42d-00cf4fc964ff")
	at0 = time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)
)

const configText = "state_dir: %[1]s/state\nrun_dir: %[1]s/run\nlibvirt: %[1]s/run/libvirt-sock\n"

func setup(env *testscript.Env) error {
	env.Setenv("GORACE", os.Getenv("GORACE")) // with -race each process sleeps a second when it ends
	work := env.WorkDir
	env.Setenv("TZ", "UTC")
	for _, dir := range []string{"state", "run", "policy"} {
		if err := os.Mkdir(filepath.Join(work, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(work, "outguard.yaml"), fmt.Appendf(nil, configText, work), 0o644); err != nil {
		return err
	}
	if err := record(env, filepath.Join(work, "state")); err != nil {
		return err
	}
	if err := policyRecord(filepath.Join(work, "policy")); err != nil {
		return err
	}
	return serve(env, filepath.Join(work, "run", "api.sock"))
}

// serve starts the monitor of one script. The scripts' `monitor-ends` ends it.
func serve(env *testscript.Env, socket string) error {
	l, err := api.Listen(socket, -1)
	if err != nil {
		return err
	}
	b := monitor()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.New(b, nil).Serve(ctx, l) }()
	end := func() {
		cancel()
		if err := <-done; err != nil {
			env.T().Fatal("serve: ", err)
		}
		done <- nil
	}
	env.Values["backend"], env.Values["stop"] = b, end
	env.Defer(end)
	return nil
}

// monitor knows three domains: one with everything, one that was never heard,
// one that nobody watches.
func monitor() *apitest.Backend {
	b := apitest.New()
	hooks := []*apipb.Hook{
		{Name: "bprm_committed_creds", Wanted: true, Available: true, Attached: true, Tag: "0011223344556677"},
		{Name: "file_open", Wanted: true, Available: true, Attached: true, Tag: "8899aabbccddeeff"},
		{Name: "mmap_file", Wanted: true, Available: true},
	}
	model := engine.Model{
		VM: web, Mapping: "quixote", Points: 321, Events: 45678, Violations: 1,
		Measurement: "ab12", State: "cd34", LastNew: at0, Forensics: 1, SinceNew: 4567, Quiet: true,
		Hours: []engine.Hour{{Start: at0.Truncate(time.Hour), Events: 40000, New: 321}, {Start: at0.Truncate(time.Hour).Add(time.Hour), Events: 5678}},
	}
	b.Add(
		&apipb.VM{
			Name: "web", Uuid: web.String(), State: "running", Enrolled: true, Transport: "vhost-user", Findings: 2,
			EvidenceBytes: 3 << 20, EvidenceNext: 104233,
			Session: &apipb.Session{
				Id: "00000000-0000-0000-0000-000000000009", State: "live", Started: api.FormatTime(at0),
				LastSeen: api.FormatTime(at0.Add(time.Minute)), Kernel: "6.1.0-18\x1b[31m\u202e", Build: "v1.2.3",
				BootId: "11111111-2222-3333-4444-555555555555", Cpus: 2, Version: 1, Hooks: hooks, Profile: "default", Policy: 3, PolicyAcked: 3,
			},
			Classes: []*apipb.ClassCount{{Class: "critical", Received: 1000}, {Class: "bulk", Received: 40000, Lost: 7, Missing: 1}},
			Models:  []*apipb.Model{api.ModelOf(&api.Model{Engine: "tsem", Model: model})},
		},
		&apipb.VM{Name: "db", Uuid: db.String(), State: "shut off", Enrolled: true},
		&apipb.VM{Name: "elsewhere", Uuid: uuid.UUID{15: 3}.String(), State: "running"},
		api.Model{Engine: "tsem", Model: model},
		batch(1, exec(700, "apache2", "/usr/bin/sh", "sh", "-c", "id; \"uname\" -a")),
		batch(2, exec(701, "sh\x1b]0;x\a", "/tmp/.x\u202egpj.sh", "./x\n"), connect(701)),
		&engine.Finding{
			ID: "01J", Engine: "tsem", VM: web, At: at0.Add(time.Second), Severity: engine.Low, Rule: "tsem/new-point",
			Reason: "first of its kind",
		},
		&engine.Finding{
			ID: "02K", Engine: "tsem", VM: web, At: at0.Add(2 * time.Second), Received: at0, BootNs: 5e9,
			Ref: &engine.Ref{Index: 2, Class: 1, Sequence: 9}, Severity: engine.High, Rule: "tsem/violation",
			Technique: "T1059", Reason: "not in the sealed model: \x1b[2J", Event: "bprm_committed_creds", PID: 701,
			Comm: "sh\x1b]0;x\a", Path: "/tmp/.x\u202egpj.sh", Detail: map[string]string{"cell": "ff00", "point": strings.Repeat("0a", 32)},
		},
		&apipb.Order{
			Id: "0190", Uuid: web.String(), Step: "pause", State: "done", By: "playbook", Rule: "violation", Finding: "02K",
			Decided: api.FormatTime(at0), Journalled: api.FormatTime(at0.Add(300 * time.Microsecond)),
			Started: api.FormatTime(at0.Add(400 * time.Microsecond)), Effect: api.FormatTime(at0.Add(2500 * time.Microsecond)),
			Ended: api.FormatTime(at0.Add(2600 * time.Microsecond)),
		},
		&apipb.Order{
			Id: "0191", Uuid: db.String(), Step: "capture", State: "failed", By: "api uid 0 pid 7",
			Error: "libvirtd does not answer", Decided: api.FormatTime(at0.Add(time.Hour)),
		},
		&apipb.Bundle{
			Id: "b", Dir: "/var/lib/outguard/bundles/20260102T030405Z-web-02K", Uuid: web.String(),
			Created: api.FormatTime(at0), Bytes: 300 << 20, Disk: 40 << 20, Findings: []string{"02K"},
		},
	)
	return b
}

// contain gives the monitor a container, a model of it, and a violation of that.
func contain(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Value("backend").(*apitest.Backend).Add(
		engine.Container{
			Cgroup: 11, Path: "/machine.slice/crun-shop.scope", Runtime: "crun", ID: "shop", Begun: true, Mnt: 4026532237, PID: 4026532240,
			User: 4026531837, Net: 4026532242, Program: "/bin/shop\x1b", BootNs: 7e9, Tasks: 3, Workload: "crun/shop",
		},
		engine.Container{Cgroup: 12, Path: "/docker/new", Runtime: "docker", ID: "new"},
		api.Model{Engine: "tsem", Model: engine.Model{VM: web, Workload: "crun/shop", Mapping: "full", Points: 7, Events: 70, Sealed: true}},
		&engine.Finding{
			ID: "03L", Engine: "tsem", VM: web, At: at0.Add(3 * time.Second), Severity: engine.High, Rule: "tsem/violation",
			Reason: "not in the sealed model", Detail: map[string]string{"point": strings.Repeat("0b", 32), "workload": "crun/shop"},
		},
	)
}

func batch(index uint64, events ...*vsockproto.Event) *engine.Batch {
	b := &engine.Batch{VM: web, Index: index, Received: at0.Add(time.Duration(index) * time.Millisecond), Count: len(events)}
	for i, e := range events {
		e.Class, e.Sequence, e.BootNs = vsockproto.Critical, index*10+uint64(i), 1e9
		var err error
		if b.Records, err = e.Append(b.Records); err != nil {
			panic(err)
		}
	}
	return b
}

func exec(pid uint32, comm, path string, argv ...string) *vsockproto.Event {
	e := &vsockproto.Event{Header: vsockproto.Header{Type: vsockproto.BprmCommittedCreds}}
	e.PID, e.TGID, e.Path.Data = pid, pid, []byte(path)
	copy(e.Comm[:], comm)
	for _, a := range argv {
		e.Argv.Data = append(append(e.Argv.Data, a...), 0)
	}
	e.File.Digested, e.File.Digest = vsockproto.DigestSHA256, [32]byte{0xde, 0xad, 0xbe, 0xef, 1, 2}
	return e
}

func connect(pid uint32) *vsockproto.Event {
	e := &vsockproto.Event{Header: vsockproto.Header{Type: vsockproto.SocketConnect}}
	e.PID, e.TGID = pid, pid
	e.Socket.Family, e.Socket.Type = 2, 1
	e.Address = vsockproto.Address{Family: 2, Port: [2]byte{0x11, 0x5c}, Addr4: [4]byte{192, 0, 2, 1}}
	return e
}

// record writes this host's key, a little evidence and a bundle of it.
func record(env *testscript.Env, state string) error {
	key, err := evidence.LoadOrCreateKey(state, "host")
	if err != nil {
		return err
	}
	store, err := evidence.Open(filepath.Join(state, evidence.StoreDir), key, nil)
	if err != nil {
		return err
	}
	var stream *evidence.Stream // web's, in the end
	for _, vm := range []uuid.UUID{db, web} {
		if stream, err = store.Stream(vm); err != nil {
			return err
		}
		for i := range 10 {
			if _, err := stream.Append(evidence.KindFrame, at0.Add(time.Duration(i)*time.Second), []byte("a frame")); err != nil {
				return err
			}
		}
		if _, err := stream.SignHead(); err != nil {
			return err
		}
	}
	timeline := &bundle.Timeline{VM: web, VMName: "web", Finding: "02K", Received: at0}
	timeline.Add(at0, bundle.StepReceived, "frame 2")
	timeline.Add(at0.Add(120*time.Microsecond), bundle.StepFinding, "tsem/violation", bundle.Fact{Name: "comm", Value: "sh\x1b"})
	timeline.Sort()
	dir, err := bundle.Create(context.Background(), filepath.Join(state, evidence.BundlesDir), &bundle.Spec{
		Host: "host", VM: web, VMName: "web", Finding: "02K", Received: at0, Created: at0.Add(time.Minute),
		Stream: stream.Dir(), From: 2, To: 6, Timeline: timeline,
		Parts: []bundle.Part{{Path: bundle.DomainPart, Data: []byte("<domain/>")}},
	}, key)
	if err != nil {
		return err
	}
	env.Setenv("BUNDLE", dir)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	env.Setenv("RECIPIENT", id.Recipient().String())
	if err := os.WriteFile(filepath.Join(env.WorkDir, "age.key"), []byte(id.String()+"\n"), 0o600); err != nil {
		return err
	}
	env.Setenv("STREAM", stream.Dir())
	if err := sealed(env, dir, key, id.Recipient()); err != nil {
		return err
	}
	return store.Close()
}

// sealed makes an archive for a recipient, as the monitor does, of a copy of a
// bundle.
func sealed(env *testscript.Env, dir string, key *evidence.Key, to age.Recipient) error {
	copied := filepath.Join(env.WorkDir, "sealed")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		return err
	}
	path, err := bundle.Archive(context.Background(), copied, key, &bundle.PackOptions{Recipients: []age.Recipient{to}})
	env.Setenv("SEALED", path)
	return err
}

// policyRecord writes a store in which two domains had findings: web three
// violations of two programs and a resume between them, db one.
func policyRecord(state string) error {
	key, err := evidence.LoadOrCreateKey(state, "host")
	if err != nil {
		return err
	}
	store, err := evidence.Open(filepath.Join(state, evidence.StoreDir), key, nil)
	if err != nil {
		return err
	}
	put := func(vm uuid.UUID, kind evidence.Kind, s int, v any) {
		stream, serr := store.Stream(vm)
		text, jerr := json.Marshal(v)
		if err = errors.Join(err, serr, jerr); err == nil {
			_, err = stream.AppendCritical(kind, at0.Add(time.Duration(s)*time.Second), text)
		}
	}
	found := func(vm uuid.UUID, s int, id, program string) {
		f := engine.Finding{
			ID: id, Engine: "tsem", VM: vm, At: at0.Add(time.Duration(s) * time.Second), Rule: "tsem/violation", Severity: engine.High,
			Technique: "T1059.004", Reason: "new", Comm: "sh\x1b", Detail: map[string]string{"program": program},
		}
		put(vm, evidence.KindFinding, s, f)
		d := decide.Decision{At: f.At, VM: vm, Finding: id, Rule: "violation", Steps: []decide.Step{decide.Log, decide.Pause, decide.Capture}}
		if s == 2 {
			d.Steps, d.Held = nil, "acted in this run of the VM"
		}
		put(vm, evidence.KindDecision, s, d)
	}
	found(web, 0, "A1", "/usr/bin/dash")
	found(web, 2, "A2", "/usr/bin/python3")
	put(web, evidence.KindNote, 3, map[string]string{"what": "domain-resumed"})
	found(web, 4, "A3", "/usr/bin/python3")
	found(db, 1, "B1", "/usr/bin/dash")
	return errors.Join(err, store.Close())
}

// emit adds an event: emit PID PATH
func emit(ts *testscript.TestScript, _ bool, args []string) {
	pid, err := strconv.ParseUint(args[0], 10, 32)
	ts.Check(err)
	ts.Value("backend").(*apitest.Backend).Add(batch(9, exec(uint32(pid), "sh", args[1])))
}

// held has a record's lock taken, as a monitor does, or with ! lets go of it.
func held(ts *testscript.TestScript, neg bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	if last, ok := locks.LoadAndDelete(f.Name()); ok {
		ts.Check(last.(*os.File).Close())
	}
	if neg {
		ts.Check(f.Close())
		return
	}
	ts.Check(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	locks.Store(f.Name(), f)
}

var locks sync.Map // of held

// monitorEnds ends the monitor. It is not called stop: that ends a script.
func monitorEnds(ts *testscript.TestScript, _ bool, _ []string) { ts.Value("stop").(func())() }

// exitcode runs a command and wants it to end with a code: exitcode N COMMAND ARG...
func exitcode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *osexec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// flip changes one bit in the middle of a file.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	b, err := os.ReadFile(path)
	ts.Check(err)
	b[len(b)/2] ^= 1
	ts.Check(os.WriteFile(path, b, 0o600))
}
