package monitor

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// BenchmarkBesideAbusers is a VM's time from arrival to verdict beside one that
// floods (at the default session.flood, to which it is held), one that sends a
// byte a second, one that does not read and one that holds a thousand
// connections open, against its time without them, in one run. The abusers
// share the two processors as well, and so does what plays them.
func BenchmarkBesideAbusers(b *testing.B) {
	var vsocks string
	c := newBencherWith(b, func(cfg *Config) {
		cfg.Session.Flood = 100_000
		vsocks = cfg.Listen.HybridDir
		for _, name := range []string{"flooder", "dripper", "deaf", "crowd"} {
			enrol(b, cfg, uuid.New(), name)
		}
	})
	event := sample(1)
	send := func() {
		if err := c.agent.Send(b.Context(), event...); err != nil {
			b.Fatal(err)
		}
	}
	measure := func(n int) []time.Duration {
		c.start(n)
		paced(n, send)
		if err := c.agent.Drained(b.Context()); err != nil {
			b.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		return c.took()
	}
	measure(500)
	n := max(b.N, 3000)
	b.ResetTimer()
	alone := measure(n)
	ctx, stop := context.WithCancel(b.Context())
	var abusers sync.WaitGroup
	dial := func(name string) net.Conn { return dialRetry(b, filepath.Join(vsocks, name+".sock_6820")) }
	for _, abuse := range []func(context.Context, func(string) net.Conn){flood, drip, readNothing, openMany} {
		abusers.Go(func() { abuse(ctx, dial) })
	}
	time.Sleep(6 * time.Second) // what the flood may send at once is through
	beside := measure(n)
	b.StopTimer()
	stop()
	abusers.Wait()
	c.whole()
	report(b, "alone-", alone)
	report(b, "beside-", beside)
	b.ReportMetric(float64(quantile(beside, 0.5))/float64(quantile(alone, 0.5)), "p50-ratio")
	b.ReportMetric(0, "ns/op")
}

func flood(ctx context.Context, dial func(string) net.Conn) {
	a := prototest.NewAgent(nil)
	events := sample(100)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for ctx.Err() == nil {
			_ = a.Send(ctx, events...) // ends with ctx
		}
	})
	_ = a.Run(ctx, dial("flooder"))
}

func drip(ctx context.Context, dial func(string) net.Conn) {
	conn := dial("dripper")
	defer conn.Close()
	if prototest.ShakeHands(conn) != nil {
		return
	}
	for range 60 {
		_, _ = conn.Write([]byte{0})
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

func readNothing(ctx context.Context, dial func(string) net.Conn) {
	conn := dial("deaf")
	defer conn.Close()
	if prototest.ShakeHands(conn) != nil {
		return
	}
	beat := vsockproto.AppendHeartbeat(nil, &vsockproto.Heartbeat{})
	for seq := uint64(1); ctx.Err() == nil; seq++ {
		_ = conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := conn.Write(prototest.FrameOf(vsockproto.FrameHeartbeat, seq, beat)); err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	<-ctx.Done()
}

func openMany(ctx context.Context, dial func(string) net.Conn) {
	for range 1000 {
		defer dial("crowd").Close()
	}
	<-ctx.Done()
}
