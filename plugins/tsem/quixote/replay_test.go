package quixote

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/outguard/outguard/plugins/tsem"
)

func records(t testing.TB, events string, o *ReplayOptions) (all []map[string]any) {
	t.Helper()
	var out bytes.Buffer
	if err := Replay(&out, strings.NewReader(events), o); err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(out.Bytes()) {
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		all = append(all, m)
	}
	return all
}

func shell(t testing.TB) []string {
	return strings.Split(strings.TrimSuffix(string(gunzip(t, "traj/shell150.events.jsonl.gz")), "\n"), "\n")
}

// An aggregate line sets the aggregate and is no event; a line that is neither
// has a record, and the replay goes on.
func TestReplayLines(t *testing.T) {
	events, a := shell(t)[:3], tsem.ID{7}
	aggregate := `{"export": {"type": "aggregate"}, "aggregate": {"value": "` + hexOf(a) + `"}}`
	for _, d := range []Dialect{Text, Strict} {
		want := records(t, strings.Join(events, "\n"), &ReplayOptions{Dialect: d, Aggregate: &a, SealAfter: -1})
		got := records(t, aggregate+" \n"+aggregate+"\n"+strings.Join(events, "\n"), &ReplayOptions{Dialect: d, SealAfter: -1})
		if d == Text { // where a trailing blank is no event
			if got[1]["update"] != false || got[1]["n"] != 0.0 {
				t.Errorf("a line that is nothing: %v", got[1])
			}
			got = append(got[:1], got[2:]...)
		}
		if len(got) != 5 || got[4]["measurement"] != want[4]["measurement"] || got[4]["state"] != want[4]["state"] {
			t.Errorf("%d: %v, want %v", d, got, want)
		}
		short := `{"export": {"type": "aggregate"}, "aggregate": {"value": "ab"}}`
		if r := records(t, short, &ReplayOptions{Dialect: d}); r[1]["update"] != false {
			t.Errorf("an aggregate that is short: %v", r)
		}
	}
}

// log and async_event lines that hold an event are judged as events; the log
// lines of older kernels hold none.
func TestReplayLog(t *testing.T) {
	e := shell(t)[0]
	log := strings.Replace(e, `{"type": "event"}`, `{"type": "log"}`, 1)
	async := strings.Replace(e, `{"type": "event"}`, `{"type": "async_event"}`, 1)
	bare := strings.Replace(e, `"export": {"type": "event"}, `, "", 1)
	old := `{"export": {"type": "log"}, "log": {"process": "sh", "event": "file_open", "action": "DENY"}}`
	for _, d := range []Dialect{Text, Strict} {
		got := records(t, strings.Join([]string{e, log, async, bare, old}, "\n"), &ReplayOptions{Dialect: d, SealAfter: 1})
		if got[1]["added"] != true || got[2]["added"] != false || got[2]["sealed"] != true || got[3]["point"] != got[1]["point"] ||
			got[4]["point"] != got[1]["point"] || got[5]["update"] != false {
			t.Errorf("%v", got)
		}
	}
}

func TestReplayBrief(t *testing.T) {
	all := strings.Join(shell(t), "\n")
	long, brief := records(t, all, &ReplayOptions{SealAfter: 9}), records(t, all, &ReplayOptions{SealAfter: 9, Brief: true})
	if len(brief) != 2 || len(long) != 152 || brief[1]["measurement"] != long[151]["measurement"] {
		t.Errorf("%d and %d records", len(brief), len(long))
	}
}

// A path that has no directory is an event without a point; the model goes on.
func TestReplayNoPoison(t *testing.T) {
	temporary := strings.Replace(line("sh", fileText(`"instance": "1", "owner": "`+strings.Repeat("0f", 32)+`", "type": "root", "pathname": "f"`), ""), "XX", "", 1)
	got := records(t, temporary+"\n"+shell(t)[0], &ReplayOptions{SealAfter: -1})
	if got[1]["update"] != false || got[2]["added"] != true {
		t.Errorf("%v", got)
	}
	if m := measured(t, Text, temporary); m[0]["ok"] != false || !strings.Contains(m[0]["error"].(string), tsem.ErrPath.Error()) {
		t.Errorf("measured: %v", m)
	}
}

func TestReadErrors(t *testing.T) {
	broken := iotest.ErrReader(io.ErrClosedPipe)
	if err := Measure(io.Discard, broken, Text); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("measure: %v", err)
	}
	if err := Replay(io.Discard, broken, &ReplayOptions{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("replay: %v", err)
	}
}

// Lines are as they stand; one that is too long is one line that is no event.
func TestLines(t *testing.T) {
	e := shell(t)[0]
	long := e[:len(e)-1] + strings.Repeat(" ", MaxLine) + "}"
	got := measured(t, Text, e, "", e+"\r", long, e+" ", strings.Repeat("x", 300<<10), e)
	ok := ""
	for _, m := range got {
		if m["ok"] == true {
			ok += "+"
		} else {
			ok += "-"
		}
	}
	if ok != "+-----+" {
		t.Errorf("lines %s", ok)
	}
	if !strings.Contains(got[3]["error"].(string), "too long") {
		t.Errorf("%v", got[3])
	}
}

// A line that is read costs no memory of its own, in either dialect.
func TestParseAllocs(t *testing.T) {
	lines := shell(t)
	for _, d := range []Dialect{Text, Strict} {
		p, mapper := NewParser(d), tsem.NewMapper()
		all := func() {
			for _, l := range lines {
				e, err := p.Parse([]byte(l))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := mapper.Map(&e.Event); err != nil {
					t.Fatal(err)
				}
			}
		}
		all()
		all()
		bytes := make([][]byte, len(lines))
		for i, l := range lines {
			bytes[i] = []byte(l)
		}
		if n := testing.AllocsPerRun(10, func() {
			for _, l := range bytes {
				e, _ := p.Parse(l)
				_, _ = mapper.Map(&e.Event)
			}
		}); n > 0 {
			t.Errorf("dialect %d: %v allocations for %d lines", d, n, len(lines))
		}
	}
}
