package respond

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/domain/domaintest"
)

// BenchmarkStop measures a verdict to stopped vCPUs, beside a bare libvirt suspend
// and a bare QMP stop of the same VM, one that idles and one that does not. Each
// round stops it in all three ways, so that what disturbs one disturbs the others:
//
//	order    Submit until libvirt has confirmed it, the journal's sync included
//	suspend  Client.Pause alone
//	qmp      QMP stop on a monitor of its own
//
// Each also gives NAME-stopped: until QEMU's own STOP event, by its time stamp.
// libvirt answers later: it first writes the domain's status to /run/libvirt.
// times-qmp is the order's over qmp's. journaled and started say how far the order
// was on its way.
//
// A guest that does not idle takes a processor. Where the machine has few, what is
// woken on the way (five threads, in libvirtd and in QEMU) may have to wait there
// until the scheduler's next tick.
func BenchmarkStop(b *testing.B) {
	b.Run("idle", func(b *testing.B) { benchmarkStop(b, domaintest.Start(b, domaintest.Config{Idle: true})) })
	b.Run("busy", func(b *testing.B) { benchmarkStop(b, domaintest.Start(b, domaintest.Config{})) })
}

func benchmarkStop(b *testing.B, g *domaintest.Guest) {
	c := domain.New(nil)
	defer c.Close()
	j, err := OpenJournal(filepath.Join(b.TempDir(), "journal.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer j.Close()
	r := New(j, c, nil, nil, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() { cancel(); <-done }()
	q := dialQMP(b, g.QMP)
	took := map[string][]time.Duration{}
	note := func(what string, d time.Duration) { took[what] = append(took[what], d) }
	ways := []struct {
		name string
		stop func(began time.Time)
		back func() error
	}{
		{"order", func(began time.Time) {
			orders, err := r.Submit(ctx, Request{VM: g.UUID, Steps: []Kind{Pause}, Asked: "bench"})
			if err != nil {
				b.Fatal(err)
			}
			res, err := r.Wait(ctx, orders[0].ID)
			if err != nil || res.Status != Done {
				b.Fatalf("%+v %v", res, err)
			}
			note("order", res.Effect.Sub(began))
			note("journaled", res.Journaled.Sub(began))
			note("started", res.Started.Sub(began))
		}, func() error { return c.Resume(ctx, g.UUID) }},
		{"suspend", func(began time.Time) {
			if err := c.Pause(ctx, g.UUID); err != nil {
				b.Fatal(err)
			}
			note("suspend", time.Since(began))
		}, func() error { return c.Resume(ctx, g.UUID) }},
		{"qmp", func(began time.Time) {
			q.do("stop")
			note("qmp", time.Since(began))
		}, func() error { q.do("cont"); return nil }},
	}
	for b.Loop() {
		for _, way := range ways {
			began := time.Now()
			way.stop(began)
			note(way.name+"-stopped", q.stopped().Sub(began))
			if err := way.back(); err != nil {
				b.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond) // so that there is something to stop
		}
	}
	for what, all := range took {
		slices.Sort(all)
		report(b, what, all)
	}
	order, bare := took["order-stopped"], took["qmp-stopped"]
	for _, p := range []int{50, 99} {
		b.ReportMetric(float64(at(order, p))/float64(at(bare, p)), fmt.Sprintf("p%d-times-qmp", p))
	}
	b.ReportMetric(0, "ns/op") // of no meaning: it sleeps
}

func report(b *testing.B, what string, sorted []time.Duration) {
	for _, p := range []int{50, 99} {
		b.ReportMetric(float64(at(sorted, p).Microseconds()), fmt.Sprintf("%s-p%d-us", what, p))
	}
}

// at returns a percentile.
func at(sorted []time.Duration, p int) time.Duration { return sorted[len(sorted)*p/100] }

// monitor is a QMP connection.
type monitor struct {
	t     testing.TB
	c     net.Conn
	r     *bufio.Reader
	stops []time.Time // STOP events not asked for yet
}

func dialQMP(t testing.TB, socket string) *monitor {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	q := &monitor{t: t, c: c, r: bufio.NewReader(c)}
	if _, err := q.r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	q.do("qmp_capabilities")
	return q
}

func (q *monitor) do(command string) {
	q.t.Helper()
	if _, err := io.WriteString(q.c, fmt.Sprintf("{\"execute\": %q}\n", command)); err != nil {
		q.t.Fatal(err)
	}
	for line := ""; !strings.HasPrefix(line, `{"return"`); {
		if line = q.line(); strings.HasPrefix(line, `{"error"`) {
			q.t.Fatalf("QMP %s: %s", command, line)
		}
	}
}

// line reads a line and keeps the time of a STOP event.
func (q *monitor) line() string {
	q.t.Helper()
	if err := q.c.SetReadDeadline(time.Now().Add(awaited)); err != nil {
		q.t.Fatal(err)
	}
	line, err := q.r.ReadString('\n')
	if err != nil {
		q.t.Fatal(err)
	}
	var e struct {
		Event     string `json:"event"`
		Timestamp struct {
			Seconds, Microseconds int64
		} `json:"timestamp"`
	}
	if json.Unmarshal([]byte(line), &e) == nil && e.Event == "STOP" {
		q.stops = append(q.stops, time.Unix(e.Timestamp.Seconds, e.Timestamp.Microseconds*1000))
	}
	return line
}

// stopped returns when the next STOP event was.
func (q *monitor) stopped() time.Time {
	for len(q.stops) == 0 {
		q.line()
	}
	at := q.stops[0]
	q.stops = q.stops[1:]
	return at
}
