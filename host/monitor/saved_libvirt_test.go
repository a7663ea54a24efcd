package monitor_test

import (
	"strings"
	"syscall"
	"testing"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/domain/domaintest"
	"github.com/outguard/outguard/host/failpoint"
)

// TestKilledAroundSaved kills the monitor around the libvirt calls that keep a
// VM's memory and disks, bring it back to them, and give them up. A save whose
// moment has passed is not made up for, a revert is not done a second time, and
// what was to be given up is.
func TestKilledAroundSaved(t *testing.T) {
	l := domaintest.NewPrivate(t)
	before := []failpoint.Point{failpoint.Ordered, failpoint.Asking} // libvirt's call
	after := []failpoint.Point{failpoint.Asked, failpoint.Settling}
	for _, tc := range []struct {
		step    string
		at      []failpoint.Point
		state   string // of the order
		already bool   // the next monitor found it done
		kept    string // what is saved then
	}{
		{"save", before, "failed", false, ""},
		{"save", after, "done", true, "outguard-first"},
		{"save", []failpoint.Point{failpoint.Settled}, "done", false, "outguard-first"},
		{"revert", before, "skipped", false, "outguard-first"},
		{"revert", after, "skipped", false, "outguard-first"},
		{"revert", []failpoint.Point{failpoint.Settled}, "done", false, "outguard-first"},
		{"unsave", before, "done", false, ""},
		{"unsave", after, "done", true, ""},
		{"unsave", []failpoint.Point{failpoint.Settled}, "done", false, ""},
	} {
		for _, p := range tc.at {
			t.Run(tc.step+"/"+string(p), func(t *testing.T) {
				h := newMortal(t)
				l.RunWithDisk(h.vm, h.vm.String())
				(&counter{}).between(t, h.root+"/no-libvirt", l.Socket)
				h.start()
				ask := func(step string) error {
					_, err := h.api.Contain(t.Context(), &apipb.ContainRequest{Vm: h.vm.String(), Step: step, State: "first"})
					return err
				}
				if tc.step != "save" {
					if err := ask("save"); err != nil {
						t.Fatal(err)
					}
				}
				h.arm(p)
				answer := make(chan error, 1)
				go func() { answer <- ask(tc.step) }()
				h.died(p)
				if err := <-answer; err == nil {
					t.Error("an answer of a monitor that was killed")
				}
				h.start()
				o := h.order(tc.step, tc.state)
				if o.Already != tc.already || o.Recovered != (p != failpoint.Settled) {
					t.Errorf("order: %v", o)
				}
				if kept := strings.TrimSpace(l.Virsh("snapshot-list", h.vm.String(), "--name")); kept != tc.kept {
					t.Errorf("kept: %q", kept)
				}
				if state := strings.TrimSpace(l.Virsh("domstate", h.vm.String())); state != "running" {
					t.Errorf("the domain is %s", state)
				}
				if err := h.end(syscall.SIGTERM); err != nil {
					t.Error(err)
				}
				h.verify()
			})
		}
	}
}

// TestCaptureRevertible: a capture that is kept for revert as well is both, under
// the order's id, and the VM goes on.
func TestCaptureRevertible(t *testing.T) {
	l := domaintest.NewPrivate(t)
	h := newHost(t)
	l.RunWithDisk(h.vm, h.vm.String())
	(&counter{}).between(t, h.root+"/no-libvirt", l.Socket)
	h.start()
	s, err := h.api.Capture(t.Context(), &apipb.CaptureRequest{Vm: h.vm.String(), Revertible: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var o *apipb.Order
	for s.Receive() && o == nil {
		o = s.Msg().Order
	}
	if err := s.Err(); err != nil || o == nil || o.State != "done" || o.Bundle == "" || o.Taken == "" {
		t.Fatalf("order: %v, %v", o, err)
	}
	if kept := strings.TrimSpace(l.Virsh("snapshot-list", h.vm.String(), "--name")); kept != "outguard-"+o.Id {
		t.Errorf("kept: %q, captured by order %s", kept, o.Id)
	}
	if state := strings.TrimSpace(l.Virsh("domstate", h.vm.String())); state != "running" {
		t.Errorf("the domain is %s", state)
	}
	var steps []string
	for _, o := range h.orders() {
		steps = append(steps, o.Step+" "+o.State)
	}
	if got := strings.Join(steps, ", "); got != "pause done, capture done, save done, resume done" {
		t.Errorf("orders: %s", got)
	}
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.verify()
}
