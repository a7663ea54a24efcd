package session

import (
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
	"github.com/outguard/outguard/vsockproto/prototest"
)

func TestAgentThatEndedInOrderMayStartAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(nil)
		c := dial(t.Context(), m, a)
		send(t, a, vsockproto.FileOpen)
		if err := a.Bye(t.Context(), "upgrade"); err != nil {
			t.Fatal(err)
		}
		<-c.agentEnd
		c = dial(t.Context(), m, a) // its numbers go on
		send(t, a, vsockproto.FileOpen)
		settle(t, a)
		c.hangUp()
		want(t, "findings", w.rules(), "bye")
		want(t, "delivered", w.delivered(), "file_open/1 file_open/2")
	})
}

// lingering is a connection whose end takes until let.
type lingering struct {
	net.Conn
	let <-chan struct{}
}

func (l lingering) Close() error {
	err := l.Conn.Close()
	<-l.let
	return err
}

// TestAgentIsBackBeforeItsConnectionHasEnded: it said Bye and starts again, while the
// host still lets go of the connection on which it said so. That is no second agent.
func TestAgentIsBackBeforeItsConnectionHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(nil)
		let := make(chan struct{})
		c := dialOver(t.Context(), m, a, func(nc net.Conn) net.Conn { return lingering{nc, let} })
		send(t, a, vsockproto.FileOpen)
		if err := a.Bye(t.Context(), "upgrade"); err != nil {
			t.Fatal(err)
		}
		<-c.agentEnd
		again := dial(t.Context(), m, a)
		synctest.Wait()
		close(let)
		<-c.hostEnd
		send(t, a, vsockproto.FileOpen)
		settle(t, a)
		again.hangUp()
		want(t, "findings", w.rules(), "bye")
		want(t, "delivered", w.delivered(), "file_open/1 file_open/2")
	})
}

// TestAgentIsBackBeforeItsViolationHasEnded: it is told to wait, and is no second agent.
func TestAgentIsBackBeforeItsViolationHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(nil)
		let := make(chan struct{})
		c := dialOver(t.Context(), m, a, func(nc net.Conn) net.Conn { return lingering{nc, let} })
		<-a.Up()
		record, err := prototest.Sample(vsockproto.FileOpen).Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Link().SendEvents(0, record); err != nil {
			t.Fatal(err)
		}
		<-c.agentEnd
		again := dial(t.Context(), m, prototest.NewAgent(nil))
		var rejected *link.RejectError
		if err := <-again.agentEnd; !errors.As(err, &rejected) || rejected.Code != vsockproto.RejectExhausted {
			t.Errorf("it is told %v", err)
		}
		close(let)
		<-c.hostEnd
		<-again.hostEnd
		want(t, "findings", w.rules(), "malformed!")
	})
}

// TestHostIsSlowToLetIn: what the host takes to put a session on record is not the
// agent's silence, and an agent that gave up and tries again is no second one, nor does
// it begin a second session.
func TestHostIsSlowToLetIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.slow = make(chan struct{})
		m := w.manager(nil)
		go m.Run(t.Context())
		a := prototest.NewAgent(nil)
		c := dial(t.Context(), m, a)
		time.Sleep(30 * time.Second)
		c.agent.Close()
		<-c.agentEnd
		again := dial(t.Context(), m, a)
		time.Sleep(5 * time.Second) // it waits for ten
		close(w.slow)
		<-c.hostEnd
		select {
		case <-a.Up():
		case err := <-again.agentEnd:
			t.Fatal(err)
		}
		send(t, a, vsockproto.FileOpen)
		settle(t, a)
		again.hangUp()
		want(t, "findings", w.rules(), "")
		want(t, "delivered", w.delivered(), "file_open/1")
	})
}

// TestPolicyForAForgottenSession: who was about to send one finds nobody to send it to.
func TestPolicyForAForgottenSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newWorld().manager(nil)
		a := prototest.NewAgent(nil)
		c := dial(t.Context(), m, a)
		<-a.Up()
		settle(t, a)
		v := m.vm(vmID)
		live := v.live
		m.Renew(vmID)
		if err := live.sendPolicy(); err != nil {
			t.Error(err)
		}
		<-c.agentEnd
		if _, known := m.StatusOf(vmID); known {
			t.Error("the session is not forgotten")
		}
	})
}

func TestSecondAgentIsAnImpostor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(nil)
		c := dial(t.Context(), m, a)
		<-a.Up()
		for _, boot := range [][16]byte{{1}, {2}} { // of this boot, or so it says of another
			b := prototest.NewAgent(&prototest.AgentOptions{BootID: boot})
			x := dial(t.Context(), m, b)
			var rejected *link.RejectError
			if err := <-x.agentEnd; !errors.As(err, &rejected) || rejected.Code != vsockproto.RejectBusy {
				t.Errorf("the second agent sees %v", err)
			}
			<-x.hostEnd
			time.Sleep(11 * time.Second)
		}
		send(t, a, vsockproto.FileOpen)
		settle(t, a)
		c.hangUp()
		want(t, "findings", w.rules(), "impostor impostor")
		want(t, "delivered", w.delivered(), "file_open/1")
	})
}
