package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/failpoint"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
)

// kept is a session's part that outlives its connections and the monitor.
// vm.mu guards it.
type kept struct {
	ID     uuid.UUID
	Secret []byte
	BootID uuid.UUID
	Dead   bool   // ended by a violation or a Bye: not to be resumed
	Bye    bool   // ended in order: nothing was held
	Next   uint64 // frame expected next
	Bytes  uint64

	Since         time.Time
	Resumed       uint64
	Kernel, Build string
	CPUs          uint32
	Hooks         []vsockproto.Hook

	Policy       uint64 // number last sent
	PolicyAcked  uint64
	PolicyReason string
}

const stateVersion = 1

type saved struct {
	Version  int
	Session  kept
	Index    uint64 // of the last frame that Session and Ledger know
	Ledger   []byte
	Starts   link.Starts
	Unhooked uint64
}

// SavedIndex is the index of the last frame that a saved state knows; those after
// it are asked for again. false where the state cannot be used.
func SavedIndex(b []byte) (uint64, bool) {
	s, _, err := parseSaved(b)
	if err != nil {
		return 0, false
	}
	return s.Index, true
}

// save stores what the next monitor needs. Called without v.mu.
func (m *Manager) save(v *vm) {
	if m.p.Store == nil {
		return
	}
	v.mu.Lock()
	if v.sess == nil {
		v.mu.Unlock()
		return
	}
	v.savedAt = time.Now()
	b, err := json.Marshal(saved{Version: stateVersion, Session: *v.sess, Index: v.index, Ledger: v.ledger.AppendBinary(nil), Starts: v.starts, Unhooked: v.unhooked})
	v.mu.Unlock()
	failpoint.At(failpoint.Saving)
	if err == nil {
		err = m.p.Store.Save(v.id, b)
	}
	if err != nil {
		m.log.Error("save session", "vm", v.id, "err", err)
	}
}

// load takes up what an earlier monitor saved and what was recorded after that.
// A state that cannot be read is as good as none, and said so.
func (m *Manager) load(v *vm) {
	if m.p.Store == nil {
		return
	}
	b, err := m.p.Store.Load(v.id)
	if err != nil || len(b) == 0 {
		if err != nil {
			m.log.Error("load session", "vm", v.id, "err", err)
		}
		return
	}
	s, l, err := parseSaved(b)
	if err != nil {
		m.log.Error("load session", "vm", v.id, "err", err)
		return
	}
	v.mu.Lock()
	v.sess, v.entered, v.ledger, v.index = &s.Session, true, l, s.Index
	v.starts, v.unhooked, v.counting, v.lost = s.Starts, s.Unhooked, s.Starts.Marked > 0, l.LostByClass()
	v.policy.Number = s.Session.Policy + 1 // ours may be another than the earlier monitor's
	v.mu.Unlock()
	if m.p.Replayer != nil {
		if err := m.p.Replayer.Replay(v.id, s.Session.ID, s.Index, func(index uint64, raw []byte) error { return m.again(v, index, raw) }); err != nil {
			m.log.Error("replay session", "vm", v.id, "err", err)
		}
	}
}

func parseSaved(b []byte) (*saved, *link.Ledger, error) {
	var s saved
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, nil, fmt.Errorf("saved session: %w", err)
	}
	if s.Version != stateVersion || s.Session.Next == 0 || len(s.Session.Secret) != vsockproto.KeySize {
		return nil, nil, fmt.Errorf("saved session of version %d: %w", s.Version, errors.ErrUnsupported)
	}
	l := link.NewLedger(&link.LedgerOptions{CPUs: s.Session.CPUs})
	if err := l.UnmarshalBinary(s.Ledger); err != nil {
		return nil, nil, fmt.Errorf("saved session: %w", err)
	}
	return &s, l, nil
}
