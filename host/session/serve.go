package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/failpoint"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
)

// conn is one connection of a VM's agent. What is not said otherwise belongs to
// the goroutine of Serve.
type conn struct {
	m    *Manager
	v    *vm
	ctx  context.Context
	nc   net.Conn
	link *link.Host
	done chan struct{} // closed when Serve has let go of the VM

	kicked chan struct{} // closed when another connection takes over, or the VM is let go of

	session uuid.UUID // uuid.Nil until proven
	at      time.Time // when the last bytes arrived
	index   uint64    // their evidence index
	kept    error     // ErrNotKept for them
	excess  bool      // they are a control frame beyond the pace

	pmu   sync.Mutex // held while a policy is sent
	in    bool       // v.mu: the agent has been accepted
	busy  bool       // v.mu: a frame is being worked on
	begun int        // v.mu: bytes that have come of the next, at the last look
	grew  time.Time  // v.mu: the look that first saw so many
	why   string     // v.mu: why another goroutine ended the connection

	got     Received // these are used again for each frame
	event   vsockproto.Event
	beat    vsockproto.Heartbeat
	batch   engine.Batch
	canary  *canary // sent, and not yet decided; nil: none
	drowned int     // canaries in a row that showed nothing
}

// Serve speaks with whoever connected from a VM until the connection ends,
// which it closes. Which VM that is comes from the transport. A connection that
// has a method Proven() is told when its agent has proven the key. When ctx ends
// the agent is told to come back. The error says why the connection ended; it
// is nil after a Bye.
func (m *Manager) Serve(ctx context.Context, nc net.Conn, id uuid.UUID, transport string) error {
	c := &conn{m: m, v: m.vm(id), ctx: ctx, nc: nc, done: make(chan struct{}), kicked: make(chan struct{})}
	c.link = link.NewHost(nc, &link.HostOptions{Handshake: m.o.Handshake, Write: deafBeats * m.o.Heartbeat, Tap: c.tap})
	defer close(c.done)
	defer c.link.Close()
	stop := context.AfterFunc(ctx, func() {
		if m.stands(c.v) { // its device does not survive being told: see Manager.SetPolicy
			_ = c.link.Close()
			return
		}
		_ = c.link.Reject(vsockproto.RejectClosing, "the monitor stops")
	})
	defer stop()

	// A handshake reaches deep, into ciphers and files. It has a stack of its own:
	// the session's would stay as large for as long as it lasts.
	greeted := make(chan error)
	go func() {
		m.loadOnce(c.v)
		greeted <- c.greet(transport)
	}()
	if err := <-greeted; err != nil {
		return fmt.Errorf("serve %s: %w", id, c.refuse(err))
	}
	err := c.loop()
	c.leave(err)
	if err != nil {
		return fmt.Errorf("serve %s: %w", id, err)
	}
	return nil
}

func (m *Manager) loadOnce(v *vm) { v.load.Do(func() { m.load(v) }) }

// errOurs marks what is no fault of the guest's.
var errOurs = errors.New("the monitor cannot go on")

// tap records what was received. It is the first to see it.
func (c *conn) tap(b []byte, whole bool) error {
	c.at = c.link.Arrived()
	if c.session == uuid.Nil && !c.worthKeeping(len(b)) {
		return nil
	}
	c.got = Received{VM: c.v.id, Session: c.session, At: c.at, Whole: whole, Held: whole && c.in, Raw: b}
	c.excess = false
	c.got.Critical = c.session != uuid.Nil && whole && c.critical(b)
	if c.got.Proven() {
		failpoint.At(failpoint.Received)
	}
	index, err := c.record()
	if c.got.Proven() {
		failpoint.At(failpoint.Appended)
	}
	c.index, c.kept = index, nil
	if errors.Is(err, ErrNotKept) {
		c.kept = err
		return nil
	}
	if err != nil {
		return fmt.Errorf("record: %w: %w", errOurs, err)
	}
	return nil
}

// worthKeeping bounds what connections that have proven nothing can put on
// record: any process in a guest may connect, and none is to use up the VM's
// quota. What is not kept is counted, and a finding.
func (c *conn) worthKeeping(n int) bool {
	v := c.v
	v.mu.Lock()
	ok := v.noise.take(c.at, float64(n))
	if !ok {
		v.unkept += uint64(n)
	}
	total := v.unkept
	v.mu.Unlock()
	if !ok {
		f := finding(RuleNoise, "Connections that have proven nothing send so much that not all of it is kept.")
		f.Detail["bytes"] = fmt.Sprint(total)
		c.m.report(v, f)
	}
	return ok
}

// critical reports whether a frame is more than bulk. What a record is follows
// from its type, not from what it says. A frame that cannot be walked is
// critical, because it ends the session, and control frames are at the pace
// that they were asked for. What broke off is not: nothing of it is judged.
func (c *conn) critical(raw []byte) bool {
	if vsockproto.FrameType(raw[4]) != vsockproto.FrameEvents {
		c.v.mu.Lock()
		c.excess = !c.v.control.take(c.at, 1)
		c.v.mu.Unlock()
		return !c.excess
	}
	return len(raw) < vsockproto.FrameHeaderSize+vsockproto.EventsHeader ||
		criticalRecords(raw[vsockproto.FrameHeaderSize+vsockproto.EventsHeader:])
}

