package monitor_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/domain/domaintest"
	"github.com/outguard/outguard/host/failpoint"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// These tests have the monitor and a libvirtd of their own killed, with a domain
// that QEMU runs.

// withLibvirt has the host's domain run under l, and counts what is asked of it.
func (h *host) withLibvirt(l *domaintest.Private) *counter {
	h.t.Helper()
	l.Run(h.vm, h.vm.String())
	h.t.Cleanup(func() { l.Virsh("destroy", h.vm.String()) })
	c := &counter{}
	c.between(h.t, h.root+"/no-libvirt", l.Socket)
	return c
}

func (h *host) orders() []*apipb.Order {
	h.t.Helper()
	r, err := h.api.ListOrders(h.t.Context(), &apipb.ListOrdersRequest{Vm: h.vm.String()})
	if err != nil {
		h.t.Fatal(err)
	}
	return r.Orders
}

// order waits for an order of that step and state.
func (h *host) order(step, state string) (found *apipb.Order) {
	h.t.Helper()
	h.eventually("an order to "+step+" that is "+state, func() error {
		for _, o := range h.orders() {
			if o.Step == step && o.State == state {
				found = o
				return nil
			}
		}
		return fmt.Errorf("orders: %v", h.orders())
	})
	return found
}

// TestKilledAroundLibvirt kills the monitor at each step of an order: the VM is
// stopped in the end, and by one call.
func TestKilledAroundLibvirt(t *testing.T) {
	l := domaintest.NewPrivate(t)
	for _, p := range []failpoint.Point{
		failpoint.Journaled, failpoint.Ordered, failpoint.Asking, failpoint.Asked, failpoint.Settling, failpoint.Settled,
	} {
		t.Run(string(p), func(t *testing.T) {
			h := newMortal(t)
			calls := h.withLibvirt(l)
			h.start()
			a := prototest.NewAgent(nil)
			stop := h.persistent(a)
			defer stop()
			send(t, a, opened("/etc/passwd"))
			h.seal()
			h.arm(p)
			if err := a.Send(t.Context(), opened("/new")); err != nil {
				t.Fatal(err)
			}
			h.died(p)
			h.start()
			if err := a.Drained(t.Context()); err != nil {
				t.Fatal(err)
			}
			o := h.order("pause", "done")
			already := p == failpoint.Asked || p == failpoint.Settling // it had its effect
			if o.Already != already || o.Recovered != (p != failpoint.Settled) {
				t.Errorf("order: %v", o)
			}
			if state := strings.TrimSpace(l.Virsh("domstate", h.vm.String())); state != "paused" || calls.of(h.vm) != 1 {
				t.Errorf("the domain is %s after %d calls", state, calls.of(h.vm))
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

// TestKilledAroundContainment kills the monitor around the libvirt calls of the
// steps that contain a VM: the next one brings about what was ordered, and each
// order has one result.
func TestKilledAroundContainment(t *testing.T) {
	l := domaintest.NewPrivate(t)
	for _, step := range []string{"isolate", "reset", "destroy"} {
		for _, p := range []failpoint.Point{failpoint.Ordered, failpoint.Asking, failpoint.Asked, failpoint.Settling, failpoint.Settled} {
			t.Run(step+"/"+string(p), func(t *testing.T) {
				h := newMortal(t)
				h.write(h.root+"/playbook.yaml", strings.ReplaceAll(pausePlaybook, "[log, pause]", "["+step+"]"))
				l.Run(h.vm, h.vm.String())
				if step != "destroy" {
					t.Cleanup(func() { l.Virsh("destroy", h.vm.String()) })
				}
				(&counter{}).between(t, h.root+"/no-libvirt", l.Socket)
				h.start()
				a := prototest.NewAgent(nil)
				stop := h.persistent(a)
				defer stop()
				send(t, a, opened("/etc/passwd"))
				h.seal()
				h.arm(p)
				began := time.Now()
				if err := a.Send(t.Context(), opened("/new")); err != nil {
					t.Fatal(err)
				}
				h.died(p)
				h.start()
				if err := a.Drained(t.Context()); err != nil {
					t.Fatal(err)
				}
				o := h.settled(step)
				switch had := p == failpoint.Asked || p == failpoint.Settling; {
				case o.Recovered != (p != failpoint.Settled):
					t.Errorf("order: %v", o)
				case tooOld(o, began):
					t.Logf("a monitor that starts so slowly leaves it: %s", o.Error)
				case o.State != "done" || step != "reset" && o.Already != had:
					t.Errorf("order: %v", o)
				default:
					h.contained(l, step)
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

// settled waits for the one order of that step to have a result.
func (h *host) settled(step string) (found *apipb.Order) {
	h.t.Helper()
	h.eventually("an order to "+step+" that is over", func() error {
		for _, o := range h.orders() {
			if o.Step == step && o.Ended != "" {
				found = o
				return nil
			}
		}
		return fmt.Errorf("orders: %v", h.orders())
	})
	return found
}

// tooOld tells of an order, given since began, that the next monitor found too old
// to reset or destroy a VM by: it takes more than 5 seconds to be.
func tooOld(o *apipb.Order, began time.Time) bool {
	return o.State == "skipped" && strings.Contains(o.Error, "before a restart") && (o.Step == "reset" || o.Step == "destroy") && time.Since(began) > 5*time.Second
}

// contained asks libvirt for a step's effect, and takes the way back where there
// is one.
func (h *host) contained(l *domaintest.Private, step string) {
	h.t.Helper()
	vm := h.vm.String()
	link := func() string { return l.Virsh("domif-getlink", vm, domaintest.BareMAC) }
	switch step {
	case "destroy":
		if all := l.Virsh("list", "--all", "--uuid"); strings.Contains(all, vm) {
			h.t.Errorf("it is there: %s", all)
		}
	case "isolate":
		r, err := h.api.ListVMs(h.t.Context(), &apipb.ListVMsRequest{Vm: vm})
		if err != nil || !r.Vms[0].Isolated || !strings.Contains(link(), "down") {
			h.t.Errorf("%s, %v, %v", link(), r, err)
		}
		o, err := h.api.Contain(h.t.Context(), &apipb.ContainRequest{Vm: vm, Step: "connect"})
		if err != nil || o.Order.Detail != "up: "+domaintest.BareMAC || !strings.Contains(link(), "up") {
			h.t.Errorf("%s, %v, %v", link(), o, err)
		}
	}
}

// TestCapturesKeepTheirBudget captures a domain again and again: the oldest that
// is not pinned is given up, and where the pinned ones leave no room the order
// fails and the domain is left paused, as it was.
func TestCapturesKeepTheirBudget(t *testing.T) {
	l := domaintest.NewPrivate(t)
	h := newHost(t)
	h.configure("captures: {budget: 100MiB}\n")
	h.withLibvirt(l)
	h.start()
	ctx := t.Context()
	if _, err := h.api.Pause(ctx, &apipb.PauseRequest{Vm: h.vm.String()}); err != nil {
		t.Fatal(err)
	}
	capture := func() (*apipb.Order, error) {
		s, err := h.api.Capture(ctx, &apipb.CaptureRequest{Vm: h.vm.String()})
		if err != nil {
			return nil, err
		}
		defer s.Close()
		var o *apipb.Order
		for s.Receive() {
			if s.Msg().Order != nil {
				o = s.Msg().Order
			}
		}
		return o, s.Err()
	}
	list := func() []*apipb.Bundle {
		t.Helper()
		r, err := h.api.ListBundles(ctx, &apipb.ListBundlesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Bundles
	}
	pin := func(b *apipb.Bundle) {
		t.Helper()
		if _, err := h.api.PinBundle(ctx, &apipb.PinBundleRequest{Id: b.Id, Pinned: true}); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	for i := range 3 { // each takes 32 MiB of memory, and may take 48 MiB
		if _, err := capture(); err != nil {
			t.Fatal(err)
		}
		all := list()
		ids = append(ids, all[len(all)-1].Id)
		if i == 0 {
			pin(all[0])
		}
	}
	all := list()
	if len(all) != 2 || all[0].Id != ids[0] || !all[0].Pinned || all[1].Id != ids[2] || all[1].Disk < 32<<20 {
		t.Errorf("left of %q: %v", ids, all)
	}
	if f := h.await("capture/given-up"); f.Detail["capture"] != ids[1] {
		t.Errorf("%v", f)
	}
	pin(all[1])
	if o, err := capture(); err == nil || !strings.Contains(err.Error(), "unpin one") {
		t.Errorf("%v, %v", o, err)
	}
	if state := strings.TrimSpace(l.Virsh("domstate", h.vm.String())); state != "paused" || len(list()) != 2 {
		t.Errorf("the domain is %s, captures: %v", state, list())
	}
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.verify()
}

// TestKilledWithACaptureTaken: memory and disks are taken and the monitor is
// killed; the VM runs on, and the next monitor packs what was taken, once.
func TestKilledWithACaptureTaken(t *testing.T) {
	l := domaintest.NewPrivate(t)
	h := newMortal(t)
	h.withLibvirt(l)
	h.start()
	ctx := t.Context()
	a := prototest.NewAgent(nil)
	stop := h.persistent(a)
	send(t, a, opened("/etc/passwd"))
	if _, err := h.api.Pause(ctx, &apipb.PauseRequest{Vm: h.vm.String()}); err != nil {
		t.Fatal(err)
	}
	h.arm(failpoint.Taken)
	if s, err := h.api.Capture(ctx, &apipb.CaptureRequest{Vm: h.vm.String()}); err == nil {
		for s.Receive() {
		}
		_ = s.Close()
	}
	h.died(failpoint.Taken)
	stop()                           // the next monitor never hears of the agent
	l.Virsh("resume", h.vm.String()) // what was in memory then is nowhere else
	taken, err := filepath.Glob(filepath.Join(h.root, "*", "bundles", ".capture-*"))
	if err != nil || len(taken) != 1 {
		t.Fatal(taken, err)
	}
	// As of a process that was killed later, with nothing moved into the bundle yet.
	half := strings.Replace(taken[0], ".capture-", ".partial-", 1) + "-12"
	if err := errors.Join(os.Mkdir(half, 0o750), os.WriteFile(filepath.Join(half, "events.jsonl"), nil, 0o640)); err != nil {
		t.Fatal(err)
	}
	h.start()
	o := h.order("capture", "done")
	if r, err := h.api.ListBundles(ctx, &apipb.ListBundlesRequest{}); err != nil || len(r.Bundles) != 1 {
		t.Errorf("bundles: %v, %v", r, err)
	}
	if page, err := os.ReadFile(filepath.Join(o.Bundle, "report.html")); err != nil || !strings.Contains(string(page), "guest kernel") {
		t.Errorf("the page does not tell of the agent: %v", err)
	}
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(h.root, "*", "bundles", ".*-*")); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	h.verify()
}

// TestSomebodyElse: what is done to a domain past the monitor is told from what
// orders do, and an isolated domain that is started again is isolated again.
func TestSomebodyElse(t *testing.T) {
	l := domaintest.NewPrivate(t)
	h := newHost(t)
	l.Run(h.vm, h.vm.String())
	(&counter{}).between(t, h.root+"/no-libvirt", l.Socket)
	h.start()
	vm := h.vm.String()
	rules := func() (all []string) {
		for _, f := range h.findings() {
			if strings.HasPrefix(f.Rule, "domain/") {
				all = append(all, f.Rule)
			}
		}
		return all
	}
	noted := func(want string) {
		t.Helper()
		h.eventually("findings "+want, func() error {
			if got := fmt.Sprint(rules()); got != want {
				return errors.New(got)
			}
			return nil
		})
	}
	state := func(want string) {
		t.Helper()
		h.eventually("the monitor has it "+want, func() error {
			r, err := h.api.ListVMs(t.Context(), &apipb.ListVMsRequest{Vm: vm})
			if err == nil && r.Vms[0].State != want {
				err = errors.New(r.Vms[0].State)
			}
			return err
		})
	}
	order := func(step func() error) {
		t.Helper()
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	pause := func() error {
		_, err := h.api.Pause(t.Context(), &apipb.PauseRequest{Vm: vm})
		return err
	}
	state("running")
	l.Virsh("suspend", vm)
	state("paused")
	l.Virsh("resume", vm) // nobody here had it stand
	state("running")
	order(pause)
	order(func() error {
		_, err := h.api.Resume(t.Context(), &apipb.ResumeRequest{Vm: vm})
		return err
	})
	state("running")
	order(pause)
	state("paused")
	if got := rules(); len(got) != 0 {
		t.Errorf("findings of what orders did: %q", got)
	}
	l.Virsh("resume", vm)
	noted("[domain/resumed]")
	state("running")

	order(func() error {
		_, err := h.api.Contain(t.Context(), &apipb.ContainRequest{Vm: vm, Step: "isolate"})
		return err
	})
	order(pause)
	l.Virsh("destroy", vm)
	noted("[domain/resumed domain/stopped]")
	l.Run(h.vm, vm)
	h.eventually("isolated again", func() error {
		for _, o := range h.orders() {
			if o.Step == "isolate" && o.By == "isolation" && o.State == "done" {
				return nil
			}
		}
		return fmt.Errorf("%v", h.orders())
	})
	if out := l.Virsh("domif-getlink", vm, domaintest.BareMAC); !strings.Contains(out, "down") {
		t.Errorf("its link is %s", out)
	}
	order(func() error {
		_, err := h.api.Contain(t.Context(), &apipb.ContainRequest{Vm: vm, Step: "destroy"})
		return err
	})
	state("shut off")
	if got := fmt.Sprint(rules()); got != "[domain/resumed domain/stopped]" {
		t.Errorf("findings in the end: %s", got)
	}
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.verify()
}

// TestLibvirtAway takes libvirtd away: the monitor goes on recording and judging,
// the order waits, also for a monitor that comes after this one, and when
// libvirtd is back all is as it should be.
func TestLibvirtAway(t *testing.T) {
	l := domaintest.NewPrivate(t)
	h := newMortal(t)
	h.write(h.root+"/playbook.yaml", strings.Replace(pausePlaybook, "once_per: event", "once_per: vm", 1))
	calls := h.withLibvirt(l)
	h.start()
	a := prototest.NewAgent(nil)
	stop := h.persistent(a)
	defer stop()
	send(t, a, opened("/etc/passwd"))
	h.seal()

	l.Kill()
	send(t, a, opened("/first"))
	f := h.await("tsem/violation")
	waiting := h.order("pause", "waiting")
	if waiting.Finding != f.Id || !strings.Contains(waiting.Error, "libvirtd does not answer") {
		t.Errorf("order: %v", waiting)
	}
	h.await("respond/waiting")
	send(t, a, opened("/second"))
	h.awaitPaths([]string{"/first", "/second"})

	_ = h.end(syscall.SIGKILL)
	h.start()
	if o := h.order("pause", "waiting"); o.Id != waiting.Id {
		t.Errorf("the next monitor's: %v", o)
	}
	send(t, a, opened("/third"))

	l.Start()
	done := h.order("pause", "done")
	if state := strings.TrimSpace(l.Virsh("domstate", h.vm.String())); done.Id != waiting.Id || state != "paused" || calls.of(h.vm) != 1 {
		t.Errorf("%v; the domain is %s after %d calls", done, state, calls.of(h.vm))
	}
	if _, err := h.api.Resume(t.Context(), &apipb.ResumeRequest{Vm: h.vm.String(), Reason: "looked at"}); err != nil {
		t.Error(err)
	}
	h.eventually("libvirt's own word", func() error {
		if state := strings.TrimSpace(l.Virsh("domstate", h.vm.String())); state != "running" {
			return errors.New(state)
		}
		st, err := h.api.Status(t.Context(), &apipb.StatusRequest{})
		if err == nil && st.LibvirtError != "" {
			err = errors.New(st.LibvirtError)
		}
		return err
	})
	h.missing(t)
	stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.verify()
}

// TestWaitingIsNoHang: a monitor that is told to stop does not wait for libvirt.
func TestWaitingIsNoHang(t *testing.T) {
	h := newMortal(t)
	h.start()
	a := prototest.NewAgent(nil)
	stop := h.persistent(a)
	defer stop()
	send(t, a, opened("/etc/passwd"))
	h.seal()
	send(t, a, opened("/new"))
	h.order("pause", "waiting")
	stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	for _, e := range h.journal() {
		if e.Order.Kind == "pause" && (e.Result != nil || e.Waiting == nil) {
			t.Errorf("journal: %+v", e)
		}
	}
}

// TestCaptureThatCannotBeComeBackTo: the domain has nothing that a moment could
// be kept in. It is captured all the same, and the error says both; nothing is
// there to revert to, and the domain goes on.
func TestCaptureThatCannotBeComeBackTo(t *testing.T) {
	l := domaintest.NewPrivate(t)
	h := newHost(t)
	h.withLibvirt(l)
	h.start()
	ctx, vm := t.Context(), h.vm.String()
	s, err := h.api.Capture(ctx, &apipb.CaptureRequest{Vm: vm, Revertible: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for s.Receive() {
	}
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "no disk that it can write") || !strings.Contains(err.Error(), "outguard bundle show "+h.root) {
		t.Errorf("capture: %v", err)
	}
	_, err = h.api.Contain(ctx, &apipb.ContainRequest{Vm: vm, Step: "revert", State: "early"})
	if err == nil || !strings.Contains(err.Error(), "nothing is saved") {
		t.Errorf("revert: %v", err)
	}
	r, err := h.api.ListVMs(ctx, &apipb.ListVMsRequest{Vm: vm})
	if err != nil || r.Vms[0].State != "running" {
		t.Errorf("%v, %v", r, err)
	}
}
