package evidence

import (
	"encoding/json"
	"errors"
	"os"
	"testing"
)

func TestQuota(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{Quota: 5000})
	st := testStream(t, s)
	frame, refused := make([]byte, 1000), 0
	for range 10 {
		switch _, err := st.Append(KindFrame, at0, frame); {
		case errors.Is(err, ErrQuota):
			refused++
		case err != nil:
			t.Fatal(err)
		}
	}
	if refused != 6 || st.Stats().RefusedFrames != 6 || st.Stats().RefusedBytes != 6000 {
		t.Errorf("refused %d, %+v", refused, st.Stats())
	}
	for _, kind := range []Kind{KindFinding, KindDecision, KindOrder, KindResult, KindOpen, KindNote} {
		if _, err := st.Append(kind, at0, frame); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	if _, err := st.AppendCritical(KindFrame, at0, frame); err != nil {
		t.Errorf("critical frame: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	all := readAll(t, st.Dir())
	if r := all[4]; r.Kind != KindTombstone || string(r.Payload) != `{"reason":"quota","frames":6,"bytes":6000}` {
		t.Errorf("record 4: %s %s", r.Kind, r.Payload)
	}
	if r := all[11]; r.Kind != KindFrame || !r.Critical {
		t.Errorf("record 11: %s, critical %v", r.Kind, r.Critical)
	}
	if _, err := Verify(st.Dir(), key.Verifier()); err != nil {
		t.Error(err)
	}
}

// TestQuotaRefusalAtTheEndIsRecorded closes while refusals are not yet written.
func TestQuotaRefusalAtTheEndIsRecorded(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{Quota: 1})
	st := testStream(t, s)
	if _, err := st.Append(KindFrame, at0, make([]byte, 7)); !errors.Is(err, ErrQuota) {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var got tombstone
	all := readAll(t, st.Dir())
	if err := json.Unmarshal(all[0].Payload, &got); err != nil || got.Frames != 1 || got.Bytes != 7 {
		t.Errorf("%+v, %v", got, err)
	}
	if all[1].Kind != KindHead {
		t.Errorf("ends with %s", all[1].Kind)
	}
}

func TestAppendRefusesTheImpossible(t *testing.T) {
	st := testStream(t, testStore(t, t.TempDir(), testKey(t), Options{}))
	if _, err := st.Append(KindFrame, at0, make([]byte, MaxPayload+1)); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("too long: %v", err)
	}
	for _, kind := range []Kind{0, KindHead, KindRecovery} {
		if _, err := st.Append(kind, at0, nil); !errors.Is(err, os.ErrInvalid) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	if _, err := st.Append(KindFrame, at0, make([]byte, MaxPayload)); err != nil {
		t.Errorf("the longest: %v", err)
	}
	if _, err := st.Append(KindNote, at0); err != nil {
		t.Errorf("empty: %v", err)
	}
}
