package session

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/failpoint"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
)

// loop takes frames until the connection ends: nil after a Bye.
func (c *conn) loop() error {
	for {
		f, err := c.link.Read()
		if err != nil {
			return c.judge(errors.Join(err, c.recorded()))
		}
		bye, err := c.take(&f)
		if err = errors.Join(err, c.recorded()); err != nil {
			return c.judge(err)
		}
		if bye || c.link.Due(c.m.o.Credit) {
			if err := c.ack(f.Sequence); err != nil {
				return c.deaf(err)
			}
		}
		if bye {
			return nil
		}
	}
}

// recorded is for a frame that was held until it was handed on.
func (c *conn) recorded() error {
	if !c.got.Held {
		return nil
	}
	c.got.Held = false
	if err := c.m.p.Recorder.Recorded(c.v.id); err != nil {
		return fmt.Errorf("record: %w: %w", errOurs, err)
	}
	return nil
}

func (c *conn) ack(seq uint64) error {
	return c.link.Ack(seq, c.link.Taken()+uint64(c.m.o.Credit), c.withholds())
}

// withholds decides whether bulk is wanted. It is not when what may be under way
// already would use up the VM's quota: what is asked for can be kept.
func (c *conn) withholds() bool {
	withheld := !c.m.p.Recorder.Room(c.v.id, 2*c.m.o.Credit)
	c.v.mu.Lock()
	was := c.v.withheld
	c.v.withheld = withheld
	c.v.mu.Unlock()
	if withheld && !was {
		c.canary = nil // its records may not come
		c.report(finding(RuleQuota, "The VM's evidence quota is used up: its agent is asked for no more bulk, and the guest declares what it loses of it."))
	}
	return withheld
}

// take checks one frame and hands on what it holds. It is on record already.
func (c *conn) take(f *link.Frame) (bye bool, err error) {
	v := c.v
	v.mu.Lock()
	c.busy = true
	v.heard(c.at)
	v.sess.Next = c.link.Next()
	v.sess.Bytes += uint64(f.Length)
	v.index = c.index
	v.mu.Unlock()
	if c.kept != nil {
		c.notKept()
	}
	if c.excess {
		c.report(finding(RuleFlood, "The agent sends heartbeats or policy acks far faster than it is asked to."))
	}
	switch f.Type {
	case vsockproto.FrameEvents:
		err = c.events(f.Payload)
	case vsockproto.FrameHeartbeat:
		err = c.heartbeat(f.Payload)
	case vsockproto.FramePolicyAck:
		err = c.policyAck(f.Payload)
	case vsockproto.FrameCanaryAck:
		err = c.canaryAck(f.Payload)
	case vsockproto.FrameCommandAck:
		err = c.commandAck(f.Payload)
	default:
		bye, err = true, c.bye(f.Payload)
	}
	v.mu.Lock()
	c.busy = false
	v.due = latest(v.due, time.Now()) // what the sink took is not the agent's silence
	v.mu.Unlock()
	return bye, err
}

// notKept reports, once for each of the two budgets, that it is used up.
func (c *conn) notKept() {
	f := finding(RuleQuota, "The VM's evidence quota is used up, and bulk still comes: it is judged and not kept.")
	if c.got.Critical {
		f = finding(RuleQuota, "The VM's evidence quota for critical events is used up, too: nothing that it sends is kept, and all is judged.")
		f.Severity = engine.Severest
	}
	v := c.v
	v.mu.Lock()
	said := v.overrun >= f.Severity
	v.overrun = max(v.overrun, f.Severity)
	v.mu.Unlock()
	if !said {
		c.report(f)
	}
}

// events checks the records one by one. Those before a bad one are judged.
func (c *conn) events(payload []byte) error {
	es, err := vsockproto.ParseEvents(payload)
	if err != nil {
		return err
	}
	good, count, bad := c.check(&es)
	if count > 0 {
		c.batch = engine.Batch{
			VM: c.v.id, Session: c.session, Index: c.index, Received: c.at,
			Count: count, Records: es.Records[:good],
		}
		failpoint.At(failpoint.Unjudged)
		if err := c.m.p.Sink.Deliver(c.ctx, &c.batch); err != nil {
			return fmt.Errorf("deliver: %w: %w", errOurs, err)
		}
		failpoint.At(failpoint.Unacked)
		if err := c.recorded(); err != nil {
			return err
		}
		c.pace(count)
	}
	return bad
}

