package tsem

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// The vectors were computed by Quixote's own userspace code.
func TestVectors(t *testing.T) {
	m, n := NewMapper(), 0
	lines(t, "testdata/vectors.jsonl.gz", func(line []byte) {
		var v struct {
			Tag, Class, Event string
			Expect            struct{ COE, CELL, Point string }
		}
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatal(err)
		}
		e, err := parseEvent([]byte(v.Event))
		if err != nil {
			t.Errorf("%s: %v", v.Tag, err)
			return
		}
		for _, when := range []string{"computed", "remembered"} {
			c, err := m.Map(&e)
			if err != nil {
				t.Errorf("%s: %v", v.Tag, err)
			}
			if hexOf(c.COE) != v.Expect.COE || hexOf(c.CELL) != v.Expect.CELL || hexOf(c.Point) != v.Expect.Point {
				t.Errorf("%s, %s: coe %x, cell %x, point %x, want %+v", v.Tag, when, c.COE, c.CELL, c.Point, v.Expect)
			}
		}
		n++
	})
	if n != 277 {
		t.Errorf("%d vectors, want 277", n)
	}
}

func TestTaskID(t *testing.T) {
	events := map[int]Event{}
	lines(t, "testdata/vectors.jsonl.gz", func(line []byte) {
		var v struct {
			N     int
			Event string
		}
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatal(err)
		}
		if e, err := parseEvent([]byte(v.Event)); err == nil {
			events[v.N] = e
		}
	})
	n := 0
	lines(t, "testdata/task_id.jsonl.gz", func(line []byte) {
		var v struct {
			Tag     string
			From    int    `json:"from_vector"`
			Parent  string `json:"p_task_id"`
			TaskID  string `json:"task_id_kernel_form_quixote_digests"`
			COE     string `json:"coe_quixote"`
			CELL    string `json:"cell_quixote"`
			Unknown json.RawMessage
		}
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatal(err)
		}
		e, has := events[v.From]
		if !has {
			return // its vector is not of a class that is read strictly
		}
		parent, err := parseID(v.Parent)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := TaskID("bprm_committed_creds", parent, &e); err != nil || hexOf(id) != v.TaskID {
			t.Errorf("%s: %x, error %v, want %s", v.Tag, id, err, v.TaskID)
		}
		n++
	})
	if n != 36 {
		t.Errorf("only %d task ids", n)
	}
}

// run is one trajectory run: a model file, an aggregate, where to seal.
type run struct {
	name, events, model, aggregate string
	sealAt                         int
}

func parseRun(t *testing.T, path string) run {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := run{name: strings.TrimSuffix(filepath.Base(path), ".args"), sealAt: -1}
	words := strings.Fields(strings.NewReplacer("events=", "", "args=", "").Replace(string(b)))
	r.events = words[0]
	for i := 1; i+1 < len(words); i += 2 {
		switch words[i] {
		case "-a":
			r.aggregate = words[i+1]
		case "-m":
			r.model = filepath.Join("testdata/models", filepath.Base(words[i+1]))
		case "-s":
			if r.sealAt, err = strconv.Atoi(words[i+1]); err != nil {
				t.Fatal(err)
			}
		default:
			t.Fatalf("%s: argument %q", path, words[i])
		}
	}
	return r
}

func (r run) start(t *testing.T) (*Model, error) {
	t.Helper()
	m := NewModel(0)
	if r.model != "" {
		f, err := os.Open(r.model)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if err := m.Load(s.Text()); err != nil {
				return m, err
			}
		}
	}
	if r.aggregate != "" {
		a, err := parseID(r.aggregate)
		if err != nil {
			t.Fatal(err)
		}
		m.SetAggregate(a)
	}
	return m, nil
}

// record is one line of what Quixote's model answered.
type record struct {
	Rec                   string
	ModelLoaded           *bool `json:"model_loaded"`
	N                     int
	Point                 string
	Update                *bool
	Added, Violation      bool
	Measurement, State    string
	Points                int
	Trajectory, Forensics uint64
	PointList             []struct {
		Point string
		Valid bool
		Count uint64
	} `json:"point_list"`
}

func TestTrajectories(t *testing.T) {
	paths, err := filepath.Glob("testdata/traj/*.args")
	if err != nil || len(paths) < 10 {
		t.Fatalf("%d runs, error %v", len(paths), err)
	}
	for _, path := range paths {
		r := parseRun(t, path)
		t.Run(r.name, func(t *testing.T) { r.check(t) })
	}
}

func (r run) check(t *testing.T) {
	var events []Event
	lines(t, "testdata/traj/"+r.events+".events.jsonl.gz", func(line []byte) {
		e, err := parseEvent(line)
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	})
	m, loadErr := r.start(t)
	mapper := NewMapper()
	lines(t, "testdata/traj/"+r.name+".expect.jsonl.gz", func(line []byte) {
		var want record
		if err := json.Unmarshal(line, &want); err != nil {
			t.Fatal(err)
		}
		switch want.Rec {
		case "init":
			if failed := want.ModelLoaded != nil && !*want.ModelLoaded; failed != (loadErr != nil) {
				t.Errorf("load: %v, want failure %v", loadErr, failed)
			}
		case "event":
			if want.N == r.sealAt {
				m.Seal()
			}
			checkUpdate(t, m, mapper, &events[want.N], &want)
		case "final":
			checkFinal(t, m, &want)
		}
	})
}

func checkUpdate(t *testing.T, m *Model, mapper *Mapper, e *Event, want *record) {
	t.Helper()
	m.apply(e)
	c, err := mapper.Map(e)
	if err != nil {
		t.Fatal(err)
	}
	out, err := m.Update(c.Point)
	if failed := want.Update != nil && !*want.Update; failed || err != nil {
		if failed != (err != nil) {
			t.Errorf("event %d: error %v, want failure %v", want.N, err, failed)
		}
		return
	}
	if hexOf(c.Point) != want.Point || out.Added != want.Added || out.Violation != want.Violation ||
		hexOf(m.Measurement()) != want.Measurement || hexOf(m.State()) != want.State {
		t.Errorf("event %d: point %x, %+v, measurement %x, state %x, want %+v", want.N, c.Point, out, m.Measurement(), m.State(), want)
	}
}

func checkFinal(t *testing.T, m *Model, want *record) {
	t.Helper()
	if hexOf(m.Measurement()) != want.Measurement || len(m.Points()) != want.Points ||
		m.Trajectory() != want.Trajectory || m.Forensics() != want.Forensics {
		t.Errorf("final: measurement %x, %d points, trajectory %d, forensics %d, want %s, %d, %d, %d",
			m.Measurement(), len(m.Points()), m.Trajectory(), m.Forensics(), want.Measurement, want.Points, want.Trajectory, want.Forensics)
	}
	if hexOf(m.State()) != want.State {
		t.Errorf("final state %x, want %s", m.State(), want.State)
	}
	for i, p := range m.Points() {
		if w := want.PointList[i]; hexOf(p.Value) != w.Point || p.Valid != w.Valid || p.Count != w.Count {
			t.Errorf("point %d: %+v, want %+v", i, p, w)
		}
	}
}
