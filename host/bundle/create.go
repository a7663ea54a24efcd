package bundle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/host/evidence"
)

// Spec says what goes into a bundle. VM, Finding or Order, Stream and the range are
// required.
type Spec struct {
	Host     string // this host's name
	VM       uuid.UUID
	VMName   string
	Finding  string    // its id, "" for a capture that a person asked for
	Order    string    // the capture's id
	Received time.Time // when the event's frame arrived
	Created  time.Time // default: now

	// Stream is the directory of the VM's evidence stream. The range goes from
	// From up to and with the first signed head at or after To: call SignHead
	// after the last record that is to be in it.
	Stream   string
	From, To uint64

	Timeline *Timeline // written as timeline.txt and timeline.json
	Page     *Page     // written as report.html, its tree as tree.txt and tree.json
	Parts    []Part

	// Progress, if set, is told how much of a part has been read.
	Progress func(part string, done, total int64)
}

// Part is a file of the bundle: Data, or the file Source.
type Part struct {
	Path   string // in the bundle, such as MemoryPart or "disks/vda.qcow2"
	Data   []byte
	Source string // moved in; a capture of gigabytes is not copied
	Copy   bool   // copy Source (sparsely) instead: it is still in use
}

const partialPrefix = ".partial-"

// Create writes a bundle into dir, which is made if it does not exist, and
// returns the bundle's directory. On an error nothing of it remains, and what
// had been moved in is back where it was.
func Create(ctx context.Context, dir string, spec *Spec, key *evidence.Key) (string, error) {
	path, err := create(ctx, dir, spec, key)
	if err != nil {
		return "", fmt.Errorf("bundle of %s: %w", Clean(cmp.Or(spec.Finding, spec.Order)), err)
	}
	return path, nil
}

func create(ctx context.Context, dir string, spec *Spec, key *evidence.Key) (string, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	temp, err := os.MkdirTemp(dir, partialPrefix+spec.Order+"-*")
	if err != nil {
		return "", err
	}
	b := &builder{ctx: ctx, dir: temp, spec: spec}
	path, err := b.build(dir, key)
	if err != nil {
		return "", errors.Join(err, b.undo())
	}
	return path, nil
}

type builder struct {
	ctx      context.Context
	dir      string
	spec     *Spec
	manifest Manifest
	moved    [][2]string // from, to
}

func (b *builder) build(dir string, key *evidence.Key) (string, error) {
	s := b.spec
	created := s.Created
	if created.IsZero() {
		created = time.Now()
	}
	b.manifest = Manifest{
		Format: Format, Host: s.Host, VM: s.VM, VMName: s.VMName, Finding: s.Finding, Order: s.Order,
		Received: s.Received.UTC().Round(0), Created: created.UTC().Round(0),
	}
	steps := []func() error{
		func() error { return os.Chmod(b.dir, 0o750) },
		b.evidence,
		func() error { return b.parts(key) },
		b.page,
		func() error { return b.seal(key) },
		func() error { return syncTree(b.dir) },
	}
	for _, step := range steps {
		if err := errors.Join(b.ctx.Err(), step()); err != nil {
			return "", err
		}
	}
	final, err := place(b.dir, filepath.Join(dir, b.manifest.Name()), taken)
	if err != nil {
		return "", err
	}
	return final, syncDir(dir)
}

