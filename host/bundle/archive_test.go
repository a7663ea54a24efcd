package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/mod/sumdb/note"

	"github.com/outguard/outguard/host/evidence"
)

// packed is a small bundle in one file, and the bundle.
func packed(t testing.TB, opts *PackOptions) (f *fixture, dir, archive string) {
	t.Helper()
	f = setup(t)
	f.spec.From, f.spec.Timeline.Entries = 8, f.spec.Timeline.Entries[:1]
	dir = f.create(t)
	var b bytes.Buffer
	if err := Pack(t.Context(), dir, &b, opts); err != nil {
		t.Fatal(err)
	}
	return f, dir, put(t, b.Bytes())
}

func put(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x"+ArchiveSuffix)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// sameTree holds two bundles against each other, byte by byte.
func sameTree(t *testing.T, a, b string) {
	t.Helper()
	if x, y := files(t, a), files(t, b); !slices.Equal(x, y) {
		t.Errorf("%v and %v", x, y)
	}
	for _, name := range files(t, a) {
		x, err := os.ReadFile(filepath.Join(a, name))
		y, err2 := os.ReadFile(filepath.Join(b, name))
		if err != nil || err2 != nil || !bytes.Equal(x, y) {
			t.Errorf("%s: %d and %d bytes, %v, %v", name, len(x), len(y), err, err2)
		}
	}
}

func TestPackVerifyExtract(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		pack *PackOptions
		read *ArchiveOptions
	}{
		"plain":     {nil, nil},
		"encrypted": {&PackOptions{Recipients: []age.Recipient{id.Recipient()}}, &ArchiveOptions{Identities: []age.Identity{id}}},
	} {
		t.Run(name, func(t *testing.T) {
			f, dir, archive := packed(t, c.pack)
			v := f.key.Verifier()
			want, err := Verify(dir, v)
			if err != nil {
				t.Fatal(err)
			}
			r, err := VerifyArchive(t.Context(), archive, v, c.read)
			if err != nil || r.Files != want.Files || r.Bytes != want.Bytes || r.Evidence.Next != want.Evidence.Next || r.Dir != archive {
				t.Fatalf("%+v, %v, want as %+v", r, err, want)
			}
			into := t.TempDir()
			out, r, err := Extract(t.Context(), archive, into, v, c.read)
			if err != nil || out != filepath.Join(into, filepath.Base(dir)) || r.Dir != out {
				t.Fatalf("%s, %v", out, err)
			}
			sameTree(t, dir, out)
			if _, err := Verify(out, v); err != nil {
				t.Error(err)
			}
			if again, _, err := Extract(t.Context(), archive, into, v, c.read); err != nil || again != out+"-2" {
				t.Errorf("a second time: %s, %v", again, err)
			}
			if p, _ := Partial(into, ""); len(p) != 0 {
				t.Errorf("left %v", p)
			}
		})
	}
}

func TestEncryptedArchive(t *testing.T) {
	mine, err := age.GenerateX25519Identity()
	other, err2 := age.GenerateX25519Identity()
	if err = errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	f, _, archive := packed(t, &PackOptions{Recipients: []age.Recipient{mine.Recipient()}})
	b, err := os.ReadFile(archive)
	if err != nil || bytes.Contains(b, zstdMagic) || bytes.Contains(b, []byte("web_1")) || bytes.Contains(b, []byte(ManifestName)) {
		t.Errorf("something of it shows, %v", err)
	}
	for _, ids := range [][]age.Identity{nil, {other}} {
		if _, err := VerifyArchive(t.Context(), archive, f.key.Verifier(), &ArchiveOptions{Identities: ids}); !errors.Is(err, ErrEncrypted) {
			t.Errorf("%v", err)
		}
	}
}

// streamed reads a tar as VerifyArchive does, but for the evidence in it: the
// first problem is told.
func streamed(t testing.TB, dir string, v note.Verifier, plain io.Reader) error {
	t.Helper()
	u := newUnpacker(t, dir, v, plain)
	whole, err := u.stream()
	return outcome(t, u, whole, err)
}

// following reads what comes behind a manifest that was read.
func following(t testing.TB, dir string, v note.Verifier, m *Manifest, b []byte) error {
	t.Helper()
	u := newUnpacker(t, dir, v, bytes.NewReader(b))
	whole, err := u.rest(m)
	return outcome(t, u, whole, err)
}

func newUnpacker(t testing.TB, dir string, v note.Verifier, plain io.Reader) *unpacker {
	return &unpacker{checker: checker{ctx: t.Context(), dir: dir, v: v}, plain: plain, keep: func(p string) bool { return p == PubPart }}
}

func outcome(t testing.TB, u *unpacker, whole bool, err error) error {
	t.Helper()
	_ = os.Remove(filepath.Join(u.dir, PubPart))
	if err != nil {
		t.Fatal(err)
	}
	if err := u.verdict(nil); err != nil || whole {
		return err
	}
	t.Fatal("neither whole nor a problem")
	return nil
}

