package monitor

import (
	"fmt"
	"strings"
	"time"

	"github.com/outguard/outguard/host/bundle"
	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/respond"
	"github.com/outguard/outguard/plugins/engine"
)

// timelineOf tells what happened when, from the hook to the packing of the capture,
// while which the VM's next orders were carried out. When it was packed the order's
// result says.
func timelineOf(o respond.Order, f *engine.Finding, after []engine.Finding, entries []respond.Entry, shot *domain.Snapshot, packing time.Time) *bundle.Timeline {
	t := &bundle.Timeline{VM: o.VM, VMName: o.Name, Finding: o.Finding, Order: o.ID.String(), Received: o.Received}
	if f != nil {
		tellFinding(t, f)
	}
	for i := range after {
		t.Add(after[i].At, bundle.StepFinding, ruleText(&after[i])+": "+after[i].Reason)
	}
	if o.Rule != "" {
		t.Add(o.Decided, bundle.StepDecision, "playbook rule "+o.Rule)
	} else {
		t.Add(o.Decided, bundle.StepDecision, "asked for by "+o.Asked)
	}
	for _, e := range entries {
		if e.Result == nil {
			continue
		}
		if at := e.Result.Journaled; !at.IsZero() { // not of what is only logged, nor across a restart
			t.Add(at, bundle.StepOrdered, string(e.Order.Kind)+", journaled and synced")
		}
		if e.Order.Kind == respond.Pause && e.Result.Status == respond.Done {
			t.Add(e.Result.Effect, bundle.StepPaused, "libvirt says: paused")
		}
		if e.Order.Kind == respond.Resume && e.Result.Status == respond.Done {
			t.Add(e.Result.Effect, "resumed", "libvirt says: running")
		}
	}
	t.Add(shot.Finished, bundle.StepCaptured, captureText(shot))
	t.Add(packing, "packing", "the VM needs to stand no longer; the order's result tells when the bundle was whole")
	t.Sort()
	return t
}

func tellFinding(t *bundle.Timeline, f *engine.Finding) {
	facts := []bundle.Fact{{Name: "comm", Value: f.Comm}}
	if f.Path != "" {
		facts = append(facts, bundle.Fact{Name: "path", Value: f.Path})
	}
	if t.Hook = f.Hook; !t.Hook.IsZero() {
		t.Add(t.Hook, bundle.StepEvent, fmt.Sprintf("%s by pid %d", f.Event, f.PID), facts...)
	}
	if !f.Received.IsZero() {
		t.Add(f.Received, bundle.StepReceived, "the frame with it")
	}
	t.Add(f.At, bundle.StepFinding, ruleText(f)+": "+f.Reason)
}

// ruleText names the engine once: most rules begin with it.
func ruleText(f *engine.Finding) string {
	if strings.HasPrefix(f.Rule, f.Engine+"/") {
		return f.Rule
	}
	return f.Engine + " " + f.Rule
}

func captureText(shot *domain.Snapshot) string {
	var memory, disks int64
	n := 0
	for _, f := range shot.Files {
		switch f.Kind {
		case "memory":
			memory += f.Size
		case "disk":
			disks += f.Size
			n++
		}
	}
	return fmt.Sprintf("memory %d MiB, disks %d MiB (%d), in %s",
		memory>>20, disks>>20, n, shot.Finished.Sub(shot.Started).Round(time.Millisecond))
}
