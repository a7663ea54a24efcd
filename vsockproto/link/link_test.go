package link_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// pair runs an agent and a host over a connection until one of them ends it.
func pair(ctx context.Context, a *prototest.Agent, h *prototest.Host) (agentEnd, hostEnd chan error) {
	ac, hc := prototest.Pipe()
	agentEnd, hostEnd = make(chan error, 1), make(chan error, 1)
	go func() { agentEnd <- a.Run(ctx, ac) }()
	go func() { hostEnd <- h.Serve(hc) }()
	return agentEnd, hostEnd
}

func TestEventsArriveAndAreAccounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		beats := 0
		h := prototest.NewHost(&prototest.HostOptions{
			OnEvent:     func(e *vsockproto.Event) { got = append(got, e.Type.String()+string(e.Path.Data)) },
			OnHeartbeat: func(*vsockproto.Heartbeat) { beats++ },
			Policy:      &vsockproto.Policy{Number: 7, Hooks: []vsockproto.EventType{vsockproto.FileOpen}},
		})
		a := prototest.NewAgent(nil)
		ctx := t.Context()
		agentEnd, hostEnd := pair(ctx, a, h)
		<-a.Up()
		if err := a.Send(ctx, prototest.Sample(vsockproto.TaskNewtask), prototest.Sample(vsockproto.FileOpen)); err != nil {
			t.Fatal(err)
		}
		a.Lose(1, vsockproto.Bulk, 1000)
		time.Sleep(3500 * time.Millisecond)
		if a.Policy().Number != 7 {
			t.Errorf("policy %v", a.Policy())
		}
		if err := a.Bye(ctx, "done"); err != nil {
			t.Fatal(err)
		}
		if err := <-hostEnd; err != nil {
			t.Fatal(err)
		}
		<-agentEnd
		if strings.Join(got, " ") != "task_newtask file_open/etc/passwd" || beats != 3 {
			t.Fatalf("got %v and %d heartbeats", got, beats)
		}
	})
}

func TestUnackedFramesComeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seqs []uint64
		var h *prototest.Host
		h = prototest.NewHost(&prototest.HostOptions{OnEvent: func(e *vsockproto.Event) {
			seqs = append(seqs, e.Sequence)
			if e.Sequence%3 == 0 || e.Sequence == 10 {
				h.Break() // recorded, but the ack is lost
			}
		}})
		a := prototest.NewAgent(nil)
		ctx := t.Context()
		go func() {
			for range 10 {
				if err := a.Send(ctx, prototest.Sample(vsockproto.FileOpen)); err != nil {
					t.Error(err)
				}
			}
		}()
		for range 4 {
			agentEnd, hostEnd := pair(ctx, a, h)
			<-agentEnd
			<-hostEnd
		}
		if len(seqs) != 10 {
			t.Fatalf("%d records", len(seqs))
		}
		for i, s := range seqs {
			if s != uint64(i+1) {
				t.Fatalf("records %v", seqs)
			}
		}
		if _, resumed := a.Welcome(); !resumed {
			t.Fatal("the session was not resumed")
		}
	})
}

// late passes on what is written a second before it says so.
type late struct{ net.Conn }

func (c late) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	time.Sleep(time.Second)
	return n, err
}

// TestAckBeforeTheWriteReturns: what is being written is not given to other
// frames, however early the host says that it has it.
func TestAckBeforeTheWriteReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var came time.Time
		h := prototest.NewHost(&prototest.HostOptions{OnEvent: func(*vsockproto.Event) { came = time.Now() }})
		a := prototest.NewAgent(&prototest.AgentOptions{Silent: true})
		ac, hc := prototest.Pipe()
		agentEnd, hostEnd := make(chan error, 1), make(chan error, 1)
		go func() { agentEnd <- a.Run(t.Context(), late{ac}) }()
		go func() { hostEnd <- h.Serve(hc) }()
		<-a.Up()
		if err := a.Send(t.Context(), prototest.Sample(vsockproto.FileOpen)); err != nil {
			t.Fatal(err)
		}
		if err := a.Drained(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(came); came.IsZero() || took != time.Second {
			t.Errorf("given up %s after it came, and a second more it was being written", took)
		}
		h.Break()
		<-agentEnd
		<-hostEnd
	})
}

func TestAgentNeverExceedsItsCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// A frame of one file_open is 328 bytes: the credit is for three.
		h := prototest.NewHost(&prototest.HostOptions{Credit: 1000})
		a := prototest.NewAgent(&prototest.AgentOptions{Silent: true})
		ctx := t.Context()
		_, hostEnd := pair(ctx, a, h)
		for range 100 {
			if err := a.Send(ctx, prototest.Sample(vsockproto.FileOpen)); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.Bye(ctx, ""); err != nil {
			t.Fatal(err)
		}
		if err := <-hostEnd; err != nil { // ErrCredit if it had
			t.Fatal(err)
		}
	})
}

