package monitor

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/decide"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/respond"
	"github.com/outguard/outguard/plugins/engine"
)

// A finding that an earlier process put on record is decided if its decision
// is there and, where that had steps, an order is in the journal: a monitor
// that was killed in between goes on there.
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
		f.ID, f.At = string(rune('a'+n)), time.Unix(int64(n), 0)
		put(evidence.KindFinding, f)
		if d != nil {
			d.Finding = f.ID
			put(evidence.KindDecision, d)
		}
	}
	j := &judge{known: map[place]*earlier{}, ordered: map[string]bool{"a": true}, kept: map[keptID]bool{}, orders: map[uuid.UUID]respond.Entry{}}
	if err := j.remember(evidence.NewReader(stream.Dir()), 0); err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, e := range j.open {
		open = append(open, e.finding.ID)
	}
	if !slices.Equal(open, []string{"b", "d"}) {
		t.Errorf("to be gone on with: %q", open)
	}
	for n := range uint64(4) {
		if !j.again(at(n)) {
			t.Errorf("finding %d is new", n)
		}
		if j.again(at(n)) {
			t.Errorf("finding %d is remembered after it was met", n)
		}
	}
}
