package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/decide"
	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/failpoint"
	"github.com/outguard/outguard/host/respond"
	"github.com/outguard/outguard/plugins/engine"
)

// monitorEngine is the engine's name in findings of the host's own parts.
const monitorEngine = "monitor"

// judge turns findings into recorded decisions and orders, in the order in
// which they come.
type judge struct {
	m *Monitor

	mu       sync.Mutex // one finding at a time, so that the record has one order
	playbook *loaded
	history  decide.History
	known    map[place]*earlier          // on record from an earlier process; each is met once at most
	undone   map[uuid.UUID]time.Time     // when a VM was reverted last
	ordered  map[string]bool             // findings for which an earlier process gave orders
	open     []*earlier                  // what an earlier process had not come to the end of
	orders   map[uuid.UUID]respond.Entry // on record, with their results; recall's own
	kept     map[keptID]bool             // orders and results that an earlier process put on record; recall alone writes it
}

// found is what every part calls with a finding: it is recorded, decided, and
// the decision is recorded and ordered. It blocks for the record and for the
// orders' journal, never for libvirt.
func (j *judge) found(f engine.Finding) {
	j.mu.Lock()
	defer j.mu.Unlock()
	stamp(&f)
	f.Hook = j.m.hookTime(&f)
	if j.again(&f) {
		return
	}
	j.m.domains.counted(f.VM)
	j.m.metrics.Finding(&f)
	j.m.log.LogAttrs(context.Background(), level(f.Severity), "finding", slog.String("id", f.ID),
		slog.String("vm", j.m.domains.name(f.VM)), slog.String("rule", f.Rule), slog.String("reason", f.Reason))
	j.m.keep(f.VM, evidence.KindFinding, f.At, &f)
	failpoint.At(failpoint.Found)
	j.decide(&f)
}

// again reports whether an earlier process had put the same on record, which
// it is asked once.
func (j *judge) again(f *engine.Finding) bool {
	p, ok := placeOf(f)
	if !ok {
		return false
	}
	known := j.known[p] != nil
	delete(j.known, p)
	return known
}

// decide asks the playbook. That nothing is to be done is a decision too: by it a
// later process knows that this one came so far.
func (j *judge) decide(f *engine.Finding) {
	name := j.m.domains.name(f.VM)
	d := decide.Decide(j.playbook.Playbook, j.input(f, name), &j.history)
	j.history.Note(d)
	j.m.keep(f.VM, evidence.KindDecision, d.At, &d)
	for _, t := range d.Dry {
		j.m.metrics.Decision(t.Rule, "dry run: "+outcome(t.Steps, t.Held, t.Dropped))
	}
	if d.Rule == "" {
		return
	}
	j.carry(f, d, name)
}

// carry gives the orders of a decision that is on record.
func (j *judge) carry(f *engine.Finding, d decide.Decision, name string) {
	j.m.metrics.Decision(d.Rule, outcome(d.Steps, d.Held, d.Dropped))
	for _, x := range d.Dropped {
		j.m.log.Warn("a limit of the playbook took a step", "vm", name, "finding", f.ID, "rule", d.Rule, "step", x.Step, "limit", x.Why)
	}
	if len(d.Steps) > 0 {
		failpoint.At(failpoint.Decided)
		j.order(f, &d, name)
	}
}

func (j *judge) input(f *engine.Finding, name string) decide.Input {
	w, _ := j.m.domains.get(f.VM)
	in := decide.Input{Finding: f, Name: name, RunSince: w.RunSince, Undone: j.undone[f.VM], Now: time.Now()}
	if f.VM == uuid.Nil {
		in.RunSince = j.m.started
	}
	if f.Ref != nil {
		in.Session = f.Ref.Session
	}
	return in
}

func (j *judge) order(f *engine.Finding, d *decide.Decision, name string) {
	steps := make([]respond.Kind, len(d.Steps))
	for i, s := range d.Steps {
		steps[i] = respond.Kind(s)
	}
	_, err := j.m.responder.Submit(context.Background(), respond.Request{
		VM: f.VM, Name: name, Steps: steps, Alerts: d.Alerts, State: d.State, Asked: "playbook", Reason: f.Reason,
		Finding: f.ID, Rule: d.Rule, Received: f.Received, Found: f.At, Decided: d.At,
	})
	if err != nil {
		j.history.Forget(f.VM, d.Rule)
		j.m.log.Error("order refused", "vm", name, "finding", f.ID, "error", err)
		j.m.keep(f.VM, evidence.KindNote, time.Now(), note{What: orderRefused, Text: fmt.Sprintf("finding %s: %v", f.ID, err), Finding: f.ID})
	}
}

// settled lets a rule act again whose order came to nothing, and notes that a VM
// was reverted. An alert that nobody took is no reason to stop the VM again.
func (j *judge) settled(e respond.Entry) {
	j.m.metrics.Order(string(e.Order.Kind), string(e.Result.Status), took(e))
	failed := e.Result.Status == respond.Failed && e.Order.Rule != "" && e.Order.Kind != respond.Alert
	reverted := e.Result.Status == respond.Done && e.Order.Kind == respond.Revert
	if !failed && !reverted {
		return
	}
	go func() { // Observe must not block, and found may hold the lock
		j.mu.Lock()
		defer j.mu.Unlock()
		if failed {
			j.history.Forget(e.Order.VM, e.Order.Rule)
		} else {
			j.undone[e.Order.VM] = e.Result.Started
		}
	}()
}