// TestEveryByteOfTheTar changes every byte of an archive's content, and appends
// and removes one.
func TestEveryByteOfTheTar(t *testing.T) {
	f, _, archive := packed(t, nil)
	whole := unzipped(t, archive)
	v, dir := f.key.Verifier(), t.TempDir()
	try := func(b []byte, what string, at int) {
		t.Helper()
		if err := streamed(t, dir, v, bytes.NewReader(b)); !errors.Is(err, ErrChanged) {
			t.Fatalf("%s at %d: %v", what, at, err)
		}
	}
	if err := streamed(t, dir, v, bytes.NewReader(whole)); err != nil {
		t.Fatal(err)
	}
	plain := bytes.NewReader(whole)
	m, err := newUnpacker(t, dir, v, plain).top()
	if err != nil {
		t.Fatal(err)
	}
	top := len(whole) - plain.Len()
	b := bytes.Clone(whole)
	for i := range whole {
		b[i] ^= 1 << (i % 8)
		if i < top {
			try(b, "a byte changed", i)
		} else if err := following(t, dir, v, m, b[top:]); !errors.Is(err, ErrChanged) { // the manifest is as it was
			t.Fatalf("a byte changed at %d: %v", i, err)
		}
		b[i] = whole[i]
	}
	try(append(bytes.Clone(whole), 0), "a zero appended", len(whole))
	try(append(bytes.Clone(whole), make([]byte, 512)...), "a block appended", len(whole))
	for _, n := range []int{0, 1, 511, 512, 1024, len(whole) / 2, len(whole) - 512, len(whole) - 1} {
		try(whole[:n], "cut", n)
	}
}

// TestEveryByteOfTheArchive: compression has bits that mean nothing. What a
// changed archive still yields is the bundle, to the last byte.
func TestEveryByteOfTheArchive(t *testing.T) {
	f, dir, archive := packed(t, nil)
	whole, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	v, temp, into, harmless := f.key.Verifier(), t.TempDir(), t.TempDir(), 0
	b := bytes.Clone(whole)
	for i := range whole {
		b[i] ^= 1 << (i % 8)
		plain, err := openArchive(bytes.NewReader(b), nil)
		if err == nil {
			err = streamed(t, temp, v, plain)
			plain.Close()
		}
		if err == nil {
			harmless++
			out, _, err := Extract(t.Context(), put(t, b), into, v, nil)
			if err != nil {
				t.Fatal(err)
			}
			sameTree(t, dir, out)
		}
		b[i] = whole[i]
	}
	t.Logf("%d of %d changes are of bits that mean nothing", harmless, len(whole))
}

func unzipped(t testing.TB, archive string) []byte {
	t.Helper()
	b, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	if b, err = z.DecodeAll(b, nil); err != nil {
		t.Fatal(err)
	}
	return b
}

var zipper, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))

func zipped(t testing.TB, b []byte) string { return put(t, zipper.EncodeAll(b, nil)) }

