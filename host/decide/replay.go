package decide

import (
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
)

// Replay asks a playbook about findings of the past, as if it had been in force
// then. It starts without a history. What a decision would have changed (a VM
// that stands finds nothing more) is not known, and not made up.
type Replay struct {
	playbook *Playbook
	history  History
	runs     map[uuid.UUID]time.Time // since when each VM runs
	total    Summary
	byRule   map[string]*Summary
}

// Summary counts what came of findings.
type Summary struct {
	Findings uint64          `json:"findings"`
	Acted    uint64          `json:"acted"`   // something would have been ordered
	Held     uint64          `json:"held"`    // the rule held back
	Dropped  uint64          `json:"dropped"` // steps that a limit took
	Steps    map[Step]uint64 `json:"steps"`   // that would have been ordered
	Trials   uint64          `json:"trials"`  // rules on trial that would have acted
}

// NewReplay returns a replay that has seen nothing.
func NewReplay(p *Playbook) *Replay {
	r := &Replay{playbook: p, runs: map[uuid.UUID]time.Time{}, byRule: map[string]*Summary{}}
	r.total.Steps = map[Step]uint64{}
	return r
}

// Runs says that a VM was started or resumed.
func (r *Replay) Runs(vm uuid.UUID, at time.Time) { r.runs[vm] = at }

// Find returns what the playbook would have decided of a finding. Findings come
// in the order of their times.
func (r *Replay) Find(f *engine.Finding, name string) Decision {
	if _, ok := r.runs[f.VM]; !ok {
		r.runs[f.VM] = f.At // as one that was found running
	}
	in := Input{Finding: f, Name: name, RunSince: r.runs[f.VM], Now: f.At}
	if f.Ref != nil {
		in.Session = f.Ref.Session
	}
	d := Decide(r.playbook, in, &r.history)
	r.history.Note(d)
	r.total.count(&d)
	if d.Rule != "" {
		r.rule(d.Rule).count(&d)
	}
	for _, t := range d.Dry {
		r.rule(t.Rule).try(t)
		if len(t.Steps) > 0 {
			r.total.Trials++
		}
	}
	return d
}

func (r *Replay) rule(name string) *Summary {
	s := r.byRule[name]
	if s == nil {
		s = &Summary{Steps: map[Step]uint64{}}
		r.byRule[name] = s
	}
	return s
}

func (s *Summary) count(d *Decision) {
	s.Findings++
	if len(d.Steps) > 0 {
		s.Acted++
	}
	if d.Held != "" {
		s.Held++
	}
	s.Dropped += uint64(len(d.Dropped))
	for _, step := range d.Steps {
		s.Steps[step]++
	}
}

// try counts what a rule on trial would have done, as if it were in force.
func (s *Summary) try(t Trial) {
	s.count(&Decision{Steps: t.Steps, Held: t.Held, Dropped: t.Dropped})
	if len(t.Steps) > 0 {
		s.Trials++
	}
}

// Total counts all findings.
func (r *Replay) Total() Summary { return r.total }

// Rule counts what a rule decided, or would have on trial.
func (r *Replay) Rule(name string) Summary { return *r.rule(name) }
