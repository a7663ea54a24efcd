package evidence

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

func TestKeyFiles(t *testing.T) {
	dir := t.TempDir()
	k, err := LoadOrCreateKey(dir, "host.example")
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{KeyFile: 0o600, PubFile: 0o644} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Mode() != mode {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}
	again, err := LoadOrCreateKey(dir, "another.name")
	if err != nil || again.Public != k.Public {
		t.Errorf("made anew: %v", err)
	}
	v, err := LoadVerifier(filepath.Join(dir, PubFile))
	if err != nil || v.KeyHash() != k.KeyHash() {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if err := os.Remove(filepath.Join(dir, PubFile)); err != nil {
		t.Fatal(err)
	}
	if again, err = LoadOrCreateKey(dir, "x"); err != nil || again.Public != k.Public {
		t.Errorf("public half not restored: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, KeyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err = LoadOrCreateKey(dir, "x"); !errors.Is(err, ErrKey) {
		t.Errorf("a new key beside the old public half: %v", err)
	}
}

// TestKeyFilesToTheByte changes every byte of both files, and appends some.
func TestKeyFilesToTheByte(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadOrCreateKey(dir, "host.example"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{KeyFile, PubFile} {
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		variants := []string{"", "\n", string(whole) + "\n", string(whole) + " ", " " + string(whole), strings.TrimSuffix(string(whole), "\n"), strings.Repeat("x", 2000)}
		for i := range whole {
			for bit := range 8 {
				b := []byte(string(whole))
				b[i] ^= 1 << bit
				variants = append(variants, string(b))
			}
		}
		for _, s := range variants {
			if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadOrCreateKey(dir, "x"); !errors.Is(err, ErrKey) {
				t.Fatalf("%s: %q: %v", name, s, err)
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, KeyFile), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(filepath.Join(dir, KeyFile)); !errors.Is(err, ErrKey) {
		t.Errorf("a key that others can read: %v", err)
	}
	if _, err := LoadVerifier(dir); !errors.Is(err, ErrKey) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := LoadVerifier(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// TestNoteToTheByte takes no variant of a signed note, such as loose bits at
// the end of its base64, that note.Open would.
func TestNoteToTheByte(t *testing.T) {
	k := testKey(t)
	signed, err := SignNote("a text\n", k)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := OpenNote(signed, k.Verifier()); err != nil || text != "a text\n" {
		t.Fatal(text, err)
	}
	for i := range signed {
		for bit := range 8 {
			b := []byte(string(signed))
			b[i] ^= 1 << bit
			if _, err := OpenNote(b, k.Verifier()); !errors.Is(err, ErrSignature) {
				t.Fatalf("byte %d, bit %d: %q", i, bit, b)
			}
		}
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	loose := []byte(string(signed))
	last := len(loose) - len("=\n") - 1
	loose[last] = alphabet[strings.IndexByte(alphabet, loose[last])+1]
	if _, err := note.Open(loose, note.VerifierList(k.Verifier())); err != nil {
		t.Errorf("note.Open is strict by itself now: %v", err)
	}
	if _, err := OpenNote(loose, k.Verifier()); !errors.Is(err, ErrSignature) {
		t.Errorf("loose bits: %v", err)
	}
	other := testKey(t)
	both, err := note.Sign(&note.Note{Text: "a text\n"}, k, other)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenNote(both, k.Verifier()); !errors.Is(err, ErrSignature) {
		t.Errorf("a second signature: %v", err)
	}
}
