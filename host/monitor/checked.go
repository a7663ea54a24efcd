package monitor

import (
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/engines"
	"github.com/outguard/outguard/host/evidence"
)

// sessionStore and modelStore keep beside the record how far a session and an
// engine have come with it. The record has its check first: of one that a process
// was killed over nothing remains, and what was kept must not speak of it. Else
// its frame would not come again, or a record that ends before what was judged
// would be taken for one that somebody has cut.
type (
	sessionStore struct {
		*state
		record *evidence.Store
	}
	modelStore struct {
		engines.Dir
		record *evidence.Store
	}
)

func (s sessionStore) Save(vm uuid.UUID, b []byte) error {
	if len(b) > 0 { // else it is forgotten
		if err := s.record.Check(vm); err != nil {
			return err
		}
	}
	return s.state.Save(vm, b)
}

func (s modelStore) Save(engine string, vm uuid.UUID, saved engines.Saved) error {
	if err := s.record.Check(vm); err != nil {
		return err
	}
	return s.Dir.Save(engine, vm, saved)
}
