package cli_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/apitest"
	"github.com/outguard/outguard/host/cli"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/engine/enginetest"
	"github.com/outguard/outguard/plugins/tsem"
)

const tsemData = "../../plugins/tsem/quixote/testdata"

// tsemdata lays out what Quixote's own code computed: the vectors' lines as
// vectors.jsonl, and of each run its model, its events and its records.
func tsemdata(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(os.CopyFS(ts.MkAbs("models"), os.DirFS(filepath.Join(tsemData, "models"))))
	ts.Check(os.MkdirAll(ts.MkAbs("traj"), 0o755))
	paths, err := filepath.Glob(filepath.Join(tsemData, "traj", "*.gz"))
	ts.Check(err)
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".gz")
		ts.Check(os.WriteFile(ts.MkAbs(filepath.Join("traj", name)), gunzip(ts, path), 0o644))
	}
	var lines bytes.Buffer
	for _, v := range tsemVectors(ts) {
		lines.WriteString(v.Event + "\n")
	}
	ts.Check(os.WriteFile(ts.MkAbs("vectors.jsonl"), lines.Bytes(), 0o644))
}

func gunzip(ts *testscript.TestScript, path string) []byte {
	f, err := os.Open(path)
	ts.Check(err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	ts.Check(err)
	b, err := io.ReadAll(z)
	ts.Check(err)
	return b
}

type tsemVector struct {
	Tag, Class, Event string
	Expect            map[string]any
}

func tsemVectors(ts *testscript.TestScript) (all []tsemVector) {
	for line := range bytes.Lines(gunzip(ts, filepath.Join(tsemData, "vectors.jsonl.gz"))) {
		var v tsemVector
		ts.Check(json.Unmarshal(line, &v))
		delete(v.Expect, "type_id")
		all = append(all, v)
	}
	return all
}

// measured holds a file of tsem measure's output against the vectors:
// measured FILE.
func measured(ts *testscript.TestScript, _ bool, args []string) {
	all, n := tsemVectors(ts), 0
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		var got map[string]any
		ts.Check(json.Unmarshal([]byte(line), &got))
		if got["ok"] == false && got["error"] != "" {
			delete(got, "error")
		}
		if d := cmp.Diff(all[n].Expect, got); d != "" {
			ts.Fatalf("%s (-want +got):\n%s", all[n].Tag, d)
		}
		n++
	}
	if n != len(all) {
		ts.Fatalf("%d lines of %d", n, len(all))
	}
}

// replayed holds a replay's records against a run's: replayed CODE NAME EVENTS
// FLAG...
func replayed(ts *testscript.TestScript, _ bool, args []string) {
	code, name, events := args[0], args[1], args[2]
	command := append([]string{code, "outguard", "tsem", "replay"}, args[3:]...)
	exitcode(ts, false, append(command, fmt.Sprintf("traj/%s.events.jsonl", events)))
	want := ts.ReadFile(fmt.Sprintf("traj/%s.expect.jsonl", name))
	if d := cmp.Diff(want, ts.ReadFile("stdout")); d != "" {
		ts.Fatalf("%s (-want +got):\n%s", name, d)
	}
}

// A replay of an export gives the measurement and state that the engine has,
// through the real server and the command line.
func TestExportReplaysAsLive(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "api.sock")
	l, err := api.Listen(socket, -1)
	if err != nil {
		t.Fatal(err)
	}
	live, b := tsem.New(&tsem.Options{Mapping: tsem.Quixote}), apitest.New()
	b.Add(&apipb.VM{Name: "web", Uuid: web.String(), State: "running", Enrolled: true})
	g := enginetest.NewGuest(web)
	server := g.Running("/usr/sbin/httpd")
	for i := range 20 {
		g.Serve(server, 3)
		if i%5 == 4 {
			g.Exploit(server)
		}
		batch := g.Batch()
		b.Add(batch)
		if err := live.Judge(batch, func(f engine.Finding) { t.Error(f.Reason) }); err != nil {
			t.Fatal(err)
		}
	}
	serving, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- api.New(b, nil).Serve(serving, l) }()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	file := filepath.Join(t.TempDir(), "web.jsonl")
	run := func(args ...string) string {
		var out, stderr bytes.Buffer
		if code := cli.Main(t.Context(), args, nil, &out, &stderr); code != 0 || stderr.Len() > 0 {
			t.Fatalf("%v: exit code %d, %s", args, code, stderr.String())
		}
		return out.String()
	}
	run("--socket", socket, "export", "web", "-o", file)
	if d := cmp.Diff(toSocket(t, run, socket), readFile(t, file)); d != "" {
		t.Errorf("what went to a socket (-socket +file):\n%s", d)
	}
	want := live.Models()[0]
	for _, dialect := range []string{"quixote", "json"} {
		var final struct {
			Measurement, State string
			Points             uint64
		}
		lines := strings.Split(strings.TrimSpace(run("tsem", "replay", "--brief", "--dialect", dialect, file)), "\n")
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &final); err != nil || len(lines) != 2 {
			t.Fatalf("%q, error %v", lines, err)
		}
		if final.Measurement != want.Measurement || final.State != want.State || final.Points != want.Points || want.Points == 0 {
			t.Errorf("%s: %+v, the engine has %+v", dialect, final, want)
		}
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// toSocket is what an export writes to a socket.
func toSocket(t *testing.T, run func(...string) string, monitor string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "siem.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan []byte, 1)
	go func() {
		defer close(got)
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		b, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		got <- b
	}()
	run("--socket", monitor, "export", "web", "--to", "unix:"+path)
	return string(<-got)
}
