package session

import (
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
)

// canary is what is known of the one that was sent last. A hook is found
// silent when a heartbeat whose mark is later than the agent's answer has come,
// and no record of it: everything from before a mark stands before its
// heartbeat, or is declared lost.
type canary struct {
	nonce  [16]byte
	sent   time.Time
	policy uint64 // its number then
	failed bool   // the agent could not do all of it
	want   typeSet
	seen   typeSet
	sock   uint64 // cookie of the socket that was bound to the nonce's name
	beats  int    // heartbeats since it was sent
	done   uint64 // boot time of the agent's answer; 0: none yet
	lost   uint64 // declared lost when it was sent
}

// typeSet is a set of record types below 64, as those of canaries are.
type typeSet uint64

func (s typeSet) has(t vsockproto.EventType) bool { return s&(1<<t) != 0 }
func (s *typeSet) add(t vsockproto.EventType)     { *s |= 1 << t }

// names lists s, in the order of the types' numbers.
func (s typeSet) names() string {
	var all []string
	for _, t := range vsockproto.EventTypes() {
		if s.has(t) {
			all = append(all, t.String())
		}
	}
	return strings.Join(all, ", ")
}

// drowned is how many canaries in a row may come to nothing because records
// were lost meanwhile.
const drowned = 3

// sing sends a canary when one is due. Called when a heartbeat has come, so
// that an agent that says nothing is found silent and nothing else.
func (c *conn) sing() error {
	if c.canary != nil {
		return nil
	}
	v := c.v
	q := canary{}
	v.mu.Lock()
	ready := !c.at.Before(v.canary) && v.sess.PolicyAcked == v.policy.Number
	if ready {
		q.policy = v.policy.Number
		q.want, q.lost = expected(v.policy.Hooks, v.sess.Hooks, v.withheld), v.ledger.Lost()
	}
	v.mu.Unlock()
	if !ready || q.want == 0 {
		return nil
	}
	if _, err := rand.Read(q.nonce[:]); err != nil {
		return fmt.Errorf("canary: %w: %w", errOurs, err)
	}
	c.canary = &q
	q.sent = time.Now()
	return c.link.Canary(&vsockproto.Canary{Nonce: q.nonce})
}

// expected are the types that the policy asks for and whose hooks are attached,
// bulk only if it is wanted.
func expected(policy []vsockproto.EventType, hooks []vsockproto.Hook, withheld bool) (s typeSet) {
	var asked, attached typeSet
	for _, t := range policy {
		asked.add(t)
	}
	for _, h := range hooks {
		if h.Attached && h.Type.Known() {
			attached.add(h.Type)
		}
	}
	for _, t := range vsockproto.CanaryTypes() {
		if asked.has(t) && attached.has(t) && !(withheld && t.Class() == vsockproto.Bulk) {
			s.add(t)
		}
	}
	if !s.has(vsockproto.SocketBind) { // it is told by the socket that was bound
		s &^= 1 << vsockproto.SocketListen
	}
	return s
}

// hear takes a record that says that it is a canary's. One that belongs to an
// earlier canary, or to an earlier monitor's, is nothing to anybody.
func (c *conn) hear(e *vsockproto.Event) {
	q := c.canary
	r, err := e.CanaryOf()
	if err != nil || q == nil {
		return
	}
	switch {
	case r.Named && r.Nonce != q.nonce:
		return
	case e.Type == vsockproto.SocketBind:
		q.sock = r.Cookie
	case e.Type == vsockproto.SocketListen && (q.sock == 0 || r.Cookie != q.sock):
		return
	case e.Type == vsockproto.SocketCreate && e.Socket.Protocol != vsockproto.CanaryProtocol(q.nonce):
		return
	}
	q.seen.add(e.Type)
}

func (c *conn) canaryAck(payload []byte) error {
	a, err := vsockproto.ParseCanaryAck(payload)
	if err != nil {
		return err
	}
	q := c.canary
	if q == nil || q.nonce != a.Nonce {
		return nil // an earlier monitor's
	}
	q.done = max(a.BootNs, 1)
	if q.failed = a.Reason != ""; q.failed {
		c.report(finding(RuleCanary, fmt.Sprintf("The agent could not do all that a canary asks for: %q.", a.Reason)))
	}
	return nil
}