// check returns how many bytes and records are well-formed and accounted for.
func (c *conn) check(es *vsockproto.Events) (good, count int, err error) {
	v := c.v
	var unknown vsockproto.EventType
	v.mu.Lock()
	for rest := es.Records; len(rest) > 0; count++ {
		if rest, err = c.event.Parse(rest); err != nil {
			break
		}
		if err = v.enter(&c.event); err != nil {
			break
		}
		if c.event.Header.Flags&vsockproto.FlagCanary != 0 {
			c.hear(&c.event)
		}
		if !c.event.Type.Known() {
			unknown = c.event.Type
		}
		good = len(es.Records) - len(rest)
	}
	if count > 0 && err == nil {
		v.clock.sample(c.at, c.event.BootNs)
	}
	v.mu.Unlock()
	if err == nil && count != int(es.Count) {
		err = countError(count, es.Count)
	}
	if unknown != 0 {
		f := finding(RuleUnknownEvent, fmt.Sprintf("The guest sent records of type %d, which this version does not know.", uint16(unknown)))
		c.m.report(v, f)
	}
	return good, count, err
}

// enter puts a record into the account, and checks that one which says that it
// is a canary's is. Called with v.mu held.
func (v *vm) enter(e *vsockproto.Event) error {
	if e.Class != e.Type.Class() {
		return fmt.Errorf("%s that says it is %s: %w", e.Type, e.Class, vsockproto.ErrInvalid)
	}
	if err := v.ledger.Seen(e.CPU, e.Class, e.Sequence); err != nil {
		return err
	}
	switch {
	case e.Header.Flags&vsockproto.FlagCanary != 0:
		_, err := e.CanaryOf()
		return err
	case e.Type == vsockproto.TaskNewtask:
		v.starts.Received++
	}
	return nil
}

func countError(got int, announced uint32) error {
	return fmt.Errorf("events: %d records where %d were announced: %w", got, announced, vsockproto.ErrInvalid)
}

func (c *conn) heartbeat(payload []byte) error {
	if err := vsockproto.ParseHeartbeat(payload, &c.beat); err != nil {
		return err
	}
	if err := c.settle(&c.beat); err != nil {
		return err
	}
	c.listenForCanary(&c.beat)
	if err := c.owePolicy(); err != nil {
		return err
	}
	return c.sing()
}

// owePolicy sends a policy that was not sent when it was set.
func (c *conn) owePolicy() error {
	c.v.mu.Lock()
	owed := c.v.policy.Number != c.v.sess.Policy
	c.v.mu.Unlock()
	if !owed {
		return nil
	}
	return c.sendPolicy()
}

// overdueBeats is how many heartbeats may leave the watermark of a (CPU, class)
// where it is although records above it have come: a guest that never settles
// would never be found out.
const overdueBeats = 30

func (c *conn) settle(h *vsockproto.Heartbeat) error {
	v := c.v
	v.mu.Lock()
	if err := v.bounded(h); err != nil {
		v.mu.Unlock()
		return err
	}
	v.clock.sample(c.at, h.BootNs)
	marked := v.starts.Marked
	found, err := v.account(h)
	if f := v.unmarked(v.starts.Marked > marked, c.at, overdueBeats*c.m.o.Heartbeat); f != nil {
		found = append(found, *f)
	}
	if f := v.filtered(h.Filtering); f != nil {
		found = append(found, *f)
	}
	save := c.at.Sub(v.savedAt) >= c.m.o.Save
	cpu, class, overdue := v.ledger.Overdue(overdueBeats, v.withheld)
	v.mu.Unlock()
	if overdue {
		c.report(finding(RuleUnsettled, fmt.Sprintf("The guest has not accounted for its %s records of CPU %d for %d heartbeats.", class, cpu, overdueBeats)))
	}
	for _, f := range found {
		c.report(f)
	}
	err = c.gaps(err)
	if save && err == nil { // else what is wrong is reported first, and then saved
		c.m.save(v)
	}
	return err
}

// account settles what a heartbeat says, and returns what is to be reported
// whether or not the rest holds. Called with v.mu held.
func (v *vm) account(h *vsockproto.Heartbeat) (found []engine.Finding, err error) {
	all := split(v.ledger.Settle(h.Counters))
	found, err = v.totals(&h.Totals)
	if lost := v.losses(); lost != nil {
		found = append(found, *lost)
	}
	return found, errors.Join(append(all, err)...)
}

// unmarked finds an agent whose heartbeats say the same of the guest's kernel
// for so long. Those that waited and came at once are none. Called with v.mu held.
func (v *vm) unmarked(fresh bool, at time.Time, limit time.Duration) *engine.Finding {
	switch {
	case fresh:
		v.stale = time.Time{}
	case v.stale.IsZero():
		v.stale = at
	case at.Sub(v.stale) >= limit:
		v.stale = at
		f := finding(RuleUnsettled, fmt.Sprintf("The guest's heartbeats have said nothing new of what its kernel counts for %s.", limit))
		return &f
	}
	return nil
}

// bounded refuses more counters than there can be. Called with v.mu held.
func (v *vm) bounded(h *vsockproto.Heartbeat) error {
	if n, cpus := len(h.Counters), v.sess.CPUs; n > 2*int(cpus) {
		return fmt.Errorf("%d counters of %d CPUs: %w", n, cpus, vsockproto.ErrInvalid)
	}
	return nil
}

