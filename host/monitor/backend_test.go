package monitor

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/plugins/engine"
)

var rotten, sound = uuid.UUID{1}, uuid.UUID{2}

// twoRecords puts findings of two VMs on record, a second apart and in turn.
func twoRecords(t *testing.T) backend {
	t.Helper()
	dir := t.TempDir()
	key, err := evidence.LoadOrCreateKey(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	store, err := evidence.Open(filepath.Join(dir, "evidence"), key, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	begin := time.Now().Add(-time.Hour)
	for i := range 6 {
		vm := rotten
		if i%2 == 1 {
			vm = sound
		}
		f := engine.Finding{ID: string(rune('a' + i)), VM: vm, At: begin.Add(time.Duration(i) * time.Second), Reason: "found-" + string(rune('a'+i))}
		text, err := json.Marshal(&f)
		if err != nil {
			t.Fatal(err)
		}
		s, err := store.Stream(vm)
		if err == nil {
			_, err = s.Append(evidence.KindFinding, f.At, text)
		}
		if err == nil {
			err = s.Sync()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return backend{&Monitor{store: store, log: slog.New(slog.DiscardHandler)}}
}

// rot flips a byte of the reason in the record of a finding.
func rot(t *testing.T, b backend, vm uuid.UUID, id string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(evidence.StreamDir(b.m.store.Dir(), vm), "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if i := strings.Index(string(text), "found-"+id); i >= 0 {
			text[i] ^= 1
			if err := os.WriteFile(file, text, 0o640); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("finding %s is not on record", id)
}

func ids(t *testing.T, b backend, q api.Query) (string, error) {
	t.Helper()
	var got strings.Builder
	err := b.Findings(t.Context(), q, func(f *engine.Finding) error {
		got.WriteString(f.ID)
		return nil
	})
	return got.String(), err
}

func TestFindingsOfSeveralVMsAreMergedByTime(t *testing.T) {
	b := twoRecords(t)
	if got, err := ids(t, b, api.Query{}); got != "abcdef" || err != nil {
		t.Errorf("all: %q, %v", got, err)
	}
	if got, err := ids(t, b, api.Query{VM: sound}); got != "bdf" || err != nil {
		t.Errorf("of one: %q, %v", got, err)
	}
	enough, n := errors.New("enough"), 0
	err := b.Findings(t.Context(), api.Query{}, func(*engine.Finding) error {
		if n++; n == 3 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || n != 3 {
		t.Errorf("after %d: %v", n, err)
	}
}

// What cannot be read of one VM's record hides nothing of another's, nor what
// is before it in its own.
func TestARottenRecordHidesNoOther(t *testing.T) {
	b := twoRecords(t)
	rot(t, b, rotten, "c")
	got, err := ids(t, b, api.Query{})
	if got != "abdf" || !errors.Is(err, evidence.ErrCorrupt) || !strings.Contains(err.Error(), rotten.String()) {
		t.Errorf("findings: %q, %v", got, err)
	}
	if got, err := ids(t, b, api.Query{VM: sound}); got != "bdf" || err != nil {
		t.Errorf("of the sound one: %q, %v", got, err)
	}
	read := map[uuid.UUID]int{}
	err = b.read(t.Context(), api.Query{}, func(vm uuid.UUID, r *evidence.Record) error {
		if r.Kind == evidence.KindFinding {
			read[vm]++
		}
		return nil
	})
	if read[rotten] != 1 || read[sound] != 3 || !errors.Is(err, evidence.ErrCorrupt) {
		t.Errorf("read %v, %v", read, err)
	}
}

func TestARottenRecordStopsNobodyWhoFollows(t *testing.T) {
	b := twoRecords(t)
	rot(t, b, rotten, "a")
	var got []string
	enough := errors.New("enough")
	err := b.Findings(t.Context(), api.Query{Follow: true, Since: time.Now().Add(-2 * time.Hour)}, func(f *engine.Finding) error {
		if got = append(got, f.ID); len(got) == 3 {
			return enough
		}
		return nil
	})
	if !slices.Equal(got, []string{"b", "d", "f"}) || !errors.Is(err, enough) {
		t.Errorf("got %v, %v", got, err)
	}
	err = b.Findings(t.Context(), api.Query{VM: rotten, Follow: true, Since: time.Now().Add(-2 * time.Hour)}, func(*engine.Finding) error { return nil })
	if !errors.Is(err, evidence.ErrCorrupt) {
		t.Errorf("the rotten one alone: %v", err)
	}
}

// TestRotateKeyIsNotForEverybody: the API's group gives orders, and has no say in
// the host's key.
func TestRotateKeyIsNotForEverybody(t *testing.T) {
	r, err := backend{&Monitor{}}.RotateKey(t.Context(), api.Caller{UID: uint32(os.Geteuid()) + 4711})
	if err == nil || !strings.Contains(err.Error(), "run as root or as the monitor's own user") {
		t.Errorf("%v, %v", r, err)
	}
}
