package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/decide"
	"github.com/outguard/outguard/host/engines"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/respond"
	"github.com/outguard/outguard/plugins/engine"
)

// place is what makes a finding of an event, or of a frame, the same finding
// when that is looked at again.
type place struct {
	vm     uuid.UUID
	engine string
	rule   string
	ref    engine.Ref
	about  string // of a session's finding without a reference
}

// placeOf is where f was found. A session's findings say of which frame they
// are, and of which account.
func placeOf(f *engine.Finding) (place, bool) {
	switch {
	case f.Ref != nil:
		return place{vm: f.VM, engine: f.Engine, rule: f.Rule, ref: *f.Ref}, true
	case f.Engine == monitorEngine && f.Detail["index"] != "":
		d := f.Detail
		return place{vm: f.VM, engine: f.Engine, rule: f.Rule,
			about: fmt.Sprint(d["index"], " ", d["cpu"], " ", d["class"], " ", d["sequence"])}, true
	}
	return place{}, false
}

// earlier is a finding that an earlier process put on record, and how far it
// had come with it.
type earlier struct {
	finding  engine.Finding
	decision *decide.Decision // nil: killed before
	ordered  bool             // the decision's orders are in the journal, or it has none
}

func (e *earlier) settled() bool { return e.decision != nil && e.ordered }

// keptID is an order or a result on record.
type keptID struct {
	kind  evidence.Kind
	order uuid.UUID
}

// recall reads what an earlier process had put on record last, before anything
// is added: from where the engines' checkpoints end, and of the last segment
// whatever they cover. What is wrong with a record replay says.
func (m *Monitor) recall(context.Context) error {
	vms, err := evidence.Streams(m.store.Dir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = m.judge.readOrders()
	}
	if err != nil {
		return err
	}
	var saved []map[uuid.UUID]engines.Saved
	for _, e := range m.engines {
		s, _ := m.checkpoints().Load(e.Name()) // replay says what is wrong with it
		saved = append(saved, s)
	}
	for _, vm := range vms {
		r := m.reader(vm)
		from, err := r.Tail()
		if err != nil {
			continue
		}
		if m.journal.Cut() != nil {
			from = 0 // which orders had no result, the record says now
		}
		for _, s := range saved {
			c := s[vm]
			if c.Session == uuid.Nil {
				from = 0 // nothing is covered
			}
			from = min(from, c.Index+1)
		}
		if err := m.judge.remember(r, from); err != nil {
			m.log.Error("what an earlier process had done", "vm", vm, "error", err)
		}
	}
	return m.restoreJournal()
}

// restoreJournal gives a journal that had to begin anew the orders on record.
// Those without a result are gone on with.
func (m *Monitor) restoreJournal() error {
	entries := slices.Collect(maps.Values(m.judge.orders))
	m.judge.orders = nil
	if m.journal.Cut() == nil {
		return nil
	}
	slices.SortFunc(entries, func(a, b respond.Entry) int { return bytes.Compare(a.Order.ID[:], b.Order.ID[:]) })
	m.log.Warn("the journal began anew, with what is on record", "orders", len(entries))
	return m.journal.Restore(entries)
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

// remember notes what is on record from an index on: findings, and how far they
// had come, orders and results.
func (j *judge) remember(r *evidence.Reader, from uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	byID := map[string]*earlier{}
	err := r.Read(from, 1<<63, func(rec *evidence.Record) error { return j.note(rec, byID) })
	for _, e := range byID {
		if !e.settled() {
			j.open = append(j.open, e)
		}
	}
	slices.SortFunc(j.open, func(a, b *earlier) int { return a.finding.At.Compare(b.finding.At) })
	return err
}

// note takes one record. byID are the findings so far; j.mu is held.
func (j *judge) note(rec *evidence.Record, byID map[string]*earlier) error {
	switch rec.Kind {
	case evidence.KindFinding:
		f, err := unmarshal[engine.Finding](rec)
		if err != nil {
			return err
		}
		e := &earlier{finding: f}
		byID[f.ID] = e
		if p, ok := placeOf(&f); ok {
			j.known[p] = e
		}
	case evidence.KindDecision:
		d, err := unmarshal[decide.Decision](rec)
		if err != nil {
			return err
		}
		j.history.Note(d) // what acted once does not act again for a restart
		if e := byID[d.Finding]; e != nil {
			e.decision, e.ordered = &d, len(d.Steps) == 0 || j.ordered[d.Finding]
		}
	case evidence.KindOrder:
		o, err := unmarshal[respond.Order](rec)
		j.kept[keptID{rec.Kind, o.ID}] = true
		j.orders[o.ID] = respond.Entry{Order: o}
		if e := byID[o.Finding]; e != nil {
			e.ordered = true // also where the journal had to begin anew
		}
		return err
	case evidence.KindResult:
		res, err := unmarshal[respond.Result](rec)
		j.kept[keptID{rec.Kind, res.Order}] = true
		if e, ok := j.orders[res.Order]; ok {
			e.Result = &res
			j.orders[res.Order] = e
		}
		return err
	case evidence.KindNote:
		n, err := unmarshal[note](rec)
		if e := byID[n.Finding]; e != nil && n.What == orderRefused {
			e.ordered = true // as far as it could be
		}
		return err
	}
	return nil
}

// settleEarlier comes to the end of what an earlier process had found and was
// killed over: it is decided if it was not, and ordered if that was not.
func (j *judge) settleEarlier(context.Context) error {
	for _, f := range j.m.tell {
		j.found(f)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.open {
		f := &e.finding
		j.m.log.Info("finding of an earlier process goes on", "id", f.ID, "vm", j.m.domains.name(f.VM), "rule", f.Rule, "decided", e.decision != nil)
		if e.decision == nil {
			j.decide(f)
			continue
		}
		j.carry(f, *e.decision, j.m.domains.name(f.VM))
	}
	j.open = nil
	return nil
}

// isKept reports whether an earlier process had put the order, or its result, on
// record.
func (j *judge) isKept(kind evidence.Kind, order uuid.UUID) bool {
	return j.kept[keptID{kind, order}]
}
