package evidence

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/mod/sumdb/note"
)

// A sealed segment is a plain one in zstd frames, each of them a block of whole
// records (the first also holds the segment's header), and a skippable frame:
//
//	+--------------+----------------------------------------------------------+
//	| zstd frames  | 5E 2A 4D 18 | size u32 | blocks of 72 | note | foot of 24 |
//	+--------------+----------------------------------------------------------+
//
//	block: first record u64 | plain offset u64 | file offset u64 |
//	       earliest i64 | latest time i64, ns | chain before it, 32
//	foot:  blocks u32 | note length u32 | plain size u64 | "OUTGSEL\x01"
//
// The note is signed by the host's key over
//
//	outguard evidence seal v1
//	stream, first, next, before, chain, plain: one line each, see seal
//	sha256 of all bytes before the note
const (
	skippableMagic = 0x184D2A5E
	blockSize      = 256 << 10 // plain bytes after which a block ends
	blockEntry     = 72
	footSize       = 24
	maxBlock       = blockSize + maxRecord + segmentHeaderSize
	maxBlocks      = 1 << 20
	maxNote        = 4096
	sealTitle      = "outguard evidence seal v1"
)

var footMagic = [8]byte{'O', 'U', 'T', 'G', 'S', 'E', 'L', 1}

type block struct {
	stream           uuid.UUID // not in the file's entry: the seal's
	first            uint64
	offset           uint64 // in the plain segment
	at               uint64 // in the file
	earliest, latest int64
	before           Hash
}

func (b block) append(to []byte) []byte {
	for _, v := range []uint64{b.first, b.offset, b.at, uint64(b.earliest), uint64(b.latest)} {
		to = le.AppendUint64(to, v)
	}
	return append(to, b.before[:]...)
}

func parseBlock(b []byte) block {
	return block{
		first: le.Uint64(b), offset: le.Uint64(b[8:]), at: le.Uint64(b[16:]),
		earliest: int64(le.Uint64(b[24:])), latest: int64(le.Uint64(b[32:])), before: Hash(b[40:72]),
	}
}

// seal is what the note at the end says.
type seal struct {
	stream        uuid.UUID
	first, next   uint64
	before, chain Hash
	plain         uint64 // bytes of the plain segment
	sum           Hash
	gone          *givenUp // of a remainder: what it lacks
}

func (s seal) text() string {
	if s.gone != nil {
		return s.remainderText()
	}
	return fmt.Sprintf("%s\nstream %s\nfirst %d\nnext %d\nbefore %s\nchain %s\nplain %d\nsha256 %s\n",
		sealTitle, s.stream, s.first, s.next, s.before, s.chain, s.plain, s.sum)
}

func parseSeal(text string) (seal, error) {
	if strings.HasPrefix(text, remainderTitle+"\n") {
		return parseRemainder(text)
	}
	f, err := noteFields(text, sealTitle, "stream", "first", "next", "before", "chain", "plain", "sha256")
	if err != nil {
		return seal{}, err
	}
	var s seal
	var errs [7]error
	s.stream, errs[0] = uuid.Parse(f[0])
	s.first, errs[1] = strconv.ParseUint(f[1], 10, 64)
	s.next, errs[2] = strconv.ParseUint(f[2], 10, 64)
	errs[3] = s.before.UnmarshalText([]byte(f[3]))
	errs[4] = s.chain.UnmarshalText([]byte(f[4]))
	s.plain, errs[5] = strconv.ParseUint(f[5], 10, 64)
	errs[6] = s.sum.UnmarshalText([]byte(f[6]))
	if err := errors.Join(errs[:]...); err != nil {
		return seal{}, err
	}
	if s.text() != text {
		return seal{}, errors.New("seal is not in its canonical form")
	}
	return s, nil
}

// sameAsSealed holds a plain segment that a crash left beside its sealed twin
// against that: a start takes it away without reading it.
func sameAsSealed(dir, plain string) error {
	p, err := os.Open(filepath.Join(dir, plain))
	if err != nil {
		return err
	}
	defer p.Close()
	f, err := os.Open(filepath.Join(dir, strings.TrimSuffix(plain, plainSuffix)+sealedSuffix))
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxBlock))
	if err != nil {
		return err
	}
	defer z.Close()
	a, b := make([]byte, blockSize), make([]byte, blockSize)
	for {
		n, errA := io.ReadFull(p, a)
		m, errB := io.ReadFull(z, b)
		if !bytes.Equal(a[:n], b[:m]) {
			return &CorruptError{Segment: plain, Reason: "it is not the segment that was sealed"}
		}
		if errA != nil || errB != nil {
			return unlessEnd(errA, errB)
		}
	}
}

