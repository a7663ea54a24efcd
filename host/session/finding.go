package session

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
)

// Rules of the findings that come from here.
const (
	RuleGap          = "session/gap"           // records are missing that nobody declared lost
	RuleDuplicate    = "session/duplicate"     // a record's number was there before
	RuleAccount      = "session/account"       // an account that no honest agent can give
	RuleWindow       = "session/window"        // numbers run too far ahead
	RuleMalformed    = "session/malformed"     // bytes that the protocol does not allow
	RuleOrder        = "session/order"         // a frame out of its order
	RuleCredit       = "session/credit"        // more than it was allowed to send
	RuleProof        = "session/proof"         // the key or the secret is wrong
	RuleImpostor     = "session/impostor"      // a second agent beside the live one
	RuleRestarted    = "session/restarted"     // a new session in a boot that had one
	RuleRestless     = "session/restless"      // it connects again and again
	RuleFlood        = "session/flood"         // records, or control frames, come far faster than they may
	RuleMisplaced    = "session/misplaced"     // an agent speaks for a VM that does not run
	RuleSlow         = "session/slow"          // a handshake or a frame that does not come to its end
	RuleDeaf         = "session/deaf"          // the agent takes nothing of what it is sent
	RuleNoise        = "session/noise"         // others send more than is kept
	RuleUnenrolled   = "session/unenrolled"    // a VM without a key speaks
	RuleSilent       = "session/silent"        // it runs, and its agent says nothing
	RuleAbsent       = "session/absent"        // it runs, and no agent has come up
	RuleBye          = "session/bye"           // the agent ended its session
	RuleUnknownEvent = "session/unknown-event" // a record type that this version does not know
	RuleHooks        = "session/hooks"         // hooks that the kernel has are not attached
	RuleLacking      = "session/lacking"       // the guest's kernel does not have a hook that the policy asks for
	RulePolicy       = "session/policy"        // the agent refuses the policy
	RuleFilters      = "session/filters"       // the guest leaves out what it was not asked to
	RuleQuota        = "session/quota"         // frames were judged and not kept
	RuleFull         = "session/full"          // there is no room on the host to record what the guest sends
	RuleRoom         = "session/room"          // and there is again
	RuleUnsettled    = "session/unsettled"     // records that are never accounted for
	RuleLoss         = "session/loss"          // records that the guest declares lost
	RuleStarts       = "session/starts"        // the kernel's count of tasks and its records differ
	RuleUnhooked     = "session/unhooked"      // hooks that are attached do not run
	RuleCanary       = "session/canary"        // a canary is not answered
	RuleDrowned      = "session/drowned"       // losses hide whether hooks run
	RuleVersion      = "session/version"       // no protocol version in common
)

var severities = map[string]engine.Severity{
	RuleGap: engine.Severest, RuleDuplicate: engine.Severest, RuleAccount: engine.Severest,
	RuleMalformed: engine.Severest, RuleOrder: engine.Severest, RuleCredit: engine.High, RuleWindow: engine.High,
	RuleProof: engine.High, RuleImpostor: engine.High, RuleRestarted: engine.Medium, RuleUnenrolled: engine.Medium,
	RuleSilent: engine.High, RuleAbsent: engine.Medium, RuleBye: engine.Low, RuleUnknownEvent: engine.Low,
	RuleHooks: engine.Medium, RulePolicy: engine.Medium, RuleLacking: engine.Low, RuleFilters: engine.High, RuleQuota: engine.Medium, RuleRestless: engine.Medium,
	RuleNoise: engine.Medium, RuleFlood: engine.Medium, RuleSlow: engine.Medium, RuleMisplaced: engine.High, RuleDeaf: engine.Medium,
	RuleFull: engine.High, RuleRoom: engine.Info,
	RuleUnsettled: engine.High, RuleVersion: engine.Medium, RuleLoss: engine.Low, RuleStarts: engine.Severest,
	RuleUnhooked: engine.Severest, RuleCanary: engine.High, RuleDrowned: engine.High,
}

// techniques are the ATT&CK ids of what an attacker would be doing.
var techniques = map[string]string{
	RuleGap: "T1562.006", RuleDuplicate: "T1562.006", RuleAccount: "T1562.006",
	RuleUnsettled: "T1562.006", RuleSilent: "T1562.001", RuleBye: "T1562.001", RuleHooks: "T1562.001", RuleFilters: "T1562.006",
	RuleLoss: "T1562.006", RuleStarts: "T1562.006", RuleUnhooked: "T1562.001", RuleCanary: "T1562.001", RuleDrowned: "T1562.006",
}

// repeat holds back a rule's findings of one VM, so that a guest cannot flood
// the record with them. What was held back is counted in the next.
type repeat struct {
	next     time.Time
	held     int
	severity engine.Severity // a worse one is not held back
}

func finding(rule, reason string) engine.Finding {
	return engine.Finding{Rule: rule, Severity: severities[rule], Technique: techniques[rule], Reason: reason, Detail: map[string]string{}}
}

