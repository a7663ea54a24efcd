package monitor

import (
	"fmt"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"
)

// state is the small state that outlives the monitor: what each VM's session
// needs to go on. It holds secrets; its file is the monitor's alone.
type state struct{ db *bbolt.DB }

var sessionBucket = []byte("sessions")

func openState(path string) (*state, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(sessionBucket)
		return err
	})
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &state{db}, nil
}

func (s *state) Close() error { return s.db.Close() }

// Save keeps a session's state, nil to forget it; it is on disk when Save returns.
func (s *state) Save(vm uuid.UUID, b []byte) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		if b == nil {
			return tx.Bucket(sessionBucket).Delete(vm[:])
		}
		return tx.Bucket(sessionBucket).Put(vm[:], b)
	})
}

// Load returns what Save kept, nil if nothing.
func (s *state) Load(vm uuid.UUID) (b []byte, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		if v := tx.Bucket(sessionBucket).Get(vm[:]); v != nil {
			b = append([]byte{}, v...)
		}
		return nil
	})
	return b, err
}
