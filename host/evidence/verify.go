package evidence

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"
)

// Report is what Verify found in one stream, up to the first problem.
type Report struct {
	Dir        string            `json:"dir"`
	Stream     uuid.UUID         `json:"stream"`
	Segments   int               `json:"segments"`
	Sealed     int               `json:"sealed"`               // of them
	Remainders int               `json:"remainders,omitempty"` // of these, what is left of a segment
	GivenUp    uint64            `json:"given_up,omitempty"`   // records that they lack
	Gone       *Tombstone        `json:"gone,omitempty"`       // what the stream once began with
	First      uint64            `json:"first"`                // index of the first record
	Next       uint64            `json:"next"`                 // index after the last
	Bytes      int64             `json:"bytes"`                // of plain segments
	Kinds      map[string]uint64 `json:"kinds,omitempty"`
	Earliest   time.Time         `json:"earliest,omitzero"`
	Latest     time.Time         `json:"latest,omitzero"`
	Before     Hash              `json:"before"` // the chain before First
	Chain      Hash              `json:"chain"`  // and after the last record
	Heads      int               `json:"heads"`  // signed heads, each verified
	Head       *Head             `json:"head,omitempty"`
	Unsigned   uint64            `json:"unsigned"`       // records after the last head: chained, not yet signed
	Cuts       []string          `json:"cuts,omitempty"` // files of bytes that recoveries set aside
	Signer     string            `json:"signer"`         // the key's name and hash
	Duration   time.Duration     `json:"duration_ns"`
	Problem    *CorruptError     `json:"problem,omitempty"` // the first thing that is not as written
	Recovered  uint64            `json:"recovered"`         // recoveries after a crash
}

// OK says whether all is as it was written.
func (r *Report) OK() bool { return r.Problem == nil }

// Verify reads a whole stream and holds every byte against the chain, every
// head and every seal against the host's key. The error, if any, wraps
// ErrCorrupt and is Report.Problem, unless the stream could not be read. The
// stream's own directory name is held against what it says it is if it is a
// UUID.
func Verify(dir string, v note.Verifier) (Report, error) {
	return VerifyProgress(context.Background(), dir, v, nil)
}

// VerifyProgress is Verify that can be stopped and tells, now and then,
// how many records and plain bytes it has verified.
func VerifyProgress(ctx context.Context, dir string, v note.Verifier, progress func(records uint64, bytes int64)) (Report, error) {
	patience := time.Duration(0)
	if inStore(dir) {
		patience = 5 * time.Second // a monitor may be writing it: a check comes with the next sync at the latest
	}
	return verifyProgress(ctx, dir, v, patience, progress)
}

// inStore says whether a directory is a store's, which has a lock.
func inStore(dir string) bool {
	_, err := os.Lstat(filepath.Join(filepath.Dir(dir), lockName))
	return err == nil
}

func verify(dir string, v note.Verifier, patience time.Duration) (Report, error) {
	return verifyProgress(context.Background(), dir, v, patience, nil)
}

func verifyProgress(ctx context.Context, dir string, v note.Verifier, patience time.Duration, progress func(records uint64, bytes int64)) (Report, error) {
	return (&walk{ctx: ctx, v: v, patience: patience, progress: progress, c: cursor{dir: dir}}).report()
}

// verifyEach is VerifyProgress of what nobody writes that hands each record on,
// which is verified up to there.
func verifyEach(ctx context.Context, dir string, v note.Verifier, progress func(records uint64, bytes int64), each func(*Record)) (Report, error) {
	return (&walk{ctx: ctx, v: v, progress: progress, each: each, c: cursor{dir: dir}}).report()
}

func (w *walk) report() (Report, error) {
	start, dir := time.Now(), w.c.dir
	w.r = Report{Dir: dir, Kinds: map[string]uint64{}, Signer: signerName(w.v)}
	defer w.c.close()
	err := w.run()
	w.finish(err)
	w.r.Duration = time.Since(start)
	if err != nil {
		return w.r, fmt.Errorf("verify %s: %w", dir, err)
	}
	return w.r, nil
}

// VerifyStore verifies every stream of a store, also those that were set aside,
// and goes on after an error.
func VerifyStore(store string, v note.Verifier) ([]Report, error) {
	dirs, err := StreamDirs(store)
	if err != nil {
		return nil, err
	}
	var all []Report
	var errs []error
	for _, dir := range dirs {
		r, err := Verify(dir, v)
		all = append(all, r)
		errs = append(errs, err)
	}
	return all, errors.Join(errs...)
}

