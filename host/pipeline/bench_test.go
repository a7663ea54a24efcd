package pipeline

// The cost of a verdict, through a real engine process, beside a bare round
// trip over a unix socket of the same size and pacing in the same run:
//
//	go test -run '^$' -bench . -benchtime 3000x ./host/pipeline
//
// Every metric of a line is one number of `make bench`:
//
//	awk '/^Benchmark/ { sub(/-[0-9]+$/, "", $1); for (i = 3; i < NF; i += 2) print "bench", $1 "/" $(i+1), $i, $(i+1) }'

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/host/engines"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/engine/enginetest"
)

// TestMain lets this binary be the far end of the bare round trip.
func TestMain(m *testing.M) {
	if os.Getenv("OUTGUARD_BENCH_ECHO") != "" {
		echo()
		return
	}
	os.Exit(m.Run())
}

const answerSize = 24 // what an engine answers to a batch without findings

// echo reads messages as long as their first 4 bytes say, and answers each.
func echo() {
	conn, err := net.FileConn(os.NewFile(3, "echo"))
	if err != nil {
		panic(err)
	}
	buf := make([]byte, 1<<20)
	for {
		if _, err := io.ReadFull(conn, buf[:4]); err != nil {
			return
		}
		n := int(buf[0]) | int(buf[1])<<8 | int(buf[2])<<16
		if _, err := io.ReadFull(conn, buf[4:n]); err != nil {
			return
		}
		if _, err := conn.Write(buf[:answerSize]); err != nil {
			return
		}
	}
}

// bare is a round trip with nothing in it.
type bare struct {
	conn   net.Conn
	answer [answerSize]byte
}

func newBare(b *testing.B) *bare {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env, cmd.ExtraFiles = append(os.Environ(), "OUTGUARD_BENCH_ECHO=1"), []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close(); _ = cmd.Wait() })
	return &bare{conn: conn}
}

func (r *bare) trip(b *testing.B, message []byte) time.Duration {
	start := time.Now()
	if _, err := r.conn.Write(message); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(r.conn, r.answer[:]); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// path is a pipeline over one real engine process.
type path struct {
	*Pipeline
	supervisor *engines.Supervisor
	guest      *enginetest.Guest
	server     *enginetest.Process
	records    atomic.Uint64
	index      uint64
}

func newPath(b *testing.B) *path {
	p := &path{Pipeline: New(), guest: enginetest.NewGuest(uuid.UUID{1})}
	latency := p.Judged("tsem")
	p.supervisor = engines.New(
		engines.Config{Name: "tsem", Path: enginetest.Build(b, "github.com/outguard/outguard/plugins/cmd/outguard-engine-tsem")},
		func(f engine.Finding) { b.Errorf("%s: %s", f.Rule, f.Reason) },
		&engines.Options{
			Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
			Judged: func(batch *engine.Batch, at time.Time) {
				latency(batch, at)
				p.records.Add(uint64(batch.Count))
			},
		})
	p.Add(p.supervisor)
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = p.supervisor.Run(ctx) }()
	b.Cleanup(func() { cancel(); <-done })
	p.server = p.guest.Running("/usr/sbin/httpd")
	p.guest.Serve(p.server, 100)
	p.submit(b, p.guest.Batch())
	p.drain()
	if _, err := p.supervisor.Seal(b.Context(), p.guest.VM); err != nil {
		b.Fatal(err)
	}
	return p
}

// batch is n records of what the model knows: opens and connects of a CGI.
func (p *path) batch(n int) *engine.Batch {
	cgi := p.guest.Run(p.server, "/srv/cgi/search")
	for i := 2; i < n; i++ {
		p.guest.Open(cgi, fmt.Sprintf("/srv/data/%d", i%3))
	}
	return p.guest.Batch()
}

func (p *path) submit(b *testing.B, batch *engine.Batch) {
	p.index++
	batch.Index, batch.Received = p.index, time.Now()
	if err := p.Submit(b.Context(), batch); err != nil {
		b.Fatal(err)
	}
}

// drain waits until every batch is judged.
func (p *path) drain() {
	for {
		if s := p.supervisor.Status(); s.Running && s.Pending == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// BenchmarkVerdict: b.N batches at so many events a second, a batch each
// millisecond, and half a millisecond later its bare counterpart.
func BenchmarkVerdict(b *testing.B) {
	for _, rate := range []int{1000, 100_000} {
		b.Run(fmt.Sprintf("rate=%d", rate), func(b *testing.B) { benchmarkVerdict(b, rate/1000) })
	}
}

func benchmarkVerdict(b *testing.B, records int) {
	p, r := newPath(b), newBare(b)
	batch := p.batch(max(records, 3))
	if records == 1 { // one open of a process that is known by now
		p.submit(b, batch)
		p.guest.Open(p.server, "/srv/known")
		if _, err := p.supervisor.Learn(b.Context(), p.guest.VM); err != nil {
			b.Fatal(err)
		}
		batch = p.guest.Batch()
		p.submit(b, batch)
		p.drain()
		if _, err := p.supervisor.Seal(b.Context(), p.guest.VM); err != nil {
			b.Fatal(err)
		}
	}
	message, err := engine.AppendBatch(nil, 1, batch)
	if err != nil {
		b.Fatal(err)
	}
	verdicts := p.Latency("tsem")
	*verdicts = Histogram{}
	var trips Histogram
	b.ResetTimer()
	next := time.Now()
	for range b.N {
		p.submit(b, batch)
		next = next.Add(500 * time.Microsecond)
		time.Sleep(time.Until(next))
		trips.Observe(r.trip(b, message))
		next = next.Add(500 * time.Microsecond)
		time.Sleep(time.Until(next))
	}
	b.StopTimer()
	p.drain()
	report := func(name string, h *Histogram, q float64) {
		b.ReportMetric(float64(h.Quantile(q))/1e3, name+"-us")
	}
	report("verdict-p50", verdicts, 0.5)
	report("verdict-p99", verdicts, 0.99)
	report("bare-p50", &trips, 0.5)
	report("bare-p99", &trips, 0.99)
	b.ReportMetric(float64(verdicts.Quantile(0.5))/float64(trips.Quantile(0.5)), "verdict/bare")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkThroughput: batches of 512 records as fast as the engine takes
// them.
func BenchmarkThroughput(b *testing.B) {
	p := newPath(b)
	batch := p.batch(512)
	b.SetBytes(int64(len(batch.Records)))
	before := p.records.Load()
	b.ResetTimer()
	for range b.N {
		p.submit(b, batch)
	}
	p.drain()
	b.ReportMetric(float64(p.records.Load()-before)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(0, "ns/op")
}
