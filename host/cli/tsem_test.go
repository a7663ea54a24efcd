package cli_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
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

// runs replays each run: runs CODE NAME FLAG...
func replayed(ts *testscript.TestScript, _ bool, args []string) {
	code, name, events := args[0], args[1], args[2]
	command := append([]string{code, "outguard", "tsem", "replay"}, args[3:]...)
	exitcode(ts, false, append(command, fmt.Sprintf("traj/%s.events.jsonl", events)))
	want := ts.ReadFile(fmt.Sprintf("traj/%s.expect.jsonl", name))
	if d := cmp.Diff(want, ts.ReadFile("stdout")); d != "" {
		ts.Fatalf("%s (-want +got):\n%s", name, d)
	}
}
