package decide

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

func parse(t *testing.T, text string) *Playbook {
	t.Helper()
	p, err := Parse([]byte("version: 1\n" + text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func about(id uuid.UUID, d time.Duration) Input {
	return Input{Finding: violation(id), RunSince: at(-time.Hour), Now: at(d)}
}

// TestRepeated: a rule that asks for a repetition is passed over until it has
// come, counts each VM by itself, and begins anew when it has acted.
func TestRepeated(t *testing.T) {
	p, h := parse(t, `rules:
  - {name: often, match: {repeated: {times: 3, within: 10s}}, steps: [pause], once_per: event}
  - {name: once, match: {}, steps: [log], once_per: event}
`), &History{}
	var got []string
	for _, s := range []int{0, 1, 20, 21, 22, 23, 24, 25} {
		decideAndNote(p, about(vm2, time.Duration(s)*time.Minute), h)
		got = append(got, fmt.Sprint(s, decideAndNote(p, about(vm, time.Duration(s)*time.Second), h).Rule))
	}
	if text := strings.Join(got, " "); text != "0once 1once 20once 21once 22often 23once 24once 25often" {
		t.Error(text)
	}
	if last := h.Last(vm2, "often"); !last.At.IsZero() {
		t.Errorf("the other VM's findings, a minute apart: %+v", last)
	}
}

// TestRepeatedIsBounded: however many findings come, few of their times are
// kept.
func TestRepeatedIsBounded(t *testing.T) {
	p, h := parse(t, "rules: [{name: a, match: {repeated: {times: 2, within: 1ns}}, steps: [log]}]\n"), &History{}
	for i := range 10_000 {
		decideAndNote(p, about(vm, time.Duration(i)*time.Second), h)
	}
	if seen := h.seen(vm, "a"); len(seen) != MaxTimes || cap(seen) > 4*MaxTimes {
		t.Errorf("%d times are kept, in room for %d", len(seen), cap(seen))
	}
}

// TestDryRun: a rule on trial is recorded and passed over, and holds nothing
// back when it comes into force; a playbook on trial orders nothing.
func TestDryRun(t *testing.T) {
	const rules = `rules:
  - {name: new, match: {engine: tsem}, steps: [pause, capture], dry_run: true}
  - {name: old, match: {}, steps: [log], once_per: event}
`
	p, h := parse(t, rules), &History{}
	d := decideAndNote(p, about(vm, 0), h)
	if d.Rule != "old" || len(d.Dry) != 1 || d.Dry[0].Rule != "new" || !slices.Equal(d.Dry[0].Steps, []Step{Pause, Capture}) {
		t.Errorf("%+v", d)
	}
	if d := decideAndNote(p, about(vm, time.Second), h); d.Dry[0].Held == "" || d.Rule != "old" {
		t.Errorf("again: %+v", d)
	}
	p = parse(t, strings.ReplaceAll(rules, ", dry_run: true", ""))
	if d := decideAndNote(p, about(vm, 2*time.Second), h); d.Rule != "new" || len(d.Steps) != 2 {
		t.Errorf("in force: %+v", d)
	}
	p = parse(t, "dry_run: true\n"+rules)
	d = decideAndNote(p, about(vm2, 0), h)
	if d.Rule != "" || len(d.Steps) != 0 || len(d.Dry) != 2 || d.Dry[1].Rule != "old" {
		t.Errorf("all on trial: %+v", d)
	}
}

// TestLimits: a limit takes a capture from a decision and leaves the pause; of
// one VM, of all, and only for as long as its time.
func TestLimits(t *testing.T) {
	p, h := parse(t, `limits: {capture: {vm: 2/1h, total: 3/1h}}
rules: [{name: a, match: {}, steps: [log, pause, capture], once_per: event}]
`), &History{}
	for i, c := range []struct {
		vm      uuid.UUID
		at      time.Duration
		dropped string
	}{
		{vm, 0, ""}, {vm, time.Minute, ""}, {vm, 2 * time.Minute, "limit of this VM: 2/1h"},
		{vm2, 3 * time.Minute, ""}, {vm2, 4 * time.Minute, "limit of all VMs: 3/1h"},
		{vm, time.Hour, ""}, // the first is an hour ago
		{vm, time.Hour + time.Second, "limit of this VM: 2/1h"},
	} {
		d := decideAndNote(p, about(c.vm, c.at), h)
		want := []Step{Log, Pause, Capture}
		if c.dropped != "" {
			want = want[:2]
		}
		if !slices.Equal(d.Steps, want) || (c.dropped != "") != (len(d.Dropped) == 1) || c.dropped != "" && d.Dropped[0] != (Dropped{Capture, c.dropped}) {
			t.Errorf("%d: %v, dropped %v", i, d.Steps, d.Dropped)
		}
	}
	if got := parse(t, "rules: []\n").Limits; got != DefaultLimits() {
		t.Errorf("%+v", got)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	p, h := parse(t, "limits: {capture: {vm: 1000/24h, total: 1000/24h}}\nrules: [{name: a, match: {}, steps: [pause, capture], once_per: event}]\n"), &History{}
	for i := range 5000 {
		decideAndNote(p, about(vm, time.Duration(i)*time.Second), h)
	}
	for k, times := range h.steps {
		if len(times) > MaxPer {
			t.Errorf("%v: %d times", k, len(times))
		}
	}
	for range 3 { // days later
		decideAndNote(p, about(vm, 72*time.Hour), h)
	}
	if n := len(h.steps[spent{false, vm, Capture, false}]); n != 3 {
		t.Errorf("%d times are kept after days", n)
	}
}

// TestHostsOwn: a rule is for the host's own findings or for those of VMs, and
// one for the host's acts each time unless it says otherwise.
func TestHostsOwn(t *testing.T) {
	p, h := parse(t, `rules:
  - {name: vms, match: {}, steps: [pause], once_per: event}
  - {name: host, match: {host: true, severity: high}, steps: [log]}
`), &History{}
	for range 2 {
		if d := decideAndNote(p, about(uuid.Nil, 0), h); d.Rule != "host" || len(d.Steps) != 1 {
			t.Errorf("the host's: %+v", d)
		}
	}
	if d := decideAndNote(p, about(vm, 0), h); d.Rule != "vms" {
		t.Errorf("a VM's: %+v", d)
	}
}

// TestHostHasItsOwnLimit: what VMs use up of a limit is theirs, not the host's.
func TestHostHasItsOwnLimit(t *testing.T) {
	p, h := parse(t, `alerts: [{name: a, command: [/bin/true]}]
limits: {alert: {vm: 2/1h, total: 100/1h}}
rules:
  - {name: vms, match: {}, steps: [alert], once_per: event}
  - {name: host, match: {host: true}, steps: [alert]}
`), &History{}
	for i := range 10 {
		decideAndNote(p, about(uuid.UUID{byte(i + 1)}, 0), h)
	}
	for i, want := range []int{1, 1, 0} {
		if d := decideAndNote(p, about(uuid.Nil, time.Minute), h); d.Rule != "host" || len(d.Steps) != want {
			t.Errorf("%d: %+v", i, d)
		}
	}
}

// TestLimitsInAnyOrder: after a start decisions are noted one VM after the other.
func TestLimitsInAnyOrder(t *testing.T) {
	p, h := parse(t, "limits: {capture: {vm: 9/1h, total: 3/1h}}\nrules: [{name: a, match: {}, steps: [pause, capture], once_per: event}]\n"), &History{}
	now := about(vm, 30*time.Hour)
	for i, ago := range []time.Duration{30 * time.Minute, 20 * time.Hour, 10 * time.Minute, 15 * time.Hour} {
		h.Note(Decision{VM: uuid.UUID{byte(i + 1)}, Rule: "a", At: now.Now.Add(-ago), Steps: []Step{Pause, Capture}})
	}
	for i, want := range []int{2, 1} { // two within the hour, and one more
		if d := decideAndNote(p, now, h); len(d.Steps) != want {
			t.Errorf("%d: %v, dropped %v", i, d.Steps, d.Dropped)
		}
	}
}

// TestRevertIsLimited: a VM that falls again as soon as it is reverted does not go
// round for ever, and does not run on either.
func TestRevertIsLimited(t *testing.T) {
	p, h := parse(t, "rules: [{name: a, match: {}, steps: [pause, capture, revert, resume], state: clean, once_per: event}]\n"), &History{}
	for i := range 4 {
		d := decideAndNote(p, about(vm, time.Duration(i)*time.Minute), h)
		want := []Step{Pause, Capture, Revert, Resume}
		if i > 1 {
			want = want[:2]
		}
		if !slices.Equal(d.Steps, want) || (d.State == "clean") != (i < 2) || len(d.Dropped) != 4-len(want) {
			t.Errorf("%d: %v, back to %q, dropped %v", i, d.Steps, d.State, d.Dropped)
		}
	}
}

// TestUndone: what was found of before a revert, and is judged after it, has the
// VM reverted no second time; any other rule holds for it as ever.
func TestUndone(t *testing.T) {
	p, h := parse(t, "rules: [{name: back, match: {engine: tsem}, steps: [revert], once_per: event}]\n"), &History{}
	in := about(vm, 0)
	in.Finding.Received = at(-time.Second)
	in.Undone = at(-time.Millisecond)
	if d := decideAndNote(p, in, h); d.Held == "" || len(d.Steps) != 0 {
		t.Errorf("from before the revert: %+v", d)
	}
	in.Undone = at(-time.Minute)
	if d := decideAndNote(p, in, h); d.Held != "" || len(d.Steps) != 1 {
		t.Errorf("from after it: %+v", d)
	}
	p = parse(t, "rules: [{name: stop, match: {}, steps: [pause], once_per: event}]\n")
	in.Undone = at(0)
	if d := decideAndNote(p, in, h); d.Held != "" || len(d.Steps) != 1 {
		t.Errorf("a rule that reverts nothing: %+v", d)
	}
}
