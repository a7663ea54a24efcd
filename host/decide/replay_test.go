package decide

import (
	"testing"
	"time"

	"github.com/outguard/outguard/plugins/engine"
)

// TestReplay asks a playbook about findings of the past: once for each run, which
// begins when it is told so; a rule on trial is counted apart.
func TestReplay(t *testing.T) {
	r := NewReplay(parse(t, `rules:
  - {name: trial, match: {engine: tsem}, steps: [pause], dry_run: true, once_per: event}
  - {name: real, match: {engine: tsem}, steps: [log, pause]}
`))
	find := func(d time.Duration) Decision {
		return r.Find(&engine.Finding{ID: "f", Engine: "tsem", VM: vm, At: at(d)}, "web")
	}
	for i, acts := range []bool{true, false, true} {
		if i == 2 {
			r.Runs(vm, at(90*time.Second))
		}
		if d := find(time.Duration(i) * time.Minute); (len(d.Steps) > 0) != acts || len(d.Dry) != 1 {
			t.Errorf("%d: %+v", i, d)
		}
	}
	r.Find(&engine.Finding{Engine: "monitor", VM: vm, At: at(time.Hour)}, "web")
	total, trial, real := r.Total(), r.Rule("trial"), r.Rule("real")
	if total.Findings != 4 || total.Acted != 2 || total.Held != 1 || total.Steps[Pause] != 2 || total.Trials != 3 {
		t.Errorf("total: %+v", total)
	}
	if trial.Findings != 3 || trial.Acted != 3 || trial.Trials != 3 || real.Findings != 3 || real.Acted != 2 || real.Trials != 0 {
		t.Errorf("trial: %+v, real: %+v", trial, real)
	}
}