// TestHostileArchives: whatever a tar holds, only a bundle's own files are
// written, and where they belong.
func TestHostileArchives(t *testing.T) {
	f, _, archive := packed(t, nil)
	v := f.key.Verifier()
	read := func() (all []*tar.Header, content [][]byte) {
		r := tar.NewReader(bytes.NewReader(unzipped(t, archive)))
		for {
			h, err := r.Next()
			if err == io.EOF {
				return all, content
			}
			b, err2 := io.ReadAll(r)
			if err = errors.Join(err, err2); err != nil {
				t.Fatal(err)
			}
			all, content = append(all, h), append(content, b)
		}
	}
	for name, spoil := range map[string]func(all []*tar.Header, content [][]byte) ([]*tar.Header, [][]byte){
		"a path upwards":   func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) { h[3].Name = "../../escaped"; return h, c },
		"an absolute path": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) { h[3].Name = "/tmp/escaped"; return h, c },
		"upwards at the top": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			h[0].Name = "../manifest.json"
			return h, c
		},
		"another directory": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			h[1].Name = "other/manifest.sig"
			return h, c
		},
		"a link": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			h[2] = link(h[2], tar.TypeSymlink, "/etc/passwd")
			c[2] = nil
			return h, c
		},
		"a hard link": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			h[2] = link(h[2], tar.TypeLink, "/etc/passwd")
			c[2] = nil
			return h, c
		},
		"a device": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			h[2] = link(h[2], tar.TypeChar, "")
			c[2] = nil
			return h, c
		},
		"a directory": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			h[2] = link(h[2], tar.TypeDir, "")
			c[2] = nil
			return h, c
		},
		"a set-uid file": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) { h[3].Mode = 0o4755; return h, c },
		"another owner":  func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) { h[3].Uname = "root"; return h, c },
		"another time": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			h[3].ModTime = time.Unix(0, 0)
			return h, c
		},
		"an attribute": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			h[3].Format, h[3].PAXRecords = tar.FormatPAX, map[string]string{"SCHILY.xattr.user.a": "b"}
			return h, c
		},
		"a file more": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) { return append(h, h[3]), append(c, c[3]) },
		"a file less": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) { return h[:len(h)-1], c[:len(c)-1] },
		"two in another order": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			h[3], h[4], c[3], c[4] = h[4], h[3], c[4], c[3]
			return h, c
		},
		"a file twice": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			return slices.Insert(h, 3, h[2]), slices.Insert(c, 3, c[2])
		},
		"another manifest": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			c[0] = append(c[0], ' ')
			h[0].Size++
			return h, c
		},
		"a manifest that is no": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			c[0] = []byte("{}")
			h[0].Size = 2
			return h, c
		},
		"a content changed": func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) { c[4][0] ^= 1; return h, c },
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			heads, content := spoil(read())
			for i, h := range heads {
				if err := w.WriteHeader(h); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write(content[i]); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			path, into := zipped(t, b.Bytes()), filepath.Join(t.TempDir(), "a/b/c")
			if err := os.MkdirAll(into, 0o700); err != nil {
				t.Fatal(err)
			}
			out, r, err := Extract(t.Context(), path, into, v, nil)
			if !errors.Is(err, ErrChanged) || len(r.Problems) == 0 {
				t.Errorf("%s, %v, %+v", out, err, r.Problems)
			}
			if left, _ := filepath.Glob(into + "/../../../*/*/*/*"); len(left) != 0 {
				t.Errorf("left %v", left)
			}
			if _, err := os.Lstat("/tmp/escaped"); err == nil {
				t.Error("it came out")
			}
		})
	}
}

func link(h *tar.Header, kind byte, to string) *tar.Header {
	return &tar.Header{Typeflag: kind, Name: h.Name, Linkname: to, Mode: h.Mode, ModTime: h.ModTime, Format: h.Format}
}

// TestNotAnArchive: what is none is said to be none, and nothing is left of it.
func TestNotAnArchive(t *testing.T) {
	f, dir, _ := packed(t, nil)
	v := f.key.Verifier()
	for _, b := range []string{"", "x", strings.Repeat("text\n", 1000), "PK\x03\x04"} {
		if _, err := VerifyArchive(t.Context(), put(t, []byte(b)), v, nil); !errors.Is(err, ErrNotArchive) {
			t.Errorf("%.10q: %v", b, err)
		}
	}
	if _, err := VerifyArchive(t.Context(), zipped(t, []byte(strings.Repeat("text\n", 1000))), v, nil); !errors.Is(err, ErrChanged) {
		t.Errorf("no tar: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, DomainPart), []byte("<domain/ >"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := Pack(t.Context(), dir, io.Discard, nil); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), DomainPart) {
		t.Errorf("packed although it was changed: %v", err)
	}
}

func TestArchiveIsStopped(t *testing.T) {
	f, _, archive := packed(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	into := t.TempDir()
	_, _, err := Extract(ctx, archive, into, f.key.Verifier(), &ArchiveOptions{Progress: func(part string, _, _ int64) {
		if part == MemoryPart {
			cancel()
		}
	}})
	left, _ := os.ReadDir(into)
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrChanged) || len(left) != 0 {
		t.Errorf("%v, left %v", err, left)
	}
}

func TestArchiveOfAnotherHost(t *testing.T) {
	_, _, archive := packed(t, nil)
	other, err := evidence.LoadOrCreateKey(t.TempDir(), "other")
	if err != nil {
		t.Fatal(err)
	}
	into := t.TempDir()
	_, _, err = Extract(t.Context(), archive, into, other.Verifier(), nil)
	if left, _ := os.ReadDir(into); !errors.Is(err, ErrChanged) || len(left) != 0 {
		t.Errorf("%v, left %v", err, left)
	}
}

func FuzzArchive(f *testing.F) {
	fx, _, archive := packed(f, nil)
	whole := unzipped(f, archive)
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	v := fx.key.Verifier()
	f.Fuzz(func(t *testing.T, b []byte) {
		into := t.TempDir()
		archive := zipped(t, b)
		_, _, err := Extract(t.Context(), archive, into, v, nil)
		if s, shown := ShowArchive(t.Context(), archive, nil); (shown == nil) != (s != nil) || err == nil && shown != nil {
			t.Errorf("%+v, %v", s, shown)
		}
		if left, _ := os.ReadDir(into); (err != nil) != (len(left) == 0) || err == nil && !bytes.Equal(b, whole) {
			t.Errorf("%v, left %v", err, left)
		}
	})
}