// drop forgets what the playbook did about a VM that is watched no more.
func (j *judge) drop(vm uuid.UUID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.history.Drop(vm)
	delete(j.undone, vm)
}

// held reports an order that waits for libvirt: nobody has stopped the VM.
func (j *judge) held(e respond.Entry) {
	f := engine.Finding{
		VM: e.Order.VM, Rule: "respond/waiting", Severity: engine.High,
		Reason: fmt.Sprintf("The order to %s the VM waits for libvirt until %s: %s.", e.Order.Kind, e.Order.Deadline.UTC().Format(time.RFC3339), e.Waiting.Error),
		Detail: map[string]string{"order": e.Order.ID.String()},
	}
	j.m.loose.Go(func() { j.found(f) }) // Held must not block
}

func took(e respond.Entry) time.Duration {
	from := e.Order.Given
	if !e.Order.Decided.IsZero() {
		from = e.Order.Decided
	}
	to := e.Result.Effect
	if to.IsZero() {
		to = e.Result.Finished
	}
	return to.Sub(from)
}

// outcome is a decision in a word: "pause+capture", "held", "pause-capture"
// where a limit took the capture.
func outcome(steps []decide.Step, held string, dropped []decide.Dropped) string {
	if held != "" {
		return "held"
	}
	s := make([]string, len(steps))
	for i, step := range steps {
		s[i] = string(step)
	}
	text := strings.Join(s, "+")
	for _, d := range dropped {
		text += "-" + string(d.Step)
	}
	return text
}

// stamp sets what the finder left to the host.
func stamp(f *engine.Finding) {
	if f.ID == "" {
		f.ID = uuid.Must(uuid.NewV7()).String()
	}
	if f.Engine == "" {
		f.Engine = monitorEngine
	}
	if f.At.IsZero() {
		f.At = time.Now()
	}
}

// hookTime is when f's event happened, by the relation of the guest's boot
// clock to the host's while its session speaks. The relation is an upper bound:
// the hook fired then or a little earlier.
func (m *Monitor) hookTime(f *engine.Finding) time.Time {
	if f.Ref == nil {
		return time.Time{}
	}
	s, ok := m.sessions.StatusOf(f.VM)
	if !ok || s.Session != f.Ref.Session || !s.Clock.Valid {
		return time.Time{}
	}
	return s.Clock.Host(f.BootNs)
}

func level(s engine.Severity) slog.Level {
	switch {
	case s >= engine.High:
		return slog.LevelError
	case s >= engine.Low:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// note is a fact of the host's own on a VM's record.
type note struct {
	What    string `json:"what"`
	Text    string `json:"text,omitempty"`
	Finding string `json:"finding,omitempty"` // its id, where one is meant
}

// orderRefused is the note of a decision whose orders the journal did not take.
const orderRefused = "order-refused"

// keep appends v as JSON to the VM's record, or later where the disk has no room
// at all. What cannot be kept is logged and counted: the monitor goes on, since
// a full disk must not stop a response.
func (m *Monitor) keep(vm uuid.UUID, kind evidence.Kind, at time.Time, v any) {
	if err := m.recordJSON(vm, kind, at, v); err != nil {
		m.metrics.EvidenceError()
		m.log.Error("not recorded", "vm", m.domains.name(vm), "kind", kind, "error", err)
	}
}

func (m *Monitor) append(e entry) error {
	s, err := m.store.Stream(e.vm)
	if err != nil {
		return err
	}
	_, err = s.AppendCritical(e.kind, e.at, e.payload)
	return err
}

// RecordOrder puts an order on the VM's record; respond calls it before libvirt.
func (m *Monitor) RecordOrder(o respond.Order) error {
	if m.judge.isKept(evidence.KindOrder, o.ID) {
		return nil
	}
	return m.recordJSON(o.VM, evidence.KindOrder, o.Given, o)
}

// RecordResult puts its result there.
func (m *Monitor) RecordResult(o respond.Order, r respond.Result) error {
	if m.judge.isKept(evidence.KindResult, o.ID) {
		return nil
	}
	return m.recordJSON(o.VM, evidence.KindResult, r.Finished, r)
}

func (m *Monitor) recordJSON(vm uuid.UUID, kind evidence.Kind, at time.Time, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return m.owed.append(entry{vm, kind, at, text}, m.append)
}

// lifecycle records what libvirt says happened to an enrolled domain.
func (m *Monitor) lifecycle(e domain.Event) {
	if w, ok := m.domains.get(e.VM); ok && w.Enrolment != nil {
		m.keep(e.VM, evidence.KindNote, e.At, note{What: "domain-" + e.Kind.String(), Text: e.Reason})
	}
}
