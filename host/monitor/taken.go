package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/bundle"
	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/respond"
)

// takenName is, in a capture's directory, the account of memory and disks that are
// whole, and not packed yet.
const takenName = "taken.json"

// taken is what a capture took, for the process that packs it.
type taken struct {
	Boot   string           `json:"boot"` // what was not synced is lost with it
	Shot   *domain.Snapshot `json:"shot"`
	Inodes []uint64         `json:"inodes"` // of its files: a process that was killed may have moved them
}

func (c *capturer) dir(o respond.Order) string {
	return filepath.Join(c.m.bundleDir(), capturing+o.ID.String())
}

// keepTaken writes the account, whole or not at all. It is not synced: the VM
// stands, and a crash of the host ends it as well.
func keepTaken(dir string, shot *domain.Snapshot) error {
	t := taken{Shot: shot}
	var err error
	if t.Boot, err = bootID(); err != nil {
		return err
	}
	for _, f := range shot.Files {
		n, err := inode(f.Path)
		if err != nil {
			return err
		}
		t.Inodes = append(t.Inodes, n)
	}
	text, err := json.Marshal(t)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, takenName)
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

func inode(path string) (uint64, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || !fi.Mode().IsRegular() {
		return 0, fmt.Errorf("%s: not a regular file: %w", path, fs.ErrInvalid)
	}
	return st.Ino, nil
}

// readTaken returns what was taken into a capture's directory, nil where nothing
// is whole there. partial are the directories of bundles that a process was
// killed in: what it had moved there is moved back.
func readTaken(dir string, partial []string) (*domain.Snapshot, error) {
	text, err := os.ReadFile(filepath.Join(dir, takenName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var t taken
	if err := json.Unmarshal(text, &t); err != nil || t.Shot == nil || len(t.Inodes) != len(t.Shot.Files) {
		return nil, fmt.Errorf("%s: not what was written: %w", filepath.Join(dir, takenName), errors.Join(err, fs.ErrInvalid))
	}
	if boot, err := bootID(); err != nil || boot != t.Boot {
		return nil, errors.Join(fmt.Errorf("the host went down before memory and disks were on disk for certain; what is there of them stays in %s", dir), err)
	}
	emptied := map[string]bool{}
	for i, f := range t.Shot.Files {
		if n, err := inode(f.Path); err == nil && n == t.Inodes[i] {
			continue
		}
		from, err := moveBack(f.Path, t.Inodes[i], partial)
		if err != nil {
			return nil, fmt.Errorf("what was taken is not whole: %w; the rest stays in %s", err, dir)
		}
		emptied[from] = true
	}
	for from := range emptied { // the rest of it is made anew
		if err := os.RemoveAll(from); err != nil {
			return nil, err
		}
	}
	return t.Shot, nil
}

// unpacked says whether what a capture's directory, or that of a bundle which a
// process was killed in, holds is what its order, which has no result yet, is to be
// packed from.
func (m *Monitor) unpacked(dir string) bool {
	name, ok := strings.CutPrefix(filepath.Base(dir), capturing)
	if !ok {
		name = bundle.PartialOf(dir)
	}
	order, err := uuid.Parse(name)
	if err != nil {
		return false
	}
	dir = filepath.Join(m.bundleDir(), capturing+name)
	if _, err := os.Stat(filepath.Join(dir, takenName)); err != nil {
		return false
	}
	e, err := m.journal.Entry(order)
	return err == nil && e.Result == nil
}

// moveBack looks for a file by its inode, and says in which directory it was.
func moveBack(to string, want uint64, partial []string) (string, error) {
	for _, dir := range partial {
		found := ""
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if n, err := inode(path); err == nil && n == want {
				found = path
				return fs.SkipAll
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // one that is packed now has its name meanwhile
			return "", err
		}
		if found != "" {
			return dir, os.Rename(found, to)
		}
	}
	return "", fmt.Errorf("%s: %w", to, fs.ErrNotExist)
}
