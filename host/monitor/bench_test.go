package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// The benchmarks run the monitor as it is in one process, its engine in
// another, and evidence on the disk. The guest is prototest's agent over a unix
// socket, as vhost-device-vsock's would be.

// bencher is a running monitor with one enrolled VM and its agent.
type bencher struct {
	b     *testing.B
	m     *Monitor
	agent *prototest.Agent
	vm    uuid.UUID

	watch *watch

	mu       sync.Mutex
	verdicts []time.Duration
}

// start begins to collect verdicts, room for n of them.
func (c *bencher) start(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.verdicts = make([]time.Duration, 0, n)
}

func (c *bencher) took() []time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.verdicts
}

func newBencher(b *testing.B) *bencher { return newBencherWith(b, func(*Config) {}) }

// newBencherWith lets change change the configuration, and enrol more.
func newBencherWith(b *testing.B, change func(*Config)) *bencher {
	b.Helper()
	dir := b.TempDir()
	vm := uuid.New()
	cfg := benchConfig(b, dir, vm)
	change(cfg)
	m := New(cfg, "bench", slog.New(slog.DiscardHandler))
	c := &bencher{b: b, m: m, vm: vm}
	c.watch = &watch{at: map[uint64]*moments{}}
	m.watch = c.watch.around
	m.observe = func(b *engine.Batch, verdict time.Time) {
		if b.VM != vm {
			return
		}
		c.watch.judged(b, verdict)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.verdicts = append(c.verdicts, verdict.Sub(b.Received))
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	c.agent = prototest.NewAgent(nil)
	go c.agent.Run(ctx, dialRetry(b, filepath.Join(cfg.Listen.HybridDir, "web.sock_6820")))
	select {
	case <-c.agent.Up():
	case <-time.After(20 * time.Second):
		b.Fatal("the agent did not come up")
	}
	return c
}

func benchConfig(b *testing.B, dir string, vm uuid.UUID) *Config {
	b.Helper()
	bin := filepath.Join(dir, "bin")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin+"/", "github.com/outguard/outguard/plugins/cmd/outguard-engine-tsem").CombinedOutput()
	if err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	run, err := os.MkdirTemp("", "og")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(run) })
	self := os.Getenv("USER")
	if self == "" {
		self = "root"
	}
	cfg := &Config{
		StateDir: filepath.Join(dir, "state"), RunDir: run, Libvirt: filepath.Join(run, "none"),
		Listen:  Listen{Vsock: "off"},
		Engines: []Engine{{Name: "tsem", Path: filepath.Join(bin, "outguard-engine-tsem"), User: self}},
	}
	cfg.setDefaults()
	cfg.Session.Flood = 1 << 30
	enrol(b, cfg, vm, "web")
	return cfg
}

func enrol(b *testing.B, cfg *Config, vm uuid.UUID, name string) {
	b.Helper()
	socket := filepath.Join(cfg.Listen.HybridDir, name)
	e := domain.Enrolment{
		Version: 1, UUID: vm, Name: name, Transport: domain.VhostUser, CID: 42, Vhost: socket + ".vhost",
		Socket: socket + ".sock", KeyFile: "/none", Key: prototest.Key, Enrolled: time.Now(),
	}
	text, err := json.Marshal(e)
	if err != nil {
		b.Fatal(err)
	}
	enroll := filepath.Join(cfg.StateDir, "enroll")
	if err := errors.Join(os.MkdirAll(enroll, 0o755), os.WriteFile(filepath.Join(enroll, vm.String()+".json"), text, 0o600)); err != nil {
		b.Fatal(err)
	}
}

func dialRetry(b *testing.B, path string) net.Conn {
	b.Helper()
	var err error
	for range 400 {
		var conn net.Conn
		if conn, err = net.Dial("unix", path); err == nil {
			return conn
		}
		time.Sleep(25 * time.Millisecond)
	}
	b.Fatal(err)
	return nil
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(d))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

func report(b *testing.B, name string, d []time.Duration) {
	b.ReportMetric(float64(quantile(d, 0.5))/1e3, name+"p50-us")
	b.ReportMetric(float64(quantile(d, 0.99))/1e3, name+"p99-us")
}

// sample is n ordinary events: the files of a service that opens them again
// and again.
func sample(n int) []*vsockproto.Event {
	events := make([]*vsockproto.Event, n)
	for i := range events {
		e := prototest.Sample(vsockproto.FileOpen)
		e.Path.Data = []byte("/srv/www/data/file-" + string(rune('a'+i%16)))
		events[i] = e
	}
	return events
}

