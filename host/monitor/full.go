package monitor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/plugins/engine"
)

// room tells that the record takes no frames, or takes them again.
func (m *Monitor) room(full bool, free int64) {
	f := engine.Finding{
		Rule: "evidence/room", Severity: engine.Info, Reason: "The disk has room again: what guests send is recorded.",
		Detail: map[string]string{"free": fmt.Sprint(free), "reserve": fmt.Sprint(m.cfg.Evidence.Reserve), "dir": m.store.Dir()},
	}
	if full {
		f.Rule, f.Severity = "evidence/full", engine.Severest
		f.Reason = "The disk of the record is full up to the reserve: what guests send waits in the guests, unjudged, until there is room."
	}
	m.loose.Go(func() { m.judge.found(f) }) // the record is in the middle of an append
}

// entry is one record of the host's own.
type entry struct {
	vm      uuid.UUID
	kind    evidence.Kind
	at      time.Time
	payload []byte
}

// owed holds, in their order, the host's own records for which a disk that is
// full to the last byte has no room.
type owed struct {
	any atomic.Bool // entries is not empty

	mu      sync.Mutex
	entries []entry
	bytes   int
}

// maxOwed is how many bytes of them are held; there is no more after that than
// an error.
const maxOwed = 16 << 20

// append appends e, or holds it where there is no room or others wait for some.
func (o *owed) append(e entry, to func(entry) error) error {
	if !o.any.Load() { // one VM's record holds up no other's
		err := to(e)
		if !errors.Is(err, evidence.ErrFull) {
			return err
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.bytes+len(e.payload) > maxOwed {
		return fmt.Errorf("%d records wait already: %w", len(o.entries), evidence.ErrFull)
	}
	o.entries = append(o.entries, e)
	o.bytes += len(e.payload)
	o.any.Store(true)
	return nil
}

// pay appends what is owed, as far as there is room. It returns how many are
// still owed, and what could not be appended for another reason.
func (o *owed) pay(to func(entry) error) (left int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for len(o.entries) > 0 {
		e := o.entries[0]
		err := to(e)
		if errors.Is(err, evidence.ErrFull) {
			break
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s of VM %s: %w", e.kind, e.vm, err))
		}
		o.entries[0] = entry{}
		o.entries, o.bytes = o.entries[1:], o.bytes-len(e.payload)
	}
	o.any.Store(len(o.entries) > 0)
	return len(o.entries), errors.Join(errs...)
}

// payOwed pays what is owed, each second and at the end.
func (m *Monitor) payOwed(ctx context.Context) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			if left, err := m.owed.pay(m.append); left > 0 || err != nil {
				m.log.Error("lost to the record: the disk has no room at all", "records", left, "error", err)
			}
			return ctx.Err()
		case <-t.C:
			if _, err := m.owed.pay(m.append); err != nil {
				m.metrics.EvidenceError()
				m.log.Error("not recorded", "error", err)
			}
		}
	}
}
