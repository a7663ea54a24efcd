package monitor

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/bundle"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/plugins/engine"
)

// shelf holds the host's captures to a budget of disk: before another is made
// the oldest that nobody pinned is given up.
type shelf struct {
	dir    string
	budget uint64
	key    func() *evidence.Key // the host's, as it is now: labels of archives are signed by it
	found  func(engine.Finding)

	mu       sync.Mutex
	promised map[uuid.UUID]uint64 // bytes that captures under way may take, by order
	packing  map[string]bool      // directories of which an archive is made
}

const (
	// pinDir holds an empty file for each bundle that is pinned, beside them: a
	// bundle has nothing that its manifest does not name.
	pinDir = ".pinned"
	// givenUp is what a bundle is called while it is removed.
	givenUp = ".given-up-"
)

func newShelf(dir string, budget int64, key func() *evidence.Key, found func(engine.Finding)) *shelf {
	return &shelf{dir: dir, budget: uint64(budget), key: key, found: found, promised: map[uuid.UUID]uint64{}, packing: map[string]bool{}}
}

// capture is one bundle on the shelf: a directory, or an archive.
type capture struct {
	dir      string           // or the archive's path
	manifest *bundle.Manifest // of an archive without evidence and parts: what its label says
	bytes    uint64           // of its parts
	disk     uint64           // bytes that it takes, holes not counted
	pinned   bool
	packing  bool // an archive is made of it, and it stays until then
}

// name is the same whatever form the bundle has, so that a pin holds while it is
// packed.
func (c *capture) name() string { return bundle.BundleName(filepath.Base(c.dir)) }

func (c *capture) stays() bool { return c.pinned || c.packing }

// list returns the captures, oldest first; mu is held. What is no bundle, or not
// one yet, is none.
func (s *shelf) list() ([]*capture, error) {
	dirs, err := bundle.List(s.dir)
	if err != nil {
		return nil, err
	}
	var out []*capture
	for _, dir := range dirs {
		c, err := s.read(dir)
		if err != nil || !bundle.IsArchive(dir) && bundle.Archived(dir, s.key().Verifier()) != "" {
			continue // what there is an archive of is about to go
		}
		_, err = os.Lstat(s.pin(c.name()))
		c.pinned = !errors.Is(err, fs.ErrNotExist) // in doubt it is
		c.packing = s.packing[dir]
		out = append(out, c)
	}
	slices.SortStableFunc(out, func(a, b *capture) int {
		return cmp.Or(a.manifest.Created.Compare(b.manifest.Created), strings.Compare(a.dir, b.dir))
	})
	return out, nil
}

// read says what a bundle is, by its manifest or its label.
func (s *shelf) read(path string) (*capture, error) {
	c := &capture{dir: path, disk: onDisk(path)}
	if bundle.IsArchive(path) {
		l, err := bundle.ReadLabel(path, s.key().Verifier())
		if err != nil {
			return nil, err
		}
		c.bytes = uint64(l.Bytes)
		c.manifest = &bundle.Manifest{VM: l.VM, VMName: l.VMName, Finding: l.Finding, Order: l.Order, Created: l.Created}
		return c, nil
	}
	text, err := os.ReadFile(filepath.Join(path, bundle.ManifestName))
	if err != nil {
		return nil, err
	}
	if c.manifest, err = bundle.ParseManifest(text); err != nil {
		return nil, err
	}
	for _, p := range c.manifest.Parts {
		c.bytes += uint64(p.Size)
	}
	return c, nil
}

// onDisk adds up the blocks of a file, or of every one under a directory, as far
// as they can be seen.
func onDisk(dir string) (sum uint64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if fi, err := d.Info(); err == nil {
			if st, ok := fi.Sys().(*syscall.Stat_t); ok {
				sum += uint64(st.Blocks) * 512
			}
		}
		return nil
	})
	return sum
}

func (s *shelf) pin(name string) string { return filepath.Join(s.dir, pinDir, name) }

// captures returns what there is, oldest first.
func (s *shelf) captures() ([]*capture, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list()
}

// of returns an order's capture, nil where there is none.
func (s *shelf) of(order uuid.UUID) (*capture, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := s.list()
	for _, c := range all {
		if c.manifest.Order == order.String() {
			return c, nil
		}
	}
	return nil, err
}

// find returns one capture by its name, or by its archive's.
func (s *shelf) find(name string) (*capture, error) {
	all, err := s.list()
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if c.name() == bundle.BundleName(name) {
			return c, nil
		}
	}
	return nil, fmt.Errorf("capture %q: %w", name, fs.ErrNotExist)
}

// setPinned keeps a capture from being given up, or no longer; it is on disk when
// it returns.
func (s *shelf) setPinned(name string, pinned bool) (*capture, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.find(name)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(s.dir, pinDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if pinned {
		err = os.WriteFile(s.pin(c.name()), nil, 0o600)
	} else if err = os.Remove(s.pin(c.name())); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("pin capture: %w", err)
	}
	c.pinned = pinned
	return c, nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// overBudget is a capture for which there is no room: for good, until somebody
// makes some.
type overBudget struct{ error }

func (overBudget) Permanent() bool { return true }

// promise makes room for a capture of at most need bytes, until done is called.
func (s *shelf) promise(order uuid.UUID, need uint64) (done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.makeRoom(need); err != nil {
		return nil, err
	}
	s.promised[order] = need
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.promised, order)
	}, nil
}