func TestWithoutConnectionNothingIsTaken(t *testing.T) {
	a := link.NewAgent(prototest.Key, nil)
	if err := a.SendEvents(0, nil); !errors.Is(err, link.ErrNoRoom) {
		t.Fatalf("got %v", err)
	}
}

func TestWrongKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := prototest.NewAgent(&prototest.AgentOptions{Key: [32]byte{1}})
		agentEnd, hostEnd := pair(t.Context(), a, prototest.NewHost(nil))
		if err := <-hostEnd; !errors.Is(err, link.ErrProof) {
			t.Errorf("host: %v", err)
		}
		var rejected *link.RejectError
		if err := <-agentEnd; !errors.As(err, &rejected) || rejected.Code != vsockproto.RejectProof {
			t.Errorf("agent: %v", err)
		}
	})
}

// TestHostWithoutTheKey has a host that lets anyone in: the agent must not.
func TestHostWithoutTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ac, hc := prototest.Pipe()
		go func() {
			hc.Read(make([]byte, 4096))
			hc.Write(frame(vsockproto.FrameChallenge, 0, vsockproto.AppendChallenge(nil, &vsockproto.Challenge{Secret: vsockproto.SecretKey})))
			hc.Read(make([]byte, 4096))
			hc.Write(frame(vsockproto.FrameHelloAck, 0, vsockproto.AppendHelloAck(nil, &vsockproto.HelloAck{Version: 1, HeartbeatMs: 1000, Next: 1, Credit: 1 << 20})))
		}()
		if err := prototest.NewAgent(nil).Run(t.Context(), ac); !errors.Is(err, link.ErrProof) {
			t.Fatalf("got %v", err)
		}
	})
}

func frame(t vsockproto.FrameType, seq uint64, payload []byte) []byte {
	return append(vsockproto.AppendFrame(nil, t, seq, len(payload)), payload...)
}

func TestHandshakeHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ac, hc := prototest.Pipe()
		defer ac.Close()
		start := time.Now()
		l := link.NewHost(hc, nil)
		go ac.Write(frame(vsockproto.FrameHello, 0, make([]byte, 8))[:9])
		_, err := l.ReadHello()
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Timeout() || time.Since(start) != 10*time.Second {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
	})
}

func TestAgentThatStartsAgainGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seqs []uint64
		h := prototest.NewHost(&prototest.HostOptions{OnEvent: func(e *vsockproto.Event) { seqs = append(seqs, e.Sequence) }})
		a := prototest.NewAgent(nil)
		ctx := t.Context()
		agentEnd, hostEnd := pair(ctx, a, h)
		if err := a.Send(ctx, prototest.Sample(vsockproto.FileOpen)); err != nil {
			t.Fatal(err)
		}
		if err := a.Drained(ctx); err != nil {
			t.Fatal(err)
		}
		h.Break()
		<-agentEnd
		<-hostEnd
		state, ok := a.Link().State()
		if !ok {
			t.Fatal("no state")
		}
		b := prototest.NewAgent(nil)
		b.Link().Restore(state)
		b.Lose(0, vsockproto.Bulk, 1) // number 1 is the first process's
		_, hostEnd = pair(ctx, b, h)
		if err := b.Send(ctx, prototest.Sample(vsockproto.FileOpen)); err != nil {
			t.Fatal(err)
		}
		if err := b.Drained(ctx); err != nil {
			t.Fatal(err)
		}
		h.Break()
		<-hostEnd
		if _, resumed := b.Welcome(); !resumed || len(seqs) != 2 || seqs[1] != 2 {
			t.Fatalf("resumed %v, records %v", resumed, seqs)
		}
	})
}

// journal writes down what it is told.
type journal struct {
	told []string
	lost bool // it knows nothing of an earlier process
}

func (j *journal) tell(format string, a ...any) { j.told = append(j.told, fmt.Sprintf(format, a...)) }

func (j *journal) Sent(seq uint64, t vsockproto.FrameType) { j.tell("sent %d %s", seq, t) }
func (j *journal) Acked(seq uint64)                        { j.tell("acked %d", seq) }
func (j *journal) Begin()                                  { j.tell("begin") }
func (j *journal) Resume(next uint64) bool                 { j.tell("resume %d", next); return !j.lost }

// connect serves one connection, over which do sends and is recorded.
func connect(t *testing.T, h *prototest.Host, a *prototest.Agent, do func()) error {
	agentEnd, hostEnd := pair(t.Context(), a, h)
	go func() {
		do()
		h.Break()
	}()
	err := <-agentEnd
	<-hostEnd
	return err
}

func TestJournalIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := prototest.NewHost(nil)
		j := &journal{}
		o := prototest.AgentOptions{Silent: true, Link: &link.AgentOptions{Journal: j}}
		a := prototest.NewAgent(&o)
		send := func() {
			if err := a.Send(t.Context(), prototest.Sample(vsockproto.FileOpen)); err != nil {
				t.Error(err)
			}
			if err := a.Drained(t.Context()); err != nil {
				t.Error(err)
			}
		}
		connect(t, h, a, send)
		connect(t, h, a, send)
		state, _ := a.Link().State()

		a = prototest.NewAgent(&o)
		a.Link().Restore(state)
		a.Lose(0, vsockproto.Bulk, 2) // those of the first process
		connect(t, h, a, send)

		want := "begin, sent 1 events, acked 1, sent 2 events, acked 2, resume 3, sent 3 events, acked 3"
		if got := strings.Join(j.told, ", "); got != want {
			t.Errorf("told\n%s, want\n%s", got, want)
		}
	})
}

// TestUnknownPast: an agent that does not know what the host has begins anew.
func TestUnknownPast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := prototest.NewHost(nil)
		a := prototest.NewAgent(nil)
		connect(t, h, a, func() { <-a.Up() })
		state, _ := a.Link().State()

		j := &journal{lost: true}
		a = prototest.NewAgent(&prototest.AgentOptions{Silent: true, Link: &link.AgentOptions{Journal: j}})
		a.Link().Restore(state)
		agentEnd, hostEnd := pair(t.Context(), a, h)
		if err := <-agentEnd; !errors.Is(err, link.ErrResume) {
			t.Errorf("got %v", err)
		}
		<-hostEnd
		connect(t, h, a, func() { <-a.Up() })
		if _, resumed := a.Welcome(); resumed {
			t.Error("the session went on")
		}
		if got := strings.Join(j.told, ", "); got != "resume 1, begin" {
			t.Errorf("told %s", got)
		}
	})
}

// TestFramesAreBounded: a host that confirms nothing gets no more than Frames,
// the last of them for who does not ask for room.
func TestFramesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ac, hc := prototest.Pipe()
		a := prototest.NewAgent(&prototest.AgentOptions{Silent: true, Link: &link.AgentOptions{Frames: 20}})
		end := make(chan error, 1)
		go func() { end <- a.Run(t.Context(), ac) }()
		l := link.NewHost(hc, nil)
		if _, err := l.ReadHello(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Challenge([16]byte{1}, vsockproto.SecretKey, &prototest.Key); err != nil {
			t.Fatal(err)
		}
		if err := l.Accept(&vsockproto.HelloAck{HeartbeatMs: 1000, Next: 1, Credit: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		<-a.Up()
		synctest.Wait()
		sent, roomy := 0, 0
		for a.Link().SendEvents(0, nil) == nil {
			sent++
			if a.Link().Room() > 0 {
				roomy++
			}
		}
		if sent != 20 || roomy != 3 {
			t.Errorf("%d frames went, with room behind %d of them", sent, roomy)
		}
		go io.Copy(io.Discard, hc)
		synctest.Wait()
		if err := l.Ack(10, 1<<20, false); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := a.Link().SendEvents(0, nil); err != nil {
			t.Errorf("after an ack: %v", err)
		}
		hc.Close()
		<-end
	})
}

// TestDeadHostIsGivenUp: a host that owes an answer and says nothing is no host;
// one that owes nothing may be silent.
func TestDeadHostIsGivenUp(t *testing.T) {
	for _, owes := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			ac, hc := prototest.Pipe()
			a := prototest.NewAgent(&prototest.AgentOptions{Silent: true, Link: &link.AgentOptions{Patience: 15 * time.Second}})
			end := make(chan error, 1)
			go func() { end <- a.Run(t.Context(), ac) }()
			l := link.NewHost(hc, nil)
			if _, err := l.ReadHello(); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Challenge([16]byte{1}, vsockproto.SecretKey, &prototest.Key); err != nil {
				t.Fatal(err)
			}
			if err := l.Accept(&vsockproto.HelloAck{HeartbeatMs: 5000, Next: 1, Credit: 1 << 20}); err != nil {
				t.Fatal(err)
			}
			<-a.Up()
			go io.Copy(io.Discard, hc)
			time.Sleep(10 * time.Minute)
			began := time.Now()
			if owes {
				if err := a.Heartbeat(); err != nil {
					t.Fatal(err)
				}
				if err := <-end; !errors.Is(err, link.ErrUnanswered) {
					t.Errorf("it ends with %v", err)
				}
				if after := time.Since(began); after < 25*time.Second || after > 40*time.Second {
					t.Errorf("given up after %s, want five heartbeats and a bit", after)
				}
				return
			}
			select {
			case err := <-end:
				t.Errorf("given up: %v", err)
			default:
			}
			hc.Close()
			<-end
		})
	}
}
