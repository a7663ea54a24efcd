package session

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// TestCanaries: they are sent at random times, every hook answers, nothing is
// found, and their records are none that a model is taught by.
func TestCanaries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(&Options{Canary: 10 * time.Second})
		c := dial(t.Context(), m, prototest.NewAgent(nil))
		time.Sleep(10 * time.Minute)
		c.hangUp()
		want(t, "findings", w.rules(), "")
		w.mu.Lock()
		defer w.mu.Unlock()
		n := strings.Count(strings.Join(w.batches, " "), "socket_listen/")
		if n < 40 || n > 80 {
			t.Errorf("%d canaries in 10 minutes at one each 10 s", n)
		}
	})
}

// TestSilentHooks: the hook that does not run is named, within two heartbeats
// of the canary.
func TestSilentHooks(t *testing.T) {
	all := vsockproto.CanaryTypes()
	for _, c := range []struct {
		name, reason string
		deaf         []vsockproto.EventType
	}{
		{"one", "no record came of file_open.", all[:1]},
		{"listen", "no record came of socket_listen.", []vsockproto.EventType{vsockproto.SocketListen}},
		{"some", "no record came of mmap_file, socket_accept, task_kill.", []vsockproto.EventType{vsockproto.MmapFile, vsockproto.SocketAccept, vsockproto.TaskKill}},
		{"all", "All hooks are silent, and the agent goes on", all},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				m := w.manager(&Options{Canary: time.Nanosecond})
				x := dial(t.Context(), m, prototest.NewAgent(&prototest.AgentOptions{Deaf: c.deaf}))
				time.Sleep(2500 * time.Millisecond)
				x.hangUp()
				want(t, "findings", w.rules(), "unhooked!")
				if len(w.findings) > 0 && !strings.Contains(w.findings[0].Reason, c.reason) {
					t.Errorf("%q, want %q in it", w.findings[0].Reason, c.reason)
				}
			})
		})
	}
}

// TestHookThatWasNeverThere is not waited for, nor one that nobody asked for.
func TestHookThatWasNeverThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(&Options{Canary: time.Nanosecond, Policy: []vsockproto.EventType{vsockproto.FileOpen, vsockproto.SocketBind, vsockproto.MmapFile}})
		hooks := []vsockproto.Hook{{Type: vsockproto.FileOpen, Available: true, Attached: true}, {Type: vsockproto.MmapFile}, {Type: vsockproto.TaskKill, Attached: true}}
		x := dial(t.Context(), m, prototest.NewAgent(&prototest.AgentOptions{
			Hooks: hooks,
			Deaf:  []vsockproto.EventType{vsockproto.SocketBind, vsockproto.MmapFile, vsockproto.TaskKill},
		}))
		time.Sleep(time.Minute)
		x.hangUp()
		want(t, "findings", w.rules(), "lacking")
	})
}

// TestDrownedCanary: as long as losses may hide its records a canary says
// nothing, and that itself is found.
func TestDrownedCanary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(&Options{Canary: time.Nanosecond, Repeat: time.Hour})
		a := prototest.NewAgent(&prototest.AgentOptions{Deaf: vsockproto.CanaryTypes()})
		x := dial(t.Context(), m, a)
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			a.Lose(0, vsockproto.Bulk, 1)
		}
		x.hangUp()
		want(t, "findings", w.rules(), "loss drowned")
	})
}

// TestFalseCanary: who flags what is no canary's ends its session.
func TestFalseCanary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := prototest.NewAgent(&prototest.AgentOptions{Silent: true})
		x := dial(t.Context(), w.manager(nil), a)
		<-a.Up()
		e := prototest.Sample(vsockproto.FileOpen)
		e.Header.Flags = vsockproto.FlagCanary
		if err := a.Send(t.Context(), prototest.Sample(vsockproto.TaskKill), e); err != nil {
			t.Fatal(err)
		}
		<-x.agentEnd
		<-x.hostEnd
		want(t, "findings", w.rules(), "malformed!")
		want(t, "delivered", w.delivered(), "task_kill/1")
	})
}

// TestOldCanary: an answer to what an earlier monitor asked is no violation.
func TestOldCanary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := prototest.NewAgent(nil)
		x := dial(t.Context(), w.manager(nil), a)
		<-a.Up()
		if err := a.Send(t.Context(), prototest.CanaryEvents([16]byte{9})...); err != nil {
			t.Fatal(err)
		}
		if err := a.Link().SendCanaryAck(&vsockproto.CanaryAck{Nonce: [16]byte{9}, BootNs: 1}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		x.hangUp()
		want(t, "findings", w.rules(), "")
	})
}

