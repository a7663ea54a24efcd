package engines

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
)

// Rules of the supervisor's own findings.
const (
	RuleStart    = "engine/start"    // the process cannot be started
	RuleEnded    = "engine/ended"    // it ended, crashed or broke the contract
	RuleLied     = "engine/lied"     // it found something in an event that it was never sent
	RuleFlood    = "engine/flood"    // it finds so much that not all is kept
	RuleSilent   = "engine/silent"   // it missed the deadline of an answer
	RulePoison   = "engine/poison"   // a batch that it cannot survive was passed over
	RuleRestore  = "engine/restore"  // a checkpoint cannot be used
	RuleStore    = "engine/store"    // a checkpoint could not be kept
	RuleCircuit  = "engine/circuit"  // the circuit opened: batches pass unjudged
	RuleUnjudged = "engine/unjudged" // which batches did
)

// lied reports a finding that cannot be, in place of it.
func (s *Supervisor) lied(it *item, f *engine.Finding) {
	b := &it.batch
	s.own(RuleLied, engine.High, b.VM, fmt.Sprintf("Engine %s found %q in an event that it was never sent, and is started again.", s.cfg.Name, f.Rule), map[string]string{
		"batch": fmt.Sprintf("%s/%d", b.Session, b.Index), "reason": f.Reason,
		"event": fmt.Sprintf("%s/%d cpu %d class %d sequence %d", f.Ref.Session, f.Ref.Index, f.Ref.CPU, f.Ref.Class, f.Ref.Sequence),
	})
}

// stamp sets what the host says of a finding, over whatever the engine said.
func (s *Supervisor) stamp(f *engine.Finding, b *engine.Batch, now time.Time) {
	f.ID, f.Engine, f.VM, f.At = newID(), s.cfg.Name, b.VM, now
	f.Received = b.Received
}

func newID() string { return uuid.Must(uuid.NewV7()).String() }

// own reports a finding of the supervisor's.
func (s *Supervisor) own(rule string, severity engine.Severity, vm uuid.UUID, reason string, detail map[string]string) {
	s.report(engine.Finding{
		ID: newID(), Engine: "monitor", VM: vm, At: time.Now(), Rule: rule, Severity: severity,
		Reason: reason, Detail: detail,
	})
}
