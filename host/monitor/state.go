package monitor

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"

	"github.com/outguard/outguard/host/bolt"
)

// state is the small state that outlives the monitor: what each VM's session
// needs to go on. It holds secrets; its file is the monitor's alone.
type state struct {
	db  *bbolt.DB
	cut *bolt.Cut // set aside when it was opened; nil: nothing was
}

var (
	sessionBucket = []byte("sessions")
	policyBucket  = []byte("policies") // the profile that a person gave a VM
	hostBucket    = []byte("host")     // what is the host's own, by name

	rotationsKey = []byte("rotations on record") // how many, u64 little endian
)

func openState(path string) (*state, error) {
	db, cut, err := bolt.Open(path, walkState)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	db.MaxBatchDelay = savesTogether
	return &state{db, cut}, nil
}

// walkState makes what is missing, and reads all that there is.
func walkState(db *bbolt.DB) error {
	err := db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{sessionBucket, policyBucket, hostBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return db.View(func(tx *bbolt.Tx) error {
		err := tx.Bucket(policyBucket).ForEach(func(vm, b []byte) error {
			if len(vm) != len(uuid.UUID{}) {
				return fmt.Errorf("policy of %x", vm)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if b := tx.Bucket(hostBucket).Get(rotationsKey); b != nil && len(b) != 8 {
			return fmt.Errorf("rotations in %d bytes", len(b))
		}
		return tx.Bucket(sessionBucket).ForEach(func(vm, b []byte) error {
			if len(vm) != len(uuid.UUID{}) || len(b) == 0 {
				return fmt.Errorf("session of %x in %d bytes", vm, len(b))
			}
			return nil
		})
	})
}

func (s *state) Close() error { return s.db.Close() }

// savesTogether is how long a save waits for others to go to disk with: when
// thousands of sessions save, or resume, most of their cost is the sync.
const savesTogether = 2 * time.Millisecond

// Save keeps a session's state, nil to forget it; it is on disk when Save returns.
func (s *state) Save(vm uuid.UUID, b []byte) error {
	return s.db.Batch(func(tx *bbolt.Tx) error {
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

// SavePolicy keeps the profile that a person gave a VM, "" to forget it.
func (s *state) SavePolicy(vm uuid.UUID, profile string) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		if profile == "" {
			return tx.Bucket(policyBucket).Delete(vm[:])
		}
		return tx.Bucket(policyBucket).Put(vm[:], []byte(profile))
	})
}

// Policy returns what SavePolicy kept, "" if nothing.
func (s *state) Policy(vm uuid.UUID) (profile string) {
	_ = s.db.View(func(tx *bbolt.Tx) error { // closed at the end: nothing is kept then
		profile = string(tx.Bucket(policyBucket).Get(vm[:]))
		return nil
	})
	return profile
}

// SaveRotations keeps how many rotations of the host's key are on record.
func (s *state) SaveRotations(n uint64) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(hostBucket).Put(rotationsKey, binary.LittleEndian.AppendUint64(nil, n))
	})
}

// Rotations returns what SaveRotations kept, 0 if nothing.
func (s *state) Rotations() (n uint64, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(hostBucket).Get(rotationsKey); len(b) == 8 {
			n = binary.LittleEndian.Uint64(b)
		}
		return nil
	})
	return n, err
}
