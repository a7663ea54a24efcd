package evidence

import (
	"encoding/json"
	"errors"
	"os"
	"testing"
)

func TestQuota(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{Quota: 5000, HardQuota: 50_000})
	st := testStream(t, s)
	frame, refused := make([]byte, 1000), 0
	for range 10 {
		switch index, err := st.Append(KindFrame, at0, frame); {
		case errors.Is(err, ErrQuota):
			refused++
			if index != 4 {
				t.Errorf("refused frame %d has index %d", refused, index)
			}
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
	for i, want := range map[int]string{
		4: `{"reason":"quota","frames":1,"bytes":1000}`, 5: `{"reason":"quota","frames":5,"bytes":5000}`,
	} {
		if r := all[i]; r.Kind != KindTombstone || string(r.Payload) != want {
			t.Errorf("record %d: %s %s", i, r.Kind, r.Payload)
		}
	}
	if r := all[12]; r.Kind != KindFrame || !r.Critical {
		t.Errorf("record 12: %s, critical %v", r.Kind, r.Critical)
	}
	if _, err := Verify(st.Dir(), key.Verifier()); err != nil {
		t.Error(err)
	}
}

// TestHardQuota has a flood of critical frames go past both budgets, with bulk
// and findings in between: the record stays under the bound but for what is the
// host's own, and indexes never go back.
func TestHardQuota(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{Quota: 50_000, HardQuota: 80_000, SegmentSize: 10_000})
	st := testStream(t, s)
	frame, last, refused := make([]byte, 1000), uint64(0), 0
	for i := range 2000 {
		add := st.AppendCritical
		if i%2 == 1 {
			add = st.Append
		}
		index, err := add(KindFrame, at0, frame)
		if err != nil && !errors.Is(err, ErrQuota) {
			t.Fatal(err)
		}
		if err != nil {
			refused++
		}
		if index < last {
			t.Fatalf("frame %d: index %d after %d", i, index, last)
		}
		last = index
	}
	if used := st.Stats().Used; used > 80_000 || used < 78_000 {
		t.Errorf("%d bytes used", used)
	}
	if index, err := st.Append(KindFinding, at0, frame); err != nil || index <= last {
		t.Errorf("finding at %d after %d: %v", index, last, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(st.Dir(), key.Verifier()); err != nil {
		t.Error(err)
	}
	said := 0
	for _, r := range readAll(t, st.Dir()) {
		if r.Kind != KindTombstone {
			continue
		}
		var got tombstone
		if err := json.Unmarshal(r.Payload, &got); err != nil {
			t.Fatal(err)
		}
		said += int(got.Frames)
	}
	if said != refused {
		t.Errorf("%d refused, %d on record", refused, said)
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
