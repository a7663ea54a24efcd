package evidence

import (
	"os"
	"path/filepath"
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
	f.Fuzz(func(t *testing.T, s string) {
		if h, err := parseHead(s); err == nil && h.text() != s {
			t.Errorf("head: %q", h.text())
		} else if err != nil && h != (Head{}) {
			t.Error("a head beside an error")
		}
		if l, err := parseSeal(s); err == nil && l.text() != s {
			t.Errorf("seal: %q", l.text())
		}
	})
}
