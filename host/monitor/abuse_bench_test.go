package monitor

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

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
		for _, abuse := range prototest.Abuses() {
			enrol(b, cfg, uuid.New(), abuse.Name)
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
	for _, abuse := range prototest.Abuses() {
		abusers.Go(func() {
			dial := func() (net.Conn, error) { return dialRetry(b, filepath.Join(vsocks, abuse.Name+".sock_6820")), nil }
			if err := abuse.Do(ctx, dial); err != nil {
				b.Errorf("%s: %v", abuse.Name, err)
			}
		})
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
