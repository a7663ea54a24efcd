package evidence

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/host/failpoint"
)

// KeysFile stands beside the host's keys once they were rotated, and in what is
// taken elsewhere to be verified. It is one note for each rotation, one after
// the other, each signed by the old key and by the new one over
//
//	outguard host key rotation v1
//	number 1, 2, 3 …
//	old, new: the public keys, in note's encoding
//	time: what the old key signs is from before
//
// So who has any one of a host's keys knows the others by it: the old key says
// who its successor is, the new one whom it succeeded. It need not come from a
// trusted place.
const KeysFile = "host.keys"

const (
	nextSuffix    = ".next"
	rotationTitle = "outguard host key rotation v1"
	maxRotations  = 64
	maxKeysFile   = maxRotations * maxNote
)

// Rotation is one change of the host's key.
type Rotation struct {
	Number uint64    `json:"number"`
	Old    string    `json:"old"` // public keys, in note's encoding
	New    string    `json:"new"`
	Time   time.Time `json:"time"`

	signed     string
	sigs       [2][]byte // of the old key and of the new one
	olds, news note.Verifier
}

func (r Rotation) text() string {
	return fmt.Sprintf("%s\nnumber %d\nold %s\nnew %s\ntime %s\n", rotationTitle, r.Number, r.Old, r.New, r.Time.UTC().Format(time.RFC3339Nano))
}

// ParseRotations reads a file of rotations, verifies each by the two keys that it
// names, and holds them against each other. Whose keys they are it does not say:
// see Follow.
func ParseRotations(b []byte) ([]Rotation, error) {
	if len(b) > maxKeysFile {
		return nil, fmt.Errorf("%d bytes of rotations, limit %d: %w", len(b), maxKeysFile, ErrKey)
	}
	var all []Rotation
	for len(b) > 0 {
		signed, rest, err := cutRotation(b)
		if err != nil {
			return nil, err
		}
		r, err := parseRotation(signed)
		if err != nil {
			return nil, fmt.Errorf("rotation %d: %w", len(all)+1, err)
		}
		if r.Number != uint64(len(all))+1 || len(all) > 0 && all[len(all)-1].New != r.Old {
			return nil, fmt.Errorf("rotation %d does not follow the one before it: %w", r.Number, ErrKey)
		}
		all, b = append(all, r), rest
	}
	return all, nil
}

// cutRotation takes a note with two signatures off b.
func cutRotation(b []byte) (signed string, rest []byte, err error) {
	end := bytes.Index(b, []byte("\n\n"))
	if end < 0 {
		return "", nil, fmt.Errorf("a rotation is cut off: %w", ErrKey)
	}
	end += 2
	for range 2 {
		n := bytes.IndexByte(b[end:], '\n')
		if n < 0 {
			return "", nil, fmt.Errorf("a rotation is cut off: %w", ErrKey)
		}
		end += n + 1
	}
	return string(b[:end]), b[end:], nil
}