// unlessEnd is what is wrong beside that there are no more bytes.
func unlessEnd(errs ...error) error {
	for i, err := range errs {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}

// trailer is a sealed segment's skippable frame.
type trailer struct {
	seal    seal
	blocks  []block
	entries Hash // digest of the blocks as they stand in the file
	note    []byte
	data    uint64 // where the zstd frames end
	signed  uint64 // where the note starts: what the seal's digest covers
}

// readTrailer reads the end of a sealed segment and holds its numbers against
// each other, not against a key.
func readTrailer(f *os.File) (*trailer, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := uint64(fi.Size())
	var foot [footSize]byte
	if size < footSize {
		return nil, errors.New("seal cut off")
	}
	if _, err := f.ReadAt(foot[:], int64(size-footSize)); err != nil {
		return nil, err
	}
	blocks, noteLen, plain := uint64(le.Uint32(foot[:])), uint64(le.Uint32(foot[4:])), le.Uint64(foot[8:])
	body := blocks*blockEntry + noteLen + footSize
	if [8]byte(foot[16:]) != footMagic || blocks == 0 || blocks > maxBlocks || noteLen > maxNote || body+8 > size {
		return nil, errors.New("seal's foot is not as written")
	}
	b := make([]byte, body+8)
	if _, err := f.ReadAt(b, int64(size-body-8)); err != nil {
		return nil, err
	}
	if le.Uint32(b) != skippableMagic || uint64(le.Uint32(b[4:])) != body {
		return nil, errors.New("seal's frame is not as written")
	}
	entries := b[8 : 8+blocks*blockEntry]
	t := &trailer{entries: sha256.Sum256(entries), note: b[8+len(entries) : 8+len(entries)+int(noteLen)], data: size - body - 8, signed: size - noteLen - footSize}
	if t.seal, err = parseSeal(noteText(t.note)); err != nil {
		return nil, err
	}
	if plain != t.seal.plain {
		return nil, fmt.Errorf("seal's foot says %d plain bytes, its note %d", plain, t.seal.plain)
	}
	return t, t.parseBlocks(entries)
}

func (t *trailer) parseBlocks(entries []byte) error {
	for len(entries) > 0 {
		b := parseBlock(entries)
		b.stream = t.seal.stream
		t.blocks = append(t.blocks, b)
		entries = entries[blockEntry:]
	}
	b := t.blocks[0]
	if b.first != t.seal.first || b.offset != 0 || b.at != 0 || b.before != t.seal.before {
		return errors.New("seal's first block is not where the segment starts")
	}
	for i := range t.blocks {
		b := t.blocks[i]
		endPlain, endFile := t.end(i)
		if endPlain <= b.offset || endPlain-b.offset > maxBlock || endFile <= b.at || endFile-b.at > 2*maxBlock {
			return fmt.Errorf("seal's block %d of %d is not as written", i, len(t.blocks))
		}
	}
	return nil
}

func (t *trailer) end(i int) (plain, file uint64) {
	if i+1 < len(t.blocks) {
		return t.blocks[i+1].offset, t.blocks[i+1].at
	}
	return t.seal.plain, t.data
}

// next is the index after the last record of a block.
func (t *trailer) next(i int) uint64 {
	if i+1 < len(t.blocks) {
		return t.blocks[i+1].first
	}
	return t.seal.next
}

// sealedSource decodes a sealed segment block by block.
type sealedSource struct {
	f    *os.File
	t    *trailer
	i    int // the next block to decode
	buf  []byte
	mem  []byte
	file []byte
}

// openSealed opens a sealed segment at the block that holds index.
func openSealed(path string, index uint64) (*sealedSource, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	t, err := readTrailer(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	s := &sealedSource{f: f, t: t}
	for i, b := range t.blocks {
		if b.first <= index {
			s.i = i
		}
	}
	return s, nil
}

func (s *sealedSource) peek(n int) ([]byte, error) {
	for len(s.buf) < n {
		if s.i == len(s.t.blocks) {
			return s.buf, io.EOF
		}
		if err := s.decode(); err != nil {
			return s.buf, err
		}
	}
	return s.buf[:n], nil
}

func (s *sealedSource) decode() error {
	b := s.t.blocks[s.i]
	endPlain, endFile := s.t.end(s.i)
	if n := int(endFile - b.at); cap(s.file) < n {
		s.file = make([]byte, n)
	}
	packed := s.file[:endFile-b.at]
	if _, err := s.f.ReadAt(packed, int64(b.at)); err != nil {
		return err
	}
	kept := append(s.mem[:0], s.buf...)
	out, err := decoder().DecodeAll(packed, kept)
	if err != nil {
		return fmt.Errorf("block %d: %w", s.i, err)
	}
	if uint64(len(out)-len(kept)) != endPlain-b.offset {
		return fmt.Errorf("block %d: %d bytes, want %d", s.i, len(out)-len(kept), endPlain-b.offset)
	}
	s.mem, s.buf = out, out
	s.i++
	return nil
}

// seek stands at the start of a block.
func (s *sealedSource) seek(i int) { s.i, s.buf = i, nil }

func (s *sealedSource) advance(n int) { s.buf = s.buf[n:] }
func (s *sealedSource) Close() error  { return s.f.Close() }

var decoder = sync.OnceValue(func() *zstd.Decoder {
	// A block of a hostile file costs no more memory than one of ours.
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*maxBlock))
	if err != nil {
		panic("evidence: " + err.Error())
	}
	return d
})

// verify holds the file against its signed digest.
func (t *trailer) verify(f *os.File, v note.Verifier) error {
	text, err := OpenNote(t.note, v)
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	if text != t.seal.text() {
		return errors.New("seal is not in its canonical form")
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, int64(t.signed))); err != nil {
		return err
	}
	if Hash(h.Sum(nil)) != t.seal.sum {
		return errors.New("sealed bytes were changed: they do not have the digest that the seal signs")
	}
	return nil
}
