package decide

import (
	_ "embed"
	"time"

	"github.com/outguard/outguard/plugins/engine"
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
	Rules []Rule
}

// Rule maps findings to steps.
type Rule struct {
	Name     string
	Match    Match
	Steps    []Step
	OncePer  Once
	Cooldown time.Duration
}

// Match is what a finding must be; zero fields match all.
type Match struct {
	Engine    string
	Rule      string
	Severity  engine.Severity // at least
	Technique string
	VM        string
}

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
