package decide

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
)

var (
	vm  = uuid.MustParse("11111111-1111-4111-8111-111111111111")
	vm2 = uuid.MustParse("22222222-2222-4222-8222-222222222222")
	t0  = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
)

func violation(id uuid.UUID) *engine.Finding {
	return &engine.Finding{ID: "f1", Engine: "tsem", VM: id, Rule: "tsem/violation", Severity: engine.High}
}

func at(d time.Duration) time.Time { return t0.Add(d) }

// decideAndNote decides and notes, as the monitor does.
func decideAndNote(p *Playbook, in Input, h *History) Decision {
	d := Decide(p, in, h)
	h.Note(d)
	return d
}

func TestDefaultPlaybook(t *testing.T) {
	p := Default()
	for _, c := range []struct {
		engine   string
		severity engine.Severity
		rule     string
		steps    []Step
	}{
		{"tsem", engine.High, "violation", []Step{Log, Pause, Capture}},
		{"tsem", engine.Severest, "violation", []Step{Log, Pause, Capture}},
		{"tsem", engine.Medium, "", nil},
		{"monitor", engine.Severest, "lying-guest", []Step{Log, Pause, Capture}},
		{"monitor", engine.High, "", nil},
		{"ioc", engine.Severest, "", nil},
	} {
		f := &engine.Finding{Engine: c.engine, VM: vm, Severity: c.severity}
		d := Decide(p, Input{Finding: f, Now: t0}, &History{})
		if d.Rule != c.rule || !slices.Equal(d.Steps, c.steps) {
			t.Errorf("%s %d: %s %v, want %s %v", c.engine, c.severity, d.Rule, d.Steps, c.rule, c.steps)
		}
	}
}

// TestManyViolationsOneCapture: a flood is answered once, and again after the
// VM was let run.
func TestManyViolationsOneCapture(t *testing.T) {
	p, h := Default(), &History{}
	acted := 0
	for i := range 1000 {
		in := Input{Finding: violation(vm), RunSince: at(-time.Hour), Now: at(time.Duration(i) * time.Millisecond)}
		if len(decideAndNote(p, in, h).Steps) > 0 {
			acted++
		}
	}
	if acted != 1 {
		t.Fatalf("%d of 1000 violations acted", acted)
	}
	if last := h.Last(vm, "violation"); last.Held != 999 {
		t.Errorf("%d held back are counted", last.Held)
	}
	if d := Decide(p, Input{Finding: violation(vm2), Now: at(time.Second)}, h); len(d.Steps) == 0 {
		t.Error("another VM was held back")
	}
	resumed := Input{Finding: violation(vm), RunSince: at(time.Minute), Now: at(61 * time.Second)}
	if d := decideAndNote(p, resumed, h); len(d.Steps) != 3 {
		t.Errorf("after resume: %+v", d)
	}
	if d := decideAndNote(p, resumed, h); d.Held == "" {
		t.Errorf("acted twice after resume: %+v", d)
	}
}

func TestOncePer(t *testing.T) {
	s1, s2 := uuid.MustParse("aaaaaaaa-0000-4000-8000-000000000001"), uuid.MustParse("aaaaaaaa-0000-4000-8000-000000000002")
	first := Input{Session: s1, RunSince: at(-time.Hour), Now: t0}
	again := map[string]Input{
		"same":    {Session: s1, RunSince: at(-time.Hour), Now: at(time.Second)},
		"session": {Session: s2, RunSince: at(-time.Hour), Now: at(time.Second)},
		"run":     {Session: s1, RunSince: at(time.Millisecond), Now: at(time.Second)},
		"later":   {Session: s1, RunSince: at(-time.Hour), Now: at(time.Hour)},
	}
	for _, c := range []struct{ once, cooldown, acts string }{
		{"run", "0s", "run"},
		{"session", "0s", "session"},
		{"vm", "0s", ""},
		{"event", "0s", "later run same session"},
		{"event", "10m", "later"},
		{"run", "10m", ""},
	} {
		p, err := Parse(fmt.Appendf(nil, "version: 1\nrules:\n  - {name: a, match: {}, steps: [pause], once_per: %s, cooldown: %s}\n", c.once, c.cooldown))
		if err != nil {
			t.Fatal(err)
		}
		var acts []string
		for name, in := range again {
			h := &History{}
			first.Finding, in.Finding = violation(vm), violation(vm)
			decideAndNote(p, first, h)
			d := decideAndNote(p, in, h)
			if (len(d.Steps) > 0) == (d.Held != "") {
				t.Errorf("%s: %+v", name, d)
			}
			if len(d.Steps) > 0 {
				acts = append(acts, name)
			}
		}
		slices.Sort(acts)
		if got := strings.Join(acts, " "); got != c.acts {
			t.Errorf("once per %s, cooldown %s: acts again for %q, want %q", c.once, c.cooldown, got, c.acts)
		}
	}
}