// report fills in what is the VM's and hands the finding on. Called without v.mu.
func (m *Manager) report(v *vm, f engine.Finding) {
	f.Engine, f.VM, f.At = "monitor", v.id, time.Now()
	v.mu.Lock()
	kind := f.Rule + f.Detail["cause"] // few: neither is the guest's to make up
	r := v.repeats[kind]
	if r == nil {
		r = &repeat{}
		v.repeats[kind] = r
	}
	if hold := f.At.Before(r.next) && f.Severity <= r.severity; hold {
		r.held++
		v.mu.Unlock()
		return
	}
	if r.held > 0 {
		f.Detail["held_back"] = fmt.Sprint(r.held)
	}
	*r = repeat{next: f.At.Add(m.o.Repeat), severity: f.Severity}
	v.mu.Unlock()
	m.log.Warn("finding", "vm", v.id, "rule", f.Rule, "reason", f.Reason)
	m.p.Findings(f)
}

// blame says which rule an error of the agent's breaks; "" is no violation: the
// connection broke, or the fault is ours.
func blame(err error) string {
	var order *link.OrderError
	switch {
	case errors.As(err, &order):
		return RuleOrder
	case errors.Is(err, link.ErrDuplicate), errors.Is(err, link.ErrSettled):
		return RuleDuplicate
	case errors.Is(err, link.ErrWindow):
		return RuleWindow
	case errors.Is(err, link.ErrExcess), errors.Is(err, link.ErrBackwards):
		return RuleAccount
	case errors.Is(err, link.ErrGap):
		return RuleGap
	case errors.Is(err, link.ErrCredit):
		return RuleCredit
	case errors.Is(err, link.ErrProof):
		return RuleProof
	case errors.Is(err, link.ErrUnexpected), errors.Is(err, link.ErrCPU):
		return RuleMalformed
	}
	for _, e := range []error{
		vsockproto.ErrShort, vsockproto.ErrTooLong, vsockproto.ErrReserved,
		vsockproto.ErrInvalid, vsockproto.ErrTrailing, vsockproto.ErrVersion,
	} {
		if errors.Is(err, e) {
			return RuleMalformed
		}
	}
	return ""
}

// accuse makes the finding of a violation.
func accuse(rule string, err error) engine.Finding {
	f := finding(rule, sentences[rule]+": "+err.Error()+".")
	var le *link.LedgerError
	if errors.As(err, &le) {
		f.Detail["cpu"], f.Detail["class"] = fmt.Sprint(le.CPU), le.Class.String()
		f.Detail["sequence"], f.Detail["watermark"] = fmt.Sprint(le.Sequence), fmt.Sprint(le.After)
		f.Detail["want"], f.Detail["got"], f.Detail["lost"] = fmt.Sprint(le.Want), fmt.Sprint(le.Got), fmt.Sprint(le.Lost)
	}
	var oe *link.OrderError
	if errors.As(err, &oe) {
		f.Detail["want"], f.Detail["got"] = fmt.Sprint(oe.Want), fmt.Sprint(oe.Got)
	}
	return f
}

var sentences = map[string]string{
	RuleGap:        "Records are missing that the guest did not declare lost",
	RuleDuplicate:  "A record came a second time",
	RuleAccount:    "The guest's account of its records cannot be true",
	RuleWindow:     "Record numbers run too far ahead",
	RuleMalformed:  "The guest sent bytes that the protocol does not allow",
	RuleOrder:      "A frame is out of its order",
	RuleCredit:     "The guest sent more than it was allowed to",
	RuleVersion:    "An agent speaks no version of the protocol in common with us",
	RuleUnenrolled: "A VM that is not enrolled speaks",
	RuleImpostor:   "A second agent proved the key of a VM whose agent is connected",
	RuleRestless:   "The VM's agent connects again and again",
	RuleProof:      "A connection from the VM could not prove its key",
	RuleSlow:       "A connection from the VM did not come to the end of its handshake in time",
}

// unattached tells of the hooks that the policy asks for and that do not report:
// those that the guest's kernel, or its agent, has not, and those of the first
// twelve that an agent attaches before it hears of any policy and has not. Of
// the others it says in its answer to the policy whether they are attached.
func (v *vm) unattached(hooks []vsockproto.Hook) (found []engine.Finding) {
	v.mu.Lock()
	policy := v.policy.Hooks
	v.mu.Unlock()
	var lacking, missing []string
	for _, t := range policy {
		i := slices.IndexFunc(hooks, func(h vsockproto.Hook) bool { return h.Type == t })
		switch {
		case i < 0 || !hooks[i].Available:
			lacking = append(lacking, t.String())
		case !hooks[i].Attached && t <= vsockproto.TaskSnapshot:
			missing = append(missing, t.String())
		}
	}
	if len(missing) > 0 {
		found = append(found, finding(RuleHooks, "Hooks that the guest's kernel has are not attached: "+strings.Join(missing, ", ")+"."))
	}
	if len(lacking) > 0 {
		found = append(found, finding(RuleLacking, "The guest's kernel, or its agent, does not have hooks that the policy asks for: "+strings.Join(lacking, ", ")+"."))
	}
	return found
}
