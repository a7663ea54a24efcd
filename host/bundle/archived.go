package bundle

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/failpoint"
)

const (
	packingPrefix = ".packing-" // an archive or a label that is written
	packedPrefix  = ".packed-"  // a directory of which there is an archive, while it is removed
)

// Archive makes one file of the bundle in dir, with a label beside it, in the
// directory's place, and returns its path. It is written under a temporary name,
// and has its own when it and its label are on disk; then dir is removed. Killed
// at any step it leaves the directory whole or the archive, and Tidy comes to the
// end of it. On an error the path is that of what there is: dir, or the archive
// where only the removal of dir went wrong.
func Archive(ctx context.Context, dir string, key *evidence.Key, opts *PackOptions) (string, error) {
	path := dir + ArchiveSuffix
	if opts != nil && len(opts.Recipients) > 0 {
		path += EncryptedSuffix
	}
	if err := archive(ctx, dir, path, key, opts); err != nil {
		return dir, fmt.Errorf("archive %s: %w", dir, err)
	}
	failpoint.At(failpoint.Packed)
	if err := setAside(dir); err != nil {
		return path, fmt.Errorf("archive %s: remove the directory: %w", dir, err)
	}
	return path, nil
}

func archive(ctx context.Context, dir, path string, key *evidence.Key, opts *PackOptions) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s: %w", path, fs.ErrExist)
	}
	l, err := labelOf(dir, filepath.Base(path))
	if err != nil {
		return err
	}
	temp, err := packInto(ctx, dir, l, opts)
	if err == nil {
		failpoint.At(failpoint.Packing)
		err = putLabel(path, l, key)
	}
	if err == nil {
		failpoint.At(failpoint.Labelled)
		err = unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
		if err != nil {
			err = &os.LinkError{Op: "rename", Old: temp, New: path, Err: err}
		}
	}
	if err != nil {
		_ = os.Remove(path + LabelSuffix) // of an archive that is not there: Tidy would
		if rerr := os.Remove(temp); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return err
	}
	if err := syncDir(filepath.Dir(path)); err != nil { // nobody knows what the disk holds: the directory it does
		return errors.Join(err, os.Remove(path), os.Remove(path+LabelSuffix))
	}
	return nil
}

// packInto packs into a file of a temporary name, and has the label say its size
// and digest.
func packInto(ctx context.Context, dir string, l *Label, opts *PackOptions) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(dir), packingPrefix+"*")
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	err = Pack(ctx, dir, io.MultiWriter(f, sum), opts)
	if err == nil {
		err = errors.Join(f.Chmod(0o640), f.Sync())
	}
	if fi, serr := f.Stat(); serr == nil {
		l.Size, l.SHA256 = fi.Size(), evidence.Hash(sum.Sum(nil))
	}
	return f.Name(), errors.Join(err, f.Close())
}

// putLabel writes a label whole.
func putLabel(path string, l *Label, key *evidence.Key) error {
	signed, err := evidence.SignNote(l.text(), key)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), packingPrefix+"*")
	if err != nil {
		return err
	}
	_, err = f.Write(signed)
	err = errors.Join(err, f.Chmod(0o640), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path+LabelSuffix)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

// setAside removes a directory, under a name that no bundle has: half of one is
// none.
func setAside(dir string) error {
	aside := filepath.Join(filepath.Dir(dir), packedPrefix+filepath.Base(dir))
	if err := errors.Join(os.RemoveAll(aside), os.Rename(dir, aside), syncDir(filepath.Dir(dir))); err != nil {
		return err
	}
	return os.RemoveAll(aside)
}

// Tidy removes from a directory of bundles what a crash left of Archive: what was
// being written, labels without their archive, and the directories of which there
// is an archive, by its label. v verifies labels.
func Tidy(dir string, v note.Verifier) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), packingPrefix), strings.HasPrefix(e.Name(), packedPrefix):
			errs = append(errs, os.RemoveAll(path))
		case strings.HasSuffix(e.Name(), LabelSuffix):
			errs = append(errs, tidyLabel(strings.TrimSuffix(path, LabelSuffix)))
		case e.IsDir() && Archived(path, v) != "":
			errs = append(errs, setAside(path))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("tidy bundles: %w", err)
	}
	return nil
}

func tidyLabel(archive string) error {
	if _, err := os.Lstat(archive); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Remove(archive + LabelSuffix)
}

// Archived returns the archive that there is of the bundle in dir, by its label;
// "" where there is none. One of another bundle is none.
func Archived(dir string, v note.Verifier) string {
	text, err := readBounded(filepath.Join(dir, ManifestName), MaxManifest)
	if err != nil {
		return ""
	}
	for _, suffix := range []string{ArchiveSuffix, ArchiveSuffix + EncryptedSuffix} {
		if l, err := readLabel(dir+suffix, v); err == nil && l.Manifest == sha256.Sum256(text) {
			return dir + suffix
		}
	}
	return ""
}

// taken says whether a bundle that is an archive has a directory's name.
func taken(dir string) bool {
	for _, suffix := range []string{ArchiveSuffix, ArchiveSuffix + EncryptedSuffix} {
		if _, err := os.Lstat(dir + suffix); err == nil {
			return true
		}
	}
	return false
}
