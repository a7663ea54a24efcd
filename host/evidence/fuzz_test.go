package evidence

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzSegment reads hostile bytes as a plain and as a sealed segment: an error
// or a record, never more.
func FuzzSegment(f *testing.F) {
	dir, key := sealedStream(f, 20, Options{SegmentSize: 900})
	l, err := list(dir)
	if err != nil {
		f.Fatal(err)
	}
	for _, seg := range l.segments {
		b, err := os.ReadFile(filepath.Join(dir, seg.name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, seg.sealed)
		f.Add(b[:len(b)-1], seg.sealed)
	}
	v := key.Verifier()
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, segmentName(0, sealed)), b, 0o600); err != nil {
			t.Fatal(err)
		}
		next := uint64(0)
		err := NewReader(dir).Read(0, ^uint64(0), func(r *Record) error {
			if r.Index != next || len(r.Payload) > MaxPayload {
				t.Errorf("record %d of %d bytes, want %d", r.Index, len(r.Payload), next)
			}
			next++
			return nil
		})
		rep, verr := verify(dir, v, 0)
		if verr == nil && (err != nil || rep.Next != next) {
			t.Errorf("verifies to %d, reads to %d: %v", rep.Next, next, err)
		}
		if sealed && verr == nil && rep.Sealed != 1 {
			t.Error("a seal that was not verified")
		}
	})
}

// FuzzHead parses and writes a head's text: the same bytes.
func FuzzHead(f *testing.F) {
	f.Add(Head{Stream: vm1, Records: 7, Durable: 3, Time: at0}.text())
	f.Add(seal{stream: vm1, next: 4, plain: 99}.text())
	f.Add(headTitle + "\nstream \n")
	f.Add(seal{stream: vm1, next: 4, plain: 99, gone: &givenUp{records: 3, bytes: 400, reason: ReasonAge, at: at0}}.text())
	f.Add(Tombstone{Stream: vm1, Next: 4, Reason: ReasonSize, Latest: at0, Time: at0}.text())
	f.Add(strings.Repeat("\x01", gapSize))
	f.Fuzz(func(t *testing.T, s string) {
		if h, err := parseHead(s); err == nil && h.text() != s {
			t.Errorf("head: %q", h.text())
		} else if err != nil && h != (Head{}) {
			t.Error("a head beside an error")
		}
		if l, err := parseSeal(s); err == nil && l.text() != s {
			t.Errorf("seal: %q", l.text())
		}
		if l, err := parseStatement(s); err == nil && l.text() != s {
			t.Errorf("statement: %q", l.text())
		}
		if l, err := parseTombstone(s); err == nil && l.text() != s {
			t.Errorf("tombstone: %q", l.text())
		}
		if g, err := parseGap([]byte(s), 7); err == nil && g.next <= 7 {
			t.Errorf("gap to %d", g.next)
		}
	})
}

// FuzzKey reads any bytes as a key file and as a public one: what is taken is
// what would be written, to the byte.
func FuzzKey(f *testing.F) {
	dir := f.TempDir()
	if _, err := LoadOrCreateKey(dir, "test-host"); err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{KeyFile, PubFile} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-2])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := parseKey(b); err == nil {
			signed, err := SignNote("text\n", k)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := OpenNote(signed, k.Verifier()); err != nil {
				t.Error(err)
			}
		}
		if v, err := ParseVerifier(b); err == nil && (v.Name() == "" || b[len(b)-1] != '\n') {
			t.Errorf("verifier %q", v.Name())
		}
	})
}

// FuzzRecover opens a stream whose last segment is any bytes: it goes on after
// the last whole record, or is refused, and nothing that was there is gone.
func FuzzRecover(f *testing.F) {
	dir, key := f.TempDir(), testKey(f)
	s := testStore(f, dir, key, Options{})
	st := testStream(f, s)
	fill(f, st, 5)
	if _, err := st.SignHead(); err != nil {
		f.Fatal(err)
	}
	fill(f, st, 2)
	whole, err := os.ReadFile(filepath.Join(st.Dir(), segmentName(0, false)))
	if err != nil {
		f.Fatal(err)
	}
	for _, n := range []int{0, 10, segmentHeaderSize, 200, len(whole) - 1, len(whole)} {
		f.Add(whole[:n])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		path := filepath.Join(StreamDir(dir, vm1), segmentName(0, false))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir, key, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		st, err := s.Stream(vm1)
		if err != nil {
			if after, rerr := os.ReadFile(path); rerr != nil || !bytes.Equal(after, b) {
				t.Errorf("refused, and touched: %v, %v", err, rerr)
			}
			return
		}
		if _, err := st.Append(KindNote, at0, nil); err != nil {
			t.Fatal(err)
		}
		for _, name := range glob(t, st.Dir(), "*.cut") {
			part, err := os.ReadFile(name)
			if err != nil || !bytes.HasSuffix(b, part) {
				t.Errorf("what was cut is not what was there: %v", err)
			}
		}
	})
}

func glob(t *testing.T, dir, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return names
}
