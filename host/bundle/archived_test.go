package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/outguard/outguard/host/evidence"
)

// archived is a bundle that was made an archive of, for id where it is not nil.
func archived(t testing.TB, id *age.X25519Identity) (f *fixture, path string) {
	t.Helper()
	f = setup(t)
	var opts *PackOptions
	if id != nil {
		opts = &PackOptions{Recipients: []age.Recipient{id.Recipient()}}
	}
	path, err := Archive(t.Context(), f.create(t), f.key, opts)
	if err != nil {
		t.Fatal(err)
	}
	return f, path
}

func left(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestArchive: the directory's place has an archive that verifies, and its label
// says what the manifest in it does, also where this host cannot read it.
func TestArchive(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	const name = "20261123T170100Z-web_1-f-1"
	for suffix, id := range map[string]*age.X25519Identity{ArchiveSuffix: nil, ArchiveSuffix + EncryptedSuffix: id} {
		f, path := archived(t, id)
		if path != filepath.Join(f.out, name+suffix) || strings.Join(left(t, f.out), " ") != name+suffix+" "+name+suffix+LabelSuffix {
			t.Errorf("%s, left %v", path, left(t, f.out))
		}
		if all, err := List(f.out); err != nil || len(all) != 1 || all[0] != path {
			t.Errorf("%v, %v", all, err)
		}
		opts := &ArchiveOptions{}
		if id != nil {
			opts.Identities = []age.Identity{id}
		}
		r, err := VerifyArchive(t.Context(), path, f.key.Verifier(), opts)
		if err != nil {
			t.Fatal(err)
		}
		l, err := ReadLabel(path, f.key.Verifier())
		if err != nil {
			t.Fatal(err)
		}
		m := r.Manifest
		if l.Name() != name || l.Encrypted() != (id != nil) || l.VM != m.VM || l.VMName != m.VMName || l.Finding != m.Finding ||
			l.Order != m.Order || !l.Created.Equal(m.Created) || l.Bytes <= 0 {
			t.Errorf("%+v of %+v", l, m)
		}
	}
}

// TestShowArchive: an archive shows what its directory does.
func TestShowArchive(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for _, opts := range []*PackOptions{nil, {Recipients: []age.Recipient{id.Recipient()}}} {
		_, dir, archive := packed(t, opts)
		want, err := Show(dir)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ShowArchive(t.Context(), archive, &ArchiveOptions{Identities: []age.Identity{id}})
		if err != nil {
			t.Fatal(err)
		}
		want.Dir = archive
		if a, b := mustJSON(t, want), mustJSON(t, got); a != b || got.Timeline == nil || got.Finding == nil {
			t.Errorf("%s\nwant %s", b, a)
		}
		if IsEncrypted(archive) != (opts != nil) {
			t.Errorf("encrypted: %t", opts == nil)
		}
	}
	_, _, archive := packed(t, &PackOptions{Recipients: []age.Recipient{id.Recipient()}})
	if s, err := ShowArchive(t.Context(), archive, nil); !errors.Is(err, ErrEncrypted) || s != nil {
		t.Errorf("%v", err)
	}
	for name, b := range map[string][]byte{"nothing": nil, "no archive": []byte("text"), "cut off": unzippedPrefix(t)} {
		if s, err := ShowArchive(t.Context(), put(t, b), nil); err == nil || s != nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// unzippedPrefix is an archive of which the end is missing.
func unzippedPrefix(t *testing.T) []byte {
	_, _, archive := packed(t, nil)
	whole := unzipped(t, archive)
	b, err := os.ReadFile(zipped(t, whole[:len(whole)/2]))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestVerifyLabelled: any byte of an archive that changes is noticed without an
// identity.
func TestVerifyLabelled(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	f, path := archived(t, id)
	v := f.key.Verifier()
	if l, err := VerifyLabelled(t.Context(), path, v, nil); err != nil || !HasLabel(path) || l.Size == 0 {
		t.Fatalf("%+v, %v", l, err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(whole); i += 97 {
		b := bytes.Clone(whole)
		b[i] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := VerifyLabelled(t.Context(), path, v, nil); !errors.Is(err, ErrChanged) || l != nil {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
}

// TestArchiveCutShort: what stops it leaves the directory, whole, and nothing
// else; an archive that is there is not written over.
func TestArchiveCutShort(t *testing.T) {
	f := setup(t)
	dir := f.create(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if path, err := Archive(ctx, dir, f.key, nil); !errors.Is(err, context.Canceled) || path != dir {
		t.Errorf("%s, %v", path, err)
	}
	if got := left(t, f.out); len(got) != 1 {
		t.Errorf("left %v", got)
	}
	if _, err := Verify(dir, f.key.Verifier()); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(dir+ArchiveSuffix, []byte("another's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if path, err := Archive(t.Context(), dir, f.key, nil); !errors.Is(err, fs.ErrExist) || path != dir {
		t.Errorf("%s, %v", path, err)
	}
	if b, err := os.ReadFile(dir + ArchiveSuffix); err != nil || string(b) != "another's" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestArchiveHasTheName: a bundle of the same name gets another, so that no two
// are taken for one.
func TestArchiveHasTheName(t *testing.T) {
	f, path := archived(t, nil)
	f.spec.Parts = f.spec.Parts[:2] // the memory was moved
	if dir := f.create(t); dir != strings.TrimSuffix(path, ArchiveSuffix)+"-2" {
		t.Errorf("%s beside %s", dir, path)
	}
}

// TestTidy: each state that a crash leaves comes to an end in which there is one
// bundle, and what Tidy does not know it leaves.
func TestTidy(t *testing.T) {
	f := setup(t)
	dir := f.create(t)
	whole := filepath.Join(t.TempDir(), "whole")
	if err := os.CopyFS(whole, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	path, err := Archive(t.Context(), dir, f.key, nil)
	if err != nil {
		t.Fatal(err)
	}
	again := func(t *testing.T, at string) {
		t.Helper()
		if err := os.CopyFS(at, os.DirFS(whole)); err != nil {
			t.Fatal(err)
		}
	}
	v, name := f.key.Verifier(), filepath.Base(dir)
	for what, c := range map[string]struct {
		do   func(t *testing.T, out string)
		want []string
	}{
		"packing": {func(t *testing.T, out string) {
			again(t, filepath.Join(out, name))
			_ = os.WriteFile(filepath.Join(out, packingPrefix+"1"), nil, 0o600)
		}, []string{name}},
		"labelled": {func(t *testing.T, out string) {
			again(t, filepath.Join(out, name))
			_ = os.Link(path+LabelSuffix, filepath.Join(out, name+ArchiveSuffix+LabelSuffix))
			_ = os.WriteFile(filepath.Join(out, packingPrefix+"1"), nil, 0o600)
		}, []string{name}},
		"packed": {func(t *testing.T, out string) {
			again(t, filepath.Join(out, name))
			_ = os.Link(path, filepath.Join(out, name+ArchiveSuffix))
			_ = os.Link(path+LabelSuffix, filepath.Join(out, name+ArchiveSuffix+LabelSuffix))
		}, []string{name + ArchiveSuffix, name + ArchiveSuffix + LabelSuffix}},
		"being removed": {func(t *testing.T, out string) {
			again(t, filepath.Join(out, packedPrefix+name))
			_ = os.Link(path, filepath.Join(out, name+ArchiveSuffix))
			_ = os.Link(path+LabelSuffix, filepath.Join(out, name+ArchiveSuffix+LabelSuffix))
		}, []string{name + ArchiveSuffix, name + ArchiveSuffix + LabelSuffix}},
		"another's archive": {func(t *testing.T, out string) {
			again(t, filepath.Join(out, name))
			_ = os.WriteFile(filepath.Join(out, name+ArchiveSuffix), []byte("x"), 0o600)
		}, []string{name, name + ArchiveSuffix}},
		"an archive of another": {func(t *testing.T, out string) {
			again(t, filepath.Join(out, name))
			_ = os.WriteFile(filepath.Join(out, name, ManifestName), nil, 0o600)
			_ = os.Link(path, filepath.Join(out, name+ArchiveSuffix))
			_ = os.Link(path+LabelSuffix, filepath.Join(out, name+ArchiveSuffix+LabelSuffix))
		}, []string{name, name + ArchiveSuffix, name + ArchiveSuffix + LabelSuffix}},
	} {
		t.Run(what, func(t *testing.T) {
			out := t.TempDir()
			c.do(t, out)
			for range 2 {
				if err := Tidy(out, v); err != nil {
					t.Fatal(err)
				}
				if got := left(t, out); strings.Join(got, " ") != strings.Join(c.want, " ") {
					t.Errorf("left %v, want %v", got, c.want)
				}
			}
		})
	}
	if err := Tidy(filepath.Join(f.out, "none"), v); err != nil {
		t.Error(err)
	}
}

// TestLabelEveryByte: a label with any byte changed is none, and neither is one of
// another host, or beside another file.
func TestLabelEveryByte(t *testing.T) {
	f, path := archived(t, nil)
	v := f.key.Verifier()
	whole, err := os.ReadFile(path + LabelSuffix)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1 << (i % 8)
		if l, err := ParseLabel(b, v); err == nil || l != nil {
			t.Fatalf("byte %d: %+v", i, l)
		}
	}
	other, err := evidence.LoadOrCreateKey(t.TempDir(), "test-host")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ReadLabel(path, other.Verifier()); !errors.Is(err, evidence.ErrSignature) {
		t.Errorf("another host's: %v", err)
	}
	elsewhere := filepath.Join(filepath.Dir(path), "x"+ArchiveSuffix)
	if err := errors.Join(os.Link(path, elsewhere), os.Link(path+LabelSuffix, elsewhere+LabelSuffix)); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadLabel(elsewhere, v); !errors.Is(err, ErrChanged) {
		t.Errorf("beside another: %v", err)
	}
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadLabel(path, v); !errors.Is(err, ErrChanged) {
		t.Errorf("cut off: %v", err)
	}
}

// FuzzLabel signs any text: refused, or what the host would have written.
func FuzzLabel(f *testing.F) {
	fx, path := archived(f, nil)
	v := fx.key.Verifier()
	l, err := ReadLabel(path, v)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(l.text())
	l.VMName, l.Finding = "web \u202e\n\"", ""
	f.Add(l.text())
	f.Fuzz(func(t *testing.T, text string) {
		signed, err := evidence.SignNote(text, fx.key)
		if err != nil {
			return
		}
		l, err := ParseLabel(signed, v)
		if (err == nil) != (l != nil) || err == nil && l.text() != text {
			t.Errorf("%+v, %v of %q", l, err, text)
		}
	})
}

// TestArchiveOfTwoKeys: the evidence in an archive may have heads of a key that the
// manifest's succeeded; who has that one alone follows to the other.
func TestArchiveOfTwoKeys(t *testing.T) {
	state := t.TempDir()
	key, err := evidence.LoadOrCreateKey(state, "test-host")
	if err != nil {
		t.Fatal(err)
	}
	store, err := evidence.Open(filepath.Join(state, evidence.StoreDir), key, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	stream, err := store.Stream(vm1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if _, err := stream.Append(evidence.KindFrame, at0, []byte("a frame")); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.SignHead(); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if _, err := store.RotateKey(state); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir, err := Create(t.Context(), t.TempDir(), &Spec{VM: vm1, VMName: "web", Finding: "f", Stream: stream.Dir(), From: 0, To: 3, Parts: []Part{{Path: DomainPart}}}, store.Key())
	if err != nil {
		t.Fatal(err)
	}
	path, err := Archive(t.Context(), dir, store.Key(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, public := range map[string]string{"first": key.Public, "present": store.Key().Public} {
		v, err := evidence.ParseVerifier([]byte(public + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		if r, err := VerifyArchive(t.Context(), path, v, nil); err != nil || r.Evidence.Heads != 2 {
			t.Errorf("by the %s key: %+v, %v", name, r, err)
		}
	}
}
