package evidence

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/mod/sumdb/note"

	"github.com/outguard/outguard/host/failpoint"
)

// sealLoop seals full segments, of one stream after the other, until ctx ends.
func (s *Store) sealLoop(ctx context.Context) {
	if s.opts.KeepPlain {
		return
	}
	look, end := s.retentions()
	defer end()
	s.indexOthers(ctx)
	for {
		for _, st := range s.open() {
			if err := st.sealFull(ctx); err != nil && ctx.Err() == nil {
				s.opts.Log.Error("seal evidence", "vm", st.id, "err", err)
			}
		}
		s.retain(ctx)
		select {
		case <-ctx.Done():
			return
		case <-s.full:
		case <-look:
		}
	}
}

// retentions ticks when it is time to look for what is to be given up, if
// anything ever is. The sealer does it: it alone replaces segments.
func (s *Store) retentions() (look <-chan time.Time, end func()) {
	if s.opts.Retain == nil {
		return nil, func() {}
	}
	t := time.NewTicker(orDefault(s.opts.Retain.Every, time.Minute))
	return t.C, t.Stop
}

// wakeSealer says that there is a full segment, or a stream that may have some.
func (s *Store) wakeSealer() {
	select {
	case s.full <- struct{}{}:
	default: // it will look anyway
	}
}

// sealFull seals every plain segment but the one that is appended to, and indexes
// what has no index.
func (s *Stream) sealFull(ctx context.Context) error {
	s.mu.Lock()
	current := s.seg.first
	s.mu.Unlock()
	l, err := list(s.dir)
	if err != nil {
		return err
	}
	for i, seg := range l.segments {
		if seg.sealed || seg.first >= current {
			continue
		}
		if err := s.seal(ctx, seg, l.segments[i+1].first); err != nil {
			return fmt.Errorf("segment %s: %w", seg.name, err)
		}
	}
	return s.indexMissing(ctx, l)
}

// seal replaces a plain segment by a sealed one. At any moment one of them is
// whole; readers prefer the sealed one.
func (s *Stream) seal(ctx context.Context, seg segmentFile, next uint64) error {
	final := filepath.Join(s.dir, segmentName(seg.first, true))
	temp := final + tempSuffix
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	x := newIndexer(s.opts.Keys)
	size, err := sealInto(ctx, f, s.dir, seg, next, s.keys.key(), x)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	fi, err := os.Stat(filepath.Join(s.dir, seg.name))
	if err != nil {
		return err
	}
	failpoint.At(failpoint.Sealing)
	err = errors.Join(os.Rename(temp, final), syncDir(s.dir))
	if err == nil { // else the plain one may be all that a power cut leaves
		failpoint.At(failpoint.Sealed)
		err = os.Remove(filepath.Join(s.dir, seg.name))
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.used += size - fi.Size()
	s.mu.Unlock()
	return s.indexed(x, final)
}

// sealer writes one sealed segment.
type sealer struct {
	w      *bufio.Writer
	h      hash.Hash
	n      uint64 // bytes written
	plain  uint64 // of blocks that ended
	buf    []byte // the block so far
	packed []byte
	index  *indexer
	cur    block
	blocks []block
}

func sealInto(ctx context.Context, f io.Writer, dir string, seg segmentFile, next uint64, key note.Signer, x *indexer) (int64, error) {
	c := &cursor{dir: dir}
	defer c.close()
	if err := c.open(seg, seg.first); err != nil {
		return 0, err
	}
	s := newSealer(f, x)
	end := seal{stream: c.stream, first: c.next, before: c.chain.last}
	s.start(c.next, c.chain.last)
	s.buf = segmentHeader{c.stream, c.next, c.chain.last}.append(s.buf)
	for {
		r, err := c.step()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return 0, err
		}
		if err := s.record(r, c.before); err != nil {
			return 0, err
		}
	}
	if c.next != next {
		return 0, fmt.Errorf("ends at record %d, want %d", c.next, next)
	}
	end.next, end.chain = c.next, c.chain.last
	return s.finish(end, key)
}

func newSealer(f io.Writer, x *indexer) *sealer {
	return &sealer{w: bufio.NewWriterSize(f, readAhead), h: sha256.New(), index: x}
}

func (s *sealer) start(first uint64, before Hash) {
	s.cur = block{first: first, offset: s.plain, at: s.n, before: before, earliest: 1<<63 - 1, latest: -1 << 63}
	s.buf = s.buf[:0]
}

func (s *sealer) record(r *Record, before Hash) error {
	if len(s.buf) >= blockSize {
		if err := s.flush(); err != nil {
			return err
		}
		s.start(r.Index, before)
	}
	s.buf = r.append(s.buf)
	s.index.record(r)
	ns := r.Time.UnixNano()
	s.cur.earliest, s.cur.latest = min(s.cur.earliest, ns), max(s.cur.latest, ns)
	return nil
}

func (s *sealer) flush() error {
	s.index.end()
	s.packed = encoder().EncodeAll(s.buf, s.packed[:0])
	s.blocks = append(s.blocks, s.cur)
	s.plain += uint64(len(s.buf))
	return s.write(s.packed)
}

func (s *sealer) write(b []byte) error {
	s.h.Write(b)
	s.n += uint64(len(b))
	_, err := s.w.Write(b)
	return err
}

func (s *sealer) finish(end seal, key note.Signer) (int64, error) {
	if err := s.flush(); err != nil {
		return 0, err
	}
	var entries []byte
	for _, b := range s.blocks {
		entries = b.append(entries)
	}
	// The note's length stands before it in the frame's size, so sign twice:
	// every note over this text is of one length.
	end.plain = s.plain
	sized, err := SignNote(end.text(), key)
	if err != nil {
		return 0, err
	}
	head := le.AppendUint32(nil, skippableMagic)
	head = le.AppendUint32(head, uint32(len(entries)+len(sized)+footSize))
	if err := s.write(append(head, entries...)); err != nil {
		return 0, err
	}
	end.sum = Hash(s.h.Sum(nil))
	signed, err := SignNote(end.text(), key)
	if err == nil && len(signed) != len(sized) {
		err = errors.New("signatures of different lengths")
	}
	if err != nil {
		return 0, err
	}
	foot := le.AppendUint32(signed, uint32(len(s.blocks)))
	foot = le.AppendUint32(foot, uint32(len(signed)))
	foot = le.AppendUint64(foot, s.plain)
	if err := s.write(append(foot, footMagic[:]...)); err != nil {
		return 0, err
	}
	return int64(s.n), s.w.Flush()
}

var encoder = sync.OnceValue(func() *zstd.Encoder {
	// Blocks stand alone, and a guest's events should not wait for a core.
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic("evidence: " + err.Error())
	}
	return e
})

// append writes the record as it stands in a plain segment.
func (r *Record) append(b []byte) []byte {
	h := recordHeader{length: uint32(len(r.Payload) + recordOverhead), kind: r.Kind, index: r.Index, time: r.Time.UnixNano()}
	if r.Critical {
		h.flags = flagCritical
	}
	var head [recordHeaderSize]byte
	h.put(head[:])
	b = append(append(b, head[:]...), r.Payload...)
	return append(b, r.Chain[:checkSize]...)
}
