package session

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// looked is an examiner that takes a while and finds always the same.
type looked struct {
	vitals Vitals
	takes  time.Duration
}

func (l looked) Examine(context.Context, uuid.UUID) Vitals {
	time.Sleep(l.takes)
	return l.vitals
}

// TestCauseOfSilence: what the guest's kernel answers, and whether the agent is
// connected, tell one silence from another; it is found within two heartbeats.
func TestCauseOfSilence(t *testing.T) {
	for _, c := range []struct {
		cause     Cause
		vitals    Vitals
		connected bool
	}{
		{CauseEnded, Vitals{AnswerRefused, 0.25}, false},
		{CauseStopped, Vitals{AnswerRefused, 2}, true},
		{CauseChannel, Vitals{AnswerGone, 1}, false},
		{CauseChannel, Vitals{AnswerGone, 0}, true},
		{CauseChannel, Vitals{AnswerNone, 0.01}, true},
		{CauseHung, Vitals{AnswerNone, 1}, true},
		{CauseHung, Vitals{AnswerNone, 0.7}, false},
		{CauseClosed, Vitals{AnswerClosed, 0.1}, true},
		{CauseMute, Vitals{AnswerOpen, 1}, true},
		{CauseMute, Vitals{AnswerOpen, 0}, false},
		{CauseUnknown, Vitals{AnswerUnknown, 0}, true},
	} {
		t.Run(string(c.cause), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				m := w.manager(nil)
				m.p.Examiner = looked{c.vitals, 700 * time.Millisecond}
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() { defer close(ended); _ = m.Run(ctx) }()
				a := prototest.NewAgent(&prototest.AgentOptions{Silent: true})
				x := dial(ctx, m, a)
				<-a.Up()
				time.Sleep(500 * time.Millisecond) // it has been seen to run
				if !c.connected {
					x.hangUp()
				}
				time.Sleep(1500 * time.Millisecond)
				want(t, "findings", w.rules(), "silent")
				time.Sleep(time.Minute)
				want(t, "findings in the end", w.rules(), "silent silent!")
				for _, f := range w.findings {
					if f.Detail["cause"] != string(c.cause) || !strings.Contains(f.Reason, causeSentences[c.cause]) || f.Detail["vcpu_seconds_per_second"] != fmt.Sprintf("%.2f", c.vitals.CPU) {
						t.Errorf("%+v", f)
					}
				}
				stop()
				<-ended
				if c.connected {
					<-x.agentEnd
					<-x.hostEnd
				}
			})
		})
	}
}

// TestLateIsNotSilent: who speaks while he is looked at was only late.
func TestLateIsNotSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		m.p.Examiner = looked{Vitals{Vsock: AnswerNone}, 700 * time.Millisecond}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = m.Run(ctx) }()
		a := prototest.NewAgent(&prototest.AgentOptions{Silent: true})
		x := dial(ctx, m, a)
		<-a.Up()
		time.Sleep(1600 * time.Millisecond)
		settle(t, a)
		time.Sleep(time.Second)
		want(t, "findings", w.rules(), "")
		stop()
		<-ended
		<-x.agentEnd
		<-x.hostEnd
	})
}

// TestAllSilentAtOnce: where every VM is silent it is the host that stands
// still; every one is found, and no more are looked at than may be.
func TestAllSilentAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		m.p.Examiner = looked{Vitals{Vsock: AnswerNone, CPU: 1}, 700 * time.Millisecond}
		for i := range 200 {
			v := m.vm(uuid.UUID{1, 15: byte(i)})
			v.sess, v.seen, v.due, v.domain = &kept{}, time.Now(), time.Now(), DomainRunning
		}
		ctx, stop := context.WithTimeout(t.Context(), 3500*time.Millisecond)
		defer stop()
		_ = m.Run(ctx)
		causes := map[string]int{}
		for _, f := range w.findings {
			if f.Rule == RuleSilent && f.Severity == engine.High {
				causes[f.Detail["cause"]]++
			}
		}
		if causes[string(CauseHung)] != examinations || causes[string(CauseUnknown)] != 200-examinations {
			t.Errorf("causes %v", causes)
		}
	})
}

// TestLaggingMonitor: what the monitor was late itself is nobody's silence.
func TestLaggingMonitor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newWorld().manager(nil)
		v := m.vm(vmID)
		now := time.Now()
		for _, c := range []struct{ due, late, want time.Duration }{
			{-1500 * time.Millisecond, time.Second, -500 * time.Millisecond},
			{-500 * time.Millisecond, time.Second, 0},
			{time.Minute, time.Second, time.Minute},
		} {
			v.due = now.Add(c.due)
			m.lagged(c.late, now)
			if got := v.due.Sub(now); got != c.want {
				t.Errorf("due %s, %s late: %s, want %s", c.due, c.late, got, c.want)
			}
		}
	})
}

// unread is a connection whose bytes the host has not read.
type unread struct{ net.Conn }

func (unread) Unread() int { return 1 }

// TestHostThatDoesNotRead: what waits for the host to read it is not silence.
func TestHostThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		now := time.Now()
		v := m.vm(vmID)
		v.sess, v.seen, v.due = &kept{}, now, now.Add(-time.Minute)
		v.live = &conn{nc: unread{}}
		m.listenTo(t.Context(), v)
		if want(t, "findings", w.rules(), ""); v.due != now {
			t.Errorf("due %v", v.due)
		}
	})
}