func TestDecideIsPure(t *testing.T) {
	p, h := Default(), &History{}
	in := Input{Finding: violation(vm), Now: t0}
	a, b := Decide(p, in, h), Decide(p, in, h)
	if len(h.rules) != 0 || fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("history %v, %v and %v", h, a, b)
	}
}

func TestForgetAndDrop(t *testing.T) {
	p, h := Default(), &History{}
	in := Input{Finding: violation(vm), Now: t0}
	d := decideAndNote(p, in, h)
	h.Forget(vm, d.Rule)
	if d := decideAndNote(p, in, h); len(d.Steps) == 0 {
		t.Errorf("a failed order is not given again: %+v", d)
	}
	h.Drop(vm)
	if len(h.rules) != 0 {
		t.Errorf("%v", h)
	}
}

func TestMatch(t *testing.T) {
	f := &engine.Finding{Engine: "tsem", VM: vm, Rule: "tsem/violation", Severity: engine.High, Technique: "T1059.004",
		Detail: map[string]string{"program": "/usr/bin/python3", "container": "shop-1", "cgroup": "77"}}
	labels := map[string][]string{"production": {"db-*", "web-*"}, "by-uuid": {"11111111-*"}, "staging": {"stage-*"}}
	for _, c := range []struct {
		m    Match
		want bool
	}{
		{Match{}, true},
		{Match{Engine: "tsem"}, true},
		{Match{Engine: "tse"}, false},
		{Match{Rule: "tsem/*"}, true},
		{Match{Rule: "*/violation"}, true},
		{Match{Rule: "*/loss"}, false},
		{Match{Technique: "T1059*"}, true},
		{Match{Technique: "T1059.00?"}, true},
		{Match{Technique: "T1059.0?"}, false},
		{Match{VM: "web-*"}, true},
		{Match{VM: "11111111-*"}, true},
		{Match{VM: "db-*"}, false},
		{Match{Severity: engine.High}, true},
		{Match{Severity: engine.Severest}, false},
		{Match{Engine: "tsem", VM: "db-*"}, false},
		{Match{Label: "production"}, true},
		{Match{Label: "by-uuid"}, true},
		{Match{Label: "staging"}, false},
		{Match{Label: "none"}, false},
		{Match{Program: "/usr/bin/*"}, true},
		{Match{Program: "/usr/sbin/*"}, false},
		{Match{Container: "shop-?"}, true},
		{Match{Container: "77"}, false}, // it has a name
		{Match{Label: "production", Container: "other"}, false},
	} {
		if got := c.m.holds(f, "web-1", labels); got != c.want {
			t.Errorf("%+v: %t", c.m, got)
		}
	}
}

// TestMatchOfTheUnknown: a glob stands for no program and no container that the
// engine did not tell, and a container without a name is its cgroup.
func TestMatchOfTheUnknown(t *testing.T) {
	f := &engine.Finding{VM: vm, Detail: map[string]string{"cgroup": "77"}}
	for _, c := range []struct {
		m    Match
		want bool
	}{{Match{Program: "*"}, false}, {Match{Container: "77"}, true}} {
		if got := c.m.holds(f, "", nil); got != c.want {
			t.Errorf("%+v: %t", c.m, got)
		}
	}
	if (&Match{Container: "*"}).holds(&engine.Finding{VM: vm}, "", nil) {
		t.Error("a finding of no container matched")
	}
}

func TestGlobIsBounded(t *testing.T) {
	began := time.Now()
	if glob(strings.Repeat("*a", 100)+"b", strings.Repeat("a", 4000)) {
		t.Error("matched")
	}
	if took := time.Since(began); took > time.Minute { // one that is not bounded takes ages
		t.Errorf("took %s", took)
	}
}

