package evidence

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/google/uuid"
)

// cursor walks a stream's records in order and holds each against its check
// and against the chain.
type cursor struct {
	dir    string
	stream uuid.UUID
	opened bool // a segment has been: stream, next and chain are known

	seg    segmentFile
	src    source
	offset int64 // in the plain segment, of the next record
	next   uint64
	chain  *chain
	before Hash // the chain before rec
	rec    Record
	start  Hash // the chain before the open segment
	jumped bool // over what a tombstone stands for, before rec
}

// openAt opens the segment that holds index, or the first one if index is
// before it, and stands at the record of that index or, since seals are read
// in blocks, somewhat before it.
func (c *cursor) openAt(index uint64) error {
	for try := 0; ; try++ {
		l, err := list(c.dir)
		if err != nil {
			return err
		}
		if len(l.segments) == 0 {
			return fmt.Errorf("%s: %w", c.dir, errNoStream)
		}
		seg := l.segments[0]
		for _, s := range l.segments {
			if s.first <= index {
				seg = s
			}
		}
		err = c.open(seg, index)
		if !errors.Is(err, fs.ErrNotExist) || try == 10 { // else: sealed in between
			return err
		}
	}
}

func (c *cursor) close() {
	if c.src != nil {
		c.src.Close()
		c.src = nil
	}
}

// open goes over to a segment, which must go on where the one before it ended.
// On an error the cursor stays where it is.
func (c *cursor) open(seg segmentFile, index uint64) error {
	src, h, offset, err := openSegment(filepath.Join(c.dir, seg.name), seg, index)
	if err == nil {
		err = c.continues(h)
	}
	if err != nil {
		if src != nil {
			src.Close()
		}
		index := seg.first
		if c.opened {
			index = c.next
		}
		return atSegment(seg, index, err)
	}
	if !c.opened {
		c.stream, c.next, c.chain, c.opened = h.stream, h.first, newChain(h.before), true
	}
	c.close()
	c.seg, c.src, c.offset, c.start = seg, src, offset, h.before
	return nil
}

// enter stands at the first record of a block of a sealed segment, which src
// reads. Where the cursor is there already the chain goes on through it; it does not
// close src.
func (c *cursor) enter(seg segmentFile, src *sealedSource, i int) error {
	b := src.t.blocks[i]
	if c.src == src && c.next == b.first && c.seg == seg {
		return nil
	}
	src.seek(i)
	c.seg, c.src, c.stream, c.opened = seg, src, b.stream, true
	c.next, c.chain, c.offset = b.first, newChain(b.before), int64(b.offset)
	if i > 0 {
		return nil
	}
	head, err := src.peek(segmentHeaderSize)
	if err == nil && !bytes.Equal(head, segmentHeader{b.stream, b.first, b.before}.append(nil)) {
		err = errors.New("the segment's header is not what its seal says")
	}
	if err != nil {
		return c.broken(err)
	}
	src.advance(segmentHeaderSize)
	c.offset = segmentHeaderSize
	return nil
}

// left holds the end of a block against where the next one, or the segment's
// seal, says that it ends.
func (c *cursor) left(t *trailer, i int) error {
	want := t.seal.chain
	if i+1 < len(t.blocks) {
		want = t.blocks[i+1].before
	}
	if c.next != t.next(i) || c.chain.last != want {
		return c.corrupt(c.next, "a block does not end where the next one begins", false)
	}
	return nil
}

// openSegment opens a segment and stands at its first record or, in a sealed
// one, at the first of the block that holds index.
func openSegment(path string, seg segmentFile, index uint64) (source, segmentHeader, int64, error) {
	var src source
	if seg.sealed {
		s, err := openSealed(path, index)
		if err != nil {
			return nil, segmentHeader{}, 0, err
		}
		if at := s.t.blocks[s.i]; at.offset != 0 {
			return s, segmentHeader{at.stream, at.first, at.before}, int64(at.offset), nil
		}
		src = s
	} else {
		s, err := openPlain(path)
		if err != nil {
			return nil, segmentHeader{}, 0, err
		}
		src = s
	}
	b, err := src.peek(segmentHeaderSize)
	if err == io.EOF && !seg.sealed {
		err = errHeaderTorn
	}
	if err != nil {
		return src, segmentHeader{}, 0, err
	}
	h, err := parseSegmentHeader(b)
	if err == nil && h.first != seg.first {
		err = fmt.Errorf("header says first record %d", h.first)
	}
	src.advance(segmentHeaderSize)
	return src, h, segmentHeaderSize, err
}

var errHeaderTorn = errors.New("segment header cut off")

// continues holds a segment's header against what was read before it.
func (c *cursor) continues(h segmentHeader) error {
	switch {
	case !c.opened && h.first == 0 && h.before != genesis(h.stream):
		return errors.New("the chain does not start at its genesis")
	case c.opened && h.stream != c.stream:
		return fmt.Errorf("segment of another stream, %s", h.stream)
	case c.opened && h.first != c.next:
		return fmt.Errorf("segment starts at record %d, want %d", h.first, c.next)
	case c.opened && h.before != c.chain.last:
		return errors.New("segment does not continue the chain")
	}
	return nil
}

