package evidence

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
)

var vm1 = uuid.MustParse("6f1d7f5e-3c0a-4b0e-9a53-0d8a2b0f6c11")

var at0 = time.Date(2026, 11, 23, 17, 0, 0, 0, time.UTC)

func testKey(t testing.TB) *Key {
	t.Helper()
	k, err := LoadOrCreateKey(t.TempDir(), "test-host")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testStore(t testing.TB, dir string, k *Key, o Options) *Store {
	t.Helper()
	s, err := Open(dir, k, &o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func testStream(t testing.TB, s *Store) *Stream {
	t.Helper()
	st, err := s.Stream(vm1)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// fill appends n records of mixed kinds, whose payloads tell their index.
func fill(t testing.TB, st *Stream, n int) {
	t.Helper()
	for range n {
		i := st.Stats().Next
		kind := KindFrame
		if i%7 == 3 {
			kind = KindFinding
		}
		_, err := st.Append(kind, at0.Add(time.Duration(i)*time.Second), []byte("record "), payload(i))
		if err != nil {
			t.Fatal(err)
		}
	}
}

func payload(i uint64) []byte { return bytes.Repeat([]byte(fmt.Sprintf("%d,", i)), 1+int(i%5)) }

func readAll(t testing.TB, dir string) []Record {
	t.Helper()
	var all []Record
	err := NewReader(dir).Read(0, ^uint64(0), func(r *Record) error {
		c := *r
		c.Payload = bytes.Clone(r.Payload)
		all = append(all, c)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestAppendReadVerify(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{})
	st := testStream(t, s)
	fill(t, st, 20)
	signed, err := st.SignHead()
	if err != nil {
		t.Fatal(err)
	}
	if h, err := OpenHead([]byte(signed.Note), key.Verifier()); err != nil || h.Records != 20 || h.Durable != 20 {
		t.Fatalf("head %+v, %v", h, err)
	}
	fill(t, st, 5)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Append(KindNote, at0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	all := readAll(t, st.Dir())
	if len(all) != 27 {
		t.Fatalf("%d records", len(all))
	}
	for i, r := range all {
		if r.Kind == KindHead {
			continue
		}
		want := append([]byte("record "), payload(uint64(i))...)
		if !bytes.Equal(r.Payload, want) || !r.Time.Equal(at0.Add(time.Duration(i)*time.Second)) {
			t.Errorf("record %d: %q at %s", i, r.Payload, r.Time)
		}
	}
	rep, err := Verify(st.Dir(), key.Verifier())
	if err != nil || rep.Next != 27 || rep.Heads != 2 || rep.Unsigned != 0 || rep.Kinds["frame"] != 21 {
		t.Errorf("report %+v, %v", rep, err)
	}
	if _, err := Verify(st.Dir(), testKey(t).Verifier()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("verified with another host's key: %v", err)
	}
}

func TestReopenGoesOn(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	for range 3 {
		s := testStore(t, dir, key, Options{SegmentSize: 700})
		fill(t, testStream(t, s), 10)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	rep, err := Verify(StreamDir(dir, vm1), key.Verifier())
	if err != nil || rep.Segments < 3 || rep.Kinds["frame"]+rep.Kinds["finding"] != 30 {
		t.Errorf("report %+v, %v", rep, err)
	}
}

func TestStoreIsOneProcess(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{})
	if _, err := Open(dir, key, nil); !errors.Is(err, ErrInUse) {
		t.Errorf("second open: %v", err)
	}
	s.Close()
	testStore(t, dir, key, Options{})
}

// TestCutAnywhere cuts a stream of three segments at every byte of its last
// two and opens it again.
func TestCutAnywhere(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{SegmentSize: 3000})
	st := testStream(t, s)
	fill(t, st, 60)
	if _, err := st.SignHead(); err != nil { // a head is cut as well
		t.Fatal(err)
	}
	fill(t, st, 2)
	l, err := list(st.Dir())
	if err != nil || len(l.segments) < 2 {
		t.Fatal(l, err)
	}
	last := l.segments[len(l.segments)-1]
	whole, err := os.ReadFile(filepath.Join(st.Dir(), last.name))
	if err != nil {
		t.Fatal(err)
	}
	ends := recordEnds(whole)
	for n := range whole {
		cut := copyStore(t, dir)
		path := filepath.Join(StreamDir(cut, vm1), last.name)
		if err := os.Truncate(path, int64(n)); err != nil {
			t.Fatal(err)
		}
		complete := 0
		for _, e := range ends {
			if e <= n {
				complete++
			}
		}
		s := testStore(t, cut, key, Options{SegmentSize: 3000})
		st := testStream(t, s)
		torn := n != segmentHeaderSize && (complete == 0 || ends[complete-1] != n)
		want := last.first + uint64(complete)
		if torn {
			want++ // the record of the recovery
		}
		if got := st.Stats().Next; got != want {
			t.Fatalf("cut at %d: next %d, want %d", n, got, want)
		}
		fill(t, st, 3)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		rep, err := Verify(st.Dir(), key.Verifier())
		if err != nil || (rep.Recovered == 1) != torn || (len(rep.Cuts) == 1) != torn {
			t.Fatalf("cut at %d: %+v, %v", n, rep, err)
		}
		end := 0
		if complete > 0 {
			end = ends[complete-1]
		} else if n >= segmentHeaderSize {
			end = segmentHeaderSize
		}
		if torn {
			saysWhatWasCut(t, st.Dir(), last.name, whole[end:n])
		}
	}
}

// saysWhatWasCut holds the record of a recovery, and the file that it names,
// against what was cut.
func saysWhatWasCut(t *testing.T, dir, segment string, want []byte) {
	t.Helper()
	for _, r := range readAll(t, dir) {
		if r.Kind != KindRecovery {
			continue
		}
		var c Recovery
		if err := json.Unmarshal(r.Payload, &c); err != nil {
			t.Fatal(err)
		}
		kept, err := os.ReadFile(filepath.Join(dir, c.File))
		if err != nil || !bytes.Equal(kept, want) || c.Segment != segment || c.Bytes != int64(len(want)) || c.SHA256 != Hash(sha256.Sum256(want)) {
			t.Fatalf("%d bytes were cut of %s, and it says %+v, %v", len(want), segment, c, err)
		}
		return
	}
	t.Fatal("no record of it")
}

func recordEnds(b []byte) []int {
	var ends []int
	for at := segmentHeaderSize; at < len(b); {
		at += int(le.Uint32(b[at:]))
		ends = append(ends, at)
	}
	return ends
}

func copyStore(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestFlipAnywhere changes every byte of a stream, one at a time: of a closed
// one, and of one whose last records have no signed head yet.
func TestFlipAnywhere(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{SegmentSize: 600})
	fill(t, testStream(t, s), 14)
	open := copyStore(t, dir)
	s.Close()
	t.Run("closed", func(t *testing.T) { flipAll(t, StreamDir(dir, vm1), key) })
	t.Run("open", func(t *testing.T) { flipAll(t, StreamDir(open, vm1), key) })
}

func flipAll(t *testing.T, stream string, key *Key) {
	v := key.Verifier()
	if _, err := Verify(stream, v); err != nil {
		t.Fatal(err)
	}
	l, err := list(stream)
	if err != nil {
		t.Fatal(err)
	}
	for _, seg := range l.segments {
		path := filepath.Join(stream, seg.name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range whole {
			b := bytes.Clone(whole)
			b[i] ^= 1 << (i % 8)
			if err := os.WriteFile(path, b, 0o640); err != nil {
				t.Fatal(err)
			}
			if rep, err := verify(stream, v, 0); !errors.Is(err, ErrCorrupt) || rep.Problem == nil {
				t.Fatalf("%s: byte %d changed, not noticed: %v", seg.name, i, err)
			}
		}
		if err := os.WriteFile(path, whole, 0o640); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFollow(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{SegmentSize: 500})
	st := testStream(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan uint64, 100)
	done := make(chan error, 1)
	go func() {
		done <- NewReader(st.Dir()).Follow(ctx, 5, func(r *Record) error {
			got <- r.Index
			return nil
		})
	}()
	for range 40 {
		fill(t, st, 1)
	}
	next := st.Stats().Next
	for want := uint64(5); want < next; want++ {
		if i := <-got; i != want {
			t.Fatalf("record %d, want %d", i, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAppendAllocatesNothing(t *testing.T) {
	s := testStore(t, t.TempDir(), testKey(t), Options{})
	st := testStream(t, s)
	frame := make([]byte, 4096)
	n := testing.AllocsPerRun(1000, func() {
		if _, err := st.Append(KindFrame, at0, frame[:16], frame[16:]); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations per append", n)
	}
}
