package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/host/evidence"
)

// ArchiveOptions say how an archive is read; nil and zero mean the documented
// defaults.
type ArchiveOptions struct {
	Identities []age.Identity // default: none, for an archive that is not encrypted
	Progress   func(part string, done, total int64)
}

// VerifyArchive is Verify of a bundle in one file, as it is read: what the archive
// has beside the bundle, or in another order, is a problem as well. The evidence
// in it is put into a directory of the machine's own for temporary files
// meanwhile.
func VerifyArchive(ctx context.Context, path string, v note.Verifier, opts *ArchiveOptions) (Report, error) {
	temp, err := os.MkdirTemp("", "outguard-verify-")
	if err != nil {
		return Report{}, fmt.Errorf("verify bundle: %w", err)
	}
	defer os.RemoveAll(temp)
	return readArchive(ctx, path, temp, v, opts, func(part string) bool {
		return part == PubPart || part == KeysPart || strings.HasPrefix(part, EvidencePart+"/")
	})
}

// Extract verifies a bundle in one file and makes of it a directory in into, which
// it returns: whole, or not at all. Nothing is written of an archive whose
// manifest v did not sign.
func Extract(ctx context.Context, path, into string, v note.Verifier, opts *ArchiveOptions) (string, Report, error) {
	temp, err := os.MkdirTemp(into, partialPrefix+"*")
	if err != nil {
		return "", Report{}, fmt.Errorf("extract bundle: %w", err)
	}
	dir, r, err := extract(ctx, path, temp, into, v, opts)
	if err != nil {
		return "", r, errors.Join(err, os.RemoveAll(temp))
	}
	return dir, r, nil
}

func extract(ctx context.Context, path, temp, into string, v note.Verifier, opts *ArchiveOptions) (string, Report, error) {
	r, err := readArchive(ctx, path, temp, v, opts, func(string) bool { return true })
	if err != nil {
		return "", r, err
	}
	if err := errors.Join(os.Chmod(temp, 0o750), syncTree(temp)); err != nil {
		return "", r, fmt.Errorf("extract bundle: %w", err)
	}
	dir, err := place(temp, filepath.Join(into, r.Manifest.Name()), nil)
	if err != nil {
		return "", r, fmt.Errorf("extract bundle: %w", err)
	}
	r.Dir = dir
	return dir, r, syncDir(into)
}

// readArchive goes through an archive once and verifies it; the parts that keep
// asks for are written under dir.
func readArchive(ctx context.Context, path, dir string, v note.Verifier, opts *ArchiveOptions, keep func(part string) bool) (Report, error) {
	if opts == nil {
		opts = &ArchiveOptions{}
	}
	start := time.Now()
	v = followArchive(ctx, path, v, opts)
	u := &unpacker{checker: checker{ctx: ctx, dir: dir, v: v, progress: opts.Progress}, keep: keep}
	u.r = Report{Dir: path, Signer: fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash())}
	err := u.read(path, opts.Identities)
	u.r.Duration = time.Since(start)
	return u.r, u.verdict(err)
}

// unpacker verifies an archive as it comes: everything in it but the parts'
// content follows from the manifest, and is compared byte by byte.
type unpacker struct {
	checker
	keep  func(string) bool
	plain io.Reader // the tar
}

// archivePath is the problem's path where the archive itself is not sound.
const archivePath = "archive"

func (u *unpacker) read(path string, identities []age.Identity) error {
	f, err := openRegular(path)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, err := openArchive(f, identities)
	if err != nil {
		return err
	}
	defer plain.Close()
	u.plain = plain
	whole, err := u.stream()
	if whole && err == nil {
		u.follow() // its heads may be of a key before
		u.evidence(u.r.Manifest)
	}
	return err
}

// stream reads the tar to its end, and returns whether it is a bundle's.
func (u *unpacker) stream() (bool, error) {
	m, err := u.top()
	if m == nil || err != nil {
		return false, err
	}
	u.r.Manifest = m
	if len(u.r.Problems) > 0 {
		return false, nil // not signed: nothing that follows is read, or written
	}
	return u.rest(m)
}

// rest reads what comes behind the manifest and its signature.
func (u *unpacker) rest(m *Manifest) (bool, error) {
	for _, e := range m.Parts {
		ok, err := u.entry(m, e)
		if !ok || err != nil {
			return false, err
		}
	}
	return true, u.end()
}

// broken notes what is wrong with the archive itself. An end of the context is no
// word about it.
func (u *unpacker) broken(part string, err error) error {
	if u.ctx.Err() != nil {
		return u.ctx.Err()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		u.problem(archivePath, "ends before the end of %s", part)
	} else {
		u.problem(archivePath, "at %s: %s", part, err)
	}
	return nil
}

// top reads the manifest and its signature, which come first, and keeps both
// where the signature is good.
func (u *unpacker) top() (*Manifest, error) {
	text, raw, err := u.small(ManifestName, MaxManifest)
	if err != nil {
		return nil, u.broken(ManifestName, err)
	}
	m, err := ParseManifest(text)
	if err != nil {
		u.problem(ManifestName, "%s", err)
		return nil, nil
	}
	if ok, err := u.framed(m, ManifestName, text, raw); !ok {
		return m, err
	}
	sig, raw, err := u.small(SigName, maxSig)
	if err != nil {
		return m, u.broken(SigName, err)
	}
	if ok, err := u.framed(m, SigName, sig, raw); !ok {
		return m, err
	}
	u.r.Files, u.r.Bytes = 2, int64(len(text)+len(sig))
	if u.signature(text, sig); len(u.r.Problems) > 0 {
		return m, nil
	}
	return m, errors.Join(u.write(ManifestName, text), u.write(SigName, sig))
}

