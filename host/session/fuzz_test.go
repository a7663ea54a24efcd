package session

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/vsockproto/link"
)

// FuzzParseSaved reads any bytes as what an earlier monitor saved of a session:
// refused, or a session that can go on.
func FuzzParseSaved(f *testing.F) {
	l := link.NewLedger(&link.LedgerOptions{CPUs: 2})
	good, err := json.Marshal(saved{Version: stateVersion, Index: 7, Ledger: l.AppendBinary(nil),
		Session: kept{ID: uuid.UUID{1}, Secret: make([]byte, 32), Next: 3, CPUs: 2, Since: time.Unix(1, 0)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(bytes.Replace(good, []byte(`"CPUs":2`), []byte(`"CPUs":4294967295`), 1))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, l, err := parseSaved(b)
		if err != nil {
			if s != nil || l != nil {
				t.Error("a session beside an error")
			}
			return
		}
		if s.Session.Next == 0 || len(s.Session.Secret) != 32 {
			t.Errorf("%+v", s.Session)
		}
		v := &vm{sess: &s.Session, ledger: l}
		v.status()
		if _, _, err := parseSaved(mustSave(t, s, l)); err != nil {
			t.Errorf("saved again: %v", err)
		}
	})
}

func mustSave(t *testing.T, s *saved, l *link.Ledger) []byte {
	t.Helper()
	b, err := json.Marshal(saved{Version: stateVersion, Session: s.Session, Index: s.Index, Ledger: l.AppendBinary(nil)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}