// beside makes room for what is as large as a capture that was just made, beside
// it, and keeps both until done is called. The order's promise was for the capture:
// it is on disk now.
func (s *shelf) beside(order uuid.UUID, dir string) (done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, had := s.promised[order]
	delete(s.promised, order)
	s.packing[dir] = true
	need := onDisk(dir)
	if err := s.makeRoom(need); err != nil {
		delete(s.packing, dir)
		if had {
			s.promised[order] = before
		}
		return nil, err
	}
	s.promised[order] = need
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.packing, dir)
		delete(s.promised, order)
	}, nil
}

// makeRoom gives up the oldest captures until there is room for need bytes. Where
// those that may go are not enough none does.
func (s *shelf) makeRoom(need uint64) error {
	all, err := s.list()
	if err != nil {
		return err
	}
	used, kept := need, need // kept: what nobody may give up
	for _, n := range s.promised {
		used, kept = used+n, kept+n
	}
	left := s.unpacked()
	used, kept = used+left, kept+left
	for _, c := range all {
		used += c.disk
		if c.stays() {
			kept += c.disk
		}
	}
	if kept > s.budget {
		return overBudget{fmt.Errorf("captures.budget is %d MiB; this one may take %d MiB, and %d MiB are pinned, under way or were never packed: unpin one (outguard captures), remove what outguard orders says was left, or raise the budget", s.budget>>20, need>>20, (kept-need)>>20)}
	}
	for _, c := range all {
		if used <= s.budget {
			break
		}
		if c.stays() {
			continue
		}
		if err := s.giveUp(c, fmt.Sprintf("for the budget of %d MiB", s.budget>>20)); err != nil {
			return err
		}
		used -= c.disk
	}
	return nil
}

// unpacked is what captures take on the disk that are taken and have no bundle:
// those that could not be packed, and those of an earlier process, the bundles
// among them that it was killed in. They may be all there is of a memory, and
// nobody gives them up unasked.
func (s *shelf) unpacked() (sum uint64) {
	add := func(dir, order string) {
		id, _ := uuid.Parse(order)
		if _, promised := s.promised[id]; !promised {
			sum += onDisk(dir)
		}
	}
	taken, _ := filepath.Glob(filepath.Join(s.dir, capturing+"*")) // the pattern is sound
	for _, dir := range taken {
		add(dir, strings.TrimPrefix(filepath.Base(dir), capturing))
	}
	partial, _ := bundle.Partial(s.dir, "")
	for _, dir := range partial {
		add(dir, bundle.PartialOf(dir))
	}
	return sum
}

// giveUp removes a capture, with a finding of its VM's.
func (s *shelf) giveUp(c *capture, why string) error {
	aside := filepath.Join(s.dir, givenUp+filepath.Base(c.dir))
	err := os.Rename(c.dir, aside)
	if err == nil {
		err = errors.Join(syncDir(s.dir), os.RemoveAll(aside))
	}
	if bundle.BundleName(c.dir) != c.dir && err == nil {
		err = os.Remove(c.dir + bundle.LabelSuffix) // after what it tells of
	}
	if err != nil {
		return fmt.Errorf("give up capture %s: %w", c.name(), err)
	}
	s.found(engine.Finding{
		VM: c.manifest.VM, Rule: "capture/given-up", Severity: engine.Low,
		Reason: fmt.Sprintf("Capture %s was given up, %s.", c.name(), why),
		Detail: map[string]string{
			"capture": c.name(), "bytes": fmt.Sprint(c.disk), "created": c.manifest.Created.UTC().Format(time.RFC3339), "of_finding": c.manifest.Finding,
		},
	})
	return nil
}

// wish says which captures are to be given up: of one VM or of all, but for the
// pinned, those created before a time, all but the newest, or the oldest until
// what is left takes no more than so many bytes.
type wish struct {
	vm     uuid.UUID
	before time.Time // zero: whenever
	keep   *uint64
	bytes  *uint64
	dry    bool
	by     string
}

// prune gives captures up as w says, and returns them.
func (s *shelf) prune(w wish) (gone []*capture, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := s.list()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(c *capture) bool { return w.vm != uuid.Nil && c.manifest.VM != w.vm })
	var used, unpinned uint64
	for _, c := range all {
		used += c.disk
		if !c.stays() {
			unpinned++
		}
	}
	for _, c := range all {
		if c.stays() {
			continue
		}
		if (!w.before.IsZero() && !c.manifest.Created.Before(w.before)) ||
			(w.keep != nil && unpinned <= *w.keep) || (w.bytes != nil && used <= *w.bytes) {
			break // the others are newer
		}
		if !w.dry {
			if err := s.giveUp(c, "as "+w.by+" asked"); err != nil {
				return gone, err
			}
		}
		gone = append(gone, c)
		unpinned, used = unpinned-1, used-c.disk
	}
	return gone, nil
}

// sweep removes what a crash left of captures that were given up, or packed.
func (s *shelf) sweep() error {
	dirs, err := filepath.Glob(filepath.Join(s.dir, givenUp+"*"))
	for _, dir := range dirs {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return errors.Join(err, bundle.Tidy(s.dir, s.key().Verifier()))
}
