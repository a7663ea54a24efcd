package session

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// A Hello that comes a byte a second is given up when the handshake's time is
// over, and is a finding that names the VM, but for one whose vCPUs stand.
func TestSlowHandshakeIsFound(t *testing.T) {
	for state, rules := range map[DomainState]string{DomainRunning: "slow", DomainPaused: ""} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.setState(state)
			m := w.manager(nil)
			ac, hc := prototest.Pipe()
			end := make(chan error, 1)
			go func() { end <- m.Serve(t.Context(), hc, vmID, "hybrid") }()
			go io.Copy(io.Discard, ac)
			began := time.Now()
			drip(ac, frameOf(vsockproto.FrameHello, 0, vsockproto.AppendHello(nil, prototest.NewAgent(nil).Hello())))
			if err := <-end; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("it ends with %v", err)
			}
			if took := time.Since(began); took > 11*time.Second {
				t.Errorf("after %s", took)
			}
			want(t, "findings", w.rules(), rules)
			if n := len(w.record); n == 0 || w.record[n-1].whole {
				t.Errorf("what came is not on record: %d", n)
			}
		})
	}
}

// drip writes b a byte a second, until it cannot any more.
func drip(w io.Writer, b []byte) {
	for i := range b {
		if _, err := w.Write(b[i : i+1]); err != nil {
			return
		}
		time.Sleep(time.Second)
	}
}

// An agent that sends a frame a byte a second is told apart from one that says
// nothing, and is found as soon.
func TestSlowFrameIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		go m.Run(t.Context())
		ac, hc := prototest.Pipe()
		end := make(chan error, 1)
		go func() { end <- m.Serve(t.Context(), hc, vmID, "hybrid") }()
		if !shakeHands(ac, ac) {
			t.Fatal("no handshake")
		}
		go io.Copy(io.Discard, ac)
		frame := eventFrame(1, prototest.Sample(vsockproto.FileOpen))
		drip(ac, frame[:4])
		want(t, "findings", w.rules(), "slow")
		if f := w.findings[0]; f.Detail["bytes"] == "" || !strings.Contains(f.Reason, "of a frame") {
			t.Errorf("finding %+v", f)
		}
		drip(ac, frame[4:8])
		want(t, "findings after a while", w.rules(), "slow slow!")
		ac.Write(frame[8:])
		synctest.Wait()
		want(t, "delivered", w.delivered(), "file_open/1") // slow is no reason to lose it
		ac.Close()
		<-end
	})
}

// TestFrameThatStops: an agent that ends, is stopped or loses its channel within
// a frame is silent, and the cause is looked for, as with any other.
func TestFrameThatStops(t *testing.T) {
	for answer, cause := range map[Answer]Cause{
		AnswerClosed: CauseClosed, AnswerOpen: CauseMute, AnswerRefused: CauseStopped, AnswerNone: CauseChannel, AnswerGone: CauseChannel,
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			m := w.manager(nil)
			m.p.Examiner = looked{Vitals{answer, 0.1}, 200 * time.Millisecond}
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() { defer close(ended); _ = m.Run(ctx) }()
			ac, hc := prototest.Pipe()
			end := make(chan error, 1)
			go func() { end <- m.Serve(ctx, hc, vmID, "serial") }()
			if !shakeHands(ac, ac) {
				t.Fatal("no handshake")
			}
			go io.Copy(io.Discard, ac)
			ac.Write(eventFrame(1, prototest.Sample(vsockproto.FileOpen))[:40])
			time.Sleep(3 * time.Second)
			want(t, "findings", w.rules(), "silent")
			if f := w.findings[0]; f.Detail["bytes"] != "40" || !strings.Contains(f.Reason, "but for 40 bytes of a frame. ") || f.Detail["cause"] != string(cause) {
				t.Errorf("%+v", f)
			}
			ac.Close()
			<-end
			stop()
			<-ended
		})
	}
}

// An agent that takes no acks is a finding, and its connection is closed; the
// session goes on with the next.
func TestReaderThatStopsIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		ac, hc := prototest.Pipe() // has no buffer: the first ack waits for its reader
		end := make(chan error, 1)
		go func() { end <- m.Serve(t.Context(), hc, vmID, "hybrid") }()
		if !shakeHands(ac, ac) {
			t.Fatal("no handshake")
		}
		policy := make([]byte, vsockproto.FrameHeaderSize)
		io.ReadFull(ac, policy)
		h, err := vsockproto.ParseFrameHeader(policy, vsockproto.MaxFrame)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(ac, make([]byte, int(h.Length)-len(policy)))
		ac.Write(eventFrame(1, prototest.Sample(vsockproto.FileOpen)))
		if err := <-end; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("it ends with %v", err)
		}
		want(t, "findings", w.rules(), "deaf")
		want(t, "delivered", w.delivered(), "file_open/1")
		if s, _ := m.StatusOf(vmID); s.State == Live {
			t.Errorf("status %+v", s)
		}
		if v := m.known(vmID); v.sess.Dead {
			t.Error("the session cannot go on")
		}
	})
}

// A VM that floods is a finding, and held to its rate; nothing of it is lost.
func TestFloodIsHeldToItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, frames, batch = 1000, 130, 100
		w := newWorld()
		m := w.manager(&Options{Flood: rate})
		go m.Run(t.Context())
		a := prototest.NewAgent(nil)
		c := dial(t.Context(), m, a)
		<-a.Up()
		began := time.Now()
		for range frames {
			send(t, a, many(batch)...)
		}
		if err := a.Drained(t.Context()); err != nil {
			t.Fatal(err)
		}
		least := time.Duration(frames*batch/rate-floodBurst-1) * time.Second
		if took := time.Since(began); took < least || took > least+2*time.Second {
			t.Errorf("%d records took %s, want %s", frames*batch, took, least)
		}
		if got := w.rules(); !strings.HasPrefix(got, "flood") || strings.ReplaceAll(got, "flood", "") != strings.Repeat(" ", strings.Count(got, "flood")-1) {
			t.Errorf("findings: %q", got)
		}
		if s, _ := m.StatusOf(vmID); s.Received.Bulk+s.Received.Critical != frames*batch || s.State != Live {
			t.Errorf("status %+v", s)
		}
		w.mu.Lock()
		if w.longest != 0 || !w.held.IsZero() {
			t.Errorf("a record was held for %s, the last since %s", w.longest, w.held)
		}
		w.mu.Unlock()
		c.hangUp()
	})
}
