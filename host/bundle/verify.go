package bundle

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/outguard/outguard/host/evidence"
)

// ErrChanged is wrapped by Verify's error where a bundle is not as it was
// written.
var ErrChanged = errors.New("bundle is not as it was written")

// Report is what Verify found.
type Report struct {
	Dir      string           `json:"dir"`
	Signer   string           `json:"signer"`             // the key it was held against: name and hash
	Manifest *Manifest        `json:"manifest,omitempty"` // as it stands there; to be believed only if OK
	Files    int              `json:"files"`              // verified, manifest and signature included
	Bytes    int64            `json:"bytes"`
	Evidence *evidence.Report `json:"evidence,omitempty"`
	Duration time.Duration    `json:"duration_ns"`
	Problems []Problem        `json:"problems,omitempty"` // every one that was found
}

// Problem is one thing that is not as it was written.
type Problem struct {
	Path   string `json:"path"` // in the bundle; may be a stranger's: escape before showing
	Reason string `json:"reason"`
}

func (p Problem) String() string { return Clean(p.Path) + ": " + p.Reason }

// OK says whether all is as it was written.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

// Verify holds a bundle against the host's key: the manifest's signature,
// every file's size and digest, that there is nothing else, and that the
// evidence verifies alone. It goes on after a problem, so that the report names
// all of them; the error then wraps ErrChanged.
func Verify(dir string, v note.Verifier) (Report, error) {
	return VerifyProgress(context.Background(), dir, v, nil)
}

// VerifyProgress is Verify that can be stopped and tells how far it is.
func VerifyProgress(ctx context.Context, dir string, v note.Verifier, progress func(part string, done, total int64)) (Report, error) {
	start := time.Now()
	c := &checker{ctx: ctx, dir: dir, v: v, progress: progress}
	c.r = Report{Dir: dir, Signer: fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash())}
	err := c.run()
	c.r.Duration = time.Since(start)
	return c.r, c.verdict(err)
}

type checker struct {
	ctx      context.Context
	dir      string
	v        note.Verifier
	progress func(string, int64, int64)
	r        Report
}

// verdict makes an error of what kept a bundle from being looked at, or of the
// first problem.
func (c *checker) verdict(err error) error {
	n := len(c.r.Problems)
	switch {
	case err != nil:
		return fmt.Errorf("verify bundle: %w", err)
	case n > 1:
		return fmt.Errorf("verify bundle %s: %s (and %d more): %w", c.r.Dir, c.r.Problems[0], n-1, ErrChanged)
	case n == 1:
		return fmt.Errorf("verify bundle %s: %s: %w", c.r.Dir, c.r.Problems[0], ErrChanged)
	}
	return nil
}

func (c *checker) problem(path, format string, args ...any) {
	c.r.Problems = append(c.r.Problems, Problem{path, fmt.Sprintf(format, args...)})
}

// run returns an error where the bundle cannot be looked at; what is wrong
// with it are problems.
func (c *checker) run() error {
	fi, err := os.Lstat(c.dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s: not a directory: %w", c.dir, ErrChanged)
	}
	c.follow()
	m := c.manifest()
	if m == nil {
		return nil
	}
	c.r.Manifest = m
	if err := c.strangers(m); err != nil {
		return err
	}
	for _, e := range m.Parts {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		c.part(e)
	}
	c.evidence(m)
	return nil
}

// follow takes the bundle's word for what succeeded the key that was brought: it
// is signed by that key. Who brings KeysFile along needs none.
func (c *checker) follow() {
	if _, known := c.v.(*evidence.Keyring); known {
		return
	}
	v, err := evidence.FollowFile(c.v, filepath.Join(c.dir, KeysPart))
	if err != nil {
		c.problem(KeysPart, "%s", reason(err))
		return
	}
	c.v = v
}

// manifest reads the manifest and its signature. It returns the manifest also
// where the signature is bad, so that the rest can be named.
func (c *checker) manifest() *Manifest {
	text, err := readBounded(filepath.Join(c.dir, ManifestName), MaxManifest)
	if err != nil {
		c.problem(ManifestName, "%s", reason(err))
		return nil
	}
	c.r.Files, c.r.Bytes = 1, int64(len(text))
	sig, err := readBounded(filepath.Join(c.dir, SigName), maxSig)
	if err != nil {
		c.problem(SigName, "%s", reason(err))
	} else {
		c.r.Files++
		c.r.Bytes += int64(len(sig))
		c.signature(text, sig)
	}
	m, err := ParseManifest(text)
	if err != nil {
		c.problem(ManifestName, "%s", err)
	}
	return m
}