func signerName(v note.Verifier) string { return fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash()) }

type walk struct {
	ctx      context.Context
	progress func(records uint64, bytes int64)
	each     func(*Record) // nil: nobody asks
	v        note.Verifier
	patience time.Duration // with a record that is being written
	c        cursor
	r        Report
	by       int      // number of the key that signed the last head
	sealed   *trailer // of the segment that is read, if it is sealed
}

func (w *walk) run() error {
	l, err := settled(w.c.dir)
	if err != nil {
		return err
	}
	w.r.Cuts = l.cuts
	if w.whole() {
		l.strange = append(l.strange, l.exported...)
	}
	if len(l.strange) > 0 {
		return &CorruptError{Segment: l.strange[0], Reason: "a file that the record does not know"}
	}
	for _, seg := range l.leftover {
		if err := w.leftover(seg); err != nil {
			return err
		}
	}
	if len(l.segments) == 0 {
		return errNoStream
	}
	if err := w.c.openAt(0); err != nil {
		return err
	}
	w.r.Stream, w.r.First, w.r.Before, w.r.Segments = w.c.stream, w.c.next, w.c.chain.last, 1
	if err := w.beginning(l.gone); err != nil {
		return err
	}
	if id, err := uuid.Parse(filepath.Base(w.c.dir)); err == nil && id != w.c.stream {
		return w.c.corrupt(w.c.next, "segment of stream "+w.c.stream.String(), false)
	}
	return w.records()
}

func (w *walk) records() error {
	seg := w.c.seg
	if err := w.seal(); err != nil {
		return err
	}
	var torn time.Time
	for {
		rec, err := w.c.record()
		if err == nil && w.c.jumped {
			if err := w.buried(); err != nil {
				return err
			}
			seg, w.sealed = segmentFile{}, nil
		}
		if w.c.seg != seg { // rec is the first of another segment
			seg = w.c.seg
			w.r.Segments++
			if err := errors.Join(w.sealEnd(), w.seal()); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			return w.sealEnd()
		case isTorn(err) && w.wait(&torn):
			continue
		case err != nil:
			return err
		}
		torn = time.Time{}
		if err := w.record(rec); err != nil {
			return err
		}
	}
}

// wait gives a writer time to finish its record.
func (w *walk) wait(since *time.Time) bool {
	if since.IsZero() {
		*since = time.Now()
	}
	if w.patience == 0 || time.Since(*since) > w.patience {
		return false
	}
	time.Sleep(10 * time.Millisecond)
	return true
}

// seal verifies the seal of the segment that was just opened, if it has one.
func (w *walk) seal() error {
	s, ok := w.c.src.(*sealedSource)
	if !ok {
		return nil
	}
	w.r.Sealed++
	w.sealed = s.t
	if g := s.t.seal.gone; g != nil {
		w.r.Remainders++
		w.r.GivenUp += g.records
	}
	err := s.t.verify(s.f, w.v)
	if err == nil && s.t.seal.stream != w.r.Stream {
		err = fmt.Errorf("seal of stream %s", s.t.seal.stream)
	}
	if err != nil {
		return &CorruptError{Segment: w.c.seg.name, Index: w.c.seg.first, Reason: err.Error()}
	}
	return nil
}

// leftover holds what a crash, or a writer that is at it, has left beside a
// sealed segment against that.
func (w *walk) leftover(seg segmentFile) error {
	if !seg.rest {
		return sameAsSealed(w.c.dir, seg.name)
	}
	rest, err := openSealed(filepath.Join(w.c.dir, seg.name), seg.first)
	if err != nil {
		return atSegment(seg, seg.first, err)
	}
	defer rest.Close()
	whole, err := openSealed(filepath.Join(w.c.dir, segmentName(seg.first, true)), seg.first)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has been taken away since
	}
	if err != nil {
		return atSegment(seg, seg.first, err)
	}
	defer whole.Close()
	err = rest.t.verify(rest.f, w.v)
	if g := rest.t.seal.gone; err == nil && (g == nil || g.was != whole.t.seal.sum) {
		err = errors.New("it is not what is left of the segment beside it")
	}
	if err != nil {
		return atSegment(seg, seg.first, err)
	}
	return nil
}

