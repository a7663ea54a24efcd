package decide

import (
	"fmt"
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
}

// Key names one rule's history with one VM.
type Key struct {
	VM   uuid.UUID
	Rule string
}

// Last is what a rule last did about a VM.
type Last struct {
	At      time.Time
	Session uuid.UUID
	Held    uint64 // findings held back since
}

// History is what the rules did. Decide only reads it; Note adds a decision.
type History map[Key]Last

// Decide returns what the playbook says of a finding. It changes nothing.
func Decide(p *Playbook, in Input, h History) Decision {
	f := in.Finding
	d := Decision{At: in.Now, VM: f.VM, Session: in.Session, Finding: f.ID}
	for i := range p.Rules {
		r := &p.Rules[i]
		if !r.Match.holds(f, in.Name) {
			continue
		}
		d.Rule = r.Name
		last, acted := h[Key{f.VM, r.Name}]
		if acted {
			d.Held = r.held(last, in)
		}
		if d.Held == "" {
			d.Steps = r.Steps
		}
		return d
	}
	return d
}

// held says why a rule that acted at last does not act now, "" where it does.
func (r *Rule) held(last Last, in Input) string {
	switch r.OncePer {
	case PerRun:
		if !in.RunSince.After(last.At) {
			return "acted in this run of the VM"
		}
	case PerSession:
		if last.Session == in.Session {
			return "acted in this session"
		}
	case PerVM:
		return "acted on this VM"
	}
	if until := last.At.Add(r.Cooldown); in.Now.Before(until) {
		return fmt.Sprintf("cooling down for %s", until.Sub(in.Now).Round(time.Millisecond))
	}
	return ""
}

// Note records a decision: what acted starts anew, what was held is counted.
func (h History) Note(d Decision) {
	if d.Rule == "" {
		return
	}
	k := Key{d.VM, d.Rule}
	if d.Held != "" {
		last := h[k]
		last.Held++
		h[k] = last
		return
	}
	h[k] = Last{At: d.At, Session: d.Session}
}

// Forget lets a rule act on a VM again: its order was refused or failed.
func (h History) Forget(vm uuid.UUID, rule string) { delete(h, Key{vm, rule}) }

// Drop forgets a VM that is no more.
func (h History) Drop(vm uuid.UUID) {
	for k := range h {
		if k.VM == vm {
			delete(h, k)
		}
	}
}

func (m *Match) holds(f *engine.Finding, name string) bool {
	return f.Severity >= m.Severity &&
		(m.Engine == "" || glob(m.Engine, f.Engine)) &&
		(m.Rule == "" || glob(m.Rule, f.Rule)) &&
		(m.Technique == "" || glob(m.Technique, f.Technique)) &&
		(m.VM == "" || glob(m.VM, name) || glob(m.VM, f.VM.String()))
}

// glob matches with * for any text and ? for one byte, in time bounded by the
// product of both lengths.
func glob(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
