package monitor_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/decide"
	"github.com/outguard/outguard/host/failpoint"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// hook is a web service that alerts are posted to.
type hook struct {
	*httptest.Server
	mu     sync.Mutex
	bodies [][]byte
	status int // of its answers; 0: 200
}

func newHook(t *testing.T) *hook {
	h := &hook{}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.bodies = append(h.bodies, b)
		if h.status != 0 {
			w.WriteHeader(h.status)
		}
	}))
	t.Cleanup(h.Close)
	return h
}

// notice is what the product's alerts are documented to hold.
type notice struct {
	ID              uuid.UUID
	UUID            string
	Host, VM, Rule  string
	Count           uint64
	Finding         struct{ ID, Rule, Path, VM string }
	Reason, Decided string
}

func (h *hook) notices(t *testing.T) (out []notice) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, b := range h.bodies {
		var n notice
		if err := json.Unmarshal(b, &n); err != nil {
			t.Errorf("%v: %s", err, b)
		}
		out = append(out, n)
	}
	return out
}

// TestStormGetsOneAlertWithACount: a guest that causes violations without end
// gets one alert, with their count, one capture and one pause; each target has
// its own result on record, and a target that refuses is one.
func TestStormGetsOneAlertWithACount(t *testing.T) {
	t.Parallel()
	web, refuses := newHook(t), newHook(t)
	refuses.status = http.StatusForbidden
	h := newHost(t)
	told := h.root + "/told"
	h.configure("playbook: " + h.root + "/playbook.yaml\n")
	h.write(h.root+"/tell", "#!/bin/sh\ncat >>"+told+"\necho noted\n")
	if err := os.Chmod(h.root+"/tell", 0o755); err != nil {
		t.Fatal(err)
	}
	h.write(h.root+"/playbook.yaml", fmt.Sprintf(`
version: 1
alerts:
  - {name: web, webhook: "%s/secret-path", gather: 4s}
  - {name: refuses, webhook: "%s/", gather: 0s}
  - {name: program, command: [%s/tell], gather: 4s}
rules:
  - {name: violation, match: {engine: tsem}, steps: [log, alert, pause, capture]}
`, web.URL, refuses.URL, h.root))
	h.start()
	a := prototest.NewAgent(nil)
	stop := h.connect(a)
	send(t, a, opened("/etc/passwd"))
	h.seal()
	const violations = 1000
	var storm []*vsockproto.Event
	for i := range violations {
		storm = append(storm, opened(fmt.Sprintf("/new%d", i)))
	}
	send(t, a, storm...)
	done := h.order("alert", "done")
	for _, o := range []string{"web", "program"} {
		h.eventually(o+" is told", func() error {
			for _, x := range h.orders() {
				if x.Target == o && x.State == "done" {
					return nil
				}
			}
			return fmt.Errorf("%v", h.orders())
		})
	}
	failed := h.order("alert", "failed")
	if failed.Target != "refuses" || !strings.Contains(failed.Error, "403") || failed.Attempts != 1 {
		t.Errorf("%v", failed)
	}
	all := map[string]int{}
	for _, o := range h.orders() {
		all[o.Step]++
	}
	if all["alert"] != 3 || all["pause"] != 1 || all["capture"] != 1 || all["log"] != 1 || len(all) != 4 {
		t.Errorf("orders: %v", all)
	}
	found := 0
	for _, f := range h.findings() {
		if strings.HasPrefix(f.Rule, "tsem/") {
			found++
		}
	}
	got := web.notices(t)
	if len(got) != 1 || got[0].Count < 2 || got[0].Count > uint64(found) || got[0].VM != "web" || got[0].UUID != h.vm.String() ||
		got[0].Finding.Path != "/new0" || got[0].Rule != "violation" || got[0].Finding.ID != done.Finding {
		t.Errorf("%+v of %d findings", got, found)
	}
	t.Logf("%d violations: %d findings, counted %d", violations, found, got[0].Count)
	var n notice
	text, err := os.ReadFile(told)
	if err == nil {
		err = json.Unmarshal(text, &n)
	}
	if err != nil || n.Finding.Path != "/new0" {
		t.Errorf("the program was told %s, %v", text, err)
	}
	_ = stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if strings.Contains(h.log.String(), "secret-path") {
		t.Error("the log has the webhook's path")
	}
	h.verify()
	r := h.read()
	for _, e := range h.journal() {
		if e.Result != nil && (r.orders[e.Order.ID] != 1 || r.results[e.Order.ID] != 1) {
			t.Errorf("%s %s is on record %d times, its result %d times", e.Order.Kind, e.Order.Target, r.orders[e.Order.ID], r.results[e.Order.ID])
		}
	}
}

