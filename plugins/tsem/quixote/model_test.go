package quixote

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/outguard/outguard/plugins/tsem"
)

func value(n byte) tsem.ID { return tsem.ID{0: n, 31: 1} }

func hexOf(v tsem.ID) string { return hex.EncodeToString(v[:]) }

func load(t testing.TB, text string, o *LoadOptions) (*Loaded, error) {
	t.Helper()
	return LoadModel(strings.NewReader(text), o)
}

// A written model, loaded, is the same.
func TestWriteModel(t *testing.T) {
	paths, err := filepath.Glob("testdata/models/*.model")
	if err != nil || len(paths) != 8 {
		t.Fatalf("%d models, error %v", len(paths), err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		l, err := load(t, string(text), &LoadOptions{Unended: true})
		if err != nil {
			continue // state-after-seal
		}
		var out bytes.Buffer
		if err := WriteModel(&out, l.Model, nil); err != nil {
			t.Fatal(err)
		}
		again, err := load(t, out.String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if again.Model.Measurement() != l.Model.Measurement() || again.Model.State() != l.Model.State() ||
			again.Model.Sealed() != l.Model.Sealed() || len(again.Model.Pseudonyms()) != len(l.Model.Pseudonyms()) {
			t.Errorf("%s: written and loaded it differs", path)
		}
	}
}

// A model that learned without an aggregate is written with the one that it
// began with.
func TestWriteLearned(t *testing.T) {
	m := tsem.NewModel(0)
	for n := range byte(9) {
		if _, err := m.Update(value(n)); err != nil {
			t.Fatal(err)
		}
	}
	m.Seal()
	if _, err := m.Update(value(99)); err != nil {
		t.Fatal(err)
	}
	var all, valid bytes.Buffer
	if err := errors.Join(WriteModel(&all, m, &WriteOptions{Violations: true}), WriteModel(&valid, m, nil)); err != nil {
		t.Fatal(err)
	}
	l, err := load(t, all.String(), nil)
	if err != nil || l.Model.Measurement() != m.Measurement() || l.Model.State() != m.State() {
		t.Errorf("with the violations: %x, want %x, error %v", l.Model.Measurement(), m.Measurement(), err)
	}
	if l, err = load(t, valid.String(), nil); err != nil || len(l.Model.Points()) != 9 || !l.Model.Sealed() {
		t.Errorf("without: %d points, error %v", len(l.Model.Points()), err)
	}
}

func TestBrokenModels(t *testing.T) {
	v := hexOf(value(1))
	for _, c := range []struct {
		text string
		line int
		is   error
	}{
		{"end\n\n", 2, ErrUnknown},
		{"state " + v + "\nSEAL\nend\n", 2, ErrUnknown},
		{"state " + v + "\n", 1, ErrNoEnd},
		{"end\n# and on\n", 2, ErrNoEnd},
		{"seal\nstate " + v + "\nend\n", 2, tsem.ErrSealed},
		{"state " + v[:62] + "\nend\n", 1, ErrHex},
		{"state " + v + "00\nend\n", 1, ErrHex},
		{"state " + v + "\r\nend\n", 1, ErrHex},
		{"state  " + v + "\nend\n", 1, ErrHex},
		{"#\nbase " + v[:62] + "\nend\n", 2, ErrHex},
		{"aggregate " + v[:62] + "\nend\n", 1, ErrHex},
		{"pseudonym xy\nend\n", 1, ErrHex},
		{"state \nend\n", 1, ErrArgument},
		{"state\nend\n", 1, ErrUnknown},
		{"key QQ==\nkey QQ==\nend\n", 2, nil},
		{"end\nsignature QQ==\n", 2, nil},
		{"key QQ==\nend\nsignature QQ==\n", 3, nil},
	} {
		_, err := load(t, c.text, nil)
		var at *LineError
		if !errors.As(err, &at) || at.Line != c.line || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%q: %v, want %v in line %d", c.text, err, c.is, c.line)
		}
	}
	_, err := load(t, fmt.Sprintf("state %s\nstate %s\nend\n", v, hexOf(value(2))), &LoadOptions{MaxPoints: 1})
	if !errors.Is(err, tsem.ErrFull) {
		t.Errorf("a model of more points than there is room for: %v", err)
	}
}

// As in Quixote: commands are prefixes, more than 32 bytes are cut, an
// aggregate has no effect in a sealed model, and no path has a short pseudonym.
func TestOddModels(t *testing.T) {
	v, w := hexOf(value(1)), hexOf(value(2))
	same := func(a, b string) {
		t.Helper()
		l, err := load(t, a, nil)
		m, err2 := load(t, b, nil)
		if err != nil || err2 != nil || l.Model.Measurement() != m.Model.Measurement() || l.Model.Sealed() != m.Model.Sealed() {
			t.Errorf("%q and %q differ: %v, %v", a, b, err, err2)
		}
	}
	same("state "+v+"\nsealed for good\nend of file", "state "+v+"\nseal\nend\n")
	same("aggregate "+v+"ff\nend\n", "aggregate "+strings.ToUpper(v)+"\nend\n")
	same("base "+v+"ff\naggregate "+w+"\nend\n", "base "+v+"\naggregate "+w+"\nend\n")
	same("state "+v+"\nseal\naggregate ab\nend\n", "state "+v+"\nseal\nend\n")
	same("pseudonym ab\nend\n", "end\n")
}

func TestSignature(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	m := tsem.NewModel(0)
	for n := range byte(3) {
		if _, err := m.Update(value(n)); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := SignModel(&out, m, key, nil); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	if l, err := load(t, text, nil); err != nil || !l.Signed || l.Model.Measurement() != m.Measurement() {
		t.Errorf("%+v, error %v", l, err)
	}
	if _, err := load(t, text, &LoadOptions{Key: &key.PublicKey}); err != nil {
		t.Errorf("by the key that signed: %v", err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]struct {
		text string
		key  *rsa.PublicKey
		is   error
	}{
		"another key is pinned": {text, &other.PublicKey, ErrSignature},
		"unsigned":              {strings.Split(text, signatureCommand)[0], &key.PublicKey, ErrUnsigned},
		"a changed nibble":      {strings.Replace(text, "state 01", "state 11", 1), nil, ErrSignature},
		"a line less":           {strings.Replace(text, "state "+hexOf(value(1))+"\n", "", 1), nil, ErrSignature},
		"a comment more":        {strings.Replace(text, "aggregate", "# x\naggregate", 1), nil, ErrSignature},
		"twice":                 {text + signatureCommand + "QQ==\n", nil, nil},
	} {
		if _, err := load(t, bad.text, &LoadOptions{Key: bad.key}); err == nil || bad.is != nil && !errors.Is(err, bad.is) {
			t.Errorf("%s: %v, want %v", name, err, bad.is)
		}
	}
}

// FuzzLoadModel: no file breaks the loader, and what it loads it can write.
func FuzzLoadModel(f *testing.F) {
	paths, err := filepath.Glob("testdata/models/*.model")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("key QQ==\nend\nsignature QQ==\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := LoadModel(bytes.NewReader(text), &LoadOptions{MaxPoints: 64})
		if err != nil {
			return
		}
		var once, again bytes.Buffer
		if err := WriteModel(&once, l.Model, nil); err != nil {
			t.Fatal(err)
		}
		l, err = LoadModel(bytes.NewReader(once.Bytes()), nil)
		if err != nil {
			t.Fatalf("written: %v", err)
		}
		if err := WriteModel(&again, l.Model, nil); err != nil || !bytes.Equal(once.Bytes(), again.Bytes()) {
			t.Errorf("written once and twice it differs, error %v", err)
		}
	})
}
