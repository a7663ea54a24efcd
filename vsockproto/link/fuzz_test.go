package link_test

import (
	"io"
	"testing"
	"time"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// FuzzHostileHost is a host that knows the key and then sends what it likes. The
// agent must not panic, must end with the connection, and must still hold what
// nobody acked.
func FuzzHostileHost(f *testing.F) {
	f.Add(frame(vsockproto.FrameAck, 1, vsockproto.AppendAck(nil, &vsockproto.Ack{Sequence: 1, Credit: 1 << 20})))
	f.Add(frame(vsockproto.FrameAck, 1, vsockproto.AppendAck(nil, &vsockproto.Ack{Sequence: 1 << 63, Credit: 1<<64 - 1})))
	f.Add(frame(vsockproto.FramePolicy, 1, vsockproto.AppendPolicy(nil, &vsockproto.Policy{Number: 2, Hooks: vsockproto.EventTypes()})))
	f.Add(frame(vsockproto.FrameReject, 1, vsockproto.AppendReject(nil, &vsockproto.Reject{Code: 8, Reason: "x"})))
	f.Fuzz(func(t *testing.T, in []byte) {
		ac, hc := prototest.Pipe()
		a := prototest.NewAgent(&prototest.AgentOptions{Silent: true})
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
		go io.Copy(io.Discard, hc)
		_ = a.Link().SendEvents(0, nil)
		hc.Write(in)
		hc.Close()
		select {
		case err := <-end:
			if err == nil {
				t.Fatal("a connection that ended without a reason")
			}
		case <-time.After(time.Minute):
			t.Fatal("the connection has ended, and Run has not")
		}
		if room := a.Link().Room(); room > 0 {
			t.Fatalf("room for %d bytes without a connection", room)
		}
	})
}
