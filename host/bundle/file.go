package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const chunk = 1 << 20

// openRegular opens a regular file, never through a link, and never waits as
// on a fifo.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file: %w", path, os.ErrInvalid)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// digest reads f to its end, into w too if there is one.
func digest(ctx context.Context, f *os.File, path string, progress func(string, int64, int64), w io.Writer) (Entry, error) {
	fi, err := f.Stat()
	if err != nil {
		return Entry{}, err
	}
	h, e, buf := sha256.New(), Entry{Path: path}, make([]byte, min(chunk, fi.Size()+1))
	for {
		if err := ctx.Err(); err != nil {
			return Entry{}, err
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		e.Size += int64(n)
		if w != nil && n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return Entry{}, err
			}
		}
		if progress != nil && n > 0 {
			progress(path, e.Size, fi.Size())
		}
		if errors.Is(err, io.EOF) {
			e.SHA256 = [32]byte(h.Sum(nil))
			return e, nil
		}
		if err != nil {
			return Entry{}, err
		}
	}
}

// sparseWriter leaves holes where the data is zero. The file is truncated to
// its size afterwards.
type sparseWriter struct {
	f   *os.File
	off int64
}

var zeros [64 << 10]byte

func (w *sparseWriter) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		piece := rest[:min(len(rest), len(zeros))]
		if !bytes.Equal(piece, zeros[:len(piece)]) {
			if _, err := w.f.WriteAt(piece, w.off); err != nil {
				return 0, err
			}
		}
		w.off += int64(len(piece))
		rest = rest[len(piece):]
	}
	return len(b), nil
}

func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncPath(path)
	})
}

func syncDir(dir string) error { return syncPath(dir) }

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
