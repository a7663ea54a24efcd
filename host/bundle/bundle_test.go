package bundle

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"github.com/outguard/outguard/host/evidence"
)

var (
	vm1 = uuid.MustParse("6f1d7f5e-3c0a-4b0e-9a53-0d8a2b0f6c11")
	at0 = time.Date(2026, 11, 23, 17, 0, 0, 0, time.UTC)
)

type fixture struct {
	key    *evidence.Key
	stream *evidence.Stream
	spec   Spec
	out    string
}

func setup(t testing.TB) *fixture {
	t.Helper()
	key, err := evidence.LoadOrCreateKey(t.TempDir(), "test-host")
	if err != nil {
		t.Fatal(err)
	}
	return setupWith(t, key)
}

func setupWith(t testing.TB, key *evidence.Key) *fixture {
	t.Helper()
	store, err := evidence.Open(t.TempDir(), key, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	st, err := store.Stream(vm1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if _, err := st.Append(evidence.KindFrame, at0.Add(time.Duration(i)*time.Second), []byte("a frame")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := st.SignHead(); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Append(evidence.KindNote, at0, []byte("later")); err != nil {
		t.Fatal(err)
	}
	memory := filepath.Join(t.TempDir(), "dump")
	if err := os.WriteFile(memory, append(make([]byte, 100), "memory"...), 0o600); err != nil {
		t.Fatal(err)
	}
	f := &fixture{key: key, stream: st, out: t.TempDir()}
	f.spec = Spec{
		Host: "test-host", VM: vm1, VMName: "web 1", Finding: "f-1", Received: at0, Created: at0.Add(time.Minute),
		Stream: st.Dir(), From: 4, To: 8, Timeline: exampleTimeline(),
		Parts: []Part{
			{Path: FindingPart, Data: []byte(`{"id":"f-1"}`)},
			{Path: DomainPart, Data: []byte("<domain/>")},
			{Path: MemoryPart, Source: memory},
		},
	}
	return f
}

func (f *fixture) create(t testing.TB) string {
	t.Helper()
	dir, err := Create(t.Context(), f.out, &f.spec, f.key)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestCreateVerifyShow(t *testing.T) {
	f := setup(t)
	dir := f.create(t)
	if want := "20261123T170100Z-web_1-f-1"; filepath.Base(dir) != want {
		t.Errorf("name %s, want %s", filepath.Base(dir), want)
	}
	rep, err := Verify(dir, f.key.Verifier())
	if err != nil || rep.Evidence.First != 4 || rep.Evidence.Next != 11 || rep.Files != 2+len(rep.Manifest.Parts) {
		t.Fatalf("%+v, %v", rep, err)
	}
	if _, err := os.Lstat(f.spec.Parts[2].Source); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("memory was not moved: %v", err)
	}
	s, err := Show(dir)
	if err != nil || s.Timeline.Finding != "f-1" || string(s.Finding) != `{"id":"f-1"}` {
		t.Errorf("show %+v, %v", s, err)
	}
	if l, err := List(f.out); err != nil || len(l) != 1 || l[0] != dir {
		t.Errorf("list %v, %v", l, err)
	}
	other, err := evidence.LoadOrCreateKey(t.TempDir(), "test-host")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(dir, other.Verifier()); !errors.Is(err, ErrChanged) {
		t.Errorf("verified with another key: %v", err)
	}
}

// mustNotice verifies a changed bundle and wants the path among its problems.
func mustNotice(t *testing.T, f *fixture, dir, path, what string) {
	t.Helper()
	rep, err := Verify(dir, f.key.Verifier())
	if !errors.Is(err, ErrChanged) {
		t.Fatalf("%s: %s: not noticed: %v", path, what, err)
	}
	for _, p := range rep.Problems {
		if strings.HasPrefix(p.Path, path) || path == SigName && p.Path == ManifestName {
			return
		}
	}
	t.Fatalf("%s: %s: report names only %v", path, what, rep.Problems)
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if !d.IsDir() {
			all = append(all, path)
		}
		return err
	})
	if err != nil || len(all) < 8 {
		t.Fatal(all, err)
	}
	return all
}

// TestEveryByte changes every byte of every file, and appends and removes one.
func TestEveryByte(t *testing.T) {
	f := setup(t)
	f.spec.From, f.spec.Timeline.Entries = 8, f.spec.Timeline.Entries[:1] // small: each byte is a verification
	dir := f.create(t)
	for _, name := range files(t, dir) {
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		try := func(b []byte, what string) {
			if err := os.WriteFile(path, b, 0o640); err != nil {
				t.Fatal(err)
			}
			mustNotice(t, f, dir, name, what)
		}
		for i := range whole {
			b := bytes.Clone(whole)
			b[i] ^= 1 << (i % 8)
			try(b, "a byte changed")
		}
		try(append(bytes.Clone(whole), '\n'), "a newline appended")
		try(append(bytes.Clone(whole), 0), "a zero appended")
		try(whole[:len(whole)-1], "the last byte removed")
		try(nil, "emptied")
		if err := os.WriteFile(path, whole, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Verify(dir, f.key.Verifier()); err != nil {
		t.Fatal(err)
	}
}

func TestStrangers(t *testing.T) {
	f := setup(t)
	dir := f.create(t)
	in := func(p string) string { return filepath.Join(dir, p) }
	for _, c := range []struct {
		path     string
		do, undo func() error
	}{
		{"new", func() error { return os.WriteFile(in("new"), nil, 0o600) }, func() error { return os.Remove(in("new")) }},
		{"evidence/new", func() error { return os.WriteFile(in("evidence/new"), nil, 0o600) }, func() error { return os.Remove(in("evidence/new")) }},
		{".hidden", func() error { return os.WriteFile(in(".hidden"), nil, 0o600) }, func() error { return os.Remove(in(".hidden")) }},
		{"empty", func() error { return os.Mkdir(in("empty"), 0o700) }, func() error { return os.Remove(in("empty")) }},
		{"link", func() error { return os.Symlink(MemoryPart, in("link")) }, func() error { return os.Remove(in("link")) }},
		{"fifo", func() error { return syscall.Mkfifo(in("fifo"), 0o600) }, func() error { return os.Remove(in("fifo")) }},
		{DomainPart, func() error { return os.Rename(in(DomainPart), in("other.xml")) }, func() error { return os.Rename(in("other.xml"), in(DomainPart)) }},
		{ManifestName, func() error { return os.Rename(in(ManifestName), in("m")) }, func() error { return os.Rename(in("m"), in(ManifestName)) }},
		{SigName, func() error { return os.Rename(in(SigName), in("m")) }, func() error { return os.Rename(in("m"), in(SigName)) }},
		{
			DomainPart, // the right bytes, but through a link
			func() error {
				return errors.Join(os.Rename(in(DomainPart), dir+".x"), os.Symlink(dir+".x", in(DomainPart)))
			},
			func() error { return errors.Join(os.Remove(in(DomainPart)), os.Rename(dir+".x", in(DomainPart))) },
		},
		{
			EvidencePart,
			func() error {
				return errors.Join(os.Rename(in(EvidencePart), dir+".e"), os.Symlink(dir+".e", in(EvidencePart)))
			},
			func() error { return errors.Join(os.Remove(in(EvidencePart)), os.Rename(dir+".e", in(EvidencePart))) },
		},
		{
			DomainPart, // a fifo in its place must not make Verify wait
			func() error {
				return errors.Join(os.Rename(in(DomainPart), dir+".x"), syscall.Mkfifo(in(DomainPart), 0o600))
			},
			func() error { return errors.Join(os.Remove(in(DomainPart)), os.Rename(dir+".x", in(DomainPart))) },
		},
	} {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		mustNotice(t, f, dir, c.path, "changed")
		if err := c.undo(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Verify(dir, f.key.Verifier()); err != nil {
		t.Fatal(err)
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	for name, spoil := range map[string]func(*fixture) context.Context{
		"no head after the range": func(f *fixture) context.Context { f.spec.To = 11; return context.Background() },
		"missing part": func(f *fixture) context.Context {
			f.spec.Parts = append(f.spec.Parts, Part{Path: "disks/vda", Source: "/nonexistent"})
			return context.Background()
		},
		"bad path": func(f *fixture) context.Context {
			f.spec.Parts = append(f.spec.Parts, Part{Path: "../x", Data: nil})
			return context.Background()
		},
		"stopped": func(f *fixture) context.Context {
			ctx, cancel := context.WithCancel(context.Background())
			f.spec.Progress = func(part string, _, _ int64) {
				if part == MemoryPart {
					cancel()
				}
			}
			return ctx
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := setup(t)
			ctx := spoil(f)
			if dir, err := Create(ctx, f.out, &f.spec, f.key); err == nil {
				t.Fatalf("made %s", dir)
			}
			if p, err := Partial(f.out, ""); err != nil || len(p) != 0 {
				t.Errorf("left %v, %v", p, err)
			}
			if _, err := os.Stat(f.spec.Parts[2].Source); err != nil {
				t.Errorf("the memory is gone: %v", err)
			}
		})
	}
}

func TestSameNameTwice(t *testing.T) {
	f := setup(t)
	first := f.create(t)
	f.spec.Parts = f.spec.Parts[:2]
	if second := f.create(t); second != first+"-2" {
		t.Errorf("%s after %s", second, first)
	}
	for _, dir := range []string{first, first + "-2"} {
		if _, err := Verify(dir, f.key.Verifier()); err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkCreateVerify(b *testing.B) {
	f := setup(b)
	big := filepath.Join(b.TempDir(), "memory")
	const size = 64 << 20
	if err := os.WriteFile(big, bytes.Repeat([]byte("memory! "), size/8), 0o600); err != nil {
		b.Fatal(err)
	}
	f.spec.Parts[2].Source = big
	b.SetBytes(size)
	var dir string
	for b.Loop() {
		if dir != "" {
			f.spec.Parts[2].Source = filepath.Join(dir, MemoryPart)
		}
		var err error
		if dir, err = Create(b.Context(), f.out, &f.spec, f.key); err != nil {
			b.Fatal(err)
		}
	}
	start := time.Now()
	if _, err := Verify(dir, f.key.Verifier()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(size/1e6/time.Since(start).Seconds(), "verify-MB/s")
}

func TestCopyLeavesTheSource(t *testing.T) {
	f := setup(t)
	disk := filepath.Join(t.TempDir(), "vda")
	if err := os.WriteFile(disk, append(make([]byte, 1<<20), "end"...), 0o600); err != nil {
		t.Fatal(err)
	}
	f.spec.Parts = append(f.spec.Parts, Part{Path: "disks/vda", Source: disk, Copy: true})
	dir := f.create(t)
	if _, err := Verify(dir, f.key.Verifier()); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(filepath.Join(dir, "disks/vda"))
	if err != nil || fi.Size() != 1<<20+3 || fi.Sys().(*syscall.Stat_t).Blocks*512 > 256<<10 {
		t.Errorf("%+v, %v", fi, err)
	}
	if _, err := os.Stat(disk); err != nil {
		t.Error(err)
	}
}

func exampleTimeline() *Timeline {
	t := &Timeline{VM: vm1, VMName: "web 1", Finding: "f-1", Received: at0, Hook: at0.Add(-2500 * time.Microsecond)}
	t.Add(at0, StepReceived, "frame 812, 3 records")
	t.Add(at0.Add(-2500*time.Microsecond), StepEvent, "bprm_committed_creds pid 812",
		Fact{"comm", "sh\x1b[2J"}, Fact{"path", "/tmp/\u202eexe"})
	t.Add(at0.Add(120*time.Microsecond), StepFinding, "tsem/violation, high: a point that the model does not have")
	t.Add(at0.Add(4200*time.Microsecond), StepPaused, "vCPUs stopped")
	t.Add(at0.Add(1730*time.Millisecond), StepCaptured, "memory\x07 512 MiB, 1 disk")
	t.Sort()
	return t
}

func TestTimelineText(t *testing.T) {
	want := `Finding f-1 in web 1 (6f1d7f5e-3c0a-4b0e-9a53-0d8a2b0f6c11)
Times are the host's, UTC, on 2026-11-23.

TIME             SINCE FRAME  SINCE HOOK  WHAT
16:59:59.997500  -2.50 ms     +0 us       event     bprm_committed_creds pid 812 comm="sh\x1b[2J" path="/tmp/\u202eexe"
17:00:00.000000  +0 us        +2.50 ms    received  frame 812, 3 records
17:00:00.000120  +120 us      +2.62 ms    finding   tsem/violation, high: a point that the model does not have
17:00:00.004200  +4.20 ms     +6.70 ms    paused    vCPUs stopped
17:00:01.730000  +1.730 s     +1.732 s    captured  memory\a 512 MiB, 1 disk
`
	if got := exampleTimeline().Text(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func FuzzParseManifest(f *testing.F) {
	fx := setup(f)
	dir, err := Create(f.Context(), fx.out, &fx.spec, fx.key)
	if err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, ManifestName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"format":1,"parts":[{"path":"../x","size":1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseManifest(b)
		if err != nil {
			if m != nil {
				t.Error("a manifest beside an error")
			}
			return
		}
		again, err := m.Append(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%v, %q", err, again)
		}
		for _, p := range m.Parts {
			if !filepath.IsLocal(p.Path) {
				t.Errorf("path %q", p.Path)
			}
		}
	})
}

func TestManifestPaths(t *testing.T) {
	for _, p := range []string{"", ".", "..", "a/../b", "/a", "a//b", "a/", "./a", "a\x00", "a b", ".a", "a/.b", "é", `a\b`, ManifestName, SigName, strings.Repeat("a", 256)} {
		if checkPath(p) == nil {
			t.Errorf("%q is taken", p)
		}
	}
	m := Manifest{Format: Format, Parts: []Entry{{Path: "a"}, {Path: "a/b"}}}
	if err := m.check(); !errors.Is(err, ErrManifest) {
		t.Errorf("file and directory: %v", err)
	}
}

// TestRotatedKey: bundles from before and after the host's key was rotated verify
// by the key that somebody took away at the beginning, by the present one, and by
// nobody else's; and one that names a successor which that key has not signed does not.
func TestRotatedKey(t *testing.T) {
	state := t.TempDir()
	var pinned note.Verifier
	var dirs []string
	for i := range 3 {
		key, err := evidence.LoadOrCreateKey(state, "test-host")
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			pinned = key.Verifier()
		}
		f := setupWith(t, key)
		dirs = append(dirs, f.create(t))
		if _, err := evidence.RotateKey(state, time.Now().Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	present, err := evidence.LoadVerifier(filepath.Join(state, evidence.PubFile))
	if err != nil {
		t.Fatal(err)
	}
	other, err := evidence.LoadOrCreateKey(t.TempDir(), "test-host")
	if err != nil {
		t.Fatal(err)
	}
	for i, dir := range dirs {
		for name, v := range map[string]note.Verifier{"pinned": pinned, "present": present} {
			if rep, err := Verify(dir, v); err != nil {
				t.Errorf("bundle %d by the %s key: %+v, %v", i, name, rep.Problems, err)
			}
		}
		if _, err := Verify(dir, other.Verifier()); !errors.Is(err, ErrChanged) {
			t.Errorf("bundle %d by another host's key: %v", i, err)
		}
		var b bytes.Buffer
		if err := Pack(t.Context(), dir, &b, nil); err != nil {
			t.Fatal(err)
		}
		archive := put(t, b.Bytes())
		for name, v := range map[string]note.Verifier{"pinned": pinned, "present": present} {
			if rep, err := VerifyArchive(t.Context(), archive, v, nil); err != nil {
				t.Errorf("archive %d by the %s key: %+v, %v", i, name, rep.Problems, err)
			}
		}
		if _, err := VerifyArchive(t.Context(), archive, other.Verifier(), nil); !errors.Is(err, ErrChanged) {
			t.Errorf("archive %d by another host's key: %v", i, err)
		}
	}
	path := filepath.Join(dirs[2], KeysPart)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(dirs[2], pinned); !errors.Is(err, ErrChanged) {
		t.Errorf("with another successor: %v", err)
	}
}
