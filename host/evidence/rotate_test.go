package evidence

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// rotated is a state directory with a record to which each of three keys has
// added; pinned is the public key that somebody took away at the beginning.
func rotated(t *testing.T) (dir string, pinned note.Verifier) {
	t.Helper()
	dir = t.TempDir()
	at := at0
	now := func() time.Time { return at }
	for i := range 3 {
		key, err := LoadOrCreateKey(dir, "test-host")
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			b, err := os.ReadFile(filepath.Join(dir, PubFile))
			if err == nil {
				pinned, err = ParseVerifier(b)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		s := testStore(t, filepath.Join(dir, StoreDir), key, Options{SegmentSize: 2000, Now: now})
		st := testStream(t, s)
		fill(t, st, 30)
		if _, err := RotateKey(dir, at); !errors.Is(err, ErrInUse) {
			t.Fatalf("while it is written to: %v", err)
		}
		if err := st.sealFull(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		at = at.Add(time.Hour)
		if i == 2 {
			break
		}
		r, err := RotateKey(dir, at)
		if err != nil || r.Number != uint64(i)+1 || r.Old != key.Public {
			t.Fatalf("%+v, %v", r, err)
		}
		at = at.Add(time.Hour)
	}
	return dir, pinned
}

func TestRotateKey(t *testing.T) {
	dir, pinned := rotated(t)
	stream := StreamDir(filepath.Join(dir, StoreDir), vm1)
	followed, err := FollowFile(pinned, filepath.Join(dir, KeysFile))
	if err != nil {
		t.Fatal(err)
	}
	last, err := LoadVerifier(filepath.Join(dir, PubFile))
	if err != nil || last.KeyHash() == pinned.KeyHash() {
		t.Fatal(err)
	}
	for name, v := range map[string]note.Verifier{"the first key": followed, "the last key": last} {
		if rep, err := Verify(stream, v); err != nil || rep.Heads < 3 || rep.Sealed < 2 {
			t.Errorf("by %s: %+v, %v", name, rep, err)
		}
	}
	if _, err := Verify(stream, pinned); !errors.Is(err, ErrCorrupt) {
		t.Errorf("by the first key alone: %v", err)
	}
	if k, err := FollowFile(testKey(t).Verifier(), filepath.Join(dir, KeysFile)); !errors.Is(err, ErrKey) {
		t.Errorf("another host's key: %v, %v", k, err)
	}
	b, err := os.ReadFile(filepath.Join(dir, KeysFile))
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 1 << (i % 8)
		if r, err := ParseRotations(c); err == nil {
			t.Fatalf("byte %d of %d changed: %+v", i, len(b), r)
		}
	}
	if _, err := ParseRotations(b[:len(b)-1]); err == nil {
		t.Error("cut off, and parsed")
	}
	fi, err := os.Stat(filepath.Join(dir, KeyFile))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
}

// TestReplacedKeySignsNoMore has the first key, in somebody's hands, sign heads
// after it was replaced: with the time of then, and with one of before.
func TestReplacedKeySignsNoMore(t *testing.T) {
	dir := t.TempDir()
	old, err := LoadOrCreateKey(dir, "test-host")
	if err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(dir, StoreDir)
	at := at0
	write := func(k *Key) {
		s := testStore(t, store, k, Options{Now: func() time.Time { return at }})
		fill(t, testStream(t, s), 5)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write(old)
	if _, err := RotateKey(dir, at0.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	key, err := LoadOrCreateKey(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	at = at0.Add(2 * time.Hour)
	write(key)
	stream := StreamDir(store, vm1)
	if _, err := Verify(stream, key.Verifier()); err != nil {
		t.Fatal(err)
	}
	stolen := &Key{Signer: old.Signer, Public: old.Public, rotations: key.rotations}
	for _, when := range []time.Duration{3 * time.Hour, 30 * time.Minute} {
		state := t.TempDir()
		if err := os.CopyFS(filepath.Join(state, vm1.String()), os.DirFS(stream)); err != nil {
			t.Fatal(err)
		}
		s := testStore(t, state, stolen, Options{Now: func() time.Time { return at0.Add(when) }})
		fill(t, testStream(t, s), 5)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if rep, err := Verify(filepath.Join(state, vm1.String()), key.Verifier()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "replaced") {
			t.Errorf("signed at %s: %+v, %v", when, rep, err)
		}
	}
}

// TestRotationCutAnywhere leaves what a crash does after each of a rotation's
// steps: there is a key, it is the old one or the new one, and the record verifies.
func TestRotationCutAnywhere(t *testing.T) {
	begin, _ := rotated(t)
	end := t.TempDir()
	if err := os.CopyFS(end, os.DirFS(begin)); err != nil {
		t.Fatal(err)
	}
	old, err := LoadOrCreateKey(begin, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(end, KeyFile), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := RotateKey(end, at0.Add(100*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for step := range 5 {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(begin)); err != nil {
			t.Fatal(err)
		}
		take := func(from, to string, mode os.FileMode) {
			b, err := os.ReadFile(filepath.Join(end, from))
			path := filepath.Join(dir, to)
			if err == nil {
				err = errors.Join(os.WriteFile(path, b, mode), os.Chmod(path, mode))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(filepath.Join(dir, KeyFile), 0o600); err != nil {
			t.Fatal(err)
		}
		if step == 1 || step == 2 {
			take(KeyFile, KeyFile+nextSuffix, 0o600)
		}
		if step >= 2 {
			take(KeysFile, KeysFile, 0o644)
		}
		if step >= 3 {
			take(KeyFile, KeyFile, 0o600)
		}
		if step >= 4 {
			take(PubFile, PubFile, 0o644)
		}
		key, err := LoadOrCreateKey(dir, "")
		want := r.New
		if step < 2 {
			want = old.Public
		}
		if err != nil || key.Public != want {
			t.Fatalf("step %d: %+v, %v", step, key, err)
		}
		if _, err := os.Stat(filepath.Join(dir, KeyFile+nextSuffix)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("step %d: %v", step, err)
		}
		if _, err := Verify(StreamDir(filepath.Join(dir, StoreDir), vm1), key.Verifier()); err != nil {
			t.Errorf("step %d: %v", step, err)
		}
	}
}

// FuzzRotations reads hostile bytes as rotations: an error, or what was written.
func FuzzRotations(f *testing.F) {
	dir := f.TempDir()
	if _, err := LoadOrCreateKey(dir, "test-host"); err != nil {
		f.Fatal(err)
	}
	if _, err := RotateKey(dir, at0); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, KeysFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := ParseRotations(b)
		if err != nil {
			return
		}
		if got := (&Key{rotations: all}).Rotations(); !bytes.Equal(got, b) {
			t.Errorf("%q", got)
		}
	})
}
