package monitor

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/decide"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/plugins/engine"
)

// A finding that an earlier process put on record is decided if its decision
// is there and, where that had steps, an order is in the journal: a monitor
// that was killed in between decides again.
func TestRememberWhatWasDecided(t *testing.T) {
	dir := t.TempDir()
	key, err := evidence.LoadOrCreateKey(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	store, err := evidence.Open(dir+"/evidence", key, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	vm := uuid.New()
	stream, err := store.Stream(vm)
	if err != nil {
		t.Fatal(err)
	}
	put := func(kind evidence.Kind, v any) {
		text, err := json.Marshal(v)
		if err == nil {
			_, err = stream.Append(kind, time.Now(), text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(n uint64) *engine.Finding {
		return &engine.Finding{VM: vm, Engine: "tsem", Rule: "tsem/violation", Ref: &engine.Ref{Index: n, Sequence: n}}
	}
	for n, d := range []*decide.Decision{
		{Steps: []decide.Step{decide.Pause}}, // and its order
		{Steps: []decide.Step{decide.Pause}}, // killed before its order
		{},                                   // nothing to be done
		nil,                                  // killed before its decision
	} {
		f := at(uint64(n))
		f.ID = string(rune('a' + n))
		put(evidence.KindFinding, f)
		if d != nil {
			d.Finding = f.ID
			put(evidence.KindDecision, d)
		}
	}
	j := &judge{known: map[place]*earlier{}, ordered: map[string]bool{"a": true}}
	if err := j.remember(evidence.NewReader(stream.Dir()), 0); err != nil {
		t.Fatal(err)
	}
	for n, decided := range []bool{true, false, true, false} {
		e := j.again(at(uint64(n)))
		if e == nil || e.id != string(rune('a'+n)) || e.decided != decided {
			t.Errorf("finding %d: %+v, want decided %v", n, e, decided)
		}
		if j.again(at(uint64(n))) != nil {
			t.Errorf("finding %d is remembered after it was met", n)
		}
	}
}
