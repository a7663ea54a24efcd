package monitor_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/session"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// fleet is many enrolled domains and their agents.
type fleet struct {
	*prototest.Fleet
	h    *host
	vms  []uuid.UUID
	stop func() // hangs all of them up
}

// newFleet enrols n domains, vm-0 and so on. It belongs before start.
func newFleet(h *host, n int, o *prototest.AgentOptions) *fleet {
	f := &fleet{Fleet: prototest.NewFleet(n, o), h: h}
	for i := range n {
		f.vms = append(f.vms, uuid.New())
		h.enrol(f.vms[i], f.name(i))
	}
	return f
}

func (f *fleet) name(i int) string { return fmt.Sprintf("vm-%d", i) }

func (f *fleet) dial(i int) (net.Conn, error) {
	return net.Dial("unix", fmt.Sprintf("%s/run/vsock/%s.sock_6820", f.h.root, f.name(i)))
}

// connect connects the agents from the first-th on and waits until all are up.
func (f *fleet) connect(first int) {
	f.h.t.Helper()
	ctx, cancel := context.WithCancel(f.h.t.Context())
	done := make(chan struct{})
	rest := &prototest.Fleet{Agents: f.Agents[first:]}
	go func() {
		defer close(done)
		rest.Run(ctx, func(i int) (net.Conn, error) { return f.dial(first + i) })
	}()
	f.stop = sync.OnceFunc(func() { cancel(); <-done })
	f.h.t.Cleanup(f.stop)
	patience, end := context.WithTimeout(ctx, 2*time.Minute)
	defer end()
	if err := rest.Up(patience); err != nil {
		f.h.t.Fatal(err)
	}
}

// live counts the sessions that are.
func (f *fleet) live() (n int) {
	f.h.t.Helper()
	r, err := f.h.api.ListVMs(f.h.t.Context(), &apipb.ListVMsRequest{})
	if err != nil {
		f.h.t.Fatal(err)
	}
	for _, vm := range r.Vms {
		if vm.Session != nil && vm.Session.State == string(session.Live) {
			n++
		}
	}
	return n
}

func (f *fleet) awaitLive(n int) {
	f.h.t.Helper()
	f.h.eventually("all sessions live", func() error {
		if got := f.live(); got != n {
			return fmt.Errorf("%d of %d", got, n)
		}
		return nil
	})
}

// rules lists the rules of all findings of the fleet, by VM.
func (f *fleet) rules() map[string][]string {
	f.h.t.Helper()
	s, err := f.h.api.Findings(f.h.t.Context(), &apipb.FindingsRequest{})
	if err != nil {
		f.h.t.Fatal(err)
	}
	defer s.Close()
	all := map[string][]string{}
	for s.Receive() {
		x := s.Msg().Finding
		all[x.Vm] = append(all[x.Vm], x.Rule)
	}
	if err := s.Err(); err != nil {
		f.h.t.Fatal(err)
	}
	return all
}

// whole fails unless the monitor has got what each agent from the first-th on
// has sent, and misses nothing.
func (f *fleet) whole(first int, sent []uint64) {
	f.h.t.Helper()
	drained := func(a *prototest.Agent) error { return a.Drained(f.h.t.Context()) }
	for _, do := range []func(*prototest.Agent) error{drained, (*prototest.Agent).Heartbeat, drained} {
		for i := first; i < len(f.Agents); i++ {
			if err := do(f.Agents[i]); err != nil {
				f.h.t.Fatalf("%s: %v", f.name(i), err)
			}
		}
	}
	r, err := f.h.api.ListVMs(f.h.t.Context(), &apipb.ListVMsRequest{})
	if err != nil {
		f.h.t.Fatal(err)
	}
	classes := map[string][]*apipb.ClassCount{}
	for _, vm := range r.Vms {
		classes[vm.Name] = vm.Classes
	}
	for i := first; i < len(f.Agents); i++ {
		var got, lost, missing uint64
		for _, c := range classes[f.name(i)] {
			got, lost, missing = got+c.Received, lost+c.Lost, missing+c.Missing
		}
		if got != sent[i]+f.Agents[i].Sung() || lost != 0 || missing != 0 {
			f.h.t.Errorf("%s: %d records of %d, %d lost, %d missing", f.name(i), got, sent[i], lost, missing)
		}
	}
}

