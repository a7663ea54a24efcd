package evidence

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"
)

// sealedStream makes a stream of several segments and seals the full ones.
func sealedStream(t testing.TB, n int, o Options) (dir string, key *Key) {
	t.Helper()
	dir, key = t.TempDir(), testKey(t)
	s := testStore(t, dir, key, o)
	st := testStream(t, s)
	fill(t, st, n)
	if err := st.sealFull(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return st.Dir(), key
}

func TestSealKeepsTheRecords(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{SegmentSize: 600 << 10})
	st := testStream(t, s)
	big := make([]byte, 3000)
	for range 800 {
		rand.NewChaCha8([32]byte{1}).Read(big[:100])
		if _, err := st.Append(KindFrame, at0, big); err != nil {
			t.Fatal(err)
		}
	}
	before := readAll(t, st.Dir())
	l, _ := list(st.Dir())
	plain, err := os.ReadFile(filepath.Join(st.Dir(), l.segments[0].name))
	if err != nil {
		t.Fatal(err)
	}
	used := st.Stats().Used
	if err := st.sealFull(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, _ = list(st.Dir())
	if !l.segments[0].sealed || len(l.leftover)+len(l.temps) != 0 {
		t.Fatalf("%+v", l)
	}
	onDisk := int64(0)
	for _, seg := range l.segments {
		fi, err := os.Stat(filepath.Join(st.Dir(), seg.name))
		if err != nil {
			t.Fatal(err)
		}
		onDisk += fi.Size()
	}
	if got := st.Stats().Used; got != onDisk || got > used/2 {
		t.Errorf("used %d, on disk %d, before %d", got, onDisk, used)
	}
	sameRecords(t, before, readAll(t, st.Dir()))

	// Any zstd gives the plain segment back.
	packed, err := os.ReadFile(filepath.Join(st.Dir(), l.segments[0].name))
	if err != nil {
		t.Fatal(err)
	}
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got, err := d.DecodeAll(packed, nil); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("decoded %d bytes, want %d: %v", len(got), len(plain), err)
	}

	for _, from := range []uint64{0, 1, 87, 88, 200, 399, 555, uint64(len(before)) - 1, uint64(len(before)) + 5} {
		var got []uint64
		err := NewReader(st.Dir()).Read(from, from+3, func(r *Record) error {
			got = append(got, r.Index)
			return nil
		})
		want := max(0, min(3, len(before)-int(from)))
		if err != nil || len(got) != want || want > 0 && got[0] != from {
			t.Errorf("from %d: %v, %v", from, got, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	rep, err := Verify(st.Dir(), key.Verifier())
	if err != nil || rep.Sealed < 3 || rep.Sealed != rep.Segments-1 {
		t.Errorf("%+v, %v", rep, err)
	}
}

func sameRecords(t *testing.T, want, got []Record) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d records, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i].Chain != want[i].Chain || !bytes.Equal(got[i].Payload, want[i].Payload) {
			t.Fatalf("record %d differs", i)
		}
	}
}

