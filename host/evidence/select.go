package evidence

import (
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Selection says which records of a stream are wanted. Its zero value is all.
type Selection struct {
	From, To     uint64    // indexes, To not included; 0: no end
	Since, Until time.Time // Until not included; zero: no bound

	// May, if set, is asked about each block of an indexed segment, in order and
	// when the records before it were handed on: whether its records may be wanted,
	// from whether any of them may have a key. A block of which it says no is not
	// read.
	May func(has func(key uint64) bool) bool

	// Index is how indexes are read; nil: none is, and May not asked.
	Index *IndexReader
}

// IndexReader reads indexes that a store with Options.Keys has made.
type IndexReader struct {
	Scheme   uint32        // that of Keys
	Verifier note.Verifier // of the host's key

	// Unusable, if set, is told of an index that is there and cannot be used. Its
	// segment is read whole.
	Unusable func(segment string, err error)
}

// Selected counts what a Select has read and passed over.
type Selected struct {
	Blocks, Skipped int // of sealed segments
	Unindexed       int // sealed segments without an index that can be used
	Records         uint64

	// GivenUp is how many records retention gave up, of which some may be of what
	// was asked for by index and time.
	GivenUp uint64
}

// Select calls fn for each record that s may mean, in order: every one that it
// means by index and time, and of those that May speaks of at least every one.
// What is read is held against the chain as Read does.
func (r *Reader) Select(s *Selection, fn func(*Record) error) (Selected, error) {
	w := selecting{dir: r.dir, Selection: *s, fn: fn, next: s.From}
	if w.To == 0 {
		w.To = ^uint64(0)
	}
	err := w.run()
	return w.done, stopped(err)
}

type selecting struct {
	Selection
	dir  string
	fn   func(*Record) error
	next uint64 // everything before it is done
	done Selected
}

func (w *selecting) run() error {
	for try := 0; w.next < w.To; {
		l, err := list(w.dir)
		if err != nil {
			return err
		}
		if l.gone > w.next {
			w.buried(l.gone)
		}
		seg, ok := w.segment(l)
		if !ok {
			if w.next == w.From && len(l.segments) == 0 {
				return errNoStream
			}
			return nil
		}
		if !seg.sealed {
			return w.plain(seg)
		}
		before := w.next
		err = w.sealed(seg)
		if w.next > before {
			try = 0
		}
		if try++; errors.Is(err, fs.ErrNotExist) && try < 10 { // its writer has put another in its place
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// buried counts what a tombstone stands for, if some of it is of that time.
func (w *selecting) buried(next uint64) {
	first := w.next
	w.next = next
	if w.Index == nil {
		return // nobody says whose tombstone it has to be
	}
	t, err := readTombstone(w.dir, next, w.Index.Verifier)
	if err == nil && (w.Since.IsZero() || !t.Latest.Before(w.Since)) {
		w.done.GivenUp += min(next, w.To) - first
	}
}

// segment is the one that holds the next record, or what comes after it.
func (w *selecting) segment(l listing) (segmentFile, bool) {
	for i, seg := range l.segments {
		if i+1 == len(l.segments) || l.segments[i+1].first > w.next {
			return seg, !seg.sealed || seg.first >= w.next || i+1 < len(l.segments) || !w.past(seg)
		}
	}
	return segmentFile{}, false
}

// past reports whether a sealed segment, the last there is, ends before what is
// next.
func (w *selecting) past(seg segmentFile) bool {
	s, err := openSealed(filepath.Join(w.dir, seg.name), seg.first)
	if err != nil {
		return false // reading it will say so
	}
	defer s.Close()
	return s.t.seal.next <= w.next
}

// plain reads to the end of the stream: a segment that is not sealed has none
// after it that is, but for those that are sealed meanwhile.
func (w *selecting) plain(seg segmentFile) error {
	return NewReader(w.dir).Read(max(w.next, seg.first), w.To, w.record)
}

func (w *selecting) record(r *Record) error {
	w.done.Records++
	if r.Index < w.From || !w.Since.IsZero() && r.Time.Before(w.Since) || !w.Until.IsZero() && !r.Time.Before(w.Until) {
		return nil
	}
	return w.fn(r)
}

func (w *selecting) sealed(seg segmentFile) error {
	src, err := openSealed(filepath.Join(w.dir, seg.name), seg.first)
	if err != nil {
		return atSegment(seg, seg.first, err)
	}
	defer src.Close()
	filters := w.filters(seg, src.t)
	if g := src.t.seal.gone; g != nil && slices.ContainsFunc(src.t.blocks, w.ofTime) {
		w.done.GivenUp += g.records
	}
	c := &cursor{dir: w.dir}
	for i, b := range src.t.blocks {
		if src.t.next(i) <= w.next || b.first >= w.To {
			continue
		}
		w.done.Blocks++
		if !w.may(&b, filters, i) {
			w.done.Skipped++
			continue
		}
		if err := w.block(c, seg, src, i); err != nil {
			return err
		}
	}
	w.next = src.t.seal.next
	return nil
}

// filters are the blocks' of a segment; nil where all of it is read.
func (w *selecting) filters(seg segmentFile, t *trailer) []filter {
	if w.May == nil || w.Index == nil {
		return nil
	}
	f, err := readIndex(w.dir, seg, t, w.Index.Scheme, w.Index.Verifier)
	if err == nil {
		return f
	}
	w.done.Unindexed++
	if !errors.Is(err, errNoIndex) && w.Index.Unusable != nil {
		w.Index.Unusable(seg.name, err)
	}
	return nil
}

func (w *selecting) may(b *block, filters []filter, i int) bool {
	return w.ofTime(*b) && (filters == nil || w.May(filters[i].has))
}

// ofTime says whether a block may have records of the time that is asked for.
func (w *selecting) ofTime(b block) bool {
	return (w.Since.IsZero() || b.latest >= w.Since.UnixNano()) && (w.Until.IsZero() || b.earliest < w.Until.UnixNano())
}

func (w *selecting) block(c *cursor, seg segmentFile, src *sealedSource, i int) error {
	if err := c.enter(seg, src, i); err != nil {
		return err
	}
	for c.next < src.t.next(i) {
		r, err := c.step()
		if err == io.EOF {
			err = c.corrupt(c.next, "a block ends before the next one begins", false)
		}
		if err != nil {
			return err
		}
		if r.Kind == KindGap {
			w.next = max(w.next, min(c.next, w.To))
			continue
		}
		if r.Index < w.next || r.Index >= w.To {
			continue
		}
		if err := w.record(r); err != nil {
			return err
		}
		w.next = r.Index + 1
	}
	return c.left(src.t, i)
}