// gaps reports what a settlement found missing. The account goes on after it;
// anything else that it found wrong does not.
func (c *conn) gaps(err error) error {
	if err == nil {
		return nil
	}
	all := split(err)
	for _, e := range all {
		if !errors.Is(e, link.ErrGap) {
			return e
		}
	}
	for _, e := range all {
		c.report(accuse(RuleGap, e))
	}
	return nil
}

func (c *conn) policyAck(payload []byte) error {
	a, err := vsockproto.ParsePolicyAck(payload)
	if err != nil {
		return err
	}
	v := c.v
	v.mu.Lock()
	if a.Reason == "" && a.Number <= v.policy.Number { // else of a monitor before us
		v.sess.PolicyAcked = a.Number
		if a.Number == v.policy.Number {
			v.sess.Hooks = attachedBy(v.policy.Hooks, v.sess.Hooks)
		}
	}
	v.sess.PolicyReason = a.Reason
	v.mu.Unlock()
	if a.Reason != "" {
		f := finding(RulePolicy, fmt.Sprintf("The agent refuses policy %d: %q.", a.Number, a.Reason))
		c.report(f)
	}
	return nil
}

// attachedBy is what has become of hooks with a policy that is in force: what it
// asks for and the kernel has is attached, the others are not, but for those
// that the agent needs for its books.
func attachedBy(policy []vsockproto.EventType, hooks []vsockproto.Hook) []vsockproto.Hook {
	hooks = slices.Clone(hooks)
	for i := range hooks {
		h := &hooks[i]
		_, wanted := slices.BinarySearch(policy, h.Type)
		switch {
		case wanted:
			h.Attached = h.Available
		case !slices.Contains(vsockproto.BookTypes(), h.Type):
			h.Attached = false
		}
	}
	return hooks
}

func (c *conn) bye(payload []byte) error {
	y, err := vsockproto.ParseBye(payload)
	if err != nil {
		return err
	}
	if err := c.settle(&y.Heartbeat); err != nil {
		return err
	}
	v := c.v
	v.mu.Lock()
	v.sess.Dead, v.sess.Bye, v.reason = true, true, "bye: "+y.Reason
	v.due = c.at.Add(c.m.o.Grace)
	v.mu.Unlock()
	c.report(finding(RuleBye, fmt.Sprintf("The agent ended its session: %q.", y.Reason)))
	return nil
}

func (c *conn) report(f engine.Finding) {
	f.Received = c.at
	f.Detail["index"] = fmt.Sprint(c.index)
	c.m.report(c.v, f)
}

// judge ends the session if the error is the agent's doing. The frame is on
// record, so it is acked: the agent must not send it again.
func (c *conn) judge(err error) error {
	if errors.Is(err, errOurs) {
		_ = c.link.Reject(vsockproto.RejectExhausted, errOurs.Error())
		return err
	}
	rule := blame(err)
	if rule == "" || c.ctx.Err() != nil {
		return err
	}
	f := accuse(rule, err)
	refer(&f, err, &c.event, c.session, c.index)
	c.v.mu.Lock()
	c.v.sess.Dead = true
	c.v.penalty = time.Now().Add(c.m.o.Penalty)
	c.v.due = latest(c.v.due, c.v.penalty)
	c.v.mu.Unlock()
	c.report(f)
	_ = c.ack(c.link.Next() - 1)
	_ = c.link.Reject(vsockproto.RejectProtocol, err.Error())
	return err
}

// refer says which record a finding is of: the last that was looked at.
func refer(f *engine.Finding, err error, e *vsockproto.Event, session uuid.UUID, index uint64) {
	if e.Sequence != 0 {
		f.Detail["record"] = fmt.Sprintf("cpu %d, %s, sequence %d", e.CPU, e.Class, e.Sequence)
	}
	var le *link.LedgerError
	if errors.As(err, &le) && (f.Rule == RuleDuplicate || f.Rule == RuleWindow) {
		f.Ref = &engine.Ref{Session: session, Index: index, CPU: e.CPU, Class: uint8(e.Class), Sequence: e.Sequence}
		f.BootNs, f.Event, f.PID, f.Comm = e.BootNs, e.Type.String(), e.TGID, comm(e.Comm[:])
	}
}

func comm(b []byte) string {
	for i, ch := range b {
		if ch == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// leave lets go of the VM.
func (c *conn) leave(err error) {
	_ = c.link.Rest()
	c.link.Close()
	v := c.v
	v.mu.Lock()
	switch {
	case c.why != "":
		v.reason = c.why
	case c.ctx.Err() != nil:
		v.reason = "the monitor stops"
	case err != nil:
		v.reason = err.Error()
	}
	if v.live == c {
		v.live, v.halted = nil, false
	}
	s := v.status()
	v.mu.Unlock()
	c.m.save(v)
	if err := c.m.p.Recorder.Closed(&s); err != nil {
		c.m.log.Error("record the end of a session", "vm", v.id, "err", err)
	}
}
