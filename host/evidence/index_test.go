package evidence

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// wordKeys has a record's payload, up to the first space, as its key.
func wordKeys(scheme uint32) *Keys {
	return &Keys{Scheme: scheme, Of: func(r *Record, add func(uint64)) {
		if r.Kind != KindHead {
			add(wordKey(r.Payload))
		}
	}}
}

func wordKey(payload []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range payload {
		if c == ' ' {
			break
		}
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h ^ h>>29
}

// indexedStream has 3000 records of 4 KiB in segments of 2 MiB, of 500 words:
// each is in 6 records, one after the other.
func indexedStream(t testing.TB, keys *Keys) (dir string, key *Key) {
	t.Helper()
	key = testKey(t)
	s := testStore(t, t.TempDir(), key, Options{SegmentSize: 2 << 20, Keys: keys})
	st := testStream(t, s)
	payload := make([]byte, 4096)
	for i := range 3000 {
		copy(payload, fmt.Sprintf("word-%d ", i/6))
		if _, err := st.Append(KindFrame, at0.Add(time.Duration(i)*time.Second), payload); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.sealFull(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return st.Dir(), key
}

// ask selects the records of a word, and fails unless all of them come.
func ask(t testing.TB, dir, word string, x *IndexReader) Selected {
	t.Helper()
	k, got := wordKey([]byte(word)), 0
	done, err := NewReader(dir).Select(&Selection{
		Index: x, May: func(has func(uint64) bool) bool { return has(k) },
	}, func(r *Record) error {
		if wordKey(r.Payload) == k && r.Kind == KindFrame {
			got++
		}
		return nil
	})
	if err != nil || got != 6 {
		t.Fatalf("%s: %d records, want 6: %v", word, got, err)
	}
	return done
}

func TestSelect(t *testing.T) {
	dir, key := indexedStream(t, wordKeys(1))
	x := &IndexReader{Scheme: 1, Verifier: key.Verifier(), Unusable: func(seg string, err error) { t.Errorf("%s: %v", seg, err) }}
	read := uint64(0)
	for i := 0; i < 500; i += 20 {
		done := ask(t, dir, fmt.Sprintf("word-%d", i), x)
		if done.Unindexed != 0 || done.Blocks < 40 {
			t.Fatalf("%+v", done)
		}
		read += done.Records
	}
	// The last segment is plain, and of the others one block or two hold a word.
	if each := read / 25; each > 700 {
		t.Errorf("%d records read for a question of 6", each)
	}
	if rep, err := Verify(dir, key.Verifier()); err != nil {
		t.Errorf("%+v, %v", rep, err)
	}
}

// TestSelectByTimeAndIndex has bounds that fall into blocks, into segments and
// beyond both ends.
func TestSelectByTimeAndIndex(t *testing.T) {
	dir, _ := indexedStream(t, nil)
	all := readAll(t, dir)
	last := len(all) - 1
	for _, b := range [][2]int{{0, 1}, {0, last}, {1, 2}, {63, 64}, {64, 65}, {500, 900}, {2990, last}, {last, last + 1}} {
		for _, byTime := range []bool{false, true} {
			s := Selection{From: uint64(b[0]), To: uint64(b[1])}
			if byTime {
				s = Selection{Since: at0.Add(time.Duration(b[0]) * time.Second), Until: at0.Add(time.Duration(b[1]) * time.Second)}
			}
			var got, want []uint64
			done, err := NewReader(dir).Select(&s, func(r *Record) error {
				got = append(got, r.Index)
				return nil
			})
			for _, r := range all {
				if byTime && (r.Time.Before(s.Since) || !r.Time.Before(s.Until)) || !byTime && (r.Index < s.From || r.Index >= s.To) {
					continue
				}
				want = append(want, r.Index)
			}
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%v, by time %v: %d records, want %d, %v", b, byTime, len(got), len(want), err)
			}
			if byTime && b[1] == 2 && done.Records > 1000 {
				t.Errorf("%v: %+v", b, done)
			}
		}
	}
}

// TestIndexHidesNothing does to an index whatever can be done to it: what is
// asked for comes all the same.
func TestIndexHidesNothing(t *testing.T) {
	dir, key := indexedStream(t, wordKeys(1))
	l, err := list(dir)
	if err != nil || len(l.indexes) < 4 {
		t.Fatalf("%+v, %v", l, err)
	}
	path, other := filepath.Join(dir, l.indexes[0].name), filepath.Join(dir, l.indexes[1].name)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	anothers, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	broken := map[string][]byte{
		"empty": {}, "cut": good[:len(good)/2], "longer": append(slices.Clone(good), 0), "zero": make([]byte, len(good)), "another segment's": anothers,
	}
	for i := 0; i < len(good); i += 1 + i/6 {
		b := slices.Clone(good)
		b[i] ^= 1 << (i % 8)
		broken[fmt.Sprintf("byte %d", i)] = b
	}
	for name, b := range broken {
		if err := os.WriteFile(path, b, 0o640); err != nil {
			t.Fatal(err)
		}
		said := 0
		x := &IndexReader{Scheme: 1, Verifier: key.Verifier(), Unusable: func(string, error) { said++ }}
		if done := ask(t, dir, "word-3", x); done.Unindexed != 1 || said != 1 {
			t.Errorf("%s: %+v, said %d times", name, done, said)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if done := ask(t, dir, "word-3", &IndexReader{Scheme: 1, Verifier: key.Verifier()}); done.Unindexed != 1 {
		t.Errorf("missing: %+v", done)
	}
	if done := ask(t, dir, "word-400", &IndexReader{Scheme: 2, Verifier: key.Verifier()}); done.Skipped != 0 {
		t.Errorf("of another scheme: %+v", done)
	}
	if done := ask(t, dir, "word-400", &IndexReader{Scheme: 1, Verifier: testKey(t).Verifier()}); done.Skipped != 0 {
		t.Errorf("of another host: %+v", done)
	}
}

// TestIndexIsMadeAnew opens a record whose indexes are missing, of another
// scheme, cut off or of no segment.
func TestIndexIsMadeAnew(t *testing.T) {
	dir, key := indexedStream(t, wordKeys(1))
	l, err := list(dir)
	if err != nil {
		t.Fatal(err)
	}
	errs := errors.Join(
		os.Remove(filepath.Join(dir, l.indexes[0].name)),
		os.Truncate(filepath.Join(dir, l.indexes[1].name), 100),
		os.WriteFile(filepath.Join(dir, indexName(7)), []byte("x"), 0o640),
		os.WriteFile(filepath.Join(dir, indexName(9)+tempSuffix), []byte("x"), 0o640),
	)
	if errs != nil {
		t.Fatal(errs)
	}
	for _, scheme := range []uint32{1, 2} {
		s := testStore(t, filepath.Dir(dir), key, Options{Keys: wordKeys(scheme)})
		st := testStream(t, s)
		if err := st.sealFull(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, want := st.Stats().Used, onDisk(t, dir); got != want {
			t.Errorf("%d bytes used, %d on disk", got, want)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		x := &IndexReader{Scheme: scheme, Verifier: key.Verifier()}
		if done := ask(t, dir, "word-400", x); done.Unindexed != 0 {
			t.Errorf("scheme %d: %+v", scheme, done)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, indexName(7))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an index of no segment: %v", err)
	}
	if _, err := Verify(dir, key.Verifier()); err != nil {
		t.Error(err)
	}
}

func onDisk(t testing.TB, dir string) (n int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		n += fi.Size()
	}
	return n
}

// TestManyKeysAreAnyKey: a guest that has as many keys as it can makes its
// blocks be read, and no index larger than its bound.
func TestManyKeysAreAnyKey(t *testing.T) {
	next := uint64(0)
	keys := &Keys{Scheme: 1, Of: func(_ *Record, add func(uint64)) {
		for range 1000 {
			next++
			add(next * 0x9e3779b97f4a7c15)
		}
	}}
	dir, key := indexedStream(t, keys)
	l, err := list(dir)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(dir, l.indexes[0].name)); err != nil || fi.Size() > 1000 {
		t.Errorf("%v, %v", fi, err)
	}
	if done := ask(t, dir, "word-3", &IndexReader{Scheme: 1, Verifier: key.Verifier()}); done.Skipped != 0 || done.Unindexed != 0 {
		t.Errorf("%+v", done)
	}
}

// TestSelectGoesOnWhileSealed seals the segments while they are read.
func TestSelectGoesOnWhileSealed(t *testing.T) {
	key := testKey(t)
	s := testStore(t, t.TempDir(), key, Options{SegmentSize: 64 << 10, Keys: wordKeys(1)})
	st := testStream(t, s)
	payload := make([]byte, 4096)
	for range 200 {
		if _, err := st.Append(KindFrame, at0, payload); err != nil {
			t.Fatal(err)
		}
	}
	next := uint64(0)
	_, err := NewReader(st.Dir()).Select(&Selection{}, func(r *Record) error {
		if r.Index == 20 {
			if err := st.sealFull(context.Background()); err != nil {
				return err
			}
		}
		if r.Index != next {
			return fmt.Errorf("record %d, want %d", r.Index, next)
		}
		next++
		return nil
	})
	if err != nil || next != st.Stats().Next {
		t.Errorf("%d of %d records: %v", next, st.Stats().Next, err)
	}
}

// FuzzIndex reads hostile bytes as an index: an error, or filters that can be
// asked.
func FuzzIndex(f *testing.F) {
	dir, key := indexedStream(f, wordKeys(1))
	l, err := list(dir)
	if err != nil {
		f.Fatal(err)
	}
	src, err := openSealed(filepath.Join(dir, l.segments[0].name), 0)
	if err != nil {
		f.Fatal(err)
	}
	defer src.Close()
	b, err := os.ReadFile(filepath.Join(dir, l.indexes[0].name))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[indexHead:])
	v := key.Verifier()
	f.Fuzz(func(t *testing.T, b []byte) {
		filters, err := parseIndex(b, src.t, 1, v)
		if err != nil { // nobody else has the key: what is behind the signature
			filters, _ = parseFilters(b, uint64(len(b)/9), len(b)/9)
		}
		for i := range filters {
			filters[i].has(uint64(i) * 0x9e3779b97f4a7c15)
		}
	})
}

// TestIndexOfWhatNobodyOpens: the record of a VM that is off is indexed too.
func TestIndexOfWhatNobodyOpens(t *testing.T) {
	dir, key := indexedStream(t, nil)
	s := testStore(t, filepath.Dir(dir), key, Options{Keys: wordKeys(1)})
	s.indexOthers(t.Context())
	if done := ask(t, dir, "word-3", &IndexReader{Scheme: 1, Verifier: key.Verifier()}); done.Unindexed != 0 || done.Skipped == 0 {
		t.Errorf("%+v", done)
	}
	st := testStream(t, s)
	if got, want := st.Stats().Used, onDisk(t, dir); got != want {
		t.Errorf("%d bytes used, %d on disk", got, want)
	}
}
