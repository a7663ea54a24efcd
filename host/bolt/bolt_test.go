package bolt

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

var bucket = []byte("things")

// all makes the bucket, and reads it.
func all(n *int) func(*bbolt.DB) error {
	return func(db *bbolt.DB) error {
		if err := db.Update(func(tx *bbolt.Tx) error {
			_, err := tx.CreateBucketIfNotExists(bucket)
			return err
		}); err != nil {
			return err
		}
		*n = 0
		return db.View(func(tx *bbolt.Tx) error {
			return tx.Bucket(bucket).ForEach(func(k, v []byte) error {
				if len(v) != 100 || !bytes.Equal(v, bytes.Repeat(k[:1], 100)) {
					return errors.New("not as written")
				}
				*n++
				return nil
			})
		})
	}
}

// written is a file with things in it.
func written(t testing.TB, things int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	n := 0
	db, cut, err := Open(path, all(&n))
	if err != nil || cut != nil {
		t.Fatal(cut, err)
	}
	for i := range things {
		err := db.Update(func(tx *bbolt.Tx) error {
			k := fmt.Appendf(nil, "%c%d", 'a'+i%26, i)
			return tx.Bucket(bucket).Put(k, bytes.Repeat(k[:1], 100))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// opened writes b and opens it: it is whole, or set aside to the byte with a new
// one in its place, and nothing else.
func opened(t *testing.T, b []byte, whole int) (cut *Cut) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "db")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	n := 0
	db, cut, err := Open(path, all(&n))
	if err != nil {
		t.Fatalf("of %d bytes: %v", len(b), err)
	}
	defer db.Close()
	if cut == nil {
		if n != whole && len(b) > 0 {
			t.Errorf("of %d bytes: %d things of %d, and nothing said", len(b), n, whole)
		}
		return nil
	}
	kept, err := os.ReadFile(cut.Aside)
	if err != nil || !bytes.Equal(kept, b) || cut.Bytes != int64(len(b)) || n != 0 {
		t.Errorf("of %d bytes: kept %d, %+v, %d things, %v", len(b), len(kept), cut, n, err)
	}
	return cut
}

// TestCutAnywhere cuts a file at its every page, around each, and everywhere in
// the first ones.
func TestCutAnywhere(t *testing.T) {
	b := written(t, 60)
	cuts := 0
	for n := 0; n < len(b); n++ {
		if at := n % os.Getpagesize(); at > 1 && at < os.Getpagesize()-1 && n%97 != 0 {
			continue
		}
		if opened(t, b[:n], 60) != nil {
			cuts++
		}
	}
	if cuts == 0 {
		t.Error("no cut was found")
	}
	if opened(t, b, 60) != nil {
		t.Error("a whole file was set aside")
	}
}

// TestRotten changes bytes in every page: a process that opens the file lives.
func TestRotten(t *testing.T) {
	b := written(t, 60)
	for page := 0; page < len(b); page += os.Getpagesize() {
		for _, at := range []int{8, 10, 12, 16, 20, 24, 28, 32} { // headers and what they point at
			bad := bytes.Clone(b)
			for i := range 2 {
				bad[page+at+i] ^= 0xff
			}
			dir := t.TempDir()
			path := filepath.Join(dir, "db")
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			n := 0
			db, _, err := Open(path, all(&n))
			if err != nil {
				t.Errorf("page %d, byte %d: %v", page/os.Getpagesize(), at, err)
				continue
			}
			db.Close()
		}
	}
}

func TestForeignIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	b := written(t, 3)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	other := errors.New("of another version")
	if _, cut, err := Open(path, func(*bbolt.DB) error { return Foreign(other) }); cut != nil || !errors.Is(err, other) {
		t.Errorf("%+v, %v", cut, err)
	}
	n := 0
	db, _, err := Open(path, all(&n))
	if err != nil || n != 3 {
		t.Fatal(n, err)
	}
	defer db.Close()
	if _, _, err := Open(path, all(&n)); !errors.Is(err, ErrInUse) {
		t.Errorf("a second one: %v", err)
	}
}

// FuzzHead holds what reads the first pages against any bytes.
func FuzzHead(f *testing.F) {
	b := written(f, 5)
	f.Add(b[:8192])
	f.Add(b[:100])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, head []byte) {
		if n, ok := pagesIn(head); n < 0 || (n > 0 && !ok) {
			t.Errorf("%d bytes, %v", n, ok)
		}
	})
}
