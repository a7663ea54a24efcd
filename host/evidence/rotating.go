package evidence

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/outguard/outguard/host/failpoint"
)

// keyring is the key that a store signs with, which may be replaced while it does.
type keyring struct {
	now atomic.Pointer[Key]

	one   sync.Mutex   // one rotation at a time
	heads sync.RWMutex // read-held from when a head gets its time until it is signed
	last  atomic.Int64 // the latest time that a head was given, ns since 1970
}

func newKeyring(k *Key) *keyring {
	r := &keyring{}
	r.now.Store(k)
	return r
}

func (r *keyring) key() *Key { return r.now.Load() }

// head signs one. Its time is not after that of the rotation that replaces the
// key.
func (r *keyring) head(now func() time.Time, make func(time.Time) Head) (Head, []byte, error) {
	r.heads.RLock()
	defer r.heads.RUnlock()
	h := make(now().UTC().Round(0))
	r.gave(h.Time.UnixNano())
	note, err := SignNote(h.text(), r.key())
	return h, note, err
}

// gave takes note of a head's time.
func (r *keyring) gave(at int64) {
	for {
		last := r.last.Load()
		if at <= last || r.last.CompareAndSwap(last, at) {
			return
		}
	}
}

// end is when the key is replaced: now, and not before a head that it signed, as
// after the clock was set back.
func (r *keyring) end(now time.Time) time.Time {
	return time.Unix(0, max(now.UnixNano(), r.last.Load())).UTC()
}

// Key is the host's key as it is now.
func (s *Store) Key() *Key { return s.keys.key() }

// RotateKey is RotateKey for who has the store open: from when it returns, every
// head of every stream is the new key's, and whatever else is signed. dir is the
// state directory, with the host's key. Heads wait meanwhile, and what is appended
// to a stream that is about to sign one. Where the rotation is on disk and only the names of the keys' files are not what
// they should be, it is returned beside an error: it holds, and the next start comes
// to the end of it.
func (s *Store) RotateKey(dir string) (Rotation, error) {
	s.keys.one.Lock()
	defer s.keys.one.Unlock()
	old := s.keys.key()
	next, err := nextKey(dir, old)
	if err != nil {
		return Rotation{}, err
	}
	r, err := s.replaceKey(dir, old, next)
	if err != nil {
		return Rotation{}, err
	}
	if k, err := LoadOrCreateKey(dir, ""); err != nil {
		return r, err
	} else if k.Public != r.New {
		return r, fmt.Errorf("rotate host key: %s is another than was made: %w", KeyFile, ErrKey)
	}
	return r, nil
}

// replaceKey has the old key sign the last it does. Nobody signs a head meanwhile.
func (s *Store) replaceKey(dir string, old, next *Key) (Rotation, error) {
	s.keys.heads.Lock()
	defer s.keys.heads.Unlock()
	r, err := signRotation(dir, old, next, s.keys.end(s.opts.Now()))
	if err != nil {
		return Rotation{}, err
	}
	s.keys.now.Store(&Key{Signer: next.Signer, Public: next.Public, rotations: append(old.rotations[:len(old.rotations):len(old.rotations)], r)})
	return r, nil
}

// nextKey makes the key that is to follow. Nobody believes it yet.
func nextKey(dir string, old *Key) (*Key, error) {
	path := filepath.Join(dir, KeyFile)
	if _, err := os.Lstat(path); err != nil {
		return nil, fmt.Errorf("rotate host key: %w", err)
	}
	if len(old.rotations) == maxRotations {
		return nil, fmt.Errorf("rotate host key: %d rotations are the most that there can be", maxRotations)
	}
	all, err := loadRotations(dir) // ends what was begun, and takes away what never was
	if err != nil {
		return nil, err
	}
	if len(all) != len(old.rotations) {
		return nil, fmt.Errorf("rotate host key: %s has %d rotations, and there were %d: %w", KeysFile, len(all), len(old.rotations), ErrKey)
	}
	if err := createKey(path+nextSuffix, old.Name()); err != nil {
		return nil, err
	}
	failpoint.At(failpoint.NextKey)
	return LoadKey(path + nextSuffix)
}

// signRotation has both keys sign that one follows the other, on disk: that is the
// step that counts.
func signRotation(dir string, old, next *Key, at time.Time) (Rotation, error) {
	r := Rotation{Number: uint64(len(old.rotations)) + 1, Old: old.Public, New: next.Public, Time: at.UTC().Round(0)}
	signed, err := note.Sign(&note.Note{Text: r.text()}, old.Signer, next.Signer)
	if err != nil {
		return Rotation{}, fmt.Errorf("rotate host key: %w", err)
	}
	if r, err = parseRotation(string(signed)); err != nil {
		return Rotation{}, fmt.Errorf("rotate host key: %w", err)
	}
	all := append(old.Rotations(), signed...)
	if err := replaceAs(filepath.Join(dir, KeyFile), filepath.Join(dir, KeysFile), all, 0o644); err != nil {
		there, rerr := readRotations(filepath.Join(dir, KeysFile))
		if !bytes.Equal(there, all) { // else it has its name: it holds
			return Rotation{}, errors.Join(err, rerr)
		}
	}
	failpoint.At(failpoint.Rotated)
	return r, nil
}