func criticalRecords(rest []byte) bool {
	for len(rest) > 0 {
		h, err := vsockproto.ParseHeader(rest)
		if err != nil || h.Type.Class() == vsockproto.Critical {
			return true
		}
		rest = rest[h.Length:]
	}
	return false
}

// refusal is why a connection is not taken: what the agent is told, and the
// finding, if there is one.
type refusal struct {
	code vsockproto.RejectCode
	rule string
	err  error
}

func (r *refusal) Error() string { return fmt.Sprintf("%s: %v", r.code, r.err) }
func (r *refusal) Unwrap() error { return r.err }

// refuse answers a failed handshake. A connection that just ends is no more
// than that.
func (c *conn) refuse(err error) error {
	var r *refusal
	if !errors.As(err, &r) {
		rule := blame(err)
		code := vsockproto.RejectProtocol
		switch {
		case errors.Is(err, errOurs):
			code, rule = vsockproto.RejectExhausted, ""
		case errors.Is(err, os.ErrDeadlineExceeded) && !c.m.stands(c.v):
			rule = RuleSlow
		case rule == "":
			return err
		case errors.Is(err, link.ErrProof):
			code = vsockproto.RejectProof
		case errors.Is(err, vsockproto.ErrVersion):
			code, rule = vsockproto.RejectVersion, RuleVersion
		}
		r = &refusal{code: code, rule: rule, err: err}
	}
	if r.rule != "" {
		f := accuse(r.rule, r.err)
		f.Received = c.at
		if c.session == uuid.Nil {
			// Any process in the guest may connect: what one that has proven
			// nothing sends must not make the VM a liar.
			f.Severity = min(f.Severity, engine.Medium)
		}
		c.m.report(c.v, f)
	}
	_ = c.link.Rest()
	_ = c.link.Reject(r.code, c.excuse(r))
	return err
}

// excuse is what the other side is told: who has proven nothing learns no more
// than the code, and nobody learns what is wrong with the host.
func (c *conn) excuse(r *refusal) string {
	switch {
	case errors.Is(r.err, errOurs):
		return errOurs.Error()
	case c.session == uuid.Nil:
		return r.code.String()
	}
	return r.err.Error()
}

// greet takes the handshake to its end: after it the connection is the VM's
// live one.
func (c *conn) greet(transport string) error {
	hello, err := c.link.ReadHello()
	if err != nil {
		return err
	}
	came := c.at
	key, err := c.m.p.Keys.Key(c.v.id)
	if errors.Is(err, ErrNotEnrolled) {
		return &refusal{vsockproto.RejectUnknown, RuleUnenrolled, err}
	}
	if err != nil {
		return &refusal{vsockproto.RejectExhausted, "", err}
	}
	resume, secret := c.v.resumes(&hello)
	if !resume {
		id := uuid.New()
		secret, err = c.link.Challenge(id, vsockproto.SecretKey, &key)
		c.session = id
	} else {
		_, err = c.link.Challenge(hello.Resume, vsockproto.SecretSession, &secret)
		c.session = hello.Resume
	}
	if err != nil {
		c.session = uuid.Nil
		return err
	}
	if p, ok := c.nc.(interface{ Proven() }); ok {
		p.Proven()
	}
	f, err := c.takeOver(&hello, came, resume, secret, transport)
	if err != nil {
		return err
	}
	if err := c.welcome(); err != nil {
		c.leave(err)
		return err
	}
	if f != nil {
		c.m.report(c.v, *f)
	}
	for _, f := range c.v.unattached(hello.Hooks) {
		c.m.report(c.v, f)
	}
	return nil
}

// takeOver makes the connection the VM's live one. The agent is not spoken to
// while the turn is held, so that it cannot keep another one out.
func (c *conn) takeOver(h *vsockproto.Hello, came time.Time, resume bool, secret [vsockproto.KeySize]byte, transport string) (f *engine.Finding, err error) {
	v := c.v
	v.turn <- struct{}{}
	defer func() { <-v.turn }()
	v.mu.Lock()
	calm := v.connects.take(came, 1)
	v.mu.Unlock()
	if !calm {
		return nil, &refusal{vsockproto.RejectExhausted, RuleRestless, errors.New("too many connections in too short a time")}
	}
	if resume {
		err = c.goOn(h)
	} else {
		f, err = c.begin(h, came, secret)
	}
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	v.live, v.transport, v.reason, v.stale = c, transport, "", time.Time{}
	v.heard(came)
	v.due = latest(came, time.Now()) // what it waited for was not its silence, nor is what follows
	c.busy = true
	v.clock.sample(came, h.BootNs)
	v.mu.Unlock()
	return f, nil
}

