package evidence

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/uuid"
)

// Recovery says what a start cut off after a crash or, with a Segment of "",
// that it set a whole corrupt stream aside.
type Recovery struct {
	Segment string `json:"segment"`
	Offset  int64  `json:"offset"` // where the last complete record ended
	Bytes   int64  `json:"bytes"`  // after it, set aside
	File    string `json:"file"`   // where they are now, in the stream's directory; or the stream, beside it
	SHA256  Hash   `json:"sha256"`
	Reason  string `json:"reason"`
}

func openStream(dir string, id uuid.UUID, keys *keyring, opts Options, room *room, full func()) (*Stream, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	s := &Stream{dir: dir, id: id, keys: keys, opts: opts, room: room, full: full, device: deviceOf(dir), headTime: opts.Now()}
	cuts, err := s.recover(keys.key())
	if err != nil {
		return nil, err
	}
	for _, c := range cuts {
		opts.Log.Warn("evidence cut off by a crash", "vm", id, "segment", c.Segment, "offset", c.Offset, "bytes", c.Bytes, "kept", c.File)
		if err := s.recovered(c); err != nil {
			return nil, errors.Join(err, s.f.Close())
		}
	}
	return s, nil
}

// recovered puts on record what a start found.
func (s *Stream) recovered(r Recovery) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := mustJSON(r)
	_, err := s.write(KindRecovery, flagCritical, s.opts.Now(), [][]byte{b}, len(b))
	return err
}

// recover brings the stream to its last complete record and opens the segment
// to append to.
func (s *Stream) recover(key *Key) ([]Recovery, error) {
	l, err := list(s.dir)
	if err != nil {
		return nil, err
	}
	if err := s.tidy(l); err != nil {
		return nil, err
	}
	s.chain = newChain(genesis(s.id))
	if len(l.segments) == 0 {
		return nil, s.begin()
	}
	return s.resume(l, key)
}

// tidy removes what a crash leaves while a segment is sealed or given up: an
// unfinished output, the plain file that a finished one has replaced, a
// remainder whose segment is still there, or what a tombstone stands for.
func (s *Stream) tidy(l listing) error {
	names := l.temps
	for _, seg := range slices.Concat(l.leftover, l.spent) {
		names = append(names, seg.name)
	}
	for _, stone := range l.stones {
		if stone.first < l.gone {
			names = append(names, stone.name)
		}
	}
	for _, name := range names {
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil {
			return err
		}
	}
	for _, seg := range l.segments {
		fi, err := os.Stat(filepath.Join(s.dir, seg.name))
		if err != nil {
			return err
		}
		s.used += fi.Size()
	}
	return s.tidyIndexes(l)
}