// TestFlipSealed changes every byte of sealed segments, one at a time.
func TestFlipSealed(t *testing.T) {
	stream, key := sealedStream(t, 20, Options{SegmentSize: 900})
	v := key.Verifier()
	if rep, err := Verify(stream, v); err != nil || rep.Sealed == 0 {
		t.Fatal(rep, err)
	}
	l, _ := list(stream)
	for _, seg := range l.segments {
		path := filepath.Join(stream, seg.name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		try := func(i int, b []byte) {
			if err := os.WriteFile(path, b, 0o640); err != nil {
				t.Fatal(err)
			}
			if rep, err := verify(stream, v, 0); !errors.Is(err, ErrCorrupt) || rep.Problem == nil {
				t.Fatalf("%s: byte %d changed, not noticed: %v", seg.name, i, err)
			}
		}
		for i := range whole {
			b := bytes.Clone(whole)
			b[i] ^= 1 << (i % 8)
			try(i, b)
		}
		for n := range whole {
			if seg.sealed {
				try(n, whole[:n])
			}
		}
		try(len(whole), append(bytes.Clone(whole), 0))
		if err := os.WriteFile(path, whole, 0o640); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSealedCutAnywhere cuts a sealed segment: it was on disk whole before it
// got its name, so that is no crash. It is named, a start touches none of its
// bytes, and what comes after it is read on.
func TestSealedCutAnywhere(t *testing.T) {
	stream, key := sealedStream(t, 40, Options{SegmentSize: 900})
	l, _ := list(stream)
	victim := l.segments[1]
	whole, err := os.ReadFile(filepath.Join(stream, victim.name))
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		cut := copyStore(t, filepath.Dir(stream))
		path := filepath.Join(StreamDir(cut, vm1), victim.name)
		if err := os.Truncate(path, int64(n)); err != nil {
			t.Fatal(err)
		}
		var bad *CorruptError
		if _, err := Verify(filepath.Dir(path), key.Verifier()); !errors.As(err, &bad) || bad.Segment != victim.name {
			t.Fatalf("cut at %d: %v", n, err)
		}
		s := testStore(t, cut, key, Options{SegmentSize: 900})
		st, err := s.Stream(vm1)
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		fill(t, st, 1)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, whole[:n]) {
			t.Fatalf("cut at %d: touched, %v", n, err)
		}
		after := l.segments[2].first
		if err := NewReader(st.Dir()).Read(after, ^uint64(0), func(*Record) error { return nil }); err != nil {
			t.Fatalf("cut at %d: what comes after: %v", n, err)
		}
	}
}

func TestMissingSegment(t *testing.T) {
	stream, key := sealedStream(t, 40, Options{SegmentSize: 900})
	l, _ := list(stream)
	path := filepath.Join(stream, l.segments[1].name)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	var bad *CorruptError
	if _, err := Verify(stream, key.Verifier()); !errors.As(err, &bad) || bad.Index != l.segments[1].first {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(filepath.Join(stream, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if rep, err := Verify(stream, key.Verifier()); err == nil || rep.Problem.Segment != "x" {
		t.Errorf("%v", err)
	}
}

// TestRunSealsSyncsAndSigns lets Run do its work while records are appended
// and followed.
func TestRunSealsSyncsAndSigns(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{SegmentSize: 4000, SyncInterval: time.Millisecond, HeadInterval: time.Millisecond})
	st := testStream(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	seen := make(chan uint64, 4096)
	followed := make(chan error, 1)
	go func() {
		followed <- NewReader(st.Dir()).Follow(ctx, 0, func(r *Record) error {
			seen <- r.Index
			return nil
		})
	}()
	for i := range 600 {
		if _, err := st.Append(KindFrame, at0, payload(uint64(i))); err != nil {
			t.Fatal(err)
		}
	}
	next := st.Stats().Next
	for want := uint64(0); want < next; want++ {
		if got := <-seen; got != want {
			t.Fatalf("followed to %d, want %d", got, want)
		}
	}
	for { // Run gets to it all
		l, err := list(st.Dir())
		if err != nil {
			t.Fatal(err)
		}
		if n := len(l.segments); n > 3 && l.segments[n-2].sealed && st.Stats().Durable > 600 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := errors.Join(<-done, <-followed); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if rep, err := Verify(st.Dir(), key.Verifier()); err != nil || rep.Heads < 4 || rep.Unsigned != 0 {
		t.Errorf("%+v, %v", rep, err)
	}
}

// TestCrashWhileSealing opens a stream at each state that a crash can leave.
func TestCrashWhileSealing(t *testing.T) {
	stream, key := sealedStream(t, 20, Options{SegmentSize: 900})
	l, _ := list(stream)
	first := l.segments[0].first
	plain := filepath.Join(stream, segmentName(first, false))
	if err := os.WriteFile(plain, []byte("the sealed one is whole"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(stream, l.segments[1].name+tempSuffix), []byte("half"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(stream, l.segments[1].name+tempSuffix), filepath.Join(stream, segmentName(l.segments[1].first, true)+tempSuffix)); err != nil {
		t.Fatal(err)
	}
	s := testStore(t, filepath.Dir(stream), key, Options{SegmentSize: 900})
	st := testStream(t, s)
	fill(t, st, 3)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if l, _ := list(stream); len(l.leftover)+len(l.temps) != 0 {
		t.Errorf("left %+v", l)
	}
	if _, err := Verify(stream, key.Verifier()); err != nil {
		t.Error(err)
	}
}

func TestReadTime(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{SegmentSize: 1 << 20})
	st := testStream(t, s)
	noise := make([]byte, 20000)
	for i := range 200 {
		rand.NewChaCha8([32]byte{byte(i)}).Read(noise)
		if _, err := st.Append(KindFrame, at0.Add(time.Duration(i)*time.Second), noise); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.sealFull(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]int{{0, 200}, {0, 1}, {17, 18}, {50, 160}, {199, 300}, {300, 400}, {-5, 3}} {
		var got []int
		from, to := at0.Add(time.Duration(c[0])*time.Second), at0.Add(time.Duration(c[1])*time.Second)
		err := NewReader(st.Dir()).ReadTime(from, to, func(r *Record) error {
			if r.Kind == KindFrame {
				got = append(got, int(r.Time.Sub(at0)/time.Second))
			}
			return nil
		})
		want := []int{}
		for i := max(0, c[0]); i < min(200, c[1]); i++ {
			want = append(want, i)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%v: %v, %v", c, got, err)
		}
	}
	sealed, err := NewReader(st.Dir()).spans(at0.UnixNano(), at0.Add(time.Second).UnixNano())
	if err != nil || len(sealed) != 2 || sealed[0].to > 20 {
		t.Errorf("read %v for the first second: %v", sealed, err)
	}
	since, err := NewReader(st.Dir()).Since(at0.Add(50 * time.Second))
	if err != nil || since > 50 || since < 30 {
		t.Errorf("since 50 s: record %d, %v", since, err)
	}
	n := 0
	err = NewReader(st.Dir()).ReadTime(at0, at0.Add(time.Hour), func(*Record) error {
		n++
		return ErrStop
	})
	if err != nil || n != 1 {
		t.Errorf("stopped after %d: %v", n, err)
	}
}

// TestManyStreams appends to several streams from several goroutines each,
// while Run syncs, signs and seals and readers read.
func TestManyStreams(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{SegmentSize: 8000, SyncInterval: time.Millisecond, HeadInterval: 2 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	var run, writers sync.WaitGroup
	run.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	const streams, perStream, records = 6, 3, 150
	for i := range streams {
		st, err := s.Stream(uuid.UUID{15: byte(i)})
		if err != nil {
			t.Fatal(err)
		}
		for range perStream {
			writers.Go(func() {
				for range records {
					if _, err := st.Append(KindFrame, time.Now(), make([]byte, 100)); err != nil {
						t.Error(err)
					}
				}
				if _, err := st.SignHead(); err != nil {
					t.Error(err)
				}
			})
		}
		writers.Go(func() {
			if rep, err := Verify(st.Dir(), key.Verifier()); err != nil {
				t.Errorf("while it is written: %+v, %v", rep, err)
			}
		})
	}
	writers.Wait()
	cancel()
	run.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	reps, err := VerifyStore(dir, key.Verifier())
	if err != nil || len(reps) != streams {
		t.Fatal(err)
	}
	for _, r := range reps {
		if r.Kinds["frame"] != perStream*records || r.Unsigned != 0 {
			t.Errorf("%+v", r)
		}
	}
}
