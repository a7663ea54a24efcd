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
	Pause   Step = "pause"
	Capture Step = "capture"
	Resume  Step = "resume"
)

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
	Labels map[string][]string // a label and the globs over names and UUIDs that have it
	Limits Limits
	DryRun bool // nothing is ordered
}

// Rule maps findings to steps.
type Rule struct {
	Name     string
	Match    Match
	Steps    []Step
	OncePer  Once
	Cooldown time.Duration
	DryRun   bool // on trial: recorded, not ordered, and the next rule is asked
}

// Limits bound the steps that cost the host. They take a step from a decision
// and leave the others.
type Limits struct {
	Capture Limit
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
		Capture: Limit{VM: Budget{4, time.Hour}, Total: Budget{60, time.Hour}},
	}
}

func (l *Limits) of(s Step) (Limit, bool) {
	if s == Capture {
		return l.Capture, true
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
