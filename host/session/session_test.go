package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
	"github.com/outguard/outguard/vsockproto/prototest"
)

func TestSessionFromHelloToBye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(nil)
		c := dial(t.Context(), m, a)
		send(t, a, vsockproto.TaskNewtask, vsockproto.FileOpen)
		send(t, a, vsockproto.FileOpen)
		a.Lose(0, vsockproto.Bulk, 7)
		a.Lose(1, vsockproto.Critical, 2)
		settle(t, a)
		s, ok := m.StatusOf(vmID)
		if !ok || s.State != Live || s.Received != (ByClass{1, 2}) || s.Lost != (ByClass{2, 7}) || s.Missing != (ByClass{}) || s.Unsettled != 0 {
			t.Errorf("status %+v", s)
		}
		if s.Kernel != "6.1.0-test" || s.BootID != (uuid.UUID{1}) || s.Transport != "hybrid" || len(s.Hooks) != len(vsockproto.DefaultTypes()) || s.PolicyAcked != 1 {
			t.Errorf("status %+v", s)
		}
		if !s.Clock.Valid || s.Clock.Host(a.Hello().BootNs) != time.Now() {
			t.Errorf("clock %+v says %v, it is %v", s.Clock, s.Clock.Host(a.Hello().BootNs), time.Now())
		}
		if err := a.Bye(t.Context(), "shutdown"); err != nil {
			t.Error(err)
		}
		if err := <-c.hostEnd; err != nil {
			t.Error(err)
		}
		<-c.agentEnd
		want(t, "delivered", w.delivered(), "task_newtask/1 file_open/1 file_open/2")
		want(t, "findings", w.rules(), "loss bye")
		want(t, "facts", strings.Join(w.facts, ", "), "opened live, closed ended")
	})
}

// TestEveryByteIsRecorded compares what the agent wrote with the record.
func TestEveryByteIsRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(nil)
		var sent bytes.Buffer
		ac, hc := prototest.Pipe()
		hostEnd := make(chan error, 1)
		go func() { hostEnd <- m.Serve(t.Context(), hc, vmID, "hybrid") }()
		go a.Run(t.Context(), tee{ac, &sent})
		send(t, a, vsockproto.FileOpen)
		settle(t, a)
		rubbish := []byte("GET / HTTP/1.1\r\nHost: outguard\r\n\r\n")
		ac.Write(rubbish)
		<-hostEnd
		var got []byte
		for _, e := range w.record {
			got = append(got, e.raw...)
		}
		if !bytes.Equal(got, append(sent.Bytes(), rubbish...)) {
			t.Errorf("%d bytes sent, %d recorded", sent.Len()+len(rubbish), len(got))
		}
		want(t, "findings", w.rules(), "malformed!")
	})
}

type tee struct {
	net.Conn
	w io.Writer
}

func (t tee) Write(b []byte) (int, error) {
	t.w.Write(b)
	return t.Conn.Write(b)
}

func TestConnectionBreaksAndGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(nil)
		for range 3 {
			c := dial(t.Context(), m, a)
			send(t, a, vsockproto.FileOpen)
			c.hangUp()
		}
		c := dial(t.Context(), m, a)
		settle(t, a)
		if s, _ := m.StatusOf(vmID); s.Resumed != 3 || s.Received.Bulk != 3 {
			t.Errorf("status %+v", s)
		}
		c.hangUp()
		want(t, "delivered", w.delivered(), "file_open/1 file_open/2 file_open/3")
		want(t, "findings", w.rules(), "")
	})
}

func TestStaleConnectionIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(nil)
		ctx, cancel := context.WithCancel(t.Context())
		ac, hc := prototest.Pipe()
		hostEnd := make(chan error, 1)
		go func() { hostEnd <- m.Serve(t.Context(), hc, vmID, "hybrid") }()
		go a.Run(ctx, deaf{ac}) // its end is not noticed by the host
		<-a.Up()
		cancel()
		synctest.Wait()
		c := dial(t.Context(), m, a)
		send(t, a, vsockproto.FileOpen)
		settle(t, a)
		if err := <-hostEnd; err == nil {
			t.Error("the stale connection ended in order")
		}
		c.hangUp()
		want(t, "findings", w.rules(), "")
	})
}

// deaf is a connection whose Close the other side does not see.
type deaf struct{ net.Conn }

func (d deaf) Close() error { return d.SetDeadline(time.Unix(1, 0)) }

