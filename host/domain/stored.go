package domain

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// store writes key and enrolment, each whole or not at all; undo puts back
// what was there.
func (p *plan) store(e *Enrolment) (undo func() error, err error) {
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return nil, err
	}
	d := Domain{UUID: e.UUID}
	files := []*stored{
		{root: p.root, path: keyFile(d), text: e.Key[:], mode: 0o400, ids: p.qemu},
		{root: p.root, path: file(d), text: append(b, '\n'), mode: 0o600, ids: p.owner},
	}
	undo = func() error {
		var errs []error
		for _, f := range files {
			errs = append(errs, f.restore())
		}
		return errors.Join(errs...)
	}
	for _, f := range files {
		if err := f.write(); err != nil {
			return nil, errors.Join(err, undo())
		}
	}
	return undo, nil
}

// stored is one file that is replaced.
type stored struct {
	root    *os.Root
	path    string
	text    []byte
	mode    fs.FileMode
	before  []byte
	existed bool
	touched bool
	ids
}

func (f *stored) write() error {
	var err error
	if f.before, err = f.root.ReadFile(f.path); err == nil {
		f.existed = true
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f.touched = true
	return f.replace(f.text)
}

func (f *stored) restore() error {
	switch {
	case !f.touched:
		return nil
	case f.existed:
		return f.replace(f.before)
	}
	if err := f.root.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// replace writes a file beside the path, as its owner's and synced, and
// renames it there. Nobody else can open it at any time.
func (f *stored) replace(text []byte) error {
	beside := filepath.Join(filepath.Dir(f.path), ".new-"+rand.Text())
	w, err := f.root.OpenFile(beside, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	err = errors.Join(err, w.Chmod(f.mode), w.Chown(f.uid, f.gid), w.Sync(), w.Close())
	if err == nil {
		err = f.root.Rename(beside, f.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", f.path, err), f.root.Remove(beside))
	}
	return nil
}
