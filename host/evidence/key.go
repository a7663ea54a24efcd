package evidence

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// ErrKey is what every error about a key file wraps.
var ErrKey = errors.New("not a usable key")

const (
	privatePrefix = "PRIVATE+KEY+"
	algEd25519    = 1
	maxKeyFile    = 1024
)

// Key is the host's key: it signs heads and manifests.
type Key struct {
	note.Signer
	Public string // verifier key in note's encoding, without a newline

	rotations []Rotation // of the keys before it
}

// Verifier returns the verifier of what the key signs, and of what the keys before
// it have signed.
func (k *Key) Verifier() note.Verifier {
	v, err := note.NewVerifier(k.Public)
	if err != nil {
		panic("evidence: " + err.Error()) // Public was made from the key itself
	}
	if len(k.rotations) > 0 {
		return &Keyring{v, k.rotations}
	}
	return v
}

// LoadOrCreateKey loads host.key and host.pub in dir, and makes them first
// where there are none. name is the key's name in every signature, such as the
// host's name; it is used only where a key is made. A public key without its
// private one is an error: a new key would orphan what the old one signed. A
// rotation that was begun is brought to its end, and the keys before are the
// verifier's as well.
func LoadOrCreateKey(dir, name string) (*Key, error) {
	keyPath, pubPath := filepath.Join(dir, KeyFile), filepath.Join(dir, PubFile)
	rotations, err := loadRotations(dir)
	if err != nil {
		return nil, err
	}
	_, err = os.Lstat(keyPath)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(pubPath); err == nil {
			return nil, fmt.Errorf("host key %s: missing, yet %s exists: %w", keyPath, pubPath, ErrKey)
		}
		if err := createKey(keyPath, name); err != nil {
			return nil, err
		}
	}
	key, err := LoadKey(keyPath)
	if err != nil {
		return nil, err
	}
	// The private key alone is what a crash between the two leaves.
	if err := writeNew(pubPath, []byte(key.Public+"\n"), 0o644); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("write host key: %w", err)
	}
	if err := matchPublic(key, pubPath); err != nil {
		return nil, err
	}
	if n := len(rotations); n > 0 && rotations[n-1].New != key.Public {
		return nil, fmt.Errorf("host key %s: not the one that %s ends with: %w", keyPath, KeysFile, ErrKey)
	}
	key.rotations = rotations
	return key, nil
}

// loadRotations reads what was rotated, and ends a rotation that was not ended.
func loadRotations(dir string) ([]Rotation, error) {
	b, err := readRotations(filepath.Join(dir, KeysFile))
	if err != nil {
		return nil, err
	}
	rotations, err := ParseRotations(b)
	if err != nil {
		return nil, fmt.Errorf("host keys: %w", err)
	}
	return rotations, finishRotation(dir, rotations)
}

func matchPublic(key *Key, path string) error {
	b, err := readKeyFile(path)
	if err != nil {
		return err
	}
	if string(b) != key.Public+"\n" {
		return fmt.Errorf("host key %s: not the public half of %s: %w", path, KeyFile, ErrKey)
	}
	return nil
}

func createKey(path, name string) error {
	if name == "" || strings.ContainsAny(name, "+ \t\r\n") {
		return fmt.Errorf("host key name %q: %w", name, ErrKey)
	}
	private, _, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		return fmt.Errorf("make host key: %w", err)
	}
	err = writeNew(path, []byte(private+"\n"), 0o600)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write host key: %w", err)
	}
	return nil
}

// LoadKey reads a private key file: one line in note's encoding, ended by a
// newline, mode 0600. Nothing is trimmed.
func LoadKey(path string) (*Key, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	if fi.Mode().IsRegular() && fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("host key %s: mode %04o lets others read it, want 0600: %w", path, fi.Mode().Perm(), ErrKey)
	}
	b, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(b)
	if err != nil {
		return nil, fmt.Errorf("host key %s: %w", path, err)
	}
	return key, nil
}

// parseKey is strict where note is lenient: the file must be what would be
// written for this key, to the byte.
func parseKey(b []byte) (*Key, error) {
	line, ok := strings.CutSuffix(string(b), "\n")
	if !ok {
		return nil, fmt.Errorf("no newline at the end: %w", ErrKey)
	}
	signer, err := note.NewSigner(line)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	head := fmt.Sprintf("%s%s+%08x+", privatePrefix, signer.Name(), signer.KeyHash())
	raw, err := base64.StdEncoding.Strict().DecodeString(strings.TrimPrefix(line, head))
	if err != nil || len(raw) != 1+ed25519.SeedSize || raw[0] != algEd25519 {
		return nil, ErrKey
	}
	if line != head+base64.StdEncoding.EncodeToString(raw) {
		return nil, fmt.Errorf("not in its canonical form: %w", ErrKey)
	}
	public := ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey)
	vkey, err := note.NewEd25519VerifierKey(signer.Name(), public)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return &Key{Signer: signer, Public: vkey}, nil
}

// LoadVerifier reads a public key file such as host.pub: one line in note's
// encoding, ended by a newline. Nothing is trimmed. With KeysFile beside it, it
// verifies what the host's other keys have signed as well.
func LoadVerifier(path string) (note.Verifier, error) {
	b, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	v, err := ParseVerifier(b)
	if err != nil {
		return nil, fmt.Errorf("host key %s: %w", path, err)
	}
	return FollowFile(v, filepath.Join(filepath.Dir(path), KeysFile))
}

// ParseVerifier reads the exact bytes of a public key file.
func ParseVerifier(b []byte) (note.Verifier, error) {
	line, ok := strings.CutSuffix(string(b), "\n")
	if !ok {
		return nil, fmt.Errorf("no newline at the end: %w", ErrKey)
	}
	v, err := note.NewVerifier(line)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	head := fmt.Sprintf("%s+%08x+", v.Name(), v.KeyHash())
	raw, err := base64.StdEncoding.Strict().DecodeString(strings.TrimPrefix(line, head))
	if err != nil || line != head+base64.StdEncoding.EncodeToString(raw) {
		return nil, fmt.Errorf("not in its canonical form: %w", ErrKey)
	}
	return v, nil
}

func readKeyFile(path string) ([]byte, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxKeyFile {
		return nil, fmt.Errorf("host key %s: %s of %d bytes: %w", path, fi.Mode().Type(), fi.Size(), ErrKey)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, fmt.Errorf("host key %s: empty: %w", path, ErrKey)
	}
	return b, nil
}

// writeNew makes a file whole or not at all, and never over another.
func writeNew(path string, b []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
