package decide

import (
	_ "embed"
	"fmt"
	"time"
)

// Step is one thing to be done.
type Step string

// The steps.
const (
	Log     Step = "log"
	Alert   Step = "alert"
	Kill    Step = "kill"
	Isolate Step = "isolate"
	Pause   Step = "pause"
	Capture Step = "capture"
	Revert  Step = "revert"
	Reset   Step = "reset"
	Destroy Step = "destroy"
	Resume  Step = "resume"

	KillTree Step = "kill-tree"
	Freeze   Step = "freeze"
)

// AllSteps are the steps, in the order in which most playbooks have them.
var AllSteps = []Step{Log, Alert, Kill, KillTree, Freeze, Isolate, Pause, Capture, Revert, Reset, Destroy, Resume}

// Once says how often a rule acts on one VM.
type Once string

// How often a rule acts.
const (
	PerRun     Once = "run"     // once until the VM is started or resumed again
	PerSession Once = "session" // once in a session of its agent
	PerVM      Once = "vm"      // once for as long as the history lasts
	PerEvent   Once = "event"   // each time
)

// Playbook is a validated policy.
type Playbook struct {
	Rules  []Rule
	Alerts []Target            // whom the step alert tells
	Labels map[string][]string // a label and the globs over names and UUIDs that have it
	Limits Limits
	DryRun bool // nothing is ordered
}

// Target is whom the step alert tells: a webhook or a program.
type Target struct {
	Name    string
	Webhook string        // URL
	Token   string        // file with what Authorization: Bearer takes; "" for none
	Command []string      // absolute path, and arguments
	Timeout time.Duration // of one attempt
	Gather  time.Duration // to wait for what else is found, which is counted
}

// Target finds whom a name means.
func (p *Playbook) Target(name string) (Target, bool) {
	for _, t := range p.Alerts {
		if t.Name == name {
			return t, true
		}
	}
	return Target{}, false
}

// Rule maps findings to steps.
type Rule struct {
	Name     string
	Match    Match
	Steps    []Step
	Alerts   []string // names of whom its alert tells
	State    string   // what its revert goes back to; "": the last one from before the finding
	OncePer  Once
	Cooldown time.Duration
	DryRun   bool // on trial: recorded, not ordered, and the next rule is asked
}

// Limits bound the steps that cost the host, and those that could go on without
// end. They take a step from a decision and leave the others, but for the resume
// of a VM that was not reverted.
type Limits struct {
	Alert   Limit
	Capture Limit
	Revert  Limit
}

// Limit bounds one step.
type Limit struct{ VM, Total Budget }

// Budget is so many within a time, which slides.
type Budget struct {
	N   int
	Per time.Duration
}

func (b Budget) String() string { return fmt.Sprintf("%d/%s", b.N, short(b.Per)) }

// Bounds of a budget, and of a repetition.
const (
	MaxPer    = 1000
	MaxWindow = 24 * time.Hour
	MaxTimes  = 100
)

// DefaultLimits are those of a playbook that says none.
func DefaultLimits() Limits {
	return Limits{
		Alert:   Limit{VM: Budget{12, time.Hour}, Total: Budget{240, time.Hour}},
		Capture: Limit{VM: Budget{4, time.Hour}, Total: Budget{60, time.Hour}},
		Revert:  Limit{VM: Budget{2, time.Hour}, Total: Budget{60, time.Hour}},
	}
}

func (l *Limits) of(s Step) (Limit, bool) {
	switch s {
	case Alert:
		return l.Alert, true
	case Capture:
		return l.Capture, true
	case Revert:
		return l.Revert, true
	}
	return Limit{}, false
}

func limited(s Step) bool { _, ok := new(Limits).of(s); return ok }

//go:embed default.yaml
var defaultText string

// DefaultText is the playbook for those who wrote none.
func DefaultText() string { return defaultText }

// Default returns the playbook that DefaultText spells.
func Default() *Playbook {
	p, err := Parse([]byte(defaultText))
	if err != nil {
		panic("the default playbook does not validate: " + err.Error())
	}
	return p
}