// resumes reports whether a Hello names the VM's session, and its secret.
func (v *vm) resumes(h *vsockproto.Hello) (ok bool, secret [vsockproto.KeySize]byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if h.Flags&vsockproto.HelloResume == 0 || v.sess == nil || v.sess.Dead || v.sess.ID != h.Resume || v.sess.BootID != h.BootID {
		return false, secret
	}
	copy(secret[:], v.sess.Secret)
	return true, secret
}

// goOn resumes the session. Who proves its secret is the agent: the connection
// that is still there is a stale one.
func (c *conn) goOn(h *vsockproto.Hello) error {
	v := c.v
	v.kick("replaced")
	if ok, _ := v.resumes(h); !ok { // it ended for good meanwhile
		return &refusal{vsockproto.RejectSession, "", errors.New("the session has ended")}
	}
	v.mu.Lock()
	v.sess.Resumed++
	v.reprogrammed(v.sess.Hooks, h.Hooks)
	v.sess.Hooks = h.Hooks
	v.mu.Unlock()
	return nil
}

// begin starts a new session. The account of a boot goes on through all its
// sessions, so that a second agent cannot start it afresh.
func (c *conn) begin(h *vsockproto.Hello, came time.Time, secret [vsockproto.KeySize]byte) (again *engine.Finding, err error) {
	v := c.v
	v.mu.Lock()
	same := v.sess != nil && v.sess.BootID == uuid.UUID(h.BootID)
	why, bye := "another boot", v.sess != nil && v.sess.Bye
	if bye {
		why = v.reason
	}
	if !same || bye {
		v.entered = false
	}
	// A session that has ended may have a connection that has not let go yet, and an
	// agent that was not let in in time has a first attempt.
	holds := v.live != nil && v.live.in && !v.sess.Dead
	busy := holds && (same || came.Sub(v.seen) < time.Duration(c.m.o.Silence)*c.m.o.Heartbeat)
	wait := v.penalty.Sub(came)
	v.mu.Unlock()
	if busy {
		return nil, &refusal{vsockproto.RejectBusy, RuleImpostor, errors.New("the VM has a live session")}
	}
	if wait > 0 {
		return nil, &refusal{vsockproto.RejectExhausted, "", fmt.Errorf("no new session for %s", wait)}
	}
	v.kick(why)
	v.mu.Lock()
	if v.entered {
		f := finding(RuleRestarted, "An agent began a new session in a boot that had one: what the earlier one held is lost.")
		f.Detail["before"] = v.sess.ID.String()
		again = &f
	}
	if !same {
		// An agent that goes on with a session which we do not know, or after a
		// revert, has numbers that did not begin with this ledger.
		join := v.renewed || (v.sess == nil && h.Flags&vsockproto.HelloResume != 0)
		v.ledger, v.renewed = link.NewLedger(&link.LedgerOptions{CPUs: h.CPUs, Join: join}), false
		v.starts, v.unhooked, v.counting, v.lost = link.Starts{}, 0, false, [2]uint64{}
		v.joining = join
		v.clock.reset()
	} else {
		v.reprogrammed(v.sess.Hooks, h.Hooks)
	}
	v.sess = &kept{
		ID: c.session, Secret: secret[:], BootID: h.BootID, Next: 1, Since: came,
		Kernel: h.Kernel, Build: h.Build, CPUs: h.CPUs, Hooks: h.Hooks,
	}
	v.mu.Unlock()
	return again, nil
}

// welcome tells the agent that it is in. The session is on record and saved
// before the agent hears of it.
func (c *conn) welcome() error {
	v := c.v
	c.m.decide(v)
	v.mu.Lock()
	next, number := v.sess.Next, v.policy.Number
	s := v.status()
	v.mu.Unlock()
	if err := c.m.p.Recorder.Opened(&s); err != nil {
		return fmt.Errorf("record: %w: %w", errOurs, err)
	}
	c.m.save(v)
	withheld := c.withholds()
	v.mu.Lock()
	c.busy, v.due = false, latest(v.due, time.Now())
	v.mu.Unlock()
	err := c.link.Accept(&vsockproto.HelloAck{
		HeartbeatMs: uint32(c.m.o.Heartbeat.Milliseconds()), Next: next,
		Credit: uint64(c.m.o.Credit), PolicyNumber: number, Withheld: withheld,
	})
	if err != nil {
		return err
	}
	v.mu.Lock()
	c.in, v.entered = true, true
	v.mu.Unlock()
	return c.sendPolicy()
}

// sendPolicy sends the policy in force; an older one never follows a newer. To a
// connection that is the VM's no more it sends nothing.
func (c *conn) sendPolicy() error {
	c.pmu.Lock()
	defer c.pmu.Unlock()
	c.v.mu.Lock()
	if c.v.live != c {
		c.v.mu.Unlock()
		return nil
	}
	p := c.v.policy
	c.v.sess.Policy = p.Number
	c.v.mu.Unlock()
	return c.link.Policy(&p)
}

// kick ends the live connection and waits until it has let go. The caller has
// the turn.
func (v *vm) kick(why string) {
	v.mu.Lock()
	c := v.live
	if c != nil {
		c.why = why
	}
	v.mu.Unlock()
	if c != nil {
		c.link.Close()
		close(c.kicked)
		<-c.done
	}
}
