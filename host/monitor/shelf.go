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
	"github.com/outguard/outguard/plugins/engine"
)

// shelf holds the host's captures to a budget of disk: before another is made
// the oldest that nobody pinned is given up.
type shelf struct {
	dir    string
	budget uint64
	found  func(engine.Finding)

	mu       sync.Mutex
	promised map[uuid.UUID]uint64 // bytes that captures under way may take, by order
}

const (
	// pinDir holds an empty file for each bundle that is pinned, beside them: a
	// bundle has nothing that its manifest does not name.
	pinDir = ".pinned"
	// givenUp is what a bundle is called while it is removed.
	givenUp = ".given-up-"
)

func newShelf(dir string, budget int64, found func(engine.Finding)) *shelf {
	return &shelf{dir: dir, budget: uint64(budget), found: found, promised: map[uuid.UUID]uint64{}}
}

// capture is one bundle on the shelf.
type capture struct {
	dir      string
	manifest *bundle.Manifest
	disk     uint64 // bytes that it takes, holes not counted
	pinned   bool
}

func (c *capture) name() string { return filepath.Base(c.dir) }

// list returns the captures, oldest first. What is no bundle, or not one yet, is
// none.
func (s *shelf) list() ([]*capture, error) {
	dirs, err := bundle.List(s.dir)
	if err != nil {
		return nil, err
	}
	var out []*capture
	for _, dir := range dirs {
		text, err := os.ReadFile(filepath.Join(dir, bundle.ManifestName))
		if err != nil {
			continue
		}
		man, err := bundle.ParseManifest(text)
		if err != nil {
			continue
		}
		c := &capture{dir: dir, manifest: man, disk: onDisk(dir)}
		_, err = os.Lstat(s.pin(c.name()))
		c.pinned = !errors.Is(err, fs.ErrNotExist) // in doubt it is
		out = append(out, c)
	}
	slices.SortStableFunc(out, func(a, b *capture) int {
		return cmp.Or(a.manifest.Created.Compare(b.manifest.Created), strings.Compare(a.dir, b.dir))
	})
	return out, nil
}

// onDisk adds up the blocks of every file under dir, as far as they can be seen.
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

// find returns one capture by its name.
func (s *shelf) find(name string) (*capture, error) {
	all, err := s.list()
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if c.name() == name {
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
		err = os.WriteFile(s.pin(name), nil, 0o600)
	} else if err = os.Remove(s.pin(name)); errors.Is(err, fs.ErrNotExist) {
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
	all, err := s.list()
	if err != nil {
		return nil, err
	}
	used, kept := need, need // kept: what nobody may give up
	for _, n := range s.promised {
		used, kept = used+n, kept+n
	}
	for _, c := range all {
		used += c.disk
		if c.pinned {
			kept += c.disk
		}
	}
	if kept > s.budget {
		return nil, overBudget{fmt.Errorf("captures.budget is %d MiB; this one may take %d MiB, and %d MiB are pinned or under way: unpin one (outguard captures), or raise the budget", s.budget>>20, need>>20, (kept-need)>>20)}
	}
	for _, c := range all {
		if used <= s.budget {
			break
		}
		if c.pinned {
			continue
		}
		if err := s.giveUp(c, fmt.Sprintf("for the budget of %d MiB", s.budget>>20)); err != nil {
			return nil, err
		}
		used -= c.disk
	}
	s.promised[order] = need
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.promised, order)
	}, nil
}

// giveUp removes a capture, with a finding of its VM's.
func (s *shelf) giveUp(c *capture, why string) error {
	aside := filepath.Join(s.dir, givenUp+c.name())
	err := os.Rename(c.dir, aside)
	if err == nil {
		err = errors.Join(syncDir(s.dir), os.RemoveAll(aside))
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
		if !c.pinned {
			unpinned++
		}
	}
	for _, c := range all {
		if c.pinned {
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

// sweep removes what a crash left of captures that were given up.
func (s *shelf) sweep() error {
	dirs, err := filepath.Glob(filepath.Join(s.dir, givenUp+"*"))
	for _, dir := range dirs {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}
