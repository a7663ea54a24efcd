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

	"github.com/outguard/outguard/host/engines"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/plugins/engine"
)

// replay has the engines judge again what is on record and no checkpoint of
// theirs covers: a monitor that was killed goes on where it was. What is found a
// second time is known from recall. What goes wrong with one VM's record is a
// finding of that VM's and holds up no other.
func (m *Monitor) replay(ctx context.Context) error {
	vms, err := evidence.Streams(m.store.Dir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
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
	_, next, err := m.reader(vm).Bounds()
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
	n, told := 0, time.Now()
	frames := newAgain(vm)
	err := m.reader(vm).Read(from, 1<<63, func(r *evidence.Record) error {
		b, ok := frames.batch(r)
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