// settle waits until the engine has judged n batches more than before.
func (c *bencher) settle(n uint64) {
	for range 4000 {
		if c.m.engines[0].Status().Batches >= n {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	c.b.Fatalf("judged %d batches of %d", c.m.engines[0].Status().Batches, n)
}

// whole fails where a record was neither received nor declared lost.
func (c *bencher) whole() {
	s, ok := c.m.sessions.StatusOf(c.vm)
	if !ok || s.Missing.Bulk+s.Missing.Critical != 0 {
		c.b.Fatalf("missing: %+v", s.Missing)
	}
}

// paced calls send once a millisecond, n times.
func paced(n int, send func()) {
	next := time.Now()
	for range n {
		send()
		next = next.Add(time.Millisecond)
		time.Sleep(time.Until(next))
	}
}

// BenchmarkVerdict is from the arrival of a frame on the host to its verdict,
// with the record written and the engine's process in between, beside a bare
// round trip of the same bytes to another process, at the same pace, in the
// same run.
func BenchmarkVerdict(b *testing.B) {
	for _, tc := range []struct {
		name  string
		batch int
	}{{"1k", 1}, {"100k", 100}} {
		b.Run(tc.name, func(b *testing.B) {
			c := newBencher(b)
			events := sample(tc.batch)
			size := frameSize(b, events)
			send := func() {
				if err := c.agent.Send(b.Context(), events...); err != nil {
					b.Fatal(err)
				}
			}
			paced(200, send) // connections, caches and the model are warm
			c.settle(200)
			echo := newEcho(b, size)
			paced(200, func() { echo.trip() })

			bare := make([]time.Duration, 0, b.N)
			c.start(b.N)
			c.watch.start(b.N)
			b.ResetTimer()
			paced(b.N, func() { // in turns, so that noise meets both
				bare = append(bare, echo.trip())
				send()
			})
			b.StopTimer()
			c.settle(200 + uint64(b.N))
			c.whole()
			got := c.took()
			report(b, "", got)
			report(b, "bare-", bare)
			c.watch.report(b)
			b.ReportMetric(float64(quantile(got, 0.5))/float64(quantile(bare, 0.5)), "p50-ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkThroughput is how many events a second pass from the agent's socket
// through session, evidence and the engine's process, all on this machine's
// processors, none unaccounted for.
func BenchmarkThroughput(b *testing.B) {
	const batch = 200
	c := newBencher(b)
	events := sample(batch)
	frames := uint64(0)
	send := func(n int) {
		for ; n > 0; n -= batch {
			if err := c.agent.Send(b.Context(), events...); err != nil {
				b.Fatal(err)
			}
			frames++
		}
		if err := c.agent.Drained(b.Context()); err != nil {
			b.Fatal(err)
		}
		c.settle(frames)
	}
	send(10 * batch)
	b.ResetTimer()
	send(b.N)
	b.StopTimer()
	c.whole()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

func frameSize(b *testing.B, events []*vsockproto.Event) int {
	b.Helper()
	n := vsockproto.FrameHeaderSize + vsockproto.EventsHeader
	for _, e := range events {
		r, err := e.Append(nil)
		if err != nil {
			b.Fatal(err)
		}
		n += len(r)
	}
	return n
}

// echo is another process that sends back what it is sent.
type echo struct {
	b    *testing.B
	conn net.Conn
	buf  []byte
}

func newEcho(b *testing.B, size int) *echo {
	b.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), echoEnv+"=1")
	cmd.Stdin, cmd.Stdout = theirs, theirs
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close(); _ = cmd.Wait() })
	return &echo{b, conn, make([]byte, size)}
}

// trip is the time of one round trip.
func (e *echo) trip() time.Duration {
	began := time.Now()
	_, err := e.conn.Write(e.buf)
	if err == nil {
		_, err = io.ReadFull(e.conn, e.buf)
	}
	if err != nil {
		e.b.Fatal(err)
	}
	return time.Since(began)
}

// echoEnv makes the test binary be that process: Go on both sides, as with the
// monitor and its engine.
const echoEnv = "OUTGUARD_BENCH_ECHO"

func init() {
	if os.Getenv(echoEnv) == "" {
		return
	}
	conn, err := net.FileConn(os.Stdin)
	if err == nil {
		_, err = io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{conn}, make([]byte, 256<<10))
	}
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}
