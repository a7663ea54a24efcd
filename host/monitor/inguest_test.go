package monitor_test

import (
	"context"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/failpoint"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

const killPlaybook = `
version: 1
rules:
  - name: violation
    match: {engine: tsem}
    steps: [kill-tree, pause]
    once_per: event
`

// TestKillIsHeldAgainstTheRecord: an agent is asked to end the very process that
// did it. Its word alone is "asked"; the process's end on record makes it done;
// whatever it does or leaves undone, the VM is ordered to stop.
func TestKillIsHeldAgainstTheRecord(t *testing.T) {
	for name, c := range map[string]struct {
		ends   bool // the process's end is reported
		answer vsockproto.CommandAck
		mute   bool
		state  string
		said   string
	}{
		"honest":  {ends: true, answer: vsockproto.CommandAck{Tasks: 3}, state: "done", said: "process 700, 3 ended"},
		"liar":    {answer: vsockproto.CommandAck{Tasks: 1}, state: "asked", said: "its end is not on record"},
		"refuses": {answer: vsockproto.CommandAck{Reason: "process 700 is another one"}, state: "failed", said: "is another one"},
		"mute":    {mute: true, state: "failed", said: "has not answered"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.configure("playbook: " + h.root + "/playbook.yaml\n")
			h.write(h.root+"/playbook.yaml", killPlaybook)
			h.start()
			event := func(typ vsockproto.EventType) *vsockproto.Event {
				e := prototest.Sample(typ)
				e.PID, e.TGID, e.StartNs, e.LeaderStartNs = 700, 700, 5_000_000_123, 5_000_000_123
				return e
			}
			bad := event(vsockproto.FileOpen)
			bad.Path.Data = []byte("/new")
			var asked atomic.Pointer[vsockproto.Command]
			var a *prototest.Agent
			a = prototest.NewAgent(&prototest.AgentOptions{Obey: func(q vsockproto.Command) vsockproto.CommandAck {
				asked.Store(&q)
				if c.mute {
					time.Sleep(10 * time.Second) // longer than anybody waits
				}
				if c.ends {
					ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
					defer cancel()
					_ = a.Send(ctx, event(vsockproto.SchedProcessExit))
				}
				return c.answer
			}})
			stop := h.connect(a)
			send(t, a, opened("/etc/passwd"))
			h.seal()
			send(t, a, bad)
			o := h.order("kill-tree", c.state)
			if !strings.Contains(o.Error+o.Detail, c.said) {
				t.Errorf("%v", o)
			}
			if q := asked.Load(); q == nil || q.Kind != vsockproto.CommandKillTree || q.TGID != 700 || q.StartNs != 5_000_000_123 {
				t.Errorf("asked for %+v", q)
			}
			h.order("pause", "waiting") // for a libvirt that is not there
			_ = stop()
			if err := h.end(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			h.verify()
		})
	}
}

// TestFreezeIsTheGuestsWord: the cgroup of the process that did it is frozen, and
// thawed over the API; that it stands is "asked".
func TestFreezeIsTheGuestsWord(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.configure("playbook: " + h.root + "/playbook.yaml\n")
	h.write(h.root+"/playbook.yaml", strings.Replace(killPlaybook, "[kill-tree, pause]", "[freeze]", 1))
	h.start()
	asked := make(chan vsockproto.Command, 8)
	a := prototest.NewAgent(&prototest.AgentOptions{Obey: func(q vsockproto.Command) vsockproto.CommandAck {
		asked <- q
		return vsockproto.CommandAck{}
	}})
	stop := h.connect(a)
	send(t, a, opened("/etc/passwd"))
	h.seal()
	bad := opened("/new")
	bad.CgroupID = 4711
	send(t, a, bad)
	if o := h.order("freeze", "asked"); o.Detail != "cgroup 4711" {
		t.Errorf("%v", o)
	}
	r, err := h.api.Contain(t.Context(), &apipb.ContainRequest{Vm: h.vm.String(), Step: "thaw"})
	if err != nil || r.Order.State != "asked" || r.Order.Detail != "cgroups 4711" {
		t.Errorf("%v, %v", r, err)
	}
	for _, want := range []vsockproto.CommandKind{vsockproto.CommandFreeze, vsockproto.CommandThaw} {
		if q := <-asked; q.Kind != want || q.Cgroup != 4711 || q.TGID != 0 {
			t.Errorf("asked for %+v, want %s", q, want)
		}
	}
	_ = stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.verify()
}

// TestKilledAroundTheGuest kills the monitor around what it asks the guest, and
// around an alert: the next one asks again, which does no harm, and each order has
// one result.
func TestKilledAroundTheGuest(t *testing.T) {
	for step, state := range map[string]string{"kill": "asked", "freeze": "asked", "alert": "done"} {
		for _, p := range []failpoint.Point{failpoint.Ordered, failpoint.Settling, failpoint.Settled} {
			t.Run(step+"/"+string(p), func(t *testing.T) {
				t.Parallel()
				h := newMortal(t)
				h.write(h.root+"/playbook.yaml", strings.ReplaceAll(pausePlaybook, "[log, pause]", "["+step+"]")+
					"alerts: [{name: told, command: [/usr/bin/tee, -a, "+h.root+"/told], gather: 0s}]\n")
				h.start()
				var asked atomic.Int32
				a := prototest.NewAgent(&prototest.AgentOptions{Obey: func(vsockproto.Command) vsockproto.CommandAck {
					asked.Add(1)
					return vsockproto.CommandAck{Tasks: 1}
				}})
				stop := h.persistent(a)
				defer stop()
				send(t, a, opened("/etc/passwd"))
				h.seal()
				h.arm(p)
				bad := opened("/new")
				bad.CgroupID = 4711
				began := time.Now()
				if err := a.Send(t.Context(), bad); err != nil {
					t.Fatal(err)
				}
				h.died(p)
				again := time.Now()
				h.start()
				if err := a.Drained(t.Context()); err != nil {
					t.Fatal(err)
				}
				o := h.settled(step)
				switch {
				case o.Recovered != (p != failpoint.Settled):
					t.Errorf("order: %v", o)
				case step != "alert" && tooSlow(o, began, again):
					t.Logf("on a machine that is so slow it is %s: %s", o.State, o.Error)
				case o.State != state:
					t.Errorf("order: %v", o)
				default:
					if n := asked.Load(); step != "alert" && (n == 0 || n > 2) {
						t.Errorf("the guest was asked %d times", n)
					}
				}
				if told, err := os.ReadFile(h.root + "/told"); step == "alert" && (err != nil || !strings.Contains(string(told), "/new")) {
					t.Errorf("told %q, %v", told, err)
				}
				stop()
				if err := h.end(syscall.SIGTERM); err != nil {
					t.Error(err)
				}
				h.verify()
				h.accountFor(2, []string{"/new"})
			})
		}
	}
}

// tooSlow tells of an order, given since began, that came to nothing because the next
// monitor, started again, was too late for it: it is too old after 5 seconds, and the
// agent has 3 to be back and to answer.
func tooSlow(o *apipb.Order, began, again time.Time) bool {
	switch {
	case o.State == "skipped" && strings.Contains(o.Error, "before a restart"):
		return time.Since(began) > 5*time.Second
	case o.State == "failed" && (strings.Contains(o.Error, "no agent is connected") || strings.Contains(o.Error, "has not answered")):
		return time.Since(again) > 3*time.Second
	}
	return false
}
