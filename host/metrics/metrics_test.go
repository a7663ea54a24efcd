package metrics_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/outguard/outguard/host/metrics"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

func id(n byte) uuid.UUID { return uuid.UUID{15: n} }

func compare(t *testing.T, m *metrics.Metrics, want string, names ...string) {
	t.Helper()
	if err := testutil.GatherAndCompare(m.Registry(), strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
}

func TestVM(t *testing.T) {
	m := metrics.New(nil)
	v := m.VM(id(1), "web")
	v.Frame(100)
	v.Frame(28)
	v.Received(vsockproto.Critical, 3)
	m.VM(id(1), "renamed").Received(vsockproto.Bulk, 5)
	v.Lost(vsockproto.Bulk, 2)
	v.Missing(vsockproto.Critical, 1)
	v.Received(vsockproto.Class(77), 9) // no class: counted nowhere, and no panic
	v.Evidence(4096, 7)
	v.GaveUp("age", 11)
	v.GaveUp("size", 2)
	v.SessionBegun()
	compare(t, m, `
# HELP outguard_events_received_total Records received.
# TYPE outguard_events_received_total counter
outguard_events_received_total{class="bulk",vm="web"} 5
outguard_events_received_total{class="critical",vm="web"} 3
# HELP outguard_events_lost_total Records that the guest's agent declared lost.
# TYPE outguard_events_lost_total counter
outguard_events_lost_total{class="bulk",vm="web"} 2
outguard_events_lost_total{class="critical",vm="web"} 0
# HELP outguard_events_missing_total Records neither received nor declared lost: each is a violation.
# TYPE outguard_events_missing_total counter
outguard_events_missing_total{class="bulk",vm="web"} 0
outguard_events_missing_total{class="critical",vm="web"} 1
# HELP outguard_bytes_total Bytes of frames received.
# TYPE outguard_bytes_total counter
outguard_bytes_total{vm="web"} 128
# HELP outguard_evidence_index Index that the VM's next record gets.
# TYPE outguard_evidence_index gauge
outguard_evidence_index{vm="web"} 7
# HELP outguard_evidence_given_up_total Records that retention gave up, by its reason: age or size.
# TYPE outguard_evidence_given_up_total counter
outguard_evidence_given_up_total{reason="age",vm="web"} 11
outguard_evidence_given_up_total{reason="size",vm="web"} 2
# HELP outguard_session_live Whether the VM's agent has a live session.
# TYPE outguard_session_live gauge
outguard_session_live{vm="web"} 1
`, "outguard_events_received_total", "outguard_events_lost_total", "outguard_events_missing_total",
		"outguard_bytes_total", "outguard_evidence_given_up_total", "outguard_evidence_index", "outguard_session_live")
}

func TestVMsAreBounded(t *testing.T) {
	m := metrics.New(&metrics.Options{MaxVMs: 2})
	for n := byte(1); n <= 5; n++ {
		m.VM(id(n), fmt.Sprint("vm", n)).Frame(1)
	}
	compare(t, m, `
# HELP outguard_frames_total Frames received.
# TYPE outguard_frames_total counter
outguard_frames_total{vm="other"} 3
outguard_frames_total{vm="vm1"} 1
outguard_frames_total{vm="vm2"} 1
`, "outguard_frames_total")
	m.Forget(id(1))
	m.Forget(id(5)) // has none of its own: what it shares stays
	m.VM(id(3), "vm3").Frame(1)
	compare(t, m, `
# HELP outguard_frames_total Frames received.
# TYPE outguard_frames_total counter
outguard_frames_total{vm="other"} 3
outguard_frames_total{vm="vm2"} 1
outguard_frames_total{vm="vm3"} 1
`, "outguard_frames_total")
}

// TestVMsOfOneName: a name that is another VM's label, or stands for all past the
// bound, is nobody's twice.
func TestVMsOfOneName(t *testing.T) {
	m := metrics.New(&metrics.Options{MaxVMs: 3})
	for n, name := range []string{"web", "web", "other", "past"} {
		m.VM(id(byte(n)), name).Frame(1)
	}
	labels := `
# HELP outguard_frames_total Frames received.
# TYPE outguard_frames_total counter
outguard_frames_total{vm="00000000-0000-0000-0000-000000000001"} 1
outguard_frames_total{vm="00000000-0000-0000-0000-000000000002"} 1
outguard_frames_total{vm="other"} 1
outguard_frames_total{vm="web"} %d
`
	compare(t, m, fmt.Sprintf(labels, 1), "outguard_frames_total")
	m.Forget(id(0)) // its label is free again, and begins anew
	m.VM(id(4), "web").Frame(1)
	m.VM(id(4), "web").Frame(1)
	compare(t, m, fmt.Sprintf(labels, 2), "outguard_frames_total")
}

func TestFindingsAreBounded(t *testing.T) {
	m := metrics.New(&metrics.Options{MaxRules: 2})
	m.Engine("tsem")
	for _, rule := range []string{"a", "b", "c", "d", "a"} {
		m.Finding(&engine.Finding{Engine: "tsem", Rule: rule, Severity: engine.High})
	}
	m.Finding(&engine.Finding{Engine: "monitor", Rule: "b", Severity: engine.Severest})
	m.Finding(&engine.Finding{Engine: "never-started", Rule: "a", Severity: 99})
	compare(t, m, `
# HELP outguard_findings_total Findings.
# TYPE outguard_findings_total counter
outguard_findings_total{engine="monitor",rule="b",severity="critical"} 1
outguard_findings_total{engine="other",rule="a",severity="other"} 1
outguard_findings_total{engine="tsem",rule="a",severity="high"} 2
outguard_findings_total{engine="tsem",rule="b",severity="high"} 1
outguard_findings_total{engine="tsem",rule="other",severity="high"} 2
`, "outguard_findings_total")
}

func TestEngineAndOrders(t *testing.T) {
	m := metrics.New(nil)
	e := m.Engine("tsem")
	e.Verdict(10, 60*time.Microsecond)
	e.Verdict(1, 5*time.Microsecond)
	e.Restarted()
	e.Up(true)
	e.Queue(4)
	m.Order("pause", "done", 3*time.Millisecond)
	m.Decision("violation", "pause")
	m.Connection("proof")
	m.LibvirtUp(true)
	compare(t, m, `
# HELP outguard_engine_judged_total Records judged.
# TYPE outguard_engine_judged_total counter
outguard_engine_judged_total{engine="tsem"} 11
# HELP outguard_engine_restarts_total Starts of the engine's process after its first.
# TYPE outguard_engine_restarts_total counter
outguard_engine_restarts_total{engine="tsem"} 1
# HELP outguard_engine_queue Batches that wait for the engine.
# TYPE outguard_engine_queue gauge
outguard_engine_queue{engine="tsem"} 4
# HELP outguard_orders_total Orders, by how they ended.
# TYPE outguard_orders_total counter
outguard_orders_total{result="done",step="pause"} 1
# HELP outguard_decisions_total Decisions, by the playbook's rule and by what it asked for.
# TYPE outguard_decisions_total counter
outguard_decisions_total{outcome="pause",rule="violation"} 1
# HELP outguard_connections_total Connections of agents, by what became of them.
# TYPE outguard_connections_total counter
outguard_connections_total{result="proof"} 1
# HELP outguard_libvirt_up Whether libvirtd answers.
# TYPE outguard_libvirt_up gauge
outguard_libvirt_up 1
`, "outguard_engine_judged_total", "outguard_engine_restarts_total", "outguard_engine_queue",
		"outguard_orders_total", "outguard_decisions_total", "outguard_connections_total", "outguard_libvirt_up")
	text := scrape(t, m)
	for _, want := range []string{
		`outguard_verdict_seconds_bucket{engine="tsem",le="1e-05"} 1`,
		`outguard_verdict_seconds_bucket{engine="tsem",le="7.5e-05"} 2`,
		`outguard_order_seconds_bucket{step="pause",le="0.005"} 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %s", want)
		}
	}
}

// scrape asks over a loopback listener, as Prometheus does.
func scrape(t *testing.T, m *metrics.Metrics) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Serve(ctx, l) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	r, err := http.Get("http://" + l.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestNamesFollowPrometheus(t *testing.T) {
	m := metrics.New(&metrics.Options{Version: "v1"})
	m.VM(id(1), "web")
	m.Engine("tsem")
	m.Order("pause", "done", 0)
	problems, err := testutil.GatherAndLint(m.Registry())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestHotPathAllocatesNothing(t *testing.T) {
	m := metrics.New(nil)
	v, e := m.VM(id(1), "web"), m.Engine("tsem")
	if n := testing.AllocsPerRun(100, func() {
		v.Frame(1000)
		v.Received(vsockproto.Bulk, 12)
		v.Evidence(1, 2)
		e.Verdict(12, time.Microsecond)
		e.Queue(1)
	}); n != 0 {
		t.Errorf("%v allocations a frame", n)
	}
}