func TestViolations(t *testing.T) {
	record := func(seq uint64) []byte {
		e := prototest.Sample(vsockproto.FileOpen)
		e.Sequence = seq
		b, _ := e.Append(nil)
		return b
	}
	for _, c := range []struct {
		name, rule, delivered string
		do                    func(a *link.Agent) error
	}{
		{"duplicate", "duplicate!", "file_open/1", func(a *link.Agent) error {
			return a.SendEvents(2, append(record(1), record(1)...))
		}},
		{"too far ahead", "window", "", func(a *link.Agent) error { return a.SendEvents(1, record(1<<40)) }},
		{"bad record", "malformed!", "file_open/1", func(a *link.Agent) error {
			b := append(record(1), record(2)...)
			b[len(record(1))+6] = 9
			return a.SendEvents(2, b)
		}},
		{"wrong count", "malformed!", "file_open/1", func(a *link.Agent) error { return a.SendEvents(0, record(1)) }},
		{"account that shrinks", "loss account!", "", func(a *link.Agent) error {
			for _, n := range []uint64{5, 4} {
				if err := a.SendHeartbeat(&vsockproto.Heartbeat{Counters: []vsockproto.Counter{{Class: 1, Watermark: n, Lost: n}}}); err != nil {
					return err
				}
			}
			return nil
		}},
		{"account of more than there is", "loss account!", "file_open/1", func(a *link.Agent) error {
			if err := a.SendEvents(1, record(1)); err != nil {
				return err
			}
			return a.SendHeartbeat(&vsockproto.Heartbeat{Counters: []vsockproto.Counter{{Class: 2, Watermark: 1, Lost: 1}}})
		}},
		{"bulk that calls itself critical", "malformed!", "file_open/1", func(a *link.Agent) error {
			b := append(record(1), record(2)...)
			b[len(record(1))+7] = byte(vsockproto.Critical)
			return a.SendEvents(2, b)
		}},
		{"more counters than CPUs", "malformed!", "", func(a *link.Agent) error {
			h := vsockproto.Heartbeat{Counters: make([]vsockproto.Counter, 5)}
			for i := range h.Counters {
				h.Counters[i].Class = vsockproto.Bulk
			}
			return a.SendHeartbeat(&h)
		}},
		{"cpu that is not there", "malformed!", "", func(a *link.Agent) error {
			return a.SendHeartbeat(&vsockproto.Heartbeat{Counters: []vsockproto.Counter{{CPU: 2, Class: 2}}})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				m := w.manager(nil)
				a := prototest.NewAgent(&prototest.AgentOptions{Silent: true})
				x := dial(t.Context(), m, a)
				<-a.Up()
				synctest.Wait()
				if err := c.do(a.Link()); err != nil {
					t.Fatal(err)
				}
				var rejected *link.RejectError
				if err := <-x.agentEnd; !errors.As(err, &rejected) || rejected.Code != vsockproto.RejectProtocol {
					t.Errorf("the agent sees %v", err)
				}
				if err := <-x.hostEnd; err == nil {
					t.Error("no error")
				}
				want(t, "findings", w.rules(), c.rule)
				want(t, "delivered", w.delivered(), c.delivered)
				if err := a.Drained(t.Context()); err != nil { // else it would come again
					t.Error(err)
				}

				// The session is over, and a new one is let in after a while.
				x = dial(t.Context(), m, a)
				if err := <-x.agentEnd; !errors.As(err, &rejected) || rejected.Code != vsockproto.RejectExhausted {
					t.Errorf("at once: %v", err)
				}
				<-x.hostEnd
				time.Sleep(5 * time.Second)
				x = dial(t.Context(), m, a)
				synctest.Wait()
				if s, _ := m.StatusOf(vmID); s.State != Live {
					t.Errorf("after a while: %+v", s)
				}
				x.hangUp()
				want(t, "findings", w.rules(), c.rule+" restarted")
			})
		})
	}
}

func TestGapIsFoundAndTheSessionGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(nil)
		c := dial(t.Context(), m, a)
		send(t, a, vsockproto.FileOpen)
		a.Hide(0, vsockproto.Bulk, 3)
		send(t, a, vsockproto.FileOpen)
		settle(t, a)
		send(t, a, vsockproto.FileOpen)
		settle(t, a)
		if s, _ := m.StatusOf(vmID); s.State != Live || s.Missing != (ByClass{Bulk: 3}) {
			t.Errorf("status %+v", s)
		}
		c.hangUp()
		want(t, "findings", w.rules(), "gap!")
		d := w.findings[0].Detail
		if d["want"] != "5" || d["got"] != "2" || d["lost"] != "0" || d["class"] != "bulk" {
			t.Errorf("detail %v", d)
		}
	})
}

