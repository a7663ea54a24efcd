package evidence

import (
	"context"
	"errors"
	"io"
	"time"
)

// ErrStop, returned by a callback, ends a Read without an error.
var ErrStop = errors.New("stop")

// Reader reads one stream, also while another process appends to it. It takes
// no lock and writes nothing. Every record is held against the chain from where
// reading began; signatures are Verify's.
type Reader struct{ dir string }

// NewReader reads the stream in dir: Stream.Dir, StreamDir, or a bundle's
// evidence directory.
func NewReader(dir string) *Reader { return &Reader{dir} }

// Read calls fn for each record with from <= Index < to that is there, in
// order. A record is valid until fn returns.
func (r *Reader) Read(from, to uint64, fn func(*Record) error) error {
	c := &cursor{dir: r.dir}
	defer c.close()
	if err := c.openAt(from); err != nil {
		return err
	}
	for c.next < to {
		rec, err := c.record()
		if err == io.EOF || isTorn(err) {
			return nil // not written yet, or never to be: Verify tells
		}
		if err != nil {
			return err
		}
		if rec.Index < from {
			continue
		}
		if err := fn(rec); err != nil {
			return stopped(err)
		}
	}
	return nil
}

// ReadTime calls fn for each record with from <= Time < to, in the order in
// which they were written. Time is the caller's of Append, so that neighbours
// may differ from it a little.
func (r *Reader) ReadTime(from, to time.Time, fn func(*Record) error) error {
	return r.Read(0, ^uint64(0), func(rec *Record) error {
		if rec.Time.Before(from) || !rec.Time.Before(to) {
			return nil
		}
		return fn(rec)
	})
}

// Follow is Read from an index on that waits for more, until ctx ends.
func (r *Reader) Follow(ctx context.Context, from uint64, fn func(*Record) error) error {
	c := &cursor{dir: r.dir}
	defer c.close()
	for {
		err := c.openAt(from)
		if err == nil {
			break
		}
		if !errors.Is(err, errNoStream) && !isTorn(err) {
			return err
		}
		if !pause(ctx) {
			return nil
		}
	}
	for {
		rec, err := c.record()
		switch {
		case err == io.EOF || isTorn(err):
			if !pause(ctx) {
				return nil
			}
			continue
		case err != nil:
			return err
		case rec.Index < from:
			continue
		}
		if err := fn(rec); err != nil {
			return stopped(err)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// pollInterval is how long Follow waits at the end of a stream.
const pollInterval = 50 * time.Millisecond

func pause(ctx context.Context) bool {
	t := time.NewTimer(pollInterval)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// Bounds returns the index of the first record and that after the last.
func (r *Reader) Bounds() (first, next uint64, err error) {
	l, err := list(r.dir)
	if err != nil {
		return 0, 0, err
	}
	if len(l.segments) == 0 {
		return 0, 0, errNoStream
	}
	first = l.segments[0].first
	c := &cursor{dir: r.dir}
	defer c.close()
	if err := c.openAt(^uint64(0)); err != nil {
		return first, first, err
	}
	for {
		if _, err := c.record(); err == io.EOF || isTorn(err) {
			return first, c.next, nil
		} else if err != nil {
			return first, c.next, err
		}
	}
}

func isTorn(err error) bool {
	var t *tornError
	return errors.As(err, &t)
}

func stopped(err error) error {
	if errors.Is(err, ErrStop) {
		return nil
	}
	return err
}
