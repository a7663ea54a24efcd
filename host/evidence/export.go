package evidence

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Range is a part of a stream that verifies alone: its first record, the
// chain before it, and the signed head that is its last record.
type Range struct {
	First  uint64 `json:"first"`
	Next   uint64 `json:"next"`   // index after the head
	Before Hash   `json:"before"` // chain before First
	Head   Signed `json:"head"`
}

// Export copies the records from an index up to and with the first signed head
// at or after to into a new directory, in segments of the same format, which
// Verify takes. With a SignHead after the last record of interest there is one.
// Where records between have been given up, the range begins after the last of
// them.
func Export(ctx context.Context, stream, dir string, from, to uint64) (Range, error) {
	if err := os.Mkdir(dir, 0o750); err != nil {
		return Range{}, fmt.Errorf("export evidence: %w", err)
	}
	e := exporter{dir: dir}
	err := e.run(ctx, stream, from, to)
	if e.f != nil {
		err = errors.Join(err, e.f.Sync(), e.f.Close())
	}
	if err != nil {
		return Range{}, fmt.Errorf("export evidence: %w", err)
	}
	return e.r, nil
}

// exportSegment is the size at which an export starts the next segment.
const exportSegment = 64 << 20

type exporter struct {
	dir  string
	f    *os.File
	size int64
	buf  []byte
	r    Range
	last Hash // h of the last record
	next uint64

	begun  bool   // r.First is known
	rests  bool   // remainders are copied as they are, instead of begun after
	copied uint64 // after the last of them: it is the segment that begins before
}

func (e *exporter) run(ctx context.Context, stream string, from, to uint64) error {
	c := &cursor{dir: stream}
	defer c.close()
	if err := c.openAt(from); err != nil {
		return err
	}
	for ctx.Err() == nil {
		rec, err := c.record()
		if err != nil {
			return fmt.Errorf("no signed head at or after record %d: %w", to, err)
		}
		if rec.Index < from {
			continue
		}
		switch {
		case c.jumped && e.begun && e.rests:
			return fmt.Errorf("a part of it was given up meanwhile, up to record %d", rec.Index)
		case c.seg.rest && e.rests:
			err = e.copy(c, rec)
		default:
			err = e.take(c, rec)
		}
		if err != nil {
			return err
		}
		if rec.Kind == KindHead && rec.Index >= to && (!c.seg.rest || !e.rests || rec.Index+1 == e.copied) {
			return e.end(rec)
		}
	}
	return ctx.Err()
}

// take writes a record. Where records before it were given up, it is the first.
func (e *exporter) take(c *cursor, rec *Record) error {
	if e.begun && rec.Index != e.next && !e.rests {
		if err := e.restart(); err != nil {
			return err
		}
	}
	e.next = rec.Index + 1
	return e.record(c, rec)
}

// copy takes a remainder over as it is, with its first record: it verifies by its
// own signature, and whole.
func (e *exporter) copy(c *cursor, rec *Record) error {
	src, ok := c.src.(*sealedSource)
	if !ok || rec.Index < e.copied {
		return nil
	}
	t := src.t.seal
	if !e.begun {
		e.begun, e.r.First, e.r.Before = true, t.first, t.before
	}
	if err := e.closeFile(); err != nil {
		return err
	}
	e.copied = t.next
	f, err := os.OpenFile(filepath.Join(e.dir, c.seg.name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, io.NewSectionReader(src.f, 0, 1<<62))
	return errors.Join(err, f.Sync(), f.Close())
}

// closeFile ends the segment that is written, if there is one.
func (e *exporter) closeFile() error {
	if e.f == nil {
		return nil
	}
	err := errors.Join(e.flush(), e.f.Sync(), e.f.Close())
	e.f = nil
	return err
}

// restart forgets what is before records that were given up.
func (e *exporter) restart() error {
	err := e.f.Close()
	e.f, e.r, e.buf, e.begun = nil, Range{}, e.buf[:0], false
	l, lerr := list(e.dir)
	for _, seg := range l.segments {
		err = errors.Join(err, os.Remove(filepath.Join(e.dir, seg.name)))
	}
	return errors.Join(err, lerr)
}

func (e *exporter) record(c *cursor, rec *Record) error {
	if e.f == nil || e.size > exportSegment {
		if err := e.start(c, rec); err != nil {
			return err
		}
	}
	e.buf = rec.append(e.buf)
	e.size += int64(len(rec.Payload) + recordOverhead)
	if len(e.buf) < readAhead {
		return nil
	}
	return e.flush()
}

func (e *exporter) start(c *cursor, rec *Record) error {
	if !e.begun {
		e.begun, e.r.First, e.r.Before = true, rec.Index, c.before
	}
	if err := e.closeFile(); err != nil {
		return err
	}
	path := filepath.Join(e.dir, segmentName(rec.Index, false))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	e.f, e.size = f, segmentHeaderSize
	e.buf = segmentHeader{c.stream, rec.Index, c.before}.append(e.buf[:0])
	return nil
}

func (e *exporter) flush() error {
	_, err := e.f.Write(e.buf)
	e.buf = e.buf[:0]
	return err
}

func (e *exporter) end(rec *Record) error {
	text := rec.Payload
	h, err := parseHead(noteText(text))
	if err != nil {
		return err
	}
	e.r.Next, e.last = rec.Index+1, rec.Chain
	e.r.Head = Signed{Head: h, Note: string(text)}
	if e.f == nil {
		return nil
	}
	return e.flush()
}
