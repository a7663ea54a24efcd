package link_test

import (
	"context"
	"errors"
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