// atSegment passes a missing file and an I/O error on, and makes all else
// corruption.
func atSegment(seg segmentFile, index uint64, err error) error {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return fmt.Errorf("segment %s: %w", seg.name, err)
	}
	e := CorruptError{Segment: seg.name, Index: index, Reason: err.Error()}
	if err == errHeaderTorn {
		return &tornError{e}
	}
	return &e
}

func (c *cursor) broken(err error) error {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return fmt.Errorf("segment %s: %w", c.seg.name, err)
	}
	return c.corrupt(c.next, err.Error(), false)
}

type tornError struct{ CorruptError }

func (e *tornError) Error() string { return e.CorruptError.Error() }
func (e *tornError) Unwrap() error { return &e.CorruptError }
func (e *tornError) Is(target error) bool {
	return target == ErrIncomplete || target == ErrCorrupt
}

// corrupt makes the error for the current offset; torn where bytes are missing
// at the end of a plain segment, as while a writer is at it.
func (c *cursor) corrupt(index uint64, reason string, torn bool) error {
	e := CorruptError{Segment: c.seg.name, Offset: c.offset, Index: index, Reason: reason}
	if torn {
		return &tornError{e}
	}
	return &e
}

// step reads the next record of the open segment, or a gap, which is of KindGap.
// io.EOF is the segment's end; an error that is ErrIncomplete leaves the cursor
// where it is, to try again.
func (c *cursor) step() (*Record, error) {
	b, err := c.src.peek(recordHeaderSize)
	switch {
	case err == io.EOF && len(b) == 0:
		return nil, io.EOF
	case err == io.EOF:
		return nil, c.short()
	case err != nil:
		return nil, c.broken(err)
	}
	h, err := parseRecordHeader(b, c.next)
	if err != nil {
		return nil, c.corrupt(c.next, err.Error(), false)
	}
	b, err = c.src.peek(int(h.length))
	if err == io.EOF {
		return nil, c.short()
	} else if err != nil {
		return nil, c.broken(err)
	}
	return c.take(h, b)
}

func (c *cursor) short() error {
	return c.corrupt(c.next, ErrIncomplete.Error(), !c.seg.sealed)
}

func (c *cursor) take(h recordHeader, b []byte) (*Record, error) {
	c.before = c.chain.last
	body := b[:len(b)-checkSize]
	c.chain.begin()
	c.chain.h.Write(body)
	c.chain.end()
	if [checkSize]byte(b[len(body):]) != [checkSize]byte(c.chain.last[:checkSize]) {
		c.chain.last = c.before
		return nil, c.corrupt(c.next, "record is not what was written", false)
	}
	c.rec = Record{
		Index: h.index, Kind: h.kind, Critical: h.flags&flagCritical != 0,
		Time: time.Unix(0, h.time), Payload: body[recordHeaderSize:], Chain: c.chain.last,
	}
	next := c.next + 1
	if h.kind == KindGap {
		g, err := parseGap(c.rec.Payload, c.next)
		if err == nil && !c.seg.rest {
			err = errors.New("a gap in a segment that is whole")
		}
		if err != nil {
			c.chain.last = c.before
			return nil, c.corrupt(c.next, err.Error(), false)
		}
		next, c.chain.last = g.next, g.chain
	}
	c.src.advance(len(b))
	c.offset += int64(len(b))
	c.next = next
	return &c.rec, nil
}

// following names the segment after the current one. Where what was next has been
// given up meanwhile, it is the one at which the record begins now.
func (c *cursor) following() (seg segmentFile, buried, ok bool, err error) {
	l, err := list(c.dir)
	if err != nil {
		return segmentFile{}, false, false, err
	}
	for _, s := range l.segments {
		if s.first > c.seg.first {
			return s, s.first == l.gone && c.next < l.gone, true, nil
		}
	}
	return segmentFile{}, false, false, nil
}

// record reads the next record wherever it is: io.EOF at the end of the
// stream, ErrIncomplete where its last record's end is missing.
func (c *cursor) record() (*Record, error) {
	c.jumped = false
	for try := 0; ; try++ {
		r, err := c.step()
		if err == nil && r.Kind == KindGap {
			try--
			continue
		}
		if err == nil || err != io.EOF && !errors.Is(err, ErrIncomplete) {
			return r, err
		}
		end := err
		next, buried, ok, err := c.following()
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, end
		}
		// Its writer may have gone on between the two looks: what a segment
		// ends with is known only once there is another.
		if r, err = c.step(); err != io.EOF && !buried {
			return r, err
		}
		if buried {
			c.opened, c.jumped = false, true
		}
		err = c.open(next, next.first)
		if err != nil && (!errors.Is(err, fs.ErrNotExist) || try == 10) {
			return nil, err
		}
	}
}
