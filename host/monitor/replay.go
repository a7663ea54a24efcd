package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/decide"
	"github.com/outguard/outguard/host/engines"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/respond"
	"github.com/outguard/outguard/plugins/engine"
)

// place is what makes a finding of an event the same finding when the event is
// judged again.
type place struct {
	vm     uuid.UUID
	engine string
	rule   string
	ref    engine.Ref
}

func placeOf(f *engine.Finding) (place, bool) {
	if f.Ref == nil {
		return place{}, false
	}
	return place{f.VM, f.Engine, f.Rule, *f.Ref}, true
}

// earlier is a finding that an earlier process put on record.
type earlier struct {
	id      string
	decided bool // and what the playbook said of it
}

// replay has the engines judge again what is on record and no checkpoint of
// theirs covers: a monitor that was killed goes on where it was. A finding that
// was on record already is not recorded a second time, and is decided only if
// it had not been. What goes wrong with one VM's record is a finding of that
// VM's and holds up no other.
func (m *Monitor) replay(ctx context.Context) error {
	vms, err := evidence.Streams(m.store.Dir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := m.judge.readOrders(); err != nil {
		return err
	}
	for _, e := range m.engines {
		saved, err := m.checkpoints().Load(e.Name())
		if err != nil {
			m.log.Error("checkpoints", "engine", e.Name(), "error", err)
		}
		for _, vm := range vms {
			if vm == uuid.Nil { // the host's own: no frames
				continue
			}
			m.replayed(ctx, vm, m.replayOne(ctx, vm, e, m.uncovered(vm, saved)))
		}
		for vm := range saved {
			if !slices.Contains(vms, vm) {
				m.uncovered(vm, saved)
			}
		}
	}
	return ctx.Err()
}

// uncovered is the index from which on no checkpoint covers the VM's record. A
// record that ends before what its checkpoint covers is not the one that was
// judged: unless it was set aside, and that said, a part of it is gone.
func (m *Monitor) uncovered(vm uuid.UUID, saved map[uuid.UUID]engines.Saved) uint64 {
	s, ok := saved[vm]
	if !ok || s.Session == uuid.Nil {
		return 0
	}
	_, next, err := m.captures.reader(vm).Bounds()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0 // replaying says what is wrong
	}
	if s.Index < next {
		return s.Index + 1
	}
	aside, err := filepath.Glob(evidence.StreamDir(m.store.Dir(), vm) + "?*")
	if err == nil && len(aside) == 0 {
		m.judge.found(engine.Finding{
			VM: vm, Rule: "evidence/missing", Severity: engine.Severest, Technique: "T1070",
			Reason: fmt.Sprintf("The VM's record ends at %d, and %d had been judged.", next, s.Index),
		})
	}
	return 0
}

// replayed takes what came of replaying a VM's record. One without a record yet
// is no error; one that is corrupt is set aside.
func (m *Monitor) replayed(ctx context.Context, vm uuid.UUID, err error) {
	if err == nil || ctx.Err() != nil || errors.Is(err, fs.ErrNotExist) {
		return
	}
	if errors.Is(err, evidence.ErrCorrupt) {
		dir, aside := m.store.SetAside(vm)
		if aside == nil {
			m.setAside(vm, err, dir)
			return
		}
		err = errors.Join(err, aside)
	}
	m.judge.found(engine.Finding{
		VM: vm, Rule: "monitor/replay", Severity: engine.High,
		Reason: "A part of the VM's record could not be judged again after a start.",
		Detail: map[string]string{"error": err.Error()},
	})
}

// stillStarting is how often a service manager is told that a long replay is
// no hang.
const stillStarting = 10 * time.Second

func (m *Monitor) replayOne(ctx context.Context, vm uuid.UUID, e *engines.Supervisor, from uint64) error {
	if err := m.judge.remember(m.captures.reader(vm), from); err != nil {
		return err
	}
	n, told := 0, time.Now()
	err := m.captures.reader(vm).Read(from, 1<<63, func(r *evidence.Record) error {
		if r.Kind != evidence.KindFrame {
			return nil
		}
		b, ok := frameBatch(vm, r)
		if !ok {
			return nil
		}
		if time.Since(told) > stillStarting {
			m.notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", (3 * stillStarting).Microseconds()))
			told = time.Now()
		}
		n++
		return e.Submit(ctx, &b)
	})
	if n > 0 {
		m.log.Info("judged again from the record", "engine", e.Name(), "vm", vm, "batches", n)
	}
	return err
}

// readOrders notes for which findings there is an order in the journal.
func (j *judge) readOrders() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.m.journal.Entries(func(e respond.Entry) bool {
		if e.Order.Finding != "" {
			j.ordered[e.Order.Finding] = true
		}
		return true
	})
}

// remember notes which findings of events are on record from an index on. One
// is decided if its decision is there and, where that had steps, so is an order:
// a monitor can be killed in between.
func (j *judge) remember(r *evidence.Reader, from uint64) error {
	byID := map[string]*earlier{}
	return r.Read(from, 1<<63, func(rec *evidence.Record) error {
		switch rec.Kind {
		case evidence.KindFinding:
			f, err := unmarshal[engine.Finding](rec)
			if err != nil {
				return err
			}
			if p, ok := placeOf(&f); ok {
				e := &earlier{id: f.ID}
				byID[f.ID] = e
				j.mu.Lock()
				j.known[p] = e
				j.mu.Unlock()
			}
		case evidence.KindDecision:
			d, err := unmarshal[decide.Decision](rec)
			if err != nil {
				return err
			}
			if e := byID[d.Finding]; e != nil {
				j.mu.Lock()
				e.decided = len(d.Steps) == 0 || j.ordered[d.Finding]
				j.mu.Unlock()
			}
		}
		return nil
	})
}
