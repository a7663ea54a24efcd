package evidence

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// A remainder is what is left of a sealed segment when its bulk was given up:
// a sealed segment of the same form, in which a record of kind gap stands for
// each run of records that is no longer there. A gap has the index and the time
// of the first of them, and its payload is
//
//	next u64, the index after the last | bytes u64, of them | h of the last, 32
//
// Its check follows from the record before it, as if it were one of the chain;
// the chain goes on from the h that it says. The note at the end is signed over
//
//	outguard evidence remainder v1
//	stream, first, next, before, chain, plain: as in a seal
//	records, bytes: what was given up
//	reason, time: why and when
//	seal: the digest that the segment's own seal had signed
//	sha256 of all bytes before the note
//
// so that it is the tombstone of what is gone as well.
const (
	restSuffix     = ".rest.zst"
	remainderTitle = "outguard evidence remainder v1"
	gapSize        = 48
)

func restName(first uint64) string { return fmt.Sprintf("%020d%s", first, restSuffix) }

// givenUp is what a remainder's note says beside a seal.
type givenUp struct {
	records, bytes uint64
	reason         string
	at             time.Time
	was            Hash
}

func (s seal) remainderText() string {
	g := s.gone
	return fmt.Sprintf("%s\nstream %s\nfirst %d\nnext %d\nbefore %s\nchain %s\nplain %d\nrecords %d\nbytes %d\nreason %s\ntime %s\nseal %s\nsha256 %s\n",
		remainderTitle, s.stream, s.first, s.next, s.before, s.chain, s.plain,
		g.records, g.bytes, g.reason, g.at.UTC().Format(time.RFC3339Nano), g.was, s.sum)
}

func parseRemainder(text string) (seal, error) {
	f, err := noteFields(text, remainderTitle, "stream", "first", "next", "before", "chain", "plain",
		"records", "bytes", "reason", "time", "seal", "sha256")
	if err != nil {
		return seal{}, err
	}
	var s seal
	g := &givenUp{reason: f[8]}
	var errs [11]error
	s.stream, errs[0] = uuid.Parse(f[0])
	for i, n := range []*uint64{1: &s.first, 2: &s.next, 5: &s.plain, 6: &g.records, 7: &g.bytes} {
		if n != nil {
			*n, errs[i] = strconv.ParseUint(f[i], 10, 64)
		}
	}
	errs[3] = s.before.UnmarshalText([]byte(f[3]))
	errs[4] = s.chain.UnmarshalText([]byte(f[4]))
	g.at, errs[8] = time.Parse(time.RFC3339Nano, f[9])
	errs[9] = g.was.UnmarshalText([]byte(f[10]))
	errs[10] = s.sum.UnmarshalText([]byte(f[11]))
	if err := errors.Join(errs[:]...); err != nil {
		return seal{}, err
	}
	if s.gone = g; s.text() != text {
		return seal{}, errors.New("remainder is not in its canonical form")
	}
	return s, nil
}

// gap is a run of records that is no longer there.
type gap struct {
	next, bytes uint64
	chain       Hash
}

func parseGap(payload []byte, index uint64) (gap, error) {
	if len(payload) != gapSize {
		return gap{}, fmt.Errorf("gap of %d bytes", len(payload))
	}
	g := gap{le.Uint64(payload), le.Uint64(payload[8:]), Hash(payload[16:])}
	if g.next <= index {
		return gap{}, fmt.Errorf("gap from %d to %d", index, g.next)
	}
	return g, nil
}

// remainder writes what is left of one segment.
type remainder struct {
	*sealer
	keep  func(*Record) bool
	first *Record // of the run that is being left out; nil: none is
	start Hash    // the chain before it
	run   gap
	lost  givenUp
}

// remainderInto writes to f what is left of a sealed segment.
func (s *Stream) remainderInto(ctx context.Context, f io.Writer, seg segmentFile, src *sealedSource, reason string, keep func(*Record) bool) (*indexer, givenUp, error) {
	was := src.t.seal
	r := &remainder{
		sealer: newSealer(f, newIndexer(s.opts.Keys)), keep: keep,
		lost: givenUp{reason: reason, at: s.opts.Now().UTC().Round(0), was: was.sum},
	}
	r.sealer.start(was.first, was.before)
	r.buf = segmentHeader{was.stream, was.first, was.before}.append(r.buf)
	c := &cursor{dir: s.dir}
	for i := range src.t.blocks {
		if err := c.enter(seg, src, i); err != nil {
			return nil, givenUp{}, err
		}
		for c.next < src.t.next(i) {
			rec, err := c.step()
			if err = errors.Join(err, ctx.Err()); err == nil {
				err = r.take(rec, c.before)
			}
			if err != nil {
				return nil, givenUp{}, err
			}
		}
		if err := c.left(src.t, i); err != nil {
			return nil, givenUp{}, err
		}
	}
	if err := r.close(); err != nil {
		return nil, givenUp{}, err
	}
	end := seal{stream: was.stream, first: was.first, next: was.next, before: was.before, chain: was.chain, gone: &r.lost}
	_, err := r.finish(end, s.keys.key())
	return r.index, r.lost, err
}

// take writes a record or leaves it out.
func (r *remainder) take(rec *Record, before Hash) error {
	if r.keep(rec) {
		if err := r.close(); err != nil {
			return err
		}
		return r.record(rec, before)
	}
	if r.first == nil {
		r.first, r.start, r.run = &Record{Index: rec.Index, Kind: KindGap, Time: rec.Time}, before, gap{}
	}
	n := uint64(len(rec.Payload) + recordOverhead)
	r.run = gap{rec.Index + 1, r.run.bytes + n, rec.Chain}
	r.lost.records++
	r.lost.bytes += n
	return nil
}

// close writes the gap of a run, if there is one.
func (r *remainder) close() error {
	if r.first == nil {
		return nil
	}
	g := r.first
	r.first = nil
	b := le.AppendUint64(nil, r.run.next)
	b = le.AppendUint64(b, r.run.bytes)
	g.Payload = append(b, r.run.chain[:]...)
	text := g.append(nil)
	g.Chain = sha256.Sum256(append(r.start[:], text[:len(text)-checkSize]...))
	return r.record(g, r.start)
}

// thin puts a remainder in the place of a sealed segment.
func (s *Stream) thin(ctx context.Context, seg segmentFile, reason string, keep func(*Record) bool) (GivenUp, error) {
	path := filepath.Join(s.dir, seg.name)
	src, err := openSealed(path, seg.first)
	if err != nil {
		return GivenUp{}, err
	}
	defer src.Close()
	final := filepath.Join(s.dir, restName(seg.first))
	temp := final + tempSuffix
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return GivenUp{}, err
	}
	x, lost, err := s.remainderInto(ctx, f, seg, src, reason, keep)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return GivenUp{}, errors.Join(err, os.Remove(temp))
	}
	t := src.t.seal
	g := GivenUp{Reason: reason, First: t.first, Next: t.next, Records: lost.records, Bytes: lost.bytes, Chain: t.chain}
	if err := s.tell(g); err != nil {
		return GivenUp{}, errors.Join(err, os.Remove(temp))
	}
	return g, s.putRemainder(seg, temp, final, x)
}
