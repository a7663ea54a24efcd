package evidence

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"
)

// TestRotateKeyWhileWriting has the key replaced again and again while streams are
// written to, signed, and sealed: who has the first key verifies all of it, heads
// after a rotation are the new key's, and a start finds the last one.
func TestRotateKeyWhileWriting(t *testing.T) {
	dir := t.TempDir()
	first, err := LoadOrCreateKey(dir, "test-host")
	if err != nil {
		t.Fatal(err)
	}
	s := testStore(t, filepath.Join(dir, StoreDir), first, Options{SegmentSize: 20 << 10})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	ids := []uuid.UUID{vm1, vm2, vm3, {}}
	for _, id := range ids {
		st, err := s.Stream(id)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				for i := range uint64(7) {
					if _, err := st.Append(KindFrame, time.Now(), payload(i)); err != nil {
						t.Error(err)
						return
					}
				}
				if _, err := st.SignHead(); err != nil {
					t.Error(err)
					return
				}
				if err := st.sealFull(ctx); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	var last Rotation
	for i := range 5 {
		was := s.Key().Public
		r, err := s.RotateKey(dir)
		if err != nil || r.Number != uint64(i)+1 || r.Old != was || s.Key().Public != r.New {
			t.Fatalf("%+v, %v", r, err)
		}
		for _, id := range ids {
			st, err := s.Stream(id)
			if err != nil {
				t.Fatal(err)
			}
			h, err := st.SignHead()
			if err != nil {
				t.Fatal(err)
			}
			if _, by, err := openHead([]byte(h.Note), s.Key().Verifier()); err != nil || by != i+1 {
				t.Errorf("after rotation %d a head is key %d's: %v", i+1, by, err)
			}
		}
		last = r
	}
	stop()
	wg.Wait()
	if _, err := RotateKey(dir, time.Now()); !errors.Is(err, ErrInUse) {
		t.Errorf("past the store that is open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	v, err := Follow(mustVerifier(t, first.Public), s.Key().rotations)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if rep, err := Verify(StreamDir(s.Dir(), id), v); err != nil || rep.Unsigned != 0 || rep.Heads < 5 {
			t.Errorf("%+v, %v", rep, err)
		}
	}
	again, err := LoadOrCreateKey(dir, "")
	if err != nil || again.Public != last.New || !bytes.Equal(again.Rotations(), s.Key().Rotations()) {
		t.Errorf("%+v, %v", again, err)
	}
}

func mustVerifier(t *testing.T, public string) note.Verifier {
	t.Helper()
	v, err := ParseVerifier([]byte(public + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestRotateKeyWithTheClockSetBack: the old key's last head is not after its end,
// whatever the clock says.
func TestRotateKeyWithTheClockSetBack(t *testing.T) {
	dir := t.TempDir()
	first, err := LoadOrCreateKey(dir, "test-host")
	if err != nil {
		t.Fatal(err)
	}
	at := at0.Add(time.Hour)
	s := testStore(t, filepath.Join(dir, StoreDir), first, Options{Now: func() time.Time { return at }})
	st := testStream(t, s)
	fill(t, st, 5)
	if _, err := st.SignHead(); err != nil {
		t.Fatal(err)
	}
	at = at0
	r, err := s.RotateKey(dir)
	if err != nil || !r.Time.Equal(at0.Add(time.Hour)) {
		t.Fatalf("%+v, %v", r, err)
	}
	fill(t, st, 5)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if rep, err := Verify(st.Dir(), s.Key().Verifier()); err != nil || rep.Heads != 2 {
		t.Errorf("%+v, %v", rep, err)
	}
}

// TestRotateKeyThatFails: without room for the statement the old key goes on, and
// the next attempt is not in the way of what was left.
func TestRotateKeyThatFails(t *testing.T) {
	dir := t.TempDir()
	first, err := LoadOrCreateKey(dir, "test-host")
	if err != nil {
		t.Fatal(err)
	}
	s := testStore(t, filepath.Join(dir, StoreDir), first, Options{})
	st := testStream(t, s)
	fill(t, st, 5)
	if err := os.Mkdir(filepath.Join(dir, KeysFile), 0o700); err != nil { // so that nothing can have its name
		t.Fatal(err)
	}
	if r, err := s.RotateKey(dir); err == nil || s.Key() != first {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := os.Remove(filepath.Join(dir, KeysFile)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, KeyFile+nextSuffix), []byte("of an attempt before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := s.RotateKey(dir); err == nil || !strings.Contains(err.Error(), KeyFile+nextSuffix) {
		t.Fatalf("what is no key was taken for one: %+v, %v", r, err)
	}
	if err := os.Remove(filepath.Join(dir, KeyFile+nextSuffix)); err != nil {
		t.Fatal(err)
	}
	if err := createKey(filepath.Join(dir, KeyFile+nextSuffix), "test-host"); err != nil {
		t.Fatal(err)
	}
	if r, err := s.RotateKey(dir); err != nil || r.Number != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, KeyFile+nextSuffix)); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