// TestWhoNeverCountsIsFound: heartbeats that never say anew what the guest's
// kernel counts would keep its totals from ever being compared.
func TestWhoNeverCountsIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := prototest.NewAgent(&prototest.AgentOptions{Silent: true})
		c := dial(t.Context(), w.manager(nil), a)
		settle(t, a)
		for i := range 31 {
			want(t, fmt.Sprintf("after %d heartbeats", i), w.rules(), "")
			if err := a.Link().SendHeartbeat(&vsockproto.Heartbeat{}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		c.hangUp()
		want(t, "findings", w.rules(), "unsettled")
	})
}

func TestWhoNeverSettlesIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(&prototest.AgentOptions{Silent: true})
		c := dial(t.Context(), m, a)
		send(t, a, vsockproto.FileOpen)
		for i := range 31 {
			want(t, fmt.Sprintf("after %d heartbeats", i), w.rules(), "")
			if err := a.Link().SendHeartbeat(&vsockproto.Heartbeat{}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond) // until the agent has read its ack
		}
		c.hangUp()
		want(t, "findings", w.rules(), "unsettled")
	})
}

func TestWhoIsNotLetIn(t *testing.T) {
	for _, c := range []struct {
		name, rule string
		code       vsockproto.RejectCode
		o          *prototest.AgentOptions
		vm         uuid.UUID
	}{
		{"wrong key", "proof", vsockproto.RejectProof, &prototest.AgentOptions{Key: [32]byte{1}}, vmID},
		{"no key", "unenrolled (incomplete)", vsockproto.RejectUnknown, nil, uuid.UUID{9}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				m := w.manager(nil)
				ac, hc := prototest.Pipe()
				hostEnd := make(chan error, 1)
				go func() { hostEnd <- m.Serve(t.Context(), hc, c.vm, "hybrid") }()
				err := prototest.NewAgent(c.o).Run(t.Context(), ac)
				var rejected *link.RejectError
				if !errors.As(err, &rejected) || rejected.Code != c.code {
					t.Errorf("the agent sees %v", err)
				}
				if err := <-hostEnd; err == nil {
					t.Error("no error")
				}
				want(t, "findings", w.rules(), c.rule)
				if s := w.findings[0].Severity; s > engine.Medium {
					t.Errorf("who has proven nothing causes a finding of severity %d", s)
				}
				if rejected != nil {
					want(t, "the agent is told", rejected.Reason, c.code.String())
				}
			})
		})
	}
}

func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		go m.Run(t.Context())
		a := prototest.NewAgent(&prototest.AgentOptions{Silent: true})
		c := dial(t.Context(), m, a)
		<-a.Up()
		time.Sleep(1700 * time.Millisecond)
		want(t, "not silent yet", w.rules(), "")
		time.Sleep(300 * time.Millisecond)
		want(t, "within two heartbeats", w.rules(), "silent")
		if s, _ := m.StatusOf(vmID); s.State != Silent {
			t.Errorf("state %s", s.State)
		}
		time.Sleep(3 * time.Second)
		want(t, "after five", w.rules(), "silent silent!")
		time.Sleep(time.Minute)
		want(t, "long after", w.rules(), "silent silent!")

		settle(t, a)
		if s, _ := m.StatusOf(vmID); s.State != Live {
			t.Errorf("state %s", s.State)
		}
		w.setState(DomainPaused)
		time.Sleep(time.Minute)
		want(t, "paused", w.rules(), "silent silent!")
		w.setState(DomainRunning)
		time.Sleep(1400 * time.Millisecond)
		want(t, "just resumed", w.rules(), "silent silent!")
		c.hangUp()
		time.Sleep(time.Second)
		want(t, "gone, and running", w.rules(), "silent silent! silent")
		w.setState(DomainOff)
		time.Sleep(time.Minute)
		want(t, "off", w.rules(), "silent silent! silent")
		w.setState(DomainUnknown)
		time.Sleep(time.Hour)
		want(t, "libvirt is away", w.rules(), "silent silent! silent")
	})
}

func TestSlowSinkIsNotSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.gate = make(chan struct{})
		m := w.manager(nil)
		go m.Run(t.Context())
		a := prototest.NewAgent(nil)
		c := dial(t.Context(), m, a)
		send(t, a, vsockproto.FileOpen)
		time.Sleep(time.Minute)
		close(w.gate)
		settle(t, a)
		c.hangUp()
		want(t, "findings", w.rules(), "")
	})
}

func TestSlowSinkHoldsBackCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.gate = make(chan struct{})
		m := w.manager(&Options{Credit: 512 << 10})
		a := prototest.NewAgent(&prototest.AgentOptions{Silent: true})
		dial(t.Context(), m, a)
		go func() {
			for range 100 {
				send(t, a, many(100)...)
			}
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(w.record); n < 3 || n > 5 { // hello, proof, policy-ack, events
			t.Errorf("%d frames while the sink stands", n)
		}
		close(w.gate)
		time.Sleep(time.Second)
		if s, _ := m.StatusOf(vmID); s.Received.Bulk != 10000 {
			t.Errorf("status %+v", s)
		}
	})
}

func many(n int) []vsockproto.EventType {
	all := make([]vsockproto.EventType, n)
	for i := range all {
		all[i] = vsockproto.FileOpen
	}
	return all
}

func TestEnrolledWithoutAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		go m.Run(t.Context())
		m.Expect(vmID)
		time.Sleep(119 * time.Second)
		want(t, "while it boots", w.rules(), "")
		time.Sleep(5 * time.Second)
		want(t, "after that", w.rules(), "absent")
		time.Sleep(time.Hour)
		want(t, "once", w.rules(), "absent")
		if s := m.Status(); len(s) != 1 || s[0].State != Silent {
			t.Errorf("status %+v", s)
		}
	})
}

// TestMonitorStartsAgain kills a monitor after what it last saved: the record
// tells the next one the rest.
func TestMonitorStartsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := prototest.NewAgent(nil)
		m := w.manager(nil)
		c := dial(t.Context(), m, a)
		send(t, a, vsockproto.FileOpen)
		settle(t, a)
		kept := bytes.Clone(w.store[vmID])
		a.Lose(0, vsockproto.Bulk, 5)
		send(t, a, vsockproto.FileOpen, vsockproto.TaskKill)
		if err := a.Drained(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.hangUp()
		w.store[vmID] = kept

		m = w.manager(nil)
		m.Expect(vmID)
		c = dial(t.Context(), m, a)
		send(t, a, vsockproto.FileOpen)
		settle(t, a)
		if _, resumed := a.Welcome(); !resumed {
			t.Error("the session was not resumed")
		}
		if s, _ := m.StatusOf(vmID); s.Received != (ByClass{1, 3}) || s.Lost.Bulk != 5 || s.Missing != (ByClass{}) {
			t.Errorf("status %+v", s)
		}
		c.hangUp()
		want(t, "findings", w.rules(), "loss")
		want(t, "delivered", w.delivered(), "file_open/1 file_open/7 task_kill/1 file_open/8")
	})
}

// TestFullHostHoldsBackCredit: a frame that there is no room for is waited with;
// its agent comes to a halt, is not found silent, and goes on where it was.
func TestFullHostHoldsBackCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(&Options{Credit: 1})
		a := prototest.NewAgent(nil)
		c := dial(t.Context(), m, a)
		send(t, a, vsockproto.FileOpen)
		settle(t, a)
		w.mu.Lock()
		w.full = true
		w.mu.Unlock()
		sent := make(chan error, 1)
		go func() {
			var err error
			for range 20_000 {
				err = errors.Join(err, a.Send(t.Context(), prototest.Sample(vsockproto.FileOpen)))
			}
			sent <- err
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		select {
		case <-sent:
			t.Error("the agent could send everything")
		default:
		}
		want(t, "delivered", w.delivered(), "file_open/1")
		want(t, "findings", w.rules(), "full")
		if s, _ := m.StatusOf(vmID); s.State != Live || !strings.Contains(s.Reason, "room") {
			t.Errorf("status %+v", s)
		}
		w.mu.Lock()
		w.full = false
		w.mu.Unlock()
		if err := errors.Join(<-sent, a.Drained(t.Context())); err != nil {
			t.Error(err)
		}
		settle(t, a)
		if s, _ := m.StatusOf(vmID); s.Received.Bulk != 20_001 || s.Missing != (ByClass{}) || s.Resumed != 0 {
			t.Errorf("status %+v", s)
		}
		want(t, "findings", w.rules(), "full room")
		c.hangUp()
	})
}

