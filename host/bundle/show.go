package bundle

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/age"
)

// maxShown bounds what Show reads of one part.
const maxShown = 4 << 20

// Shown is what a bundle says of itself, unverified.
type Shown struct {
	Dir      string          `json:"dir"`
	Manifest *Manifest       `json:"manifest"`
	Timeline *Timeline       `json:"timeline,omitempty"`
	Finding  json.RawMessage `json:"finding,omitempty"`
	Orders   json.RawMessage `json:"orders,omitempty"`
}

// Show reads what there is to show of a bundle. It verifies nothing.
func Show(dir string) (*Shown, error) {
	text, err := readBounded(filepath.Join(dir, ManifestName), MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("show bundle: %w", err)
	}
	m, err := ParseManifest(text)
	if err != nil {
		return nil, fmt.Errorf("show bundle: %w", err)
	}
	s := &Shown{Dir: dir, Manifest: m}
	var errs []error
	for part, to := range s.parts() {
		errs = append(errs, showJSON(dir, part, to))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("show bundle: %w", err)
	}
	return s, nil
}

// parts are those that are shown, and where they go.
func (s *Shown) parts() map[string]any {
	return map[string]any{FindingPart: &s.Finding, OrdersPart: &s.Orders, TimelineJSONPart: &s.Timeline}
}

// ShowArchive is Show of a bundle in one file. It reads as much of it as it must,
// and writes nothing: what is encrypted stays so on the disk.
func ShowArchive(ctx context.Context, path string, opts *ArchiveOptions) (*Shown, error) {
	if opts == nil {
		opts = &ArchiveOptions{}
	}
	s, err := showArchive(ctx, path, opts)
	if err != nil {
		return nil, fmt.Errorf("show bundle %s: %w", path, err)
	}
	return s, nil
}

func showArchive(ctx context.Context, path string, opts *ArchiveOptions) (*Shown, error) {
	r, m, done, err := begin(path, opts.Identities)
	if err != nil {
		return nil, err
	}
	defer done()
	s := &Shown{Dir: path, Manifest: m}
	due := s.parts()
	if err := next(r, m, SigName, -1); err != nil {
		return nil, err
	}
	for _, e := range m.Parts[:lastOf(m, due)] {
		if err := next(r, m, e.Path, e.Size); err != nil {
			return nil, err
		}
		if to := due[e.Path]; to != nil {
			err = decodeShown(r, e.Path, to)
		} else {
			err = skip(ctx, r, e, opts.Progress)
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// begin opens an archive and reads its manifest, until done is called.
func begin(path string, identities []age.Identity) (r *tar.Reader, m *Manifest, done func(), err error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, nil, nil, err
	}
	plain, err := openArchive(f, identities)
	if err != nil {
		f.Close()
		return nil, nil, nil, err
	}
	done = func() { _ = plain.Close(); _ = f.Close() }
	r = tar.NewReader(plain)
	if m, err = firstManifest(r); err != nil {
		done()
		return nil, nil, nil, err
	}
	return r, m, done, nil
}

// next comes to the file that must be the next in an archive, of size bytes unless
// that is negative.
func next(r *tar.Reader, m *Manifest, path string, size int64) error {
	h, err := r.Next()
	if err == nil && (h.Name != m.Name()+"/"+path || h.Typeflag != tar.TypeReg || size >= 0 && h.Size != size) {
		err = fmt.Errorf("%.300q of %d bytes is there", h.Name, h.Size)
	}
	if err != nil {
		return fmt.Errorf("%w: at %s: %w", ErrNotArchive, path, err)
	}
	return nil
}

// lastOf is how many parts have to be read for those that are due.
func lastOf(m *Manifest, due map[string]any) (n int) {
	for i, e := range m.Parts {
		if due[e.Path] != nil {
			n = i + 1
		}
	}
	return n
}

// firstManifest reads what an archive begins with.
func firstManifest(r *tar.Reader) (*Manifest, error) {
	h, err := r.Next()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotArchive, err)
	}
	if h.Size > MaxManifest || !strings.HasSuffix(h.Name, "/"+ManifestName) {
		return nil, fmt.Errorf("%w: it begins with %.300q of %d bytes", ErrNotArchive, h.Name, h.Size)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return ParseManifest(text)
}

// skip reads a part that is not shown.
func skip(ctx context.Context, r io.Reader, e Entry, progress func(string, int64, int64)) error {
	for done := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.CopyN(io.Discard, r, chunk)
		done += n
		if progress != nil {
			progress(e.Path, done, e.Size)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func showJSON(dir, part string, to any) error {
	f, err := openInside(dir, part)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return decodeShown(f, part, to)
}

func decodeShown(r io.Reader, part string, to any) error {
	b, err := io.ReadAll(io.LimitReader(r, maxShown+1))
	if err == nil && len(b) > maxShown {
		err = fmt.Errorf("more than %d bytes", maxShown)
	}
	if err == nil {
		err = json.Unmarshal(b, to)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", part, err)
	}
	return nil
}

// List names the bundles in a directory, oldest first: directories, and archives
// of which it does not say whether they are any.
func List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list bundles: %w", err)
	}
	var paths []string
	for _, e := range entries {
		archive := e.Type().IsRegular() && BundleName(e.Name()) != e.Name()
		if (e.IsDir() || archive) && !strings.HasPrefix(e.Name(), ".") {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(paths)
	return paths, nil
}