func (c *checker) signature(text, sig []byte) {
	signed, err := evidence.OpenNote(sig, c.v)
	if err != nil {
		c.problem(SigName, "%s", err)
	} else if signed != signedText(text) {
		c.problem(ManifestName, "changed: it is not the text that %s signs (SHA-256 %s)", SigName, evidence.Hash(sha256.Sum256(text)))
	}
}

// strangers looks for what the manifest does not name.
func (c *checker) strangers(m *Manifest) error {
	known := map[string]bool{".": true, ManifestName: true, SigName: true}
	for _, e := range m.Parts {
		known[e.Path] = true
		for p := e.Path; ; {
			i := strings.LastIndexByte(p, '/')
			if i < 0 {
				break
			}
			p = p[:i]
			known[p+"/"] = true
		}
	}
	return fs.WalkDir(os.DirFS(c.dir), ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil && path == ".":
			return err
		case err != nil:
			c.problem(path, "%s", reason(err))
		case path == ".":
		case d.IsDir() && !known[path+"/"]:
			c.problem(path, "a directory that the manifest does not name")
			return fs.SkipDir
		case d.IsDir():
		case !d.Type().IsRegular():
			c.problem(path, "not a regular file: %s", d.Type())
		case !known[path]:
			c.problem(path, "a file that the manifest does not name")
		}
		return c.ctx.Err()
	})
}

func (c *checker) part(want Entry) {
	path := filepath.Join(c.dir, filepath.FromSlash(want.Path))
	f, err := openInside(c.dir, want.Path)
	if err != nil {
		c.problem(want.Path, "%s", reason(err))
		return
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Size() != want.Size {
		c.problem(want.Path, "%d bytes, want %d", fi.Size(), want.Size)
		return
	}
	got, err := digest(c.ctx, f, want.Path, c.progress, nil)
	switch {
	case err != nil:
		c.problem(want.Path, "%s", reason(err))
	case got != want:
		c.problem(want.Path, "changed: SHA-256 %s, want %s", got.SHA256, want.SHA256)
	case want.Path == PubPart && !c.samePub(path):
		c.problem(want.Path, "another key than %s", c.r.Signer)
	default:
		c.r.Files++
		c.r.Bytes += got.Size
	}
}

func (c *checker) samePub(path string) bool {
	v, err := evidence.LoadVerifier(path)
	return err == nil && evidence.Knows(c.v, v)
}

// evidence holds the range against the manifest: the signed head is of this VM,
// and the chain from before the first record leads to it.
func (c *checker) evidence(m *Manifest) {
	r, err := evidence.Verify(filepath.Join(c.dir, EvidencePart), c.v)
	c.r.Evidence = &r
	if err != nil {
		path := EvidencePart
		if r.Problem != nil && r.Problem.Segment != "" {
			path += "/" + r.Problem.Segment
			err = r.Problem
		}
		c.problem(path, "%s", reason(err))
		return
	}
	want := m.Evidence
	h, err := evidence.OpenHead([]byte(want.Head.Note), c.v)
	switch {
	case err != nil:
		c.problem(ManifestName, "%s", err)
	case h != want.Head.Head || r.Head == nil || h != *r.Head:
		c.problem(EvidencePart, "its last signed head is not the manifest's")
	case r.Unsigned != 0 || r.Next != want.Next || h.Records+1 != want.Next:
		c.problem(EvidencePart, "does not end at the signed head: %d records after it", r.Unsigned)
	case r.First != want.First || r.Before != want.Before:
		c.problem(EvidencePart, "starts at record %d, want %d, or from another chain", r.First, want.First)
	case r.Stream != m.VM:
		c.problem(EvidencePart, "is of stream %s, the manifest's VM is %s", r.Stream, m.VM)
	}
}

// openInside opens a part without following a link at any of its elements.
func openInside(dir, path string) (*os.File, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	for i, ch := range path + "/" {
		if ch != '/' {
			continue
		}
		fi, err := root.Lstat(path[:i])
		if err != nil {
			return nil, err
		}
		if want := i < len(path); fi.IsDir() != want || !want && !fi.Mode().IsRegular() {
			return nil, fmt.Errorf("%s: not a regular file: %w", path[:i], os.ErrInvalid)
		}
	}
	return root.Open(path)
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return b, err
}

// reason leaves the path of an error out where the problem names it already.
func reason(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "missing"
	}
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return pe.Op + ": " + pe.Err.Error()
	}
	return err.Error()
}