// beginning holds the first record against the tombstone of what was before it.
// The stream of a store, which is a directory of its name or beside a store's
// lock, begins at record 0 or has one; a part of a stream, as in a bundle, begins
// anywhere.
func (w *walk) beginning(gone uint64) error {
	if gone > 0 {
		return w.tombstone(gone)
	}
	if w.c.next > 0 && w.whole() {
		return w.c.corrupt(0, fmt.Sprintf("the record begins at %d, and no tombstone says why", w.c.next), false)
	}
	return nil
}

func (w *walk) whole() bool {
	name, _, _ := strings.Cut(filepath.Base(w.c.dir), asideInfix)
	_, err := uuid.Parse(name)
	return err == nil || w.patience > 0
}

func (w *walk) tombstone(next uint64) error {
	t, err := readTombstone(w.c.dir, next, w.v)
	switch {
	case err != nil:
	case t.Stream != w.c.stream:
		err = fmt.Errorf("tombstone of stream %s", t.Stream)
	case w.c.seg.first != next || t.Chain != w.c.start:
		err = errors.New("the record does not go on from its tombstone")
	}
	if err != nil {
		return &CorruptError{Segment: goneName(next), Index: next, Reason: err.Error()}
	}
	w.r.Gone = &t
	return nil
}

// buried takes note that what was to come next has been given up meanwhile.
func (w *walk) buried() error {
	if w.c.stream != w.r.Stream {
		return w.c.corrupt(w.c.seg.first, "segment of stream "+w.c.stream.String(), false)
	}
	return w.tombstone(w.c.seg.first)
}

// sealEnd holds the end of a sealed segment against its seal.
func (w *walk) sealEnd() error {
	t := w.sealed
	w.sealed = nil
	if t == nil || t.seal.next == w.r.Next && t.seal.chain == w.r.Chain {
		return nil
	}
	return &CorruptError{
		Segment: segmentName(t.seal.first, true), Index: w.r.Next,
		Reason: fmt.Sprintf("seal says that it ends at record %d, chain %s", t.seal.next, t.seal.chain),
	}
}

// progressEvery is how many records are verified between two looks up.
const progressEvery = 4096

func (w *walk) record(rec *Record) error {
	r := &w.r
	if w.each != nil {
		w.each(rec)
	}
	r.Kinds[rec.Kind.String()]++
	if r.Earliest.IsZero() || rec.Time.Before(r.Earliest) {
		r.Earliest = rec.Time
	}
	if rec.Time.After(r.Latest) {
		r.Latest = rec.Time
	}
	r.Bytes += int64(len(rec.Payload) + recordOverhead)
	r.Next, r.Chain = rec.Index+1, rec.Chain
	if (r.Next-r.First)%progressEvery == 0 {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if w.progress != nil {
			w.progress(r.Next-r.First, r.Bytes)
		}
	}
	switch rec.Kind {
	case KindRecovery:
		r.Recovered++
	case KindHead:
		return w.head(rec)
	}
	r.Unsigned++
	return nil
}

// head holds a head record to the byte: what its note says must be what stands
// around it.
func (w *walk) head(rec *Record) error {
	at := w.c.offset - int64(len(rec.Payload)+recordOverhead)
	bad := func(reason string) error {
		return &CorruptError{Segment: w.c.seg.name, Offset: at, Index: rec.Index, Reason: reason}
	}
	h, by, err := openHead(rec.Payload, w.v)
	switch {
	case err != nil:
		return bad(err.Error())
	case by < w.by:
		return bad("head signed by a key that had been replaced before")
	case h.Stream != w.r.Stream:
		return bad("head of stream " + h.Stream.String())
	case h.Records != rec.Index || h.Durable > h.Records:
		return bad(fmt.Sprintf("head of %d records, %d durable", h.Records, h.Durable))
	case h.Chain != w.c.before:
		return bad("head signs another chain: a record before it was changed")
	case !h.Time.Equal(rec.Time) || !rec.Critical:
		return bad("head record is not as it was written")
	}
	w.r.Heads++
	w.by = by
	w.r.Head, w.r.Unsigned = &h, 0
	return nil
}

func (w *walk) finish(err error) {
	var bad *CorruptError
	if errors.As(err, &bad) {
		w.r.Problem = bad
	}
}
