package monitor

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/engines"
	"github.com/outguard/outguard/host/evidence"
)

// TestKeptAfterTheRecord: what a session and an engine's model cover is on record,
// whole, when they are kept.
func TestKeptAfterTheRecord(t *testing.T) {
	dir := t.TempDir()
	key, err := evidence.LoadOrCreateKey(dir, "host")
	if err != nil {
		t.Fatal(err)
	}
	store, err := evidence.Open(filepath.Join(dir, evidence.StoreDir), key, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	states, err := openState(filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer states.Close()
	for name, save := range map[string]func(vm uuid.UUID) error{
		"session": func(vm uuid.UUID) error { return sessionStore{states, store}.Save(vm, []byte("{}")) },
		"model": func(vm uuid.UUID) error {
			return modelStore{engines.Dir(filepath.Join(dir, "models")), store}.Save("tsem", vm, engines.Saved{Session: uuid.New()})
		},
	} {
		vm := uuid.New()
		stream, err := store.Stream(vm)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.AppendUnchecked(evidence.KindFrame, false, time.Now(), []byte("frame")); err != nil {
			t.Fatal(err)
		}
		if err := save(vm); err != nil {
			t.Fatal(err)
		}
		if _, next, err := evidence.NewReader(stream.Dir()).Bounds(); err != nil || next != 1 {
			t.Errorf("%s: kept with %d records that a process would find, %v", name, next, err)
		}
	}
}
