package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/decide"
	"github.com/outguard/outguard/host/engines"
	"github.com/outguard/outguard/host/evidence"
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
// it had not been.
func (m *Monitor) replay(ctx context.Context) error {
	vms, err := evidence.Streams(m.store.Dir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, vm := range vms {
		if vm == uuid.Nil { // the host's own: no frames
			continue
		}
		for _, e := range m.engines {
			err = errors.Join(err, m.replayed(vm, m.replayOne(ctx, vm, e)))
		}
	}
	return err
}

// replayed takes what came of replaying a VM's record. One without a record yet
// is no error; one that is corrupt is set aside, and the VM goes on.
func (m *Monitor) replayed(vm uuid.UUID, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, evidence.ErrCorrupt):
		dir, aside := m.store.SetAside(vm)
		if aside == nil {
			m.setAside(vm, err, dir)
			return nil
		}
		err = errors.Join(err, aside)
	}
	return err
}

func (m *Monitor) replayOne(ctx context.Context, vm uuid.UUID, e *engines.Supervisor) error {
	_, covered, ok, err := e.Covered(vm)
	if err != nil {
		return fmt.Errorf("%s: %w", e.Name(), err)
	}
	from := uint64(0)
	if ok {
		from = covered + 1
	}
	if err := m.judge.remember(vm, m.captures.reader(vm), from); err != nil {
		return err
	}
	n := 0
	err = m.captures.reader(vm).Read(from, 1<<63, func(r *evidence.Record) error {
		if r.Kind != evidence.KindFrame {
			return nil
		}
		b, ok := frameBatch(vm, r)
		if !ok {
			return nil
		}
		n++
		return e.Submit(ctx, &b)
	})
	if n > 0 {
		m.log.Info("judged again from the record", "engine", e.Name(), "vm", vm, "batches", n)
	}
	return err
}

// remember notes which findings of events are on record from an index on.
func (j *judge) remember(vm uuid.UUID, r *evidence.Reader, from uint64) error {
	byID := map[string]*earlier{}
	err := r.Read(from, 1<<63, func(rec *evidence.Record) error {
		switch rec.Kind {
		case evidence.KindFinding:
			f, err := unmarshal[engine.Finding](rec)
			if err != nil {
				return err
			}
			if p, ok := placeOf(&f); ok {
				byID[f.ID] = &earlier{id: f.ID}
				j.mu.Lock()
				j.known[p] = byID[f.ID]
				j.mu.Unlock()
			}
		case evidence.KindDecision:
			d, err := unmarshal[decide.Decision](rec)
			if err != nil {
				return err
			}
			if e := byID[d.Finding]; e != nil {
				e.decided = true
			}
		}
		return nil
	})
	return err
}
