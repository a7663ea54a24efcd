// Package bolt opens bbolt's files as a crash or a bad disk may have left them.
//
// bbolt maps its file and trusts it: one that was cut short, or has a page that
// rotted, ends the process that reads there, with a signal or a panic. Open
// looks first, and sets a file that cannot be trusted aside, whole, for a new
// one to begin.
package bolt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// ErrInUse: another process has the file open.
var ErrInUse = errors.New("another process holds it")

// Cut says that a file was set aside.
type Cut struct {
	Path   string // where the file belongs, and a new one is
	Aside  string // where the old one is now
	Bytes  int64  // that it has
	Reason string
}

// Open opens the file at path, or makes it, and has it read by walk, which is
// to look at all that will be looked at later. An error of walk's, a fault or a
// panic in it mean a file that cannot be trusted: it is set aside, and what is
// returned is new. So is one in which walk finds what Foreign marks: that is an
// error, and nothing is touched.
func Open(path string, walk func(*bbolt.DB) error) (*bbolt.DB, *Cut, error) {
	db, bad, err := open(path, walk)
	if bad == nil || err != nil {
		return db, nil, err
	}
	cut, err := setAside(path, bad)
	if err != nil {
		return nil, nil, errors.Join(bad, err)
	}
	db, bad, err = open(path, walk)
	return db, cut, errors.Join(bad, err)
}

// foreign is an error about a file that is whole and not for this program.
type foreign struct{ error }

func (f foreign) Unwrap() error { return f.error }

// Foreign marks an error of walk's as one about a file that is whole.
func Foreign(err error) error { return foreign{err} }

// open returns bad for a file that cannot be trusted.
func open(path string, walk func(*bbolt.DB) error) (db *bbolt.DB, bad, err error) {
	switch bad := sound(path); {
	case errors.Is(bad, fs.ErrPermission):
		return nil, nil, bad
	case bad != nil:
		return nil, bad, nil
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			// What it panicked over may hold db's locks: it is left, not closed.
			db, bad, err = nil, fmt.Errorf("a page is not as written: %v", r), nil
		}
	}()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, nil, fmt.Errorf("open %s: %w", path, ErrInUse)
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return nil, nil, err
	}
	if err != nil {
		return nil, err, nil
	}
	if err := walk(db); err != nil {
		err = errors.Join(err, db.Close())
		if errors.As(err, new(foreign)) || ofTheDisk(err) {
			return nil, nil, err
		}
		return nil, err, nil
	}
	return db, nil, nil
}

// The first two pages each begin with a header of 16 bytes and hold a meta:
//
//	magic u32 | version u32 | page size u32 | flags u32 | root u64, u64 |
//	freelist u64 | pages u64 | transaction u64 | checksum u64
//
// Source: go.etcd.io/bbolt, internal/common/meta.go.
const (
	pageHeader = 16
	metaSize   = 64
	metaMagic  = 0xED0CDAED
)

// sound holds the file's size against what the younger of its metas says. A
// file that is not there, or empty, is one that is to be made.
func sound(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.Size() == 0 {
		return err
	}
	head := make([]byte, 64<<10+pageHeader+metaSize) // pages of 64 KiB at most
	n, err := f.ReadAt(head, 0)
	if err != nil && n == 0 {
		return err
	}
	need, ok := pagesIn(head[:n])
	switch {
	case !ok:
		return fmt.Errorf("none of its two heads is whole, in %d bytes", fi.Size())
	case fi.Size() < need:
		return fmt.Errorf("cut off at %d of %d bytes", fi.Size(), need)
	}
	return nil
}

// pagesIn returns how many bytes the pages take that the younger head speaks of,
// false where no head is whole.
func pagesIn(head []byte) (bytes int64, ok bool) {
	var youngest uint64
	for _, at := range []int{0, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10} {
		if len(head) < at+pageHeader+metaSize {
			break
		}
		m := head[at+pageHeader:][:metaSize]
		le := binary.LittleEndian
		size, pages, transaction := le.Uint32(m[8:]), le.Uint64(m[40:]), le.Uint64(m[48:])
		sum := fnv.New64a()
		sum.Write(m[:metaSize-8])
		if le.Uint32(m) != metaMagic || le.Uint64(m[56:]) != sum.Sum64() || (at != 0 && uint32(at) != size) || pages > 1<<40 || size > 64<<10 {
			continue
		}
		if !ok || transaction > youngest {
			youngest, bytes, ok = transaction, int64(pages)*int64(size), true
		}
	}
	return bytes, ok
}

// ofTheDisk reports whether an error is the disk's, and says nothing of the file.
func ofTheDisk(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EIO)
}

func setAside(path string, why error) (*Cut, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	for n := 1; ; n++ {
		c := &Cut{Path: path, Aside: fmt.Sprintf("%s.corrupt-%d", path, n), Bytes: fi.Size(), Reason: why.Error()}
		if _, err := os.Lstat(c.Aside); err == nil {
			continue
		}
		if err := os.Rename(path, c.Aside); err != nil {
			return nil, fmt.Errorf("set aside: %w", err)
		}
		return c, syncDir(filepath.Dir(path))
	}
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
