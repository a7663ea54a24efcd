package bundle

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

// A bundle in one file is a tar, compressed by zstd, and where it has recipients
// encrypted by age. It holds nothing but regular files, each with the same head
// but for name and size: manifest.json, manifest.sig, then every part in the
// manifest's order, as <bundle's name>/<part>. Whatever else is in one is not of
// a bundle.
const (
	ArchiveSuffix   = ".tar.zst"
	EncryptedSuffix = ".age"
)

// PackOptions of one archive; nil and zero mean the documented defaults.
type PackOptions struct {
	Recipients []age.Recipient // who can read it; default: everybody
	Progress   func(part string, done, total int64)
}

// Pack writes the bundle in dir to w. It reads every byte once and holds it
// against the manifest: a bundle that is not as it was written is ErrChanged, and
// what was written then is no archive.
func Pack(ctx context.Context, dir string, w io.Writer, opts *PackOptions) error {
	if opts == nil {
		opts = &PackOptions{}
	}
	if err := pack(ctx, dir, w, opts); err != nil {
		return fmt.Errorf("pack %s: %w", dir, err)
	}
	return nil
}

func pack(ctx context.Context, dir string, w io.Writer, opts *PackOptions) (err error) {
	text, err := readBounded(filepath.Join(dir, ManifestName), MaxManifest)
	if err != nil {
		return err
	}
	m, err := ParseManifest(text)
	if err != nil {
		return err
	}
	sig, err := readBounded(filepath.Join(dir, SigName), maxSig)
	if err != nil {
		return err
	}
	var ends []io.Closer // the innermost last
	if len(opts.Recipients) > 0 {
		enc, err := age.Encrypt(w, opts.Recipients...)
		if err != nil {
			return fmt.Errorf("encrypt: %w", err)
		}
		w, ends = enc, append(ends, enc)
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return err
	}
	p := &packer{ctx: ctx, dir: dir, tar: tar.NewWriter(z), progress: opts.Progress}
	ends = append(ends, z, p.tar)
	if err := p.all(m, text, sig); err != nil {
		_ = z.Close() // ends its goroutines
		return err
	}
	for len(ends) > 0 {
		last := ends[len(ends)-1]
		if err := last.Close(); err != nil {
			return err
		}
		ends = ends[:len(ends)-1]
	}
	return nil
}

type packer struct {
	ctx      context.Context
	dir      string
	tar      *tar.Writer
	progress func(string, int64, int64)
}

func (p *packer) all(m *Manifest, text, sig []byte) error {
	for _, f := range []struct {
		path string
		b    []byte
	}{{ManifestName, text}, {SigName, sig}} {
		if err := p.tar.WriteHeader(head(m, f.path, int64(len(f.b)))); err != nil {
			return err
		}
		if _, err := p.tar.Write(f.b); err != nil {
			return err
		}
	}
	for _, e := range m.Parts {
		if err := p.part(m, e); err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
	}
	return nil
}

// head is what an archive has before a file: all of it follows from the manifest.
func head(m *Manifest, path string, size int64) *tar.Header {
	return &tar.Header{
		Typeflag: tar.TypeReg, Name: m.Name() + "/" + path, Size: size, Mode: 0o640,
		ModTime: m.Created.Truncate(time.Second), Format: tar.FormatPAX,
	}
}

func (p *packer) part(m *Manifest, want Entry) error {
	f, err := openInside(p.dir, want.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || fi.Size() != want.Size {
		return errors.Join(err, fmt.Errorf("%d bytes, want %d: %w", fi.Size(), want.Size, ErrChanged))
	}
	if err := p.tar.WriteHeader(head(m, want.Path, want.Size)); err != nil {
		return err
	}
	got, err := digest(p.ctx, f, want.Path, p.progress, p.tar)
	if err == nil && got != want {
		err = fmt.Errorf("SHA-256 %s, want %s: %w", got.SHA256, want.SHA256, ErrChanged)
	}
	return err
}

// ErrEncrypted: the archive is for recipients, and no identity was given, or none
// that it is for.
var ErrEncrypted = errors.New("the archive is encrypted, and no identity opens it")

// ErrNotArchive: the file is no bundle's archive.
var ErrNotArchive = errors.New("not a bundle's archive")

var (
	ageMagic  = []byte("age-encryption.org/")
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// maxWindow bounds what an archive can have its reader hold: what Pack writes
// needs 8 MiB.
const maxWindow = 64 << 20

// openArchive returns the tar in an archive. What comes of age or zstd is an error
// of the returned reader.
func openArchive(r io.Reader, identities []age.Identity) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	if start, _ := b.Peek(len(ageMagic)); bytes.Equal(start, ageMagic) {
		if len(identities) == 0 {
			return nil, ErrEncrypted
		}
		plain, err := age.Decrypt(b, identities...)
		if none := (*age.NoIdentityMatchError)(nil); errors.As(err, &none) {
			return nil, ErrEncrypted
		}
		if err != nil {
			return nil, fmt.Errorf("decrypt: %w", err)
		}
		b = bufio.NewReaderSize(plain, 64<<10)
	}
	if start, err := b.Peek(len(zstdMagic)); !bytes.Equal(start, zstdMagic) {
		return nil, errors.Join(ErrNotArchive, endless(err))
	}
	z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

// endless is err unless it says that a file is at its end.
func endless(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// IsEncrypted reports whether a file is one of age's.
func IsEncrypted(path string) bool {
	f, err := openRegular(path)
	if err != nil {
		return false
	}
	defer f.Close()
	start := make([]byte, len(ageMagic))
	_, err = io.ReadFull(f, start)
	return err == nil && bytes.Equal(start, ageMagic)
}

// IsArchive reports whether a path is a regular file: a bundle in a directory is
// none.
func IsArchive(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}
