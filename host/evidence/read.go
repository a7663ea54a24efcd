package evidence

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
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
	spans, err := r.spans(from.UnixNano(), to.UnixNano())
	if err != nil {
		return err
	}
	stop := false
	for _, s := range spans {
		err := r.Read(s.from, s.to, func(rec *Record) error {
			if rec.Time.Before(from) || !rec.Time.Before(to) {
				return nil
			}
			err := fn(rec)
			stop = err != nil
			return err
		})
		if err != nil || stop {
			return err
		}
	}
	return nil
}

// Since returns an index before which no record is of that time or later, for
// Read and Follow. There may be earlier ones after it: it is found without
// reading records.
func (r *Reader) Since(t time.Time) (uint64, error) {
	spans, err := r.spans(t.UnixNano(), 1<<63-1)
	if err != nil {
		return 0, err
	}
	if len(spans) == 0 {
		_, next, err := r.Bounds()
		return next, err
	}
	return spans[0].from, nil
}

// tailBytes is how much of a stream's end Tail has in it, where there is that
// much.
const tailBytes = 1 << 20

// Tail returns the index of the first record of the last segment, or of one
// before it where the last is short: what is younger than some seconds comes
// after it, unless there was a flood.
func (r *Reader) Tail() (uint64, error) {
	l, err := list(r.dir)
	if err != nil {
		return 0, err
	}
	if len(l.segments) == 0 {
		return 0, fmt.Errorf("%s: %w", r.dir, errNoStream)
	}
	size := int64(0)
	for _, seg := range slices.Backward(l.segments) {
		fi, err := os.Stat(filepath.Join(r.dir, seg.name))
		if err != nil {
			return 0, fmt.Errorf("tail of a stream: %w", err)
		}
		if size += fi.Size(); size >= tailBytes {
			return seg.first, nil
		}
	}
	return l.segments[0].first, nil
}

// span is a range of indexes.
type span struct{ from, to uint64 }

// spans returns where there may be records of that time: of sealed segments
// only the blocks that say so, of plain ones everything.
func (r *Reader) spans(from, to int64) ([]span, error) {
	l, err := list(r.dir)
	if err != nil {
		return nil, err
	}
	if len(l.segments) == 0 {
		return nil, fmt.Errorf("%s: %w", r.dir, errNoStream)
	}
	var all []span
	for i, seg := range l.segments {
		end := ^uint64(0)
		if i+1 < len(l.segments) {
			end = l.segments[i+1].first
		}
		if !seg.sealed {
			all = join(all, span{seg.first, end})
			continue
		}
		s, err := openSealed(filepath.Join(r.dir, seg.name), seg.first)
		if err != nil {
			return nil, atSegment(seg, seg.first, err)
		}
		for i, b := range s.t.blocks {
			next := end
			if i+1 < len(s.t.blocks) {
				next = s.t.blocks[i+1].first
			}
			if b.latest >= from && b.earliest < to {
				all = join(all, span{b.first, next})
			}
		}
		s.Close()
	}
	return all, nil
}

// join appends a span, or lengthens the last one.
func join(all []span, s span) []span {
	if n := len(all); n > 0 && all[n-1].to == s.from {
		all[n-1].to = s.to
		return all
	}
	return append(all, s)
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