// TestKernelTotals: what the guest's kernel counts and no record tells of is
// found within two heartbeats; what is declared is not.
func TestKernelTotals(t *testing.T) {
	for _, c := range []struct {
		name, findings string
		do             func(a *prototest.Agent)
	}{
		{"announced", "", func(a *prototest.Agent) { send(t, a, vsockproto.TaskNewtask, vsockproto.TaskNewtask) }},
		{"declared", "", func(a *prototest.Agent) { a.Starts(5, true) }},
		{"hidden", "starts!", func(a *prototest.Agent) { a.Starts(5, false) }},
		{"past the hooks", "unhooked!", func(a *prototest.Agent) { a.Unhook(1) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				a := prototest.NewAgent(nil)
				a.Starts(100, false) // before anything was attached
				a.Unhook(1)
				x := dial(t.Context(), w.manager(nil), a)
				time.Sleep(3500 * time.Millisecond)
				c.do(a)
				time.Sleep(2 * time.Second)
				want(t, "findings", w.rules(), c.findings)
				time.Sleep(time.Minute)
				x.hangUp()
				want(t, "findings in the end", w.rules(), c.findings)
			})
		})
	}
}

// TestTotalsOutliveTheMonitor: starts that a guest hides while its monitor is
// away, or is killed before it saved, are found by the next one.
func TestTotalsOutliveTheMonitor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := prototest.NewAgent(nil)
		x := dial(t.Context(), w.manager(nil), a)
		time.Sleep(20 * time.Second)
		send(t, a, vsockproto.TaskNewtask)
		x.hangUp()
		a.Starts(3, false)
		a.Unhook(2)
		x = dial(t.Context(), w.manager(nil), a)
		time.Sleep(5 * time.Second)
		x.hangUp()
		want(t, "findings", w.rules(), "unhooked! starts!")
		for _, f := range w.findings {
			if f.Severity != engine.Severest || f.Detail["unhooked"] != "2" && f.Detail["missing"] != "3" {
				t.Errorf("%+v", f)
			}
		}
	})
}

// TestBulkIsWithheld: where a VM's bulk cannot be kept its agent is told so, once
// a finding; hooks of that class are not missed; and it is told when it can be.
func TestBulkIsWithheld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.setRoom(false)
		deaf := []vsockproto.EventType{vsockproto.FileOpen, vsockproto.SocketBind, vsockproto.SocketListen}
		a := prototest.NewAgent(&prototest.AgentOptions{Deaf: deaf})
		x := dial(t.Context(), w.manager(&Options{Canary: time.Nanosecond}), a)
		<-a.Up()
		if welcome, _ := a.Welcome(); !welcome.Withheld || !a.Link().Withheld() {
			t.Error("not told at once")
		}
		time.Sleep(time.Minute)
		want(t, "findings", w.rules(), "quota")
		w.setRoom(true)
		time.Sleep(10 * time.Second)
		if a.Link().Withheld() {
			t.Error("not told that there is room again")
		}
		w.setRoom(false)
		time.Sleep(30 * time.Second)
		if !a.Link().Withheld() {
			t.Error("not told that there is none again")
		}
		x.hangUp()
		want(t, "findings", w.rules(), "quota unhooked! quota")
	})
}

// TestCanaryThatCannotBeDone: where the guest refuses what a canary asks for, no
// hook is accused of silence.
func TestCanaryThatCannotBeDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := prototest.NewAgent(&prototest.AgentOptions{Deaf: vsockproto.CanaryTypes(), Cannot: "memfd_create: operation not permitted"})
		x := dial(t.Context(), w.manager(&Options{Canary: time.Nanosecond}), a)
		time.Sleep(8 * time.Second)
		x.hangUp()
		want(t, "findings", w.rules(), "canary")
	})
}

// TestAgentReplaced: while the programs of two builds are attached a start has
// two records, and an agent of another build is not accused of it.
func TestAgentReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(nil)
		x := dial(t.Context(), m, a)
		time.Sleep(5 * time.Second)
		x.hangUp()
		a.Doubled(3)
		a.Reload()
		x = dial(t.Context(), m, a)
		time.Sleep(5 * time.Second)
		a.Starts(1, false)
		time.Sleep(5 * time.Second)
		x.hangUp()
		want(t, "findings", w.rules(), "starts!")
		if f := w.findings[0]; f.Detail["missing"] != "1" {
			t.Errorf("%+v", f)
		}
	})
}

// TestHostThatStoodStill: heartbeats that waited for the host come at once, and
// the agent is not accused of not having answered in between.
func TestHostThatStoodStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(&Options{Canary: time.Nanosecond})
		a := prototest.NewAgent(nil)
		x := dial(t.Context(), m, a)
		<-a.Up()
		synctest.Wait()
		gate := make(chan struct{})
		w.mu.Lock()
		w.gate = gate
		w.mu.Unlock()
		send(t, a, vsockproto.FileOpen)
		time.Sleep(20 * time.Second)
		w.mu.Lock()
		w.gate = nil
		w.mu.Unlock()
		close(gate)
		time.Sleep(20 * time.Second)
		x.hangUp()
		want(t, "findings", w.rules(), "")
	})
}