// TestAlertOutlivesTheMonitor: an alert that its target did not take before the
// monitor was killed is told by the next one.
func TestAlertOutlivesTheMonitor(t *testing.T) {
	t.Parallel()
	web := newHook(t)
	web.status = http.StatusServiceUnavailable
	h := newHost(t)
	h.configure("playbook: " + h.root + "/playbook.yaml\n")
	h.write(h.root+"/playbook.yaml", fmt.Sprintf(`
version: 1
alerts: [{name: web, webhook: "%s", gather: 0s}]
rules: [{name: violation, match: {engine: tsem}, steps: [alert], once_per: event}]
`, web.URL))
	h.start()
	a := prototest.NewAgent(nil)
	stop := h.persistent(a)
	defer stop()
	send(t, a, opened("/etc/passwd"))
	h.seal()
	send(t, a, opened("/new"))
	h.eventually("an attempt", func() error {
		if len(web.notices(t)) == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
	_ = h.end(syscall.SIGKILL)
	web.mu.Lock()
	web.status = 0
	web.mu.Unlock()
	h.start()
	o := h.order("alert", "done")
	if !o.Recovered || o.Target != "web" {
		t.Errorf("%v", o)
	}
	all := web.notices(t)
	if last := all[len(all)-1]; last.ID.String() != o.Id || last.ID != all[0].ID {
		t.Errorf("%+v", all)
	}
	stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.verify()
	for _, ds := range h.read().decisions {
		for _, d := range ds {
			if d.Rule == "violation" && (len(d.Alerts) != 1 || d.Steps[0] != decide.Alert) {
				t.Errorf("%+v", d)
			}
		}
	}
}

// TestHostsOwnFindingsAreTold: a playbook can have somebody told of what is found
// of the host itself; it is on the host's record, and nothing is done to a VM.
func TestHostsOwnFindingsAreTold(t *testing.T) {
	t.Parallel()
	web := newHook(t)
	h := newHost(t)
	file := h.root + "/playbook.yaml"
	h.configure("playbook: " + file + "\n")
	h.write(file, fmt.Sprintf(`
version: 1
alerts: [{name: web, webhook: "%s", gather: 0s}]
rules: [{name: host, match: {host: true, severity: high}, steps: [log, alert]}]
`, web.URL))
	h.start()
	h.write(file, "rules: [")
	if err := h.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	h.eventually("an alert", func() error {
		if len(web.notices(t)) == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
	if n := web.notices(t)[0]; n.VM != "" || n.Finding.Rule != "monitor/playbook" || n.Rule != "host" || n.Count != 1 {
		t.Errorf("%+v", n)
	}
	h.eventually("orders of the host", h.toldOfItself)
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}

// toldOfItself is an error until the host's own log and alert are done.
func (h *host) toldOfItself() error {
	r, err := h.api.ListOrders(h.t.Context(), &apipb.ListOrdersRequest{})
	if err == nil && (len(r.Orders) != 2 || r.Orders[1].State != "done" || r.Orders[1].Uuid != "") {
		err = fmt.Errorf("%v", r.Orders)
	}
	return err
}

// TestHostsOwnFindingIsGoneOnWith: one that the monitor was killed over is decided
// by the next, once.
func TestHostsOwnFindingIsGoneOnWith(t *testing.T) {
	t.Parallel()
	web := newHook(t)
	h := newMortal(t)
	file := h.root + "/playbook.yaml"
	text := fmt.Sprintf(`
version: 1
alerts: [{name: web, webhook: "%s", gather: 0s}]
rules: [{name: host, match: {host: true, severity: high}, steps: [log, alert]}]
`, web.URL)
	h.write(file, text)
	h.start()
	h.write(file, "rules: [")
	h.arm(failpoint.Found)
	if err := h.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	h.died(failpoint.Found)
	h.write(file, text)
	for range 2 { // the second time there is nothing to go on with
		h.start()
		h.eventually("an alert of the host, told", h.toldOfItself) // else the next tells it again
		if err := h.end(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}
	if all := web.notices(t); len(all) != 1 || all[0].Finding.Rule != "monitor/playbook" {
		t.Errorf("%+v", all)
	}
}
