package quixote

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/outguard/outguard/plugins/tsem"
)

// gunzip reads a file of testdata.
func gunzip(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// vector is a line and what Quixote's own userspace code made of it.
type vector struct {
	N                 int
	Tag, Class, Event string
	Expect            map[string]any
}

func vectors(t testing.TB) (all []vector) {
	t.Helper()
	for line := range bytes.Lines(gunzip(t, "vectors.jsonl.gz")) {
		var v vector
		d := json.NewDecoder(bytes.NewReader(line))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

// measured is what Measure says of the lines.
func measured(t testing.TB, d Dialect, lines ...string) (all []map[string]any) {
	t.Helper()
	var out bytes.Buffer
	if err := Measure(&out, strings.NewReader(strings.Join(lines, "\n")+"\n"), d); err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(out.Bytes()) {
		var m map[string]any
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.UseNumber()
		if err := dec.Decode(&m); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		all = append(all, m)
	}
	return all
}

func TestVectors(t *testing.T) {
	classes := map[string]int{}
	all := vectors(t)
	var lines []string
	for _, v := range all {
		lines = append(lines, v.Event)
	}
	for i, got := range measured(t, Text, lines...) {
		v := all[i]
		classes[v.Class]++
		delete(v.Expect, "type_id")
		delete(got, "error")
		if d := cmp.Diff(v.Expect, got); d != "" {
			t.Errorf("%d %s, %s (-want +got):\n%s", v.N, v.Tag, v.Class, d)
		}
	}
	if want := map[string]int{"ok": 267, "quirk": 12, "uninit-port0": 10, "reject": 17}; !maps.Equal(classes, want) {
		t.Errorf("vectors by class: %v, want %v", classes, want)
	}
}

// What both dialects accept means the same in both. Of the vectors that are
// JSON of whole events, the strict dialect accepts all.
func TestStrictVectors(t *testing.T) {
	all := vectors(t)
	var lines []string
	for _, v := range all {
		lines = append(lines, v.Event)
	}
	for i, got := range measured(t, Strict, lines...) {
		v := all[i]
		delete(v.Expect, "type_id")
		accepted := got["ok"] == true
		if whole := v.Class == "ok" || v.Class == "uninit-port0"; whole && !cmp.Equal(v.Expect, got) {
			t.Errorf("%d %s, %s (-want +got):\n%s", v.N, v.Tag, v.Class, cmp.Diff(v.Expect, got))
		}
		if want, named := strictly[v.Tag]; named && accepted != want {
			t.Errorf("%s: accepted %v: %v", v.Tag, accepted, got["error"])
		}
	}
}

// strictly says which of the lines that are odd in Quixote are whole JSON.
var strictly = map[string]bool{
	"quirk/empty-s_id": true, "quirk/empty-unix-address": true, "quirk/nonnumeric-number": false,
	"quirk/trailing-junk-number": false, "quirk/octal-uid": true, "quirk/backslash-mid": true, "quirk/backslash-u": true,
	"quirk/backslash-end": true, "quirk/lbrace-in-path": true, "quirk/rbrace-in-path": true,
	"quirk/braces-balanced-in-path": true, "quirk/braces-in-process": true, "quirk/mode-key-overflow": false,
	"quirk/negative-uid": false, "quirk/uid-overflow": false, "quirk/capeff-overflow": true, "quirk/s_id-32chars": false,
	"quirk/digest-short": false, "quirk/digest-nonhex": false, "quirk/unix-109chars": false, "quirk/task_id-short": false,
	"quirk/task_id-odd": false, "quirk/undefined-type": false, "quirk/no-space-after-colon": true, "quirk/missing-coe": false,
	"quirk/missing-task_id": false, "quirk/capability-legacy-key": false, "quirk/duplicate-key-first-wins": false,
	"quirk/key-substring": true,
}

func TestTaskID(t *testing.T) {
	events := map[int]string{}
	for _, v := range vectors(t) {
		events[v.N] = v.Event
	}
	p, n := NewParser(Text), 0
	for line := range bytes.Lines(gunzip(t, "task_id.jsonl.gz")) {
		var v struct {
			Tag    string
			From   int    `json:"from_vector"`
			Parent string `json:"p_task_id"`
			TaskID string `json:"task_id_kernel_form_quixote_digests"`
		}
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatal(err)
		}
		var parent tsem.ID
		e, err := p.Parse([]byte(events[v.From]))
		if err != nil || !unhex(parent[:], []byte(v.Parent)) {
			continue // its vector is kept elsewhere
		}
		if id, err := tsem.TaskID("bprm_committed_creds", parent, &e.Event); err != nil || hex.EncodeToString(id[:]) != v.TaskID {
			t.Errorf("%s: %x, error %v, want %s", v.Tag, id, err, v.TaskID)
		}
		n++
	}
	if n != 36 {
		t.Errorf("%d task ids, want 36", n)
	}
}

// run is one trajectory run.
type run struct {
	name, events string
	o            ReplayOptions
}

func parseRun(t testing.TB, path string) run {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := run{name: strings.TrimSuffix(filepath.Base(path), ".args"), o: ReplayOptions{SealAfter: -1}}
	words := strings.Fields(strings.NewReplacer("events=", "", "args=", "").Replace(string(b)))
	r.events = words[0]
	for pair := range slices.Chunk(words[1:], 2) {
		switch value := pair[1]; pair[0] {
		case "-a":
			r.o.Aggregate = new(tsem.ID)
			if !unhex(r.o.Aggregate[:], []byte(value)) {
				t.Fatalf("%s: aggregate %q", path, value)
			}
		case "-m":
			model, err := os.ReadFile(filepath.Join("testdata/models", filepath.Base(value)))
			if err != nil {
				t.Fatal(err)
			}
			r.o.Model = bytes.NewReader(model)
		case "-s":
			if r.o.SealAfter, err = strconv.Atoi(value); err != nil {
				t.Fatal(err)
			}
		default:
			t.Fatalf("%s: argument %q", path, pair[0])
		}
	}
	return r
}

// The records are those that Quixote's model gave, byte for byte.
func TestTrajectories(t *testing.T) {
	paths, err := filepath.Glob("testdata/traj/*.args")
	if err != nil || len(paths) != 11 {
		t.Fatalf("%d runs, error %v", len(paths), err)
	}
	for _, path := range paths {
		r := parseRun(t, path)
		t.Run(r.name, func(t *testing.T) {
			var out bytes.Buffer
			events := gunzip(t, "traj/"+r.events+".events.jsonl.gz")
			err := Replay(&out, bytes.NewReader(events), &r.o)
			if failed := errors.Is(err, ErrModel); failed != (r.name == "T15-state-after-seal") || err != nil && !failed {
				t.Errorf("error %v", err)
			}
			want := gunzip(t, "traj/"+r.name+".expect.jsonl.gz")
			if !bytes.Equal(out.Bytes(), want) {
				t.Errorf("records differ, first: %s", firstDifference(want, out.Bytes()))
			}
		})
	}
}

func firstDifference(want, got []byte) string {
	w, g := bufio.NewScanner(bytes.NewReader(want)), bufio.NewScanner(bytes.NewReader(got))
	w.Buffer(nil, 1<<20)
	g.Buffer(nil, 1<<20)
	for w.Scan() {
		if !g.Scan() || w.Text() != g.Text() {
			return "want\n" + w.Text() + "\ngot\n" + g.Text()
		}
	}
	return "more than wanted"
}