// place gives the finished directory its name, with a number behind it where a
// bundle has that name. taken, where it is not nil, knows of others that have.
func place(from, name string, taken func(string) bool) (string, error) {
	to := name
	for n := 2; ; n++ {
		err := error(unix.EEXIST)
		if taken == nil || !taken(to) {
			err = unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		}
		if err == nil {
			return to, nil
		}
		if err != unix.EEXIST || n > 1000 {
			return "", &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
		to = fmt.Sprintf("%s-%d", name, n)
	}
}

// undo takes moved parts out before the rest is removed: they may be all there
// is of a memory that no longer exists.
func (b *builder) undo() error {
	var errs []error
	for _, m := range b.moved {
		errs = append(errs, os.Rename(m[1], m[0]))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("parts stay in %s: %w", b.dir, err)
	}
	return os.RemoveAll(b.dir)
}

func (b *builder) evidence() error {
	path := filepath.Join(b.dir, EvidencePart)
	r, err := evidence.Export(b.ctx, b.spec.Stream, path, b.spec.From, b.spec.To)
	if err != nil {
		return err
	}
	if r.Head.Stream != b.spec.VM {
		return fmt.Errorf("evidence is of stream %s, not of VM %s", r.Head.Stream, b.spec.VM)
	}
	b.manifest.Evidence = r
	files, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := b.name(EvidencePart + "/" + f.Name()); err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) parts(key *evidence.Key) error {
	parts := append(slices.Clone(b.spec.Parts), Part{Path: PubPart, Data: []byte(key.Public + "\n")})
	if keys := key.Rotations(); len(keys) > 0 {
		parts = append(parts, Part{Path: KeysPart, Data: keys})
	}
	if t := b.spec.Timeline; t != nil {
		text, err := t.JSON()
		if err != nil {
			return err
		}
		parts = append(parts, Part{Path: TimelineTextPart, Data: []byte(t.Text())}, Part{Path: TimelineJSONPart, Data: text})
	}
	if p := b.spec.Page; p != nil && p.Tree != nil {
		text, err := p.Tree.JSON()
		if err != nil {
			return err
		}
		parts = append(parts, Part{Path: TreeTextPart, Data: []byte(p.Tree.Text())}, Part{Path: TreeJSONPart, Data: text})
	}
	for _, p := range parts {
		if err := checkPath(p.Path); err != nil {
			return err
		}
		if err := b.part(p); err != nil {
			return fmt.Errorf("part %s: %w", p.Path, err)
		}
	}
	return nil
}

// page writes the page for people, which names every other part.
func (b *builder) page() error {
	if b.spec.Page == nil {
		return nil
	}
	b.sort()
	text, err := b.spec.Page.html(&b.manifest, b.spec.Timeline)
	if err != nil {
		return err
	}
	return b.part(Part{Path: PagePart, Data: text})
}

func (b *builder) sort() {
	slices.SortFunc(b.manifest.Parts, func(a, c Entry) int { return cmp.Compare(a.Path, c.Path) })
}

func (b *builder) part(p Part) error {
	to := filepath.Join(b.dir, filepath.FromSlash(p.Path))
	if err := os.MkdirAll(filepath.Dir(to), 0o750); err != nil {
		return err
	}
	if _, err := os.Lstat(to); err == nil {
		return os.ErrExist
	}
	switch {
	case p.Source == "":
		if err := os.WriteFile(to, p.Data, 0o640); err != nil {
			return err
		}
		return b.name(p.Path)
	case p.Copy:
		return b.copy(p, to)
	}
	return b.move(p, to)
}

// move renames a part in, or copies and removes it where it is on another
// file system.
func (b *builder) move(p Part, to string) error {
	if err := regular(p.Source); err != nil {
		return err
	}
	err := os.Rename(p.Source, to)
	if errors.Is(err, unix.EXDEV) {
		if err := b.copy(p, to); err != nil {
			return err
		}
		return os.Remove(p.Source)
	}
	if err != nil {
		return err
	}
	b.moved = append(b.moved, [2]string{p.Source, to})
	return b.name(p.Path)
}

func regular(path string) error {
	fi, err := os.Lstat(path)
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file: %w", path, os.ErrInvalid)
	}
	return err
}

// copy reads the source once: the digest is of what was copied.
func (b *builder) copy(p Part, to string) error {
	in, err := openRegular(p.Source)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	e, err := digest(b.ctx, in, p.Path, b.spec.Progress, &sparseWriter{f: out})
	if err == nil {
		err = out.Truncate(e.Size)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	b.manifest.Parts = append(b.manifest.Parts, e)
	return nil
}

// name digests a file that is in place and names it in the manifest.
func (b *builder) name(path string) error {
	f, err := openRegular(filepath.Join(b.dir, filepath.FromSlash(path)))
	if err != nil {
		return err
	}
	defer f.Close()
	e, err := digest(b.ctx, f, path, b.spec.Progress, nil)
	if err != nil {
		return err
	}
	b.manifest.Parts = append(b.manifest.Parts, e)
	return nil
}

func (b *builder) seal(key *evidence.Key) error {
	b.sort()
	text, err := b.manifest.Append(nil)
	if err != nil {
		return err
	}
	sig, err := evidence.SignNote(signedText(text), key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(b.dir, ManifestName), text, 0o640),
		os.WriteFile(filepath.Join(b.dir, SigName), sig, 0o640),
	)
}

// Partial lists what a crash left of the bundles of an order that were being
// written, "": of any. They may hold the only copy of a capture, so that nobody
// removes them before there is another.
func Partial(dir, order string) ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(dir, partialPrefix+order+"*"))
	if err != nil {
		return nil, fmt.Errorf("partial bundles: %w", err)
	}
	return paths, nil
}

// PartialOf returns the order whose bundle is written into a directory that
// Partial lists, "": it had none.
func PartialOf(path string) string {
	name := strings.TrimPrefix(filepath.Base(path), partialPrefix)
	return name[:max(strings.LastIndexByte(name, '-'), 0)]
}