// small reads a file whose size only its head says. raw is that head and the file.
func (u *unpacker) small(name string, limit int64) (b, raw []byte, err error) {
	var all bytes.Buffer
	r := tar.NewReader(io.TeeReader(u.plain, &all)) // reads no further than it is asked to
	h, err := r.Next()
	if err == nil && (h.Typeflag != tar.TypeReg || h.Size > limit || !strings.HasSuffix(h.Name, "/"+name)) {
		err = fmt.Errorf("%.300q of %d bytes is there: %w", h.Name, h.Size, ErrNotArchive)
	}
	if err != nil {
		return nil, nil, err
	}
	b, err = io.ReadAll(r)
	return b, all.Bytes(), err
}

// framed holds what stands around such a file against the manifest.
func (u *unpacker) framed(m *Manifest, name string, b, raw []byte) (bool, error) {
	if !bytes.Equal(raw, append(heading(m, name, int64(len(b))), b...)) {
		u.problem(name, "the archive has another head before it")
		return false, nil
	}
	return u.padding(name, int64(len(b)))
}

func (u *unpacker) write(path string, b []byte) error {
	if !u.keep(path) {
		return nil
	}
	return os.WriteFile(filepath.Join(u.dir, path), b, 0o640)
}

// heading is what an archive has before a file, as bytes.
func heading(m *Manifest, path string, size int64) []byte {
	var b bytes.Buffer
	_ = tar.NewWriter(&b).WriteHeader(head(m, path, size)) // into memory, and of names and sizes that it takes
	return b.Bytes()
}

// expect reads bytes that are known before. It returns false where there are
// others.
func (u *unpacker) expect(part string, want []byte) (bool, error) {
	got := make([]byte, len(want))
	if _, err := io.ReadFull(u.plain, got); err != nil {
		return false, u.broken(part, err)
	}
	if bytes.Equal(got, want) {
		return true, nil
	}
	if h, err := tar.NewReader(io.MultiReader(bytes.NewReader(got), u.plain)).Next(); err == nil {
		u.problem(part, "the archive has something else in its place: %.300q of type %q and %d bytes", h.Name, h.Typeflag, h.Size)
	} else {
		u.problem(part, "the archive has something else in its place")
	}
	return false, nil
}

const tarBlock = 512

// padding reads the zeros behind a file.
func (u *unpacker) padding(part string, size int64) (bool, error) {
	return u.expect(part, make([]byte, -size&(tarBlock-1)))
}

// entry reads the part that is due. It returns false where what follows cannot be
// told from what should.
func (u *unpacker) entry(m *Manifest, want Entry) (bool, error) {
	if ok, err := u.expect(want.Path, heading(m, want.Path, want.Size)); !ok {
		return false, err
	}
	out, err := u.out(want)
	if err != nil {
		return false, err
	}
	sum := sha256.New()
	read, write := u.copy(want, io.MultiWriter(sum, out))
	if err := errors.Join(write, out.end(want.Size)); err != nil {
		return false, err
	}
	if read != nil {
		return false, u.broken(want.Path, read)
	}
	if ok, err := u.padding(want.Path, want.Size); !ok {
		return false, err
	}
	switch got := evidence.Hash(sum.Sum(nil)); {
	case got != want.SHA256:
		u.problem(want.Path, "changed: SHA-256 %s, want %s", got, want.SHA256)
	case want.Path == PubPart && !u.samePub(filepath.Join(u.dir, PubPart)):
		u.problem(want.Path, "another key than %s", u.r.Signer)
	default:
		u.r.Files++
		u.r.Bytes += want.Size
	}
	return true, nil
}

// copy reads a part's bytes.
func (u *unpacker) copy(want Entry, to io.Writer) (read, write error) {
	buf := make([]byte, min(chunk, want.Size))
	for done := int64(0); done < want.Size; {
		if err := u.ctx.Err(); err != nil {
			return err, nil
		}
		n, err := io.ReadFull(u.plain, buf[:min(int64(len(buf)), want.Size-done)])
		if err != nil {
			return err, nil
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return nil, err
		}
		done += int64(n)
		if u.progress != nil {
			u.progress(want.Path, done, want.Size)
		}
	}
	return nil, nil
}

// end holds that nothing follows the last part but a tar's end.
func (u *unpacker) end() error {
	if ok, err := u.expect(archivePath, make([]byte, 2*tarBlock)); !ok {
		return err
	}
	switch n, err := io.ReadFull(u.plain, make([]byte, 1)); {
	case n > 0:
		u.problem(archivePath, "goes on behind its end")
	case err != io.EOF:
		return u.broken("its end", err)
	}
	return nil
}

// part is where a part goes: a file, sparse as it was, or nowhere.
type part struct {
	sparseWriter
}

func (p *part) Write(b []byte) (int, error) {
	if p.f == nil {
		return len(b), nil
	}
	return p.sparseWriter.Write(b)
}

func (p *part) end(size int64) error {
	if p.f == nil {
		return nil
	}
	return errors.Join(p.f.Truncate(size), p.f.Close())
}

// out makes the file of a part. Its path is the manifest's, of letters that are
// safe, and in a directory that was made here.
func (u *unpacker) out(e Entry) (*part, error) {
	if !u.keep(e.Path) {
		return &part{}, nil
	}
	path := filepath.Join(u.dir, filepath.FromSlash(e.Path))
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return nil, err
	}
	return &part{sparseWriter{f: f}}, nil
}
