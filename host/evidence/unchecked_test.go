package evidence

import (
	"bytes"
	"testing"
)

// TestUnchecked: a record without its check is not read, and has it after whatever
// is done to the stream next.
func TestUnchecked(t *testing.T) {
	head, body := []byte("head "), bytes.Repeat([]byte("body "), 100)
	for name, do := range map[string]func(*Store, *Stream) error{
		"Check":       func(_ *Store, st *Stream) error { return st.Check() },
		"Store.Check": func(s *Store, _ *Stream) error { return s.Check(vm1) },
		"Sync":        func(_ *Store, st *Stream) error { return st.Sync() },
		"SignHead":    func(_ *Store, st *Stream) error { _, err := st.SignHead(); return err },
		"Close":       func(s *Store, _ *Stream) error { return s.Close() },
		"Append":      func(_ *Store, st *Stream) error { _, err := st.Append(KindNote, at0); return err },
		"a full segment": func(_ *Store, st *Stream) error {
			_, err := st.Append(KindNote, at0, make([]byte, 60<<10))
			return err
		},
		"one more": func(_ *Store, st *Stream) error {
			_, err := st.AppendUnchecked(KindFrame, true, at0, []byte("more"))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, key := t.TempDir(), testKey(t)
			s := testStore(t, dir, key, Options{SegmentSize: 32 << 10})
			st := testStream(t, s)
			fill(t, st, 3)
			index, err := st.AppendUnchecked(KindFrame, false, at0, head, body)
			if err != nil || index != 3 {
				t.Fatalf("index %d, %v", index, err)
			}
			if n := len(readAll(t, st.Dir())); n != 3 {
				t.Fatalf("%d records are read", n)
			}
			if err := do(s, st); err != nil {
				t.Fatal(err)
			}
			all := readAll(t, st.Dir())
			if len(all) < 4 || string(all[3].Payload) != string(head)+string(body) || all[3].Critical {
				t.Fatalf("%d records, %+v", len(all), all[len(all)-1])
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if r, err := Verify(st.Dir(), key.Verifier()); err != nil || r.Unsigned != 0 {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

// TestUncheckedIsCut: killed before the check, a recovery cuts the record off, and
// its index is the next one's.
func TestUncheckedIsCut(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	st := testStream(t, testStore(t, dir, key, Options{}))
	fill(t, st, 3)
	if _, err := st.AppendUnchecked(KindFrame, false, at0, []byte("never whole")); err != nil {
		t.Fatal(err)
	}
	s := testStore(t, copyStore(t, dir), key, Options{})
	again := testStream(t, s)
	fill(t, again, 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := Verify(again.Dir(), key.Verifier())
	if err != nil || len(r.Cuts) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, rec := range readAll(t, again.Dir()) {
		if bytes.Contains(rec.Payload, []byte("never whole")) {
			t.Errorf("record %d: %q", rec.Index, rec.Payload)
		}
	}
}

func TestUncheckedAllocatesNothing(t *testing.T) {
	st := testStream(t, testStore(t, t.TempDir(), testKey(t), Options{}))
	frame := make([]byte, 4096)
	n := testing.AllocsPerRun(1000, func() {
		if _, err := st.AppendUnchecked(KindFrame, false, at0, frame[:16], frame[16:]); err != nil {
			t.Fatal(err)
		}
		if err := st.Check(); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
