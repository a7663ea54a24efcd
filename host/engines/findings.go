package engines

import (
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
)

// Rules of the supervisor's own findings.
const (
	RuleStart    = "engine/start"    // the process cannot be started
	RuleEnded    = "engine/ended"    // it ended, crashed or broke the contract
	RuleSilent   = "engine/silent"   // it missed the deadline of an answer
	RulePoison   = "engine/poison"   // a batch that it cannot survive was passed over
	RuleRestore  = "engine/restore"  // a checkpoint cannot be used
	RuleStore    = "engine/store"    // a checkpoint could not be kept
	RuleCircuit  = "engine/circuit"  // the circuit opened: batches pass unjudged
	RuleUnjudged = "engine/unjudged" // which batches did
)

// stamp sets what the host says of a finding, over whatever the engine said.
// A reference to another batch than the one that was judged is taken away.
func (s *Supervisor) stamp(f *engine.Finding, b *engine.Batch, now time.Time) {
	f.ID, f.Engine, f.VM, f.At = newID(), s.cfg.Name, b.VM, now
	f.Received = b.Received
	if f.Ref != nil && (f.Ref.Session != b.Session || f.Ref.Index != b.Index) {
		f.Ref = nil
	}
}

func newID() string { return uuid.Must(uuid.NewV7()).String() }

// own reports a finding of the supervisor's.
func (s *Supervisor) own(rule string, severity engine.Severity, vm uuid.UUID, reason string, detail map[string]string) {
	s.report(engine.Finding{
		ID: newID(), Engine: "monitor", VM: vm, At: time.Now(), Rule: rule, Severity: severity,
		Reason: reason, Detail: detail,
	})
}
