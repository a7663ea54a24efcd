package decide

import (
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
)

// Input is a finding with what the host knows beside it.
type Input struct {
	Finding *engine.Finding
	Session uuid.UUID // of the VM's agent; zero where there is none
	Name    string    // the domain's name
	// RunSince is when the VM last began to run: was started or resumed. For
	// a VM that the monitor found running when it began, it is that moment;
	// for one found paused, zero.
	RunSince time.Time
	Undone   time.Time // a revert has undone what had arrived before; zero: none has
	Now      time.Time
}

// Decision is what is to be done about one finding.
type Decision struct {
	At      time.Time
	VM      uuid.UUID
	Session uuid.UUID
	Finding string // its id
	Rule    string // the playbook's rule, "" where none matched
	Steps   []Step // in order; none where the rule held back
	Held    string // why it held back, "" where it did not

	Alerts  []string  `json:",omitempty"` // names of whom the step alert tells
	State   string    `json:",omitempty"` // what revert goes back to; "": see Rule
	Dropped []Dropped `json:",omitempty"` // steps of the rule that a limit took
	Counted []string  `json:",omitempty"` // rules with a repetition that this finding counts for
	Dry     []Trial   `json:",omitempty"` // what rules on trial would have done
}

// Dropped is a step that a limit took from a decision.
type Dropped struct {
	Step Step   `json:"step"`
	Why  string `json:"why"`
}

// Trial is what a rule would have decided that is not in force.
type Trial struct {
	Rule    string    `json:"rule"`
	Steps   []Step    `json:"steps,omitempty"`
	Held    string    `json:"held,omitempty"`
	Dropped []Dropped `json:"dropped,omitempty"`
}

// maxTrials bounds what one decision says of rules on trial.
const maxTrials = 16

// Decide returns what the playbook says of a finding. It changes nothing.
func Decide(p *Playbook, in Input, h *History) Decision {
	f := in.Finding
	d := Decision{At: in.Now, VM: f.VM, Session: in.Session, Finding: f.ID}
	for i := range p.Rules {
		r := &p.Rules[i]
		if !r.Match.holds(f, in.Name, p.Labels) {
			continue
		}
		if r.Match.Repeated.Times > 0 {
			d.Counted = append(d.Counted, r.Name)
			if !r.repeated(in, h) {
				continue
			}
		}
		dry := r.DryRun || p.DryRun
		t := r.acts(p, in, h, dry)
		if !dry {
			d.Rule, d.Steps, d.Held, d.Dropped = t.Rule, t.Steps, t.Held, t.Dropped
			if slices.Contains(t.Steps, Alert) {
				d.Alerts = r.Alerts
			}
			if slices.Contains(t.Steps, Revert) {
				d.State = r.State
			}
			return d
		}
		if len(d.Dry) < maxTrials {
			d.Dry = append(d.Dry, t)
		}
		if !r.DryRun { // the whole playbook is on trial, and this rule would have decided
			return d
		}
	}
	return d
}

// acts is what a rule that matches does about a finding.
func (r *Rule) acts(p *Playbook, in Input, h *History, dry bool) Trial {
	t := Trial{Rule: r.Name}
	if at := in.Finding.Received; slices.Contains(r.Steps, Revert) && !at.IsZero() && at.Before(in.Undone) {
		t.Held = "a revert has undone it"
	} else if last := h.last(in.Finding.VM, r.Name, dry); !last.At.IsZero() {
		t.Held = r.held(last, in)
	}
	if t.Held == "" {
		t.Steps, t.Dropped = p.Limits.apply(r.Steps, in, h, dry)
	}
	return t
}

// repeated reports whether a rule has matched as often as it asks for, this
// finding counted.
func (r *Rule) repeated(in Input, h *History) bool {
	from, n := in.Now.Add(-r.Match.Repeated.Within), 1
	for _, at := range h.seen(in.Finding.VM, r.Name) {
		if !at.Before(from) {
			n++
		}
	}
	return n >= r.Match.Repeated.Times
}