// TestFullHostLetsGo: whoever waits with a frame lets go of it when the monitor
// stops or the agent comes again, and the agent sends it again.
func TestFullHostLetsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(nil)
		c := dial(t.Context(), m, a)
		settle(t, a)
		w.mu.Lock()
		w.full = true
		w.mu.Unlock()
		if err := a.Send(t.Context(), prototest.Sample(vsockproto.FileOpen)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		w.mu.Lock()
		w.full = false
		w.mu.Unlock()
		m.Renew(vmID)
		c.hangUp()
		c = dial(t.Context(), m, a)
		if err := a.Drained(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.hangUp()
		if n := strings.Count(w.delivered(), "file_open/1"); n != 1 {
			t.Errorf("delivered %s", w.delivered())
		}
	})
}

// TestKilledOverAViolation: a monitor that was killed after it had recorded what
// a guest does wrong, and before it said so, says so when it starts again.
func TestKilledOverAViolation(t *testing.T) {
	for name, tc := range map[string]struct {
		wrong func(t *testing.T, a *prototest.Agent)
		rule  string
		dead  bool
	}{
		"gap": {func(t *testing.T, a *prototest.Agent) {
			a.Hide(0, vsockproto.Bulk, 3)
			if err := a.Heartbeat(); err != nil {
				t.Error(err)
			}
		}, "gap!", false},
		"false class": {func(t *testing.T, a *prototest.Agent) {
			e := prototest.Sample(vsockproto.FileOpen)
			e.Class, e.Sequence = vsockproto.Critical, 1
			b, err := e.Append(nil)
			if err == nil {
				err = a.Link().SendEvents(1, b)
			}
			if err != nil {
				t.Error(err)
			}
		}, "malformed!", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				a := prototest.NewAgent(&prototest.AgentOptions{Silent: true})
				m := w.manager(nil)
				c := dial(t.Context(), m, a)
				send(t, a, vsockproto.FileOpen)
				settle(t, a)
				kept := bytes.Clone(w.store[vmID])
				tc.wrong(t, a)
				synctest.Wait()
				want(t, "findings", w.rules(), tc.rule)
				c.hangUp()
				w.mu.Lock()
				before := w.findings[0]
				w.store[vmID], w.findings = kept, nil // as if it had been killed before
				w.mu.Unlock()

				m = w.manager(nil)
				m.Expect(vmID)
				want(t, "findings after the start", w.rules(), tc.rule)
				if f := w.findings[0]; f.Detail["index"] != before.Detail["index"] || f.Reason != before.Reason {
					t.Errorf("found again: %+v; before: %+v", f, before)
				}
				if v := m.known(vmID); v.sess.Dead != tc.dead {
					t.Errorf("the session is dead: %v, want %v", v.sess.Dead, tc.dead)
				}
			})
		})
	}
}

func TestMonitorCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(nil)
		ctx, cancel := context.WithCancel(t.Context())
		ac, hc := prototest.Pipe()
		agentEnd, hostEnd := make(chan error, 1), make(chan error, 1)
		go func() { agentEnd <- a.Run(t.Context(), ac) }()
		go func() { hostEnd <- m.Serve(ctx, hc, vmID, "hybrid") }()
		<-a.Up()
		cancel()
		var rejected *link.RejectError
		if err := <-agentEnd; !errors.As(err, &rejected) || rejected.Code != vsockproto.RejectClosing {
			t.Errorf("the agent sees %v", err)
		}
		<-hostEnd
		want(t, "findings", w.rules(), "")
	})
}

func TestRenewedSessionJoinsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(nil)
		a.Lose(0, vsockproto.Bulk, 1<<30) // the past of a guest set back
		m.Renew(vmID)
		c := dial(t.Context(), m, a)
		send(t, a, vsockproto.FileOpen)
		settle(t, a)
		settle(t, a)
		a.Hide(0, vsockproto.Bulk, 1)
		settle(t, a)
		c.hangUp()
		want(t, "findings", w.rules(), "gap!")
		want(t, "delivered", w.delivered(), fmt.Sprintf("file_open/%d", 1<<30+1))
	})
}

func TestNothingIsJudgedThatIsNotRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(&prototest.AgentOptions{Silent: true})
		c := dial(t.Context(), m, a)
		<-a.Up()
		synctest.Wait()
		w.mu.Lock()
		w.refuse = errors.New("disk full")
		w.mu.Unlock()
		send(t, a, vsockproto.FileOpen)
		var rejected *link.RejectError
		if err := <-c.agentEnd; !errors.As(err, &rejected) || rejected.Code != vsockproto.RejectExhausted {
			t.Errorf("the agent sees %v", err)
		}
		<-c.hostEnd
		w.refuse = fmt.Errorf("quota: %w", ErrNotKept) // on record itself: judged
		c = dial(t.Context(), m, a)
		if err := a.Drained(t.Context()); err != nil {
			t.Error(err)
		}
		c.hangUp()
		want(t, "delivered", w.delivered(), "file_open/1")
		want(t, "findings", w.rules(), "quota")
	})
}

func TestFindingsAreHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		for range 101 {
			a := prototest.NewAgent(&prototest.AgentOptions{Key: [32]byte{1}})
			c := dial(t.Context(), m, a)
			<-c.agentEnd
			<-c.hostEnd
			time.Sleep(101 * time.Millisecond)
		}
		want(t, "findings", w.rules(), "proof proof")
		want(t, "held back", w.findings[1].Detail["held_back"], "99")
	})
}

func TestPolicyReachesTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(nil)
		c := dial(t.Context(), m, a)
		<-a.Up()
		if _, err := m.SetPolicy(vmID, []vsockproto.EventType{vsockproto.TaskKill, vsockproto.FileOpen, vsockproto.FileOpen}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if p := a.Policy(); p.Number != 2 || fmt.Sprint(p.Hooks) != "[file_open task_kill]" {
			t.Errorf("policy %+v", p)
		}
		if s, _ := m.StatusOf(vmID); s.Policy != 2 || s.PolicyAcked != 2 {
			t.Errorf("status %+v", s)
		}
		c.hangUp()
	})
}

func TestRestlessAgentIsHeldOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(nil)
		for range 100 {
			c := dial(t.Context(), m, a)
			synctest.Wait()
			c.hangUp()
		}
		want(t, "findings", w.rules(), "restless")
		if n := len(w.facts); n != 32 {
			t.Errorf("%d facts on record", n)
		}
		time.Sleep(2 * time.Second)
		c := dial(t.Context(), m, a)
		send(t, a, vsockproto.FileOpen)
		settle(t, a)
		c.hangUp()
	})
}

func TestNoiseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		rubbish := frameOf(vsockproto.FrameBye, 0, make([]byte, vsockproto.MaxHello-vsockproto.FrameHeaderSize))
		for range 200 {
			ac, hc := prototest.Pipe()
			done := make(chan struct{})
			go func() { defer close(done); _ = m.Serve(t.Context(), hc, vmID, "hybrid") }()
			go io.Copy(io.Discard, ac)
			ac.Write(rubbish)
			ac.Close()
			<-done
		}
		kept := 0
		for _, e := range w.record {
			kept += len(e.raw)
		}
		if kept > 1<<20 || kept < 1<<19 {
			t.Errorf("%d bytes kept", kept)
		}
		want(t, "findings", w.rules(), "malformed noise")

		a := prototest.NewAgent(nil) // which is heard all the same
		c := dial(t.Context(), m, a)
		send(t, a, vsockproto.FileOpen)
		settle(t, a)
		c.hangUp()
		want(t, "delivered", w.delivered(), "file_open/1")
	})
}

// TestFramesThatWaitKeepTheirTime has three frames arrive at once at a sink
// that takes a minute for each.
func TestFramesThatWaitKeepTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(&Options{Heartbeat: time.Hour})
		var got []time.Duration
		start := time.Now()
		m.p.Sink = sinkFunc(func(b *engine.Batch) {
			got = append(got, b.Received.Sub(start))
			time.Sleep(time.Minute)
		})
		ac, hc := prototest.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); _ = m.Serve(t.Context(), hc, vmID, "hybrid") }()
		if !shakeHands(ac, ac) {
			t.Fatal("no handshake")
		}
		go io.Copy(io.Discard, ac)
		var three []byte
		for i := range uint64(3) {
			e := prototest.Sample(vsockproto.FileOpen)
			e.Sequence = i + 1
			b, err := e.Append(vsockproto.AppendEventsHeader(nil, 1))
			if err != nil {
				t.Fatal(err)
			}
			three = append(three, frameOf(vsockproto.FrameEvents, i+1, b)...)
		}
		time.Sleep(time.Second)
		ac.Write(three)
		time.Sleep(time.Hour / 2)
		ac.Close()
		<-done
		want(t, "received", fmt.Sprint(got), "[1s 1s 1s]")
	})
}

type sinkFunc func(*engine.Batch)

func (f sinkFunc) Deliver(_ context.Context, b *engine.Batch) error {
	f(b)
	return nil
}