// tidyIndexes removes the indexes of no sealed segment.
func (s *Stream) tidyIndexes(l listing) error {
	for _, x := range l.indexes {
		path := filepath.Join(s.dir, x.name)
		fi, err := os.Lstat(path)
		if err == nil && !slices.ContainsFunc(l.segments, func(seg segmentFile) bool { return seg.sealed && seg.first == x.first }) {
			err = os.Remove(path)
		} else if err == nil {
			s.used += fi.Size()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Stream) begin() error {
	f, seg, err := s.create()
	if err != nil {
		return fmt.Errorf("start segment: %w", err)
	}
	s.use(f, seg, segmentHeaderSize)
	return nil
}

// resume walks the plain segments at the end of the stream; those before them
// are sealed and were synced when they were.
func (s *Stream) resume(l listing, key *Key) ([]Recovery, error) {
	from := len(l.segments) - 1
	for from > 0 && !l.segments[from].sealed {
		from--
	}
	seg := l.segments[from]
	if last := l.segments[len(l.segments)-1]; !last.sealed {
		if c := s.fromHead(last, key); c != nil {
			defer c.close()
			if err := s.toEnd(c); err == io.EOF {
				return nil, s.reopen(c)
			}
		}
	}
	c := &cursor{dir: s.dir}
	defer c.close()
	err := c.open(seg, ^uint64(0)) // of a sealed one, its last block
	if err == nil {
		err = s.toEnd(c)
	}
	if c.opened && c.stream != s.id {
		return nil, &CorruptError{Segment: seg.name, Reason: "segment of stream " + c.stream.String()}
	}
	if err == io.EOF {
		return nil, s.reopen(c)
	}
	var bad *CorruptError
	if !errors.As(err, &bad) {
		return nil, err
	}
	return s.cut(c, l, bad, key)
}

// toEnd reads to the first error: io.EOF where all is whole.
func (s *Stream) toEnd(c *cursor) error {
	for {
		r, err := c.record()
		if err != nil {
			return err
		}
		if r.Kind == KindHead {
			s.heads, s.headTime = r.Index+1, r.Time
		}
	}
}

// headWindow is how far from its end a segment is searched for a head.
const headWindow = 4 << 20

// fromHead finds the last signed head near the end of a segment and stands at
// its record, so that a start need not read what it signs. nil where there is
// none: then everything is read.
func (s *Stream) fromHead(seg segmentFile, key *Key) *cursor {
	f, err := os.Open(filepath.Join(s.dir, seg.name))
	if err != nil {
		return nil
	}
	at, h, ok := lastHead(f, s.id, key)
	if !ok || h.Records < seg.first {
		f.Close()
		return nil
	}
	return &cursor{
		dir: s.dir, stream: s.id, opened: true, seg: seg, offset: at,
		src: &plainSource{f: f, off: at}, next: h.Records, chain: newChain(h.Chain),
	}
}

// lastHead returns the last head in the file that verifies, and where its
// record starts. Guests' bytes may look like a head; none has the signature.
func lastHead(f *os.File, stream uuid.UUID, key *Key) (int64, Head, bool) {
	fi, err := f.Stat()
	if err != nil {
		return 0, Head{}, false
	}
	start := max(segmentHeaderSize, fi.Size()-headWindow)
	b := make([]byte, max(0, fi.Size()-start))
	if _, err := f.ReadAt(b, start); err != nil {
		return 0, Head{}, false
	}
	v := key.Verifier()
	for end := len(b); ; {
		i := bytes.LastIndex(b[:end], []byte(headTitle+"\n"))
		if i < recordHeaderSize {
			return 0, Head{}, false
		}
		if n := noteEnd(b[i:]); n > 0 {
			if h, err := OpenHead(b[i:i+n], v); err == nil && h.Stream == stream {
				return start + int64(i-recordHeaderSize), h, true
			}
		}
		end = i
	}
}

func (s *Stream) reopen(c *cursor) error {
	s.next, s.durable, s.chain = c.next, 0, c.chain
	if c.seg.sealed {
		return s.begin()
	}
	f, err := os.OpenFile(filepath.Join(s.dir, c.seg.name), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	s.use(f, c.seg, c.offset)
	return nil
}

// cut sets aside everything from the bad record on, unless a signed head after
// it says that it was on disk: then it was not a crash, and bad is the error.
func (s *Stream) cut(c *cursor, l listing, bad *CorruptError, key *Key) ([]Recovery, error) {
	var cuts []Recovery
	offset := bad.Offset
	for _, seg := range l.segments {
		switch {
		case len(cuts) == 0 && seg.name != bad.Segment:
			continue
		case len(cuts) > 0:
			offset = 0
		}
		r, err := s.examine(seg, offset, bad, key)
		if err != nil {
			return nil, err
		}
		cuts = append(cuts, r)
	}
	if len(cuts) == 0 {
		return nil, bad
	}
	return s.setAside(c, cuts)
}

func (s *Stream) examine(seg segmentFile, offset int64, bad *CorruptError, key *Key) (Recovery, error) {
	if seg.sealed {
		return Recovery{}, bad
	}
	b, err := os.ReadFile(filepath.Join(s.dir, seg.name))
	if err != nil {
		return Recovery{}, err
	}
	rest := b[min(offset, int64(len(b))):]
	if durableIn(rest, key) > bad.Index {
		return Recovery{}, bad
	}
	return Recovery{
		Segment: seg.name, Offset: offset, Bytes: int64(len(rest)), SHA256: sha256.Sum256(rest),
		File: fmt.Sprintf("%020d.%d%s", seg.first, offset, cutSuffix), Reason: bad.Reason,
	}, nil
}

// durableIn finds the signed heads in b and returns how many records they say
// were on disk.
func durableIn(b []byte, key *Key) uint64 {
	var most uint64
	v := key.Verifier()
	for {
		i := bytes.Index(b, []byte(headTitle+"\n"))
		if i < 0 {
			return most
		}
		b = b[i:]
		if n := noteEnd(b); n > 0 {
			if h, err := OpenHead(b[:n], v); err == nil {
				most = max(most, h.Durable)
			}
		}
		b = b[len(headTitle):]
	}
}

// noteEnd finds the end of the note at the start of b: its line after the
// empty one.
func noteEnd(b []byte) int {
	i := bytes.Index(b[:min(len(b), 2048)], []byte("\n\n"))
	if i < 0 {
		return 0
	}
	j := bytes.IndexByte(b[i+2:min(len(b), i+2048)], '\n')
	if j < 0 {
		return 0
	}
	return i + 2 + j + 1
}

// setAside copies what is cut before it takes it away.
func (s *Stream) setAside(c *cursor, cuts []Recovery) ([]Recovery, error) {
	for i := range cuts {
		if err := s.keepCut(&cuts[i]); err != nil {
			return nil, err
		}
	}
	if err := syncDir(s.dir); err != nil {
		return nil, err
	}
	for _, r := range cuts {
		path := filepath.Join(s.dir, r.Segment)
		var err error
		if r.Offset < segmentHeaderSize {
			err = os.Remove(path)
		} else {
			err = os.Truncate(path, r.Offset)
		}
		if err != nil {
			return nil, err
		}
		s.used -= r.Bytes
	}
	if cuts[0].Offset >= segmentHeaderSize {
		return cuts, s.reopen(c)
	}
	if !c.opened { // not even the first segment's header was whole
		return cuts, s.begin()
	}
	s.next, s.chain = c.next, c.chain
	return cuts, s.begin()
}

func (s *Stream) keepCut(r *Recovery) error {
	b, err := os.ReadFile(filepath.Join(s.dir, r.Segment))
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, r.File)
	for n := 1; ; n++ {
		err = writeNew(path, b[min(r.Offset, int64(len(b))):], 0o640)
		if !errors.Is(err, os.ErrExist) {
			break
		}
		r.File = fmt.Sprintf("%s.%d%s", r.File[:len(r.File)-len(cutSuffix)], n, cutSuffix)
		path = filepath.Join(s.dir, r.File)
	}
	return err
}
