package session

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
	"github.com/outguard/outguard/vsockproto/prototest"
)

var cloneID = uuid.MustParse("0b1a7c52-7a43-4d0e-8a8b-2f2f6a1c9d10")

// A clone has everything that its original had in memory and on disk, the
// session's secret as well. Through its own channel it is nobody.
func TestCloneSpeaksForNobody(t *testing.T) {
	for name, tc := range map[string]struct {
		enrolled bool
		code     vsockproto.RejectCode
		rule     string
	}{
		"not enrolled":          {false, vsockproto.RejectUnknown, RuleUnenrolled},
		"enrolled, another key": {true, vsockproto.RejectProof, RuleProof},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				if tc.enrolled {
					w.key[cloneID] = [32]byte{7}
				}
				m := w.manager(nil)
				a := prototest.NewAgent(nil)
				c := dial(t.Context(), m, a)
				<-a.Up()
				clone := prototest.NewAgent(nil)
				state, _ := a.Link().State()
				clone.Link().Restore(state)
				ac, hc := prototest.Pipe()
				go m.Serve(t.Context(), hc, cloneID, "hybrid")
				var rejected *link.RejectError
				if err := clone.Run(t.Context(), ac); !errors.As(err, &rejected) || rejected.Code != tc.code {
					t.Errorf("the clone sees %v", err)
				}
				if len(w.findings) != 1 || w.findings[0].Rule != tc.rule || w.findings[0].VM != cloneID {
					t.Errorf("findings %+v", w.findings)
				}
				send(t, a, vsockproto.FileOpen)
				settle(t, a)
				want(t, "delivered of the original", w.delivered(), "file_open/1")
				c.hangUp()
			})
		})
	}
}

// A domain that was started with another's channel proves its own key there,
// which is the wrong one, and the channel's owner is not harmed.
func TestAnothersChannelNeedsItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(nil)
		c := dial(t.Context(), m, a)
		<-a.Up()
		x := dial(t.Context(), m, prototest.NewAgent(&prototest.AgentOptions{Key: [32]byte{7}, BootID: [16]byte{2}}))
		var rejected *link.RejectError
		if err := <-x.agentEnd; !errors.As(err, &rejected) || rejected.Code != vsockproto.RejectProof {
			t.Errorf("it sees %v", err)
		}
		<-x.hostEnd
		send(t, a, vsockproto.FileOpen)
		settle(t, a)
		c.hangUp()
		want(t, "findings", w.rules(), "proof")
		want(t, "delivered", w.delivered(), "file_open/1")
	})
}

// Every byte of an honest handshake, sent again on another connection, proves
// nothing: the challenge is another.
func TestReplayedHelloProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		var sent bytes.Buffer
		ac, hc := prototest.Pipe()
		end := make(chan error, 1)
		go func() { end <- m.Serve(t.Context(), hc, vmID, "hybrid") }()
		if !shakeHands(ac, io.MultiWriter(ac, &sent)) {
			t.Fatal("no handshake")
		}
		ac.Close()
		<-end
		again, host := prototest.Pipe()
		go func() { end <- m.Serve(t.Context(), host, vmID, "hybrid") }()
		go io.Copy(io.Discard, again)
		again.Write(sent.Bytes())
		if err := <-end; !errors.Is(err, link.ErrProof) {
			t.Errorf("it ends with %v", err)
		}
		want(t, "findings", w.rules(), "proof")
	})
}

// An agent that goes on speaking for a VM that libvirt says is off is in another
// domain. One that comes to its end with the VM is not.
func TestAgentOfAVMThatIsOffIsMisplaced(t *testing.T) {
	for name, tc := range map[string]struct {
		off   time.Duration
		rules string
	}{"it ends": {time.Second, ""}, "it goes on": {5 * time.Second, "misplaced"}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				m := w.manager(nil)
				go m.Run(t.Context())
				a := prototest.NewAgent(nil)
				c := dial(t.Context(), m, a)
				<-a.Up()
				time.Sleep(time.Minute)
				w.setState(DomainOff)
				time.Sleep(tc.off)
				c.hangUp()
				time.Sleep(time.Minute)
				want(t, "findings", w.rules(), tc.rules)
			})
		})
	}
}

// After the host has slept nobody is blamed for not having spoken, and clocks
// are related anew.
func TestHostThatSleptBlamesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(&prototest.AgentOptions{Silent: true})
		c := dial(t.Context(), m, a)
		<-a.Up()
		settle(t, a)
		time.Sleep(time.Hour) // of which Run saw nothing
		m.woke(time.Now())
		m.listen(t.Context())
		want(t, "findings", w.rules(), "")
		if s, _ := m.StatusOf(vmID); s.Clock.Valid {
			t.Errorf("clock %+v", s.Clock)
		}
		time.Sleep(3 * time.Second)
		m.listen(t.Context())
		want(t, "findings, awake", w.rules(), "silent")
		c.hangUp()
	})
	for _, tc := range []struct {
		wall, awake time.Duration
		want        bool
	}{{time.Hour, time.Second, true}, {-time.Hour, time.Second, true}, {time.Minute, time.Minute, false}, {300 * time.Millisecond, 250 * time.Millisecond, false}} {
		if leapt(tc.wall, tc.awake) != tc.want {
			t.Errorf("wall %s, awake %s: want %t", tc.wall, tc.awake, tc.want)
		}
	}
}