// listenForCanary tells, when a heartbeat has come, what became of the canary.
func (c *conn) listenForCanary(h *vsockproto.Heartbeat) {
	q := c.canary
	if q == nil {
		return
	}
	q.beats++
	settled := q.done != 0 && h.MarkedNs > q.done
	// The first heartbeats may have been on their way, and several at a time.
	patience := time.Duration(c.m.o.Silence+1) * c.m.o.Heartbeat
	if !settled && (q.beats <= c.m.o.Silence+1 || c.at.Sub(q.sent) <= patience) {
		return
	}
	c.canary = nil
	silent := q.want &^ q.seen
	c.v.mu.Lock()
	lost := c.v.ledger.Lost() - q.lost
	changed := c.v.policy.Number != q.policy
	drowns := silent != 0 && !changed && (lost > 0 || !settled && q.done != 0)
	if !drowns { // else the next comes at once
		c.v.canary = c.at.Add(c.m.o.Canary/2 + mrand.N(c.m.o.Canary))
	}
	c.v.mu.Unlock()
	switch {
	case silent == 0, changed:
		c.drowned = 0
	case q.failed: // and so it was said
	case drowns:
		if c.drowned++; c.drowned >= drowned {
			c.drowned = 0
			c.report(drowning(silent, lost))
		}
	case q.done == 0:
		c.report(finding(RuleCanary, fmt.Sprintf("The agent sends heartbeats, and has not answered a canary for %d of them.", q.beats)))
	default:
		c.report(muted(silent, q.want))
	}
}

func drowning(silent typeSet, lost uint64) engine.Finding {
	f := finding(RuleDrowned, fmt.Sprintf("So much is lost that %d canaries in a row did not show whether hooks run: %s.", drowned, silent.names()))
	f.Detail["hooks"], f.Detail["lost"] = silent.names(), fmt.Sprint(lost)
	return f
}

func muted(silent, want typeSet) engine.Finding {
	reason := "Hooks that are attached are silent: a canary ran them and no record came of " + silent.names() + "."
	if silent == want {
		reason = "All hooks are silent, and the agent goes on: no record came of a canary. kernel.ftrace_enabled is 0, or the programs are gone."
	}
	f := finding(RuleUnhooked, reason)
	f.Detail["hooks"] = silent.names()
	return f
}

// totals holds what the guest's kernel counts against what was announced.
// Called with v.mu held; the findings are to be reported without it.
func (v *vm) totals(t *vsockproto.Totals) (found []engine.Finding, err error) {
	fresh := t.MarkedNs > v.starts.Marked
	err = v.starts.Settle(t)
	var wrong *link.StartsError
	if errors.As(err, &wrong) {
		err = nil
	}
	if wrong != nil && v.attached(vsockproto.TaskNewtask) {
		f := finding(RuleStarts, "The guest's kernel and its records differ: "+wrong.Error()+".")
		f.Detail["missing"], f.Detail["excess"] = fmt.Sprint(wrong.Missing), fmt.Sprint(wrong.Excess)
		found = append(found, f)
	}
	if err != nil || !fresh {
		return found, err
	}
	if n := t.Unhooked - v.unhooked; v.counting && t.Unhooked > v.unhooked && v.attached(vsockproto.BprmCommittedCreds) {
		f := finding(RuleUnhooked, fmt.Sprintf("The guest's kernel has run %d programs or opens past the LSM hooks that are attached. "+
			"kernel.ftrace_enabled is 0, or a program is detached.", n))
		f.Detail["unhooked"] = fmt.Sprint(n)
		found = append(found, f)
	}
	v.unhooked, v.counting = t.Unhooked, true
	return found, nil
}

// attached reports whether the agent said that a hook's program is: of one that
// is not there session/hooks has told already. Called with v.mu held.
func (v *vm) attached(t vsockproto.EventType) bool {
	return slices.ContainsFunc(v.sess.Hooks, func(h vsockproto.Hook) bool { return h.Type == t && h.Attached })
}

// reprogrammed begins the proofs of the kernel's totals anew where the agent's
// programs are others than before (those that a policy brings and takes away
// have no part in them): while both were attached each start had two
// records. Called with v.mu held.
func (v *vm) reprogrammed(before, now []vsockproto.Hook) {
	other := slices.ContainsFunc(now, func(h vsockproto.Hook) bool {
		return slices.ContainsFunc(before, func(b vsockproto.Hook) bool {
			return b.Type == h.Type && b.Tag != h.Tag && h.Type <= vsockproto.TaskSnapshot
		})
	})
	if !other {
		return
	}
	v.starts.Bound, v.starts.Marked, v.counting = false, 0, false
}

// losses is the finding of what a heartbeat declares lost beyond the one
// before, if that is anything. Called with v.mu held.
func (v *vm) losses() *engine.Finding {
	now := v.ledger.LostByClass()
	was := v.lost
	v.lost = now
	joined := v.joining
	v.joining = false
	if now == was || joined {
		return nil
	}
	critical, bulk := now[0]-was[0], now[1]-was[1]
	f := finding(RuleLoss, fmt.Sprintf("The guest's rings were full: %d critical and %d bulk records are lost, and declared.", critical, bulk))
	f.Detail["critical"], f.Detail["bulk"] = fmt.Sprint(critical), fmt.Sprint(bulk)
	if critical > 0 {
		f.Severity = engine.High
	}
	return &f
}
