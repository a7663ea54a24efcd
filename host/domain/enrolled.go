package domain

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Enrolments reads the enrolments in dir, sorted by name. A file that is not
// one, or not whole, is an error that names it; the others are returned
// beside it. A directory that is not there holds none.
func Enrolments(dir string) ([]Enrolment, error) {
	list, _, err := NewEnrolled(dir).Read()
	return list, err
}

// Enrolled reads the enrolments in a directory again and again. What has not
// changed is not read a second time: with thousands of them that would be the
// most of what an idle monitor does.
type Enrolled struct {
	dir   string
	now   func() time.Time
	files map[string]*enrolled // by name in dir; nil: not read yet
	looks uint64               // how often they were looked at
	list  []Enrolment
	err   error
}

// enrolled is what one file was found to hold.
type enrolled struct {
	stat      unix.Stat_t
	settled   bool   // a later change shows in stat
	look      uint64 // at which it was there
	enrolment Enrolment
	err       error
}

// NewEnrolled reads nothing yet.
func NewEnrolled(dir string) *Enrolled { return &Enrolled{dir: dir, now: time.Now} }

// Read returns what Enrolments does, and whether any of it may be another than
// the time before. The list is not to be changed.
func (r *Enrolled) Read() (list []Enrolment, changed bool, err error) {
	f, err := os.Open(r.dir)
	if errors.Is(err, os.ErrNotExist) {
		changed = r.files == nil || len(r.list) > 0 || r.err != nil
		r.files, r.list, r.err = map[string]*enrolled{}, nil, nil
		return nil, changed, nil
	}
	if err != nil {
		return r.failed(err)
	}
	defer f.Close()
	names, err := f.Readdirnames(maxEnrolments + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return r.failed(err)
	}
	if len(names) > maxEnrolments {
		return r.failed(fmt.Errorf("more than %d files in %s", maxEnrolments, r.dir))
	}
	if r.look(int(f.Fd()), names) {
		r.collect()
		changed = true
	}
	return r.list, changed, r.err
}

// failed forgets everything: what is there is not known.
func (r *Enrolled) failed(err error) ([]Enrolment, bool, error) {
	r.files, r.list, r.err = nil, nil, nil
	return nil, true, fmt.Errorf("read enrolments: %w", err)
}

// look reads the files that are new or not as they were, and reports whether
// there were any, or one is gone.
func (r *Enrolled) look(dir int, names []string) (changed bool) {
	r.looks++
	if changed = r.files == nil; changed {
		r.files = make(map[string]*enrolled, len(names))
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".json") || strings.HasPrefix(name, ".") {
			continue
		}
		e := r.files[name]
		var st unix.Stat_t
		err := unix.Fstatat(dir, name, &st, 0)
		if e == nil || err != nil || !e.settled || !sameFile(&st, &e.stat) {
			changed = true
			e = &enrolled{stat: st, settled: err == nil && isOld(&st, r.now())}
			e.enrolment, e.err = readEnrolment(filepath.Join(r.dir, name))
			r.files[name] = e
		}
		if !errors.Is(e.err, os.ErrNotExist) { // else it was taken away meanwhile
			e.look = r.looks
		}
	}
	for name, e := range r.files {
		if e.look != r.looks {
			delete(r.files, name)
			changed = true
		}
	}
	return changed
}

// sameFile reports whether nothing was written to a file between two looks, if
// the first was of one that isOld.
func sameFile(a, b *unix.Stat_t) bool {
	return a.Dev == b.Dev && a.Ino == b.Ino && a.Size == b.Size && a.Mtim == b.Mtim && a.Ctim == b.Ctim && a.Mode == b.Mode
}

// isOld reports whether a file's times tell its next change from its last: they
// are as coarse as the kernel's ticks, and on some file systems seconds.
func isOld(st *unix.Stat_t, now time.Time) bool {
	return now.Sub(time.Unix(st.Ctim.Unix())) > 2*time.Second
}

// collect makes the list and the error of what the files hold.
func (r *Enrolled) collect() {
	r.list = make([]Enrolment, 0, len(r.files))
	var broken []string
	for name, e := range r.files {
		if e.err != nil {
			broken = append(broken, name)
			continue
		}
		r.list = append(r.list, e.enrolment)
	}
	slices.SortFunc(r.list, func(a, b Enrolment) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), bytes.Compare(a.UUID[:], b.UUID[:]))
	})
	slices.Sort(broken)
	var errs []error
	for _, name := range broken {
		errs = append(errs, r.files[name].err)
	}
	r.err = errors.Join(errs...)
}