// TestDaemonRestartsUnder200Sessions kills the monitor, and stops it in order,
// while 200 agents send: every session resumes, everything that the agents
// still held arrives, and nobody is accused of anything.
func TestDaemonRestartsUnder200Sessions(t *testing.T) {
	const agents = 200
	h := newHost(t)
	h.beat("5s") // nobody is silent because the machine is slow
	f := newFleet(h, agents, nil)
	h.start()
	f.connect(0)
	f.awaitLive(agents)

	sent := make([]uint64, agents)
	ctx, halt := context.WithCancel(t.Context())
	var sending sync.WaitGroup
	defer sending.Wait()
	giveUp, abandon := context.WithCancel(t.Context())
	defer abandon()
	defer halt()
	for i, a := range f.Agents {
		sending.Go(func() {
			for ctx.Err() == nil { // also while there is no monitor: then it waits
				if err := a.Send(giveUp, opened("/a"), opened("/b"), opened("/c")); err != nil {
					return
				}
				sent[i] += 3
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	for _, how := range []os.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		time.Sleep(500 * time.Millisecond) // some events, and saves in between
		if err := h.end(how); err != nil && how == syscall.SIGTERM {
			t.Errorf("a stop in order: %v", err)
		}
		h.start()
		f.awaitLive(agents)
	}
	halt()
	sending.Wait()
	f.whole(0, sent)
	for i, a := range f.Agents {
		if _, resumed := a.Welcome(); !resumed {
			t.Errorf("%s began anew", f.name(i))
		}
	}
	if rules := f.rules(); len(rules) != 0 {
		t.Errorf("findings: %v", rules)
	}
	f.stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	v, err := evidence.LoadVerifier(filepath.Join(h.root, "state", evidence.PubFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, vm := range f.vms {
		if _, err := evidence.Verify(evidence.StreamDir(filepath.Join(h.root, "state", evidence.StoreDir), vm), v); err != nil {
			t.Error(err)
		}
	}
}

// found is what each of prototest's abusers, which come first in the fleet, is
// found to do.
var found = []string{session.RuleFlood, session.RuleSlow, session.RuleDeaf, "listen/crowd"}

// memoryBound is what outguardd may take with 200 sessions, one of which
// floods; docs/CONFIG.md says what it is made of.
const memoryBound = 64<<20 + 200*64<<10 + 2*(64+16)<<20

// TestDaemonHoldsAbusers has 200 sessions, of which one floods, one sends a
// byte a second, one stops reading and one opens a thousand connections. Each
// is a finding that names its VM, no other VM has one or loses anything, and
// the monitor's memory stays under its bound.
func TestDaemonHoldsAbusers(t *testing.T) {
	const agents = 200
	abusers := len(found)
	h := newHost(t)
	config, err := os.ReadFile(h.config)
	if err != nil {
		t.Fatal(err)
	}
	// What comes less often than a heartbeat is silence, and not a byte a second.
	h.write(h.config, strings.Replace(string(config), "heartbeat: 200ms", "heartbeat: 1s, flood: 20000", 1))
	f := newFleet(h, agents, nil)
	h.start()
	f.connect(abusers)

	ctx, halt := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	defer busy.Wait()
	sending, abandon := context.WithCancel(t.Context())
	defer abandon()
	defer halt()
	sent := make([]uint64, agents)
	for i := abusers; i < agents; i++ {
		busy.Go(func() {
			for ctx.Err() == nil {
				if err := f.Agents[i].Send(sending, opened("/a")); err != nil {
					return
				}
				sent[i]++
				time.Sleep(200 * time.Millisecond)
			}
		})
	}
	want := map[string]string{}
	for i, abuse := range prototest.Abuses() {
		want[f.name(i)] = found[i]
		busy.Go(func() {
			if err := abuse.Do(ctx, func() (net.Conn, error) { return f.dial(i) }); err != nil {
				t.Errorf("%s: %v", abuse.Name, err)
			}
		})
	}
	h.eventually("a finding of each", func() error {
		have := f.rules()
		for vm, rule := range want {
			if !strings.Contains(strings.Join(have[vm], " "), rule) {
				return fmt.Errorf("%s has %v, not %s", vm, have[vm], rule)
			}
		}
		return nil
	})
	peak := memory(t, h.cmd.Process.Pid, "VmHWM")
	t.Logf("peak memory %d MiB of %d", peak>>20, memoryBound>>20)
	if peak > memoryBound {
		t.Errorf("%d bytes of memory, the bound is %d", peak, memoryBound)
	}
	halt()
	busy.Wait()
	f.whole(abusers, sent)
	for vm, rules := range f.rules() {
		if want[vm] == "" {
			t.Errorf("%s: %v", vm, rules)
		}
	}
}

// memory reads a line of a process's status, in bytes.
func memory(t testing.TB, pid int, line string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\n"+line+":")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
