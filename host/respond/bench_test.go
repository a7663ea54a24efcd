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

// BenchmarkStop measures a verdict to stopped vCPUs, beside a bare QMP stop
// and a bare libvirt suspend of the same VM, one that idles and one that does not:
//
//	order    Submit until libvirt has confirmed it, the journal's sync included
//	suspend  Client.Pause alone
//	qmp      QMP stop on a monitor of its own
//
// Each also gives stopped-*: until QEMU's own STOP event, by its time stamp.
// libvirt answers later: it first writes the domain's status to /run/libvirt.
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
	var journaled, started []time.Duration
	for _, way := range []struct {
		name string
		stop func() time.Duration
	}{
		{"order", func() time.Duration {
			began := time.Now()
			orders, err := r.Submit(ctx, Request{VM: g.UUID, Steps: []Kind{Pause}, Asked: "bench"})
			if err != nil {
				b.Fatal(err)
			}
			res, err := r.Wait(ctx, orders[0].ID)
			if err != nil || res.Status != Done {
				b.Fatalf("%+v %v", res, err)
			}
			journaled = append(journaled, res.Journaled.Sub(began))
			started = append(started, res.Started.Sub(began))
			return res.Effect.Sub(began)
		}},
		{"suspend", func() time.Duration {
			began := time.Now()
			if err := c.Pause(ctx, g.UUID); err != nil {
				b.Fatal(err)
			}
			return time.Since(began)
		}},
		{"qmp", func() time.Duration {
			began := time.Now()
			q.do("stop")
			return time.Since(began)
		}},
	} {
		b.Run(way.name, func(b *testing.B) {
			var all, stopped []time.Duration
			journaled, started = journaled[:0], started[:0]
			for b.Loop() {
				began := time.Now()
				all = append(all, way.stop())
				b.StopTimer()
				stopped = append(stopped, q.stopped().Sub(began))
				if way.name == "qmp" {
					q.do("cont")
				} else if err := c.Resume(ctx, g.UUID); err != nil {
					b.Fatal(err)
				}
				time.Sleep(20 * time.Millisecond) // so that there is something to stop
				b.StartTimer()
			}
			report(b, "", all)
			report(b, "stopped-", stopped)
			report(b, "journaled-", journaled)
			report(b, "started-", started)
		})
	}
}

func report(b *testing.B, what string, all []time.Duration) {
	if len(all) == 0 {
		return
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), what+"p50-us")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), what+"p99-us")
}

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
