package monitor

import (
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/vsockproto"
)

// recordKeys is what the record can be asked for by: events by what the API's
// filters look at, and everything else by its kind.
func recordKeys() *evidence.Keys {
	var e vsockproto.Event
	return &evidence.Keys{Scheme: api.KeyScheme, Of: func(r *evidence.Record, add func(uint64)) {
		if r.Kind != evidence.KindFrame {
			add(api.KindKey(uint16(r.Kind)))
			return
		}
		b, ok := frameBatch(uuid.Nil, r)
		for rest := b.Records; ok && len(rest) > 0; {
			after, err := e.Parse(rest)
			if err != nil {
				return // nobody is handed what follows it
			}
			api.EventKeys(&e, add)
			rest = after
		}
	}}
}

// reader reads a VM's record, all that is on it now.
func (m *Monitor) reader(vm uuid.UUID) *evidence.Reader {
	_ = m.store.Check(vm) // who appends next hears of an error
	return evidence.NewReader(evidence.StreamDir(m.store.Dir(), vm))
}

// indexes is how a VM's are read. One that cannot be used is said, and made anew.
func (m *Monitor) indexes(vm uuid.UUID) *evidence.IndexReader {
	return &evidence.IndexReader{
		Scheme: api.KeyScheme, Verifier: m.store.Key().Verifier(),
		Unusable: func(segment string, why error) {
			err := m.store.Reindex(vm, segment)
			m.log.Warn("an index of the record cannot be used; the segment is read whole, and indexed anew", "vm", vm, "segment", segment, "why", why, "error", err)
		},
	}
}