func parseRotation(signed string) (Rotation, error) {
	f, err := noteFields(noteText([]byte(signed)), rotationTitle, "number", "old", "new", "time")
	if err != nil {
		return Rotation{}, fmt.Errorf("%w: %w", ErrKey, err)
	}
	r := Rotation{Old: f[1], New: f[2], signed: signed}
	var errs [4]error
	r.Number, errs[0] = strconv.ParseUint(f[0], 10, 64)
	r.olds, errs[1] = ParseVerifier([]byte(r.Old + "\n"))
	r.news, errs[2] = ParseVerifier([]byte(r.New + "\n"))
	r.Time, errs[3] = time.Parse(time.RFC3339Nano, f[3])
	if err := errors.Join(errs[:]...); err != nil {
		return Rotation{}, err
	}
	if r.text() != noteText([]byte(signed)) || r.Old == r.New {
		return Rotation{}, fmt.Errorf("not in its canonical form: %w", ErrKey)
	}
	n, err := note.Open([]byte(signed), note.VerifierList(r.olds, r.news))
	if err != nil {
		return Rotation{}, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	if len(n.Sigs) != 2 || n.Sigs[0].Hash != r.olds.KeyHash() || n.Sigs[1].Hash != r.news.KeyHash() {
		return Rotation{}, fmt.Errorf("%w: not that of both keys", ErrSignature)
	}
	for i := range r.sigs {
		raw, err := canonicalSignature(n.Sigs[i])
		if err != nil {
			return Rotation{}, err
		}
		r.sigs[i] = raw[4:]
	}
	if want := n.Text + "\n" + signatureLine(n.Sigs[0]) + signatureLine(n.Sigs[1]); want != signed {
		return Rotation{}, fmt.Errorf("%w: not in its canonical form", ErrSignature)
	}
	return r, nil
}

func signatureLine(s note.Signature) string { return "— " + s.Name + " " + s.Base64 + "\n" }

// Keyring verifies what any of a host's keys has signed, starting from one of
// them. As a note.Verifier it is that one.
type Keyring struct {
	note.Verifier
	rotations []Rotation
}

// Follow returns the keyring of the host that has the key v. Rotations that this
// key has signed none of are another host's: ErrKey.
func Follow(v note.Verifier, rotations []Rotation) (*Keyring, error) {
	for _, r := range rotations {
		if r.by(v, r.olds, 0) || r.by(v, r.news, 1) {
			return &Keyring{v, rotations}, nil
		}
	}
	return nil, fmt.Errorf("host key %s has signed none of these rotations: %w", signerName(v), ErrKey)
}

// by says whether v is the key that has signed.
func (r *Rotation) by(v, named note.Verifier, i int) bool {
	return v.Name() == named.Name() && v.KeyHash() == named.KeyHash() && v.Verify([]byte(r.text()), r.sigs[i])
}

// FollowFile is Follow with the rotations in a file. Where there is none, v is all.
func FollowFile(v note.Verifier, path string) (note.Verifier, error) {
	b, err := readRotations(path)
	if err != nil || b == nil {
		return v, err
	}
	rotations, err := ParseRotations(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	k, err := Follow(v, rotations)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

func readRotations(path string) ([]byte, error) {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("host keys: %w", err)
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxKeysFile || fi.Size() == 0 {
		return nil, fmt.Errorf("host keys %s: %s of %d bytes: %w", path, fi.Mode().Type(), fi.Size(), ErrKey)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("host keys: %w", err)
	}
	return b, nil
}

// VerifierList are all of a host's keys, for note.Open.
func VerifierList(v note.Verifier) note.Verifiers { return note.VerifierList(verifiers(v)...) }

// verifiers are all of a host's keys, the oldest first.
func verifiers(v note.Verifier) []note.Verifier {
	k, ok := v.(*Keyring)
	if !ok {
		return []note.Verifier{v}
	}
	all := []note.Verifier{k.rotations[0].olds}
	for _, r := range k.rotations {
		all = append(all, r.news)
	}
	return all
}

// Generations is how many of a host's keys a verifier has.
func Generations(v note.Verifier) int { return len(verifiers(v)) }

// Knows says whether a key is one of a host's.
func Knows(v, key note.Verifier) bool {
	for _, k := range verifiers(v) {
		if k.Name() == key.Name() && k.KeyHash() == key.KeyHash() {
			return true
		}
	}
	return false
}

// generation is the number of a signature's key: 0 is the first.
func generation(v note.Verifier, s note.Signature) int {
	for i, k := range verifiers(v) {
		if k.Name() == s.Name && k.KeyHash() == s.Hash {
			return i
		}
	}
	return -1 // note.Open has found it among them
}

// until is when a key was replaced; ok is false for the last.
func until(v note.Verifier, generation int) (t time.Time, ok bool) {
	k, is := v.(*Keyring)
	if !is || generation >= len(k.rotations) {
		return time.Time{}, false
	}
	return k.rotations[generation].Time, true
}

// RotateKey makes a new host key in dir, signed by the old one and signing it in
// turn. No monitor may run: one that does has Store.RotateKey. Killed at any step it leaves a key that is whole, and
// LoadOrCreateKey comes to the end of what was begun.
func RotateKey(dir string, now time.Time) (Rotation, error) {
	release, err := lockStore(filepath.Join(dir, StoreDir))
	if err != nil {
		return Rotation{}, err
	}
	defer release()
	path := filepath.Join(dir, KeyFile)
	if _, err := os.Lstat(path); err != nil {
		return Rotation{}, fmt.Errorf("rotate host key: %w", err)
	}
	old, err := LoadOrCreateKey(dir, "")
	if err != nil {
		return Rotation{}, err
	}
	next, err := nextKey(dir, old)
	if err != nil {
		return Rotation{}, err
	}
	r, err := signRotation(dir, old, next, now)
	if err != nil {
		return Rotation{}, err
	}
	_, err = LoadOrCreateKey(dir, "")
	return r, err
}

// lockStore keeps a monitor from starting, and says where one runs.
func lockStore(dir string) (release func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, ErrInUse)
	}
	return func() { f.Close() }, nil
}

// finishRotation comes to the end of a rotation that was begun: once the old key
// has signed for it the new key is the host's.
func finishRotation(dir string, rotations []Rotation) error {
	path := filepath.Join(dir, KeyFile)
	next, err := LoadKey(path + nextSuffix)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case len(rotations) == 0 || rotations[len(rotations)-1].New != next.Public:
		if err := os.Remove(path + nextSuffix); err != nil {
			return fmt.Errorf("host key: %w", err)
		}
	default:
		if err := takeOwner(path, path+nextSuffix); err != nil {
			return err
		}
		if err := errors.Join(os.Rename(path+nextSuffix, path), syncDir(dir)); err != nil {
			return fmt.Errorf("host key: %w", err)
		}
		failpoint.At(failpoint.Renamed)
	}
	return finishPublic(dir, rotations)
}

func finishPublic(dir string, rotations []Rotation) error {
	if len(rotations) == 0 {
		return nil
	}
	last := rotations[len(rotations)-1]
	pub := filepath.Join(dir, PubFile)
	b, err := os.ReadFile(pub)
	if err != nil || string(b) != last.Old+"\n" {
		return nil // as it should be, or LoadOrCreateKey says what is wrong
	}
	return replaceAs(pub, pub, []byte(last.New+"\n"), 0o644)
}

// replaceAs writes a file whole, owned by whom another is, in the place of the
// one before.
func replaceAs(owner, path string, b []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = takeOwner(owner, f.Name())
	}
	if err == nil {
		err = errors.Join(os.Rename(f.Name(), path), syncDir(filepath.Dir(path)))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// takeOwner gives a file, which root may be writing, to whom another belongs:
// the monitor runs as a user of its own.
func takeOwner(from, to string) error {
	a, err := os.Stat(from)
	if err != nil {
		return err
	}
	b, err := os.Stat(to)
	if err != nil {
		return err
	}
	was, is := a.Sys().(*syscall.Stat_t), b.Sys().(*syscall.Stat_t)
	if was.Uid == is.Uid && was.Gid == is.Gid {
		return nil
	}
	return os.Chown(to, int(was.Uid), int(was.Gid))
}

// Rotations is the text of KeysFile; empty where the key was never rotated.
func (k *Key) Rotations() []byte {
	var b strings.Builder
	for _, r := range k.rotations {
		b.WriteString(r.signed)
	}
	return []byte(b.String())
}
