package monitor

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/vsockproto/prototest"
)

// BenchmarkBesideAbusers is a VM's time from arrival to verdict beside one that
// floods (at the default session.flood, to which it is held), one that sends a
// byte a second, one that does not read and one that holds a thousand
// connections open, against its time without them, in one run. What plays the
// abusers is a process that gets what processor time is left: on a host their
// guests have processors of their own, and what counts is what they cost the
// monitor.
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
	abusers := playAbusers(b, vsocks)
	time.Sleep(6 * time.Second) // what the flood may send at once is through
	const rounds = 8
	n := max(b.N, 4000) / rounds
	var alone, beside []time.Duration
	b.ResetTimer()
	for range rounds { // in turns, so that noise meets both
		beside = append(beside, measure(n)...)
		abusers.signal(unix.SIGSTOP)
		time.Sleep(200 * time.Millisecond)
		alone = append(alone, measure(n)...)
		abusers.signal(unix.SIGCONT)
		time.Sleep(time.Second)
	}
	b.StopTimer()
	abusers.stop()
	c.whole()
	report(b, "alone-", alone)
	report(b, "beside-", beside)
	b.ReportMetric(float64(quantile(beside, 0.5))/float64(quantile(alone, 0.5)), "p50-ratio")
	b.ReportMetric(0, "ns/op")
}

// abuseEnv makes the test binary play all the abusers on the sockets in that
// directory until its input ends.
const abuseEnv = "OUTGUARD_BENCH_ABUSE"

// players is the process that plays the abusers.
type players struct {
	b   *testing.B
	cmd *exec.Cmd
	in  io.Closer
}

func playAbusers(b *testing.B, vsocks string) *players {
	cmd := exec.Command("chrt", "--idle", "0", os.Args[0])
	cmd.Env = append(os.Environ(), abuseEnv+"="+vsocks)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	return &players{b, cmd, in}
}

func (p *players) signal(s os.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil {
		p.b.Fatal(err)
	}
}

func (p *players) stop() {
	p.in.Close()
	if err := p.cmd.Wait(); err != nil {
		p.b.Errorf("abusers: %v", err)
	}
}

func init() {
	dir := os.Getenv(abuseEnv)
	if dir == "" {
		return
	}
	if err := abuse(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func abuse(vsocks string) error {
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	var all errgroup.Group
	for _, a := range prototest.Abuses() {
		all.Go(func() error {
			dial := func() (net.Conn, error) { return net.Dial("unix", filepath.Join(vsocks, a.Name+".sock_6820")) }
			if err := a.Do(ctx, dial); err != nil {
				return fmt.Errorf("%s: %w", a.Name, err)
			}
			return nil
		})
	}
	return all.Wait()
}