func TestParseErrors(t *testing.T) {
	const head = "version: 1\nrules:\n"
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", head + "  - name: a\n    macth: {}\n    steps: [log]\n", `4:5: unknown field "macth"`},
		{"unknown key in match", head + "  - name: a\n    match:\n      sevirity: high\n    steps: [log]\n", "5:7: "},
		{"unknown top key", head + "  - {name: a, match: {}, steps: [log]}\nrule: []\n", "4:1: "},
		{"severity", head + "  - name: a\n    match: {severity: hihg}\n    steps: [log]\n", `4:23: rules[0].match.severity: "hihg" is none of`},
		{"step", head + "  - name: a\n    match: {}\n    steps: [log, dance]\n", `5:18: rules[0].steps[1]: "dance" is none of`},
		{"capture before pause", head + "  - name: a\n    match: {}\n    steps: [capture, pause]\n", "5:13: rules[0].steps[0]: capture must follow pause"},
		{"resume first", head + "  - name: a\n    match: {}\n    steps: [resume, pause]\n", "5:13: rules[0].steps[0]: resume must come last"},
		{"step twice", head + "  - name: a\n    match: {}\n    steps: [log, log]\n", "5:18: "},
		{"no steps", head + "  - name: a\n    match: {}\n", "steps: is empty"},
		{"no match", head + "  - name: a\n    steps: [log]\n", "rules[0].match: is missing"},
		{"no name", head + "  - match: {}\n    steps: [log]\n", "rules[0].name: is missing"},
		{"same name", head + "  - {name: a, match: {}, steps: [log]}\n  - {name: a, match: {}, steps: [log]}\n", `4:12: rules[1].name: "a" names an earlier rule`},
		{"cooldown", head + "  - name: a\n    match: {}\n    steps: [log]\n    cooldown: soon\n", `6:15: rules[0].cooldown: "soon"`},
		{"negative cooldown", head + "  - name: a\n    match: {}\n    steps: [log]\n    cooldown: -5m\n", "6:15: "},
		{"once", head + "  - name: a\n    match: {}\n    steps: [log]\n    once_per: day\n", `6:15: rules[0].once_per: "day"`},
		{"version", "version: 2\nrules: []\n", "1:10: version: must be 1"},
		{"no version", "rules: []\n", "version: must be 1"},
		{"type", "version: 1\nrules: seven\n", "2:8: "},
		{"syntax", "version: 1\nrules: [\n", "2:"},
		{"repeated once", head + "  - name: a\n    match: {repeated: {times: 1, within: 1m}}\n    steps: [log]\n", `4:31: rules[0].match.repeated.times: 1 is not between 2 and 100`},
		{"repeated for ever", head + "  - name: a\n    match: {repeated: {times: 2}}\n    steps: [log]\n", `rules[0].match.repeated.within: "" is no duration`},
		{"repeated too long", head + "  - name: a\n    match: {repeated: {times: 2, within: 48h}}\n    steps: [log]\n", "48h is more than 24h"},
		{"unknown label", head + "  - name: a\n    match: {label: prod}\n    steps: [log]\n", `4:20: rules[0].match.label: "prod" is none of the labels`},
		{"empty label", "version: 1\nlabels: {prod: []}\nrules: []\n", `"prod" has 0 globs`},
		{"label's name", "version: 1\nlabels: {\"a b\": [x]}\nrules: []\n", `"a b" is no label`},
		{"limit", "version: 1\nlimits: {capture: {vm: 4}}\nrules: []\n", `2:24: limits.capture.vm: "4" is no limit`},
		{"limit of a pause", "version: 1\nlimits: {pause: {vm: 4/1h}}\nrules: []\n", "2:10: "},
		{"limit's time", "version: 1\nlimits: {capture: {total: 4/48h}}\nrules: []\n", "at most 24h"},
		{"save", head + "  - name: a\n    match: {}\n    steps: [save]\n", `"save" is none of log, alert, kill, kill-tree, freeze, isolate, pause, capture, revert, reset, destroy, resume`},
		{"kill when paused", head + "  - name: a\n    match: {}\n    steps: [pause, kill]\n", "5:20: rules[0].steps[1]: kill must come before pause"},
		{"kill twice", head + "  - name: a\n    match: {}\n    steps: [kill-tree, kill]\n", "5:24: rules[0].steps[1]: kill and kill-tree end the same"},
		{"capture after revert", head + "  - name: a\n    match: {}\n    steps: [pause, revert, capture]\n", "5:28: rules[0].steps[2]: capture must come before revert"},
		{"kill after revert", head + "  - name: a\n    match: {}\n    steps: [revert, kill]\n", "5:21: rules[0].steps[1]: kill must come before pause, revert"},
		{"reset after revert", head + "  - name: a\n    match: {}\n    steps: [revert, reset]\n", "5:21: rules[0].steps[1]: revert and reset each"},
		{"state without revert", head + "  - name: a\n    match: {}\n    steps: [log]\n    state: x\n", "6:12: rules[0].state: needs the step revert"},
		{"state that is a path", head + "  - name: a\n    match: {}\n    steps: [revert]\n    state: ../x\n", "6:12: rules[0].state: \"../x\" is no saved state's name"},
		{"capture after reset", head + "  - name: a\n    match: {}\n    steps: [pause, reset, capture]\n", "5:27: rules[0].steps[2]: capture must come before revert and reset"},
		{"destroy first", head + "  - name: a\n    match: {}\n    steps: [destroy, log]\n", "5:13: rules[0].steps[0]: destroy must come last"},
		{"nobody to alert", head + "  - name: a\n    match: {}\n    steps: [alert]\n", "rules[0].steps: alert needs whom to tell"},
		{"unknown alert", "version: 1\nalerts: [{name: x, command: [/x]}]\nrules:\n  - {name: a, match: {}, steps: [alert], alert: [y]}\n", `4:50: rules[0].alert[0]: "y" is none of the alerts`},
		{"no step alert", "version: 1\nalerts: [{name: x, command: [/x]}]\nrules:\n  - {name: a, match: {}, steps: [log], alert: [x]}\n", "rules[0].alert: needs the step alert"},
		{"both", "version: 1\nalerts: [{name: x, command: [/x], webhook: \"http://a/\"}]\nrules: []\n", "2:10: alerts[0]: either"},
		{"relative command", "version: 1\nalerts: [{name: x, command: [page]}]\nrules: []\n", `2:30: alerts[0].command[0]: "page" is no absolute path`},
		{"no URL", "version: 1\nalerts: [{name: x, webhook: \"ftp://a/secret\"}]\nrules: []\n", "alerts[0].webhook: no URL such as"},
		{"password in a URL", "version: 1\nalerts: [{name: x, webhook: \"http://u:p@a/\"}]\nrules: []\n", "use token_file"},
		{"timeout", "version: 1\nalerts: [{name: x, command: [/x], timeout: 1h}]\nrules: []\n", "alerts[0].timeout: 1h is not between"},
		{"alert twice", "version: 1\nalerts: [{name: x, command: [/x]}, {name: x, command: [/y]}]\nrules: []\n", `alerts[1].name: "x" names an earlier one`},
		{"host and vm", head + "  - name: a\n    match: {host: true, vm: web}\n    steps: [log]\n", "4:29: rules[0].match.vm: a finding of the host's own"},
		{"host's pause", head + "  - name: a\n    match: {host: true}\n    steps: [log, pause]\n", "5:18: rules[0].steps[1]: pause is of a VM"},
		{"alias", "version: 1\nrules:\n  - &a {name: a, match: {}, steps: [log]}\n  - *a\n", "3:5: anchors"},
		{"two documents", "version: 1\n---\nversion: 1\n", "one document"},
		{"control character", head + "  - {name: \"a\\e[31m\", match: {}, steps: [log]}\n", "control character"},
		{"not UTF-8", "version: 1 # \xff\n", "UTF-8"},
		{"large", strings.Repeat("#", MaxBytes+1), "larger"},
		{"empty", "", "version: must be 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := Parse([]byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if p != nil {
				t.Error("a playbook beside an error")
			}
		})
	}
}

func TestAllBadValuesAtOnce(t *testing.T) {
	_, err := Parse([]byte("version: 3\nrules:\n  - {name: a, match: {severity: x}, steps: [y]}\n"))
	if n := strings.Count(fmt.Sprint(err), "\n") + 1; n != 3 {
		t.Errorf("%d errors: %v", n, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(DefaultText())
	f.Add("version: 1\nrules:\n  - {name: a, match: {vm: \"*\"}, steps: [log, pause, capture, resume], cooldown: 1h}\n")
	f.Add("version: 1\nrules: [&a {}, *a]\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Parse([]byte(text))
		if (p == nil) == (err == nil) {
			t.Fatalf("%v, %v", p, err)
		}
		if p != nil {
			Decide(p, Input{Finding: violation(vm), Now: t0}, &History{})
		}
	})
}
