package evidence

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"
)

// An index says of each block of a sealed segment which keys its records have,
// so that a question passes over the blocks that cannot answer it. It stands
// beside its segment and is made of it, by the sealer and anew where it is missing:
//
//	 0       8        12       16
//	+-------+--------+--------+--------------+-----------+------+-------------+
//	| magic | scheme | blocks | ends u32 ... | filters … | note | foot of 12  |
//	+-------+--------+--------+--------------+-----------+------+-------------+
//
//	scheme  u32, of what the keys are: see Keys
//	ends    for each block where its filter ends, in words of 8 bytes; with the
//	        highest bit set it has more keys than a filter is made for
//	filter  a Bloom filter of 12 bits for each key, 8 of them set
//	foot    note length u32 | "OUTGIDX\x01"
//
// The note is signed by the host's key over
//
//	outguard evidence index v1
//	stream, first: one line each
//	segment: the digest that the segment's seal signs
//	blocks: SHA-256 of the segment's entries of blocks
//	sha256 of all bytes before the note
//
// It says nothing that is not in the segment, and Verify does not look at it. A
// question does without an index that is missing, cut off, of another segment,
// of another scheme or not signed: a filter without a bit would hide an event.
const (
	indexSuffix = ".idx"
	indexTitle  = "outguard evidence index v1"
	indexHead   = 16
	indexFoot   = 12
	keyBits     = 12 // of a filter for each key
	keyProbes   = 8
	maxKeys     = 8192 // of a block; a guest chooses how many
	anyKey      = 1 << 31
)

var indexMagic = [8]byte{'O', 'U', 'T', 'G', 'I', 'D', 'X', 1}

func indexName(first uint64) string { return fmt.Sprintf("%020d%s", first, indexSuffix) }

// Keys is what records can be asked for by: numbers that say, say, "of pid 7".
// Two that are equal by chance cost a question time and hide nothing.
type Keys struct {
	// Scheme is that of Of's keys. Where it changes, what was made with another
	// is made anew.
	Scheme uint32
	// Of calls add with each key of a record. It is not called twice at once.
	Of func(r *Record, add func(key uint64))
}

// indexer makes the index of one segment.
type indexer struct {
	keys    *Keys
	recent  [1024]uint64 // keys of this block, each at its place: most come again
	block   []uint64
	ends    []uint32
	filters []byte
}

func newIndexer(k *Keys) *indexer {
	if k == nil {
		return nil
	}
	return &indexer{keys: k}
}

// record takes one record of the block that is being written.
func (x *indexer) record(r *Record) {
	if x != nil && r.Kind != KindGap {
		x.keys.Of(r, x.add)
	}
}

func (x *indexer) add(key uint64) {
	at := &x.recent[key%uint64(len(x.recent))]
	if *at == key && key != 0 {
		return
	}
	*at = key
	x.block = append(x.block, key)
}

// end ends a block.
func (x *indexer) end() {
	if x == nil {
		return
	}
	slices.Sort(x.block)
	keys := slices.Compact(x.block)
	mark := uint32(0)
	if len(keys) > maxKeys {
		keys, mark = nil, anyKey
	}
	x.filters = appendFilter(x.filters, keys)
	x.ends = append(x.ends, uint32(len(x.filters)/8)|mark)
	x.block = x.block[:0]
	clear(x.recent[:])
}

func appendFilter(b []byte, keys []uint64) []byte {
	start := len(b)
	b = append(b, make([]byte, (len(keys)*keyBits+63)/64*8)...)
	f := b[start:]
	bits := uint64(len(f)) * 8
	for _, k := range keys {
		for p := probe(k); p.n < keyProbes; {
			bit := p.next(bits)
			f[bit/8] |= 1 << (bit % 8)
		}
	}
	return b
}

// probes are the bits of a key.
type probes struct {
	at, step uint32
	n        int
}

func probe(key uint64) probes { return probes{at: uint32(key), step: uint32(key>>32) | 1} }

func (p *probes) next(bits uint64) uint64 {
	bit := uint64(p.at) * bits >> 32
	p.at += p.step
	p.n++
	return bit
}

// filter is a block's.
type filter struct {
	bits []byte
	all  bool // it may have any key
}

func (f *filter) has(key uint64) bool {
	if f.all {
		return true
	}
	bits := uint64(len(f.bits)) * 8
	if bits == 0 {
		return false
	}
	for p := probe(key); p.n < keyProbes; {
		bit := p.next(bits)
		if f.bits[bit/8]&(1<<(bit%8)) == 0 {
			return false
		}
	}
	return true
}

// indexNote is what an index is signed over.
type indexNote struct {
	stream               uuid.UUID
	first                uint64
	segment, blocks, sum Hash
}

func (n indexNote) text() string {
	return fmt.Sprintf("%s\nstream %s\nfirst %s\nsegment %s\nblocks %s\nsha256 %s\n",
		indexTitle, n.stream, strconv.FormatUint(n.first, 10), n.segment, n.blocks, n.sum)
}

// noteOf is what the index of a segment with that trailer has to be signed over.
func (t *trailer) noteOf(sum Hash) indexNote {
	return indexNote{t.seal.stream, t.seal.first, t.seal.sum, t.entries, sum}
}

// bytes is the index of a segment with that trailer.
func (x *indexer) bytes(t *trailer, key note.Signer) ([]byte, error) {
	if len(x.ends) != len(t.blocks) {
		return nil, fmt.Errorf("index of %d blocks, want %d", len(x.ends), len(t.blocks))
	}
	b := append([]byte(nil), indexMagic[:]...)
	b = le.AppendUint32(b, x.keys.Scheme)
	b = le.AppendUint32(b, uint32(len(x.ends)))
	for _, e := range x.ends {
		b = le.AppendUint32(b, e)
	}
	b = append(b, x.filters...)
	signed, err := SignNote(t.noteOf(sha256.Sum256(b)).text(), key)
	if err != nil {
		return nil, err
	}
	b = append(b, signed...)
	b = le.AppendUint32(b, uint32(len(signed)))
	return append(b, indexMagic[:]...), nil
}

var (
	errNoIndex     = errors.New("no index")
	errOtherScheme = errors.New("its keys are of another scheme")
)

// parseIndex returns the filters of a segment's blocks, or why they cannot be
// used.
func parseIndex(b []byte, t *trailer, scheme uint32, v note.Verifier) ([]filter, error) {
	if len(b) < indexHead+indexFoot || [8]byte(b[:8]) != indexMagic || [8]byte(b[len(b)-8:]) != indexMagic {
		return nil, errors.New("cut off")
	}
	n := uint64(le.Uint32(b[len(b)-indexFoot:]))
	body := uint64(len(b) - indexFoot)
	if n > maxNote || n > body-indexHead {
		return nil, errors.New("foot is not as written")
	}
	signed, b := b[body-n:body], b[:body-n]
	text, err := OpenNote(signed, v)
	switch {
	case err != nil:
		return nil, err
	case text != t.noteOf(sha256.Sum256(b)).text():
		return nil, errors.New("not what was signed for this segment")
	case le.Uint32(b[8:]) != scheme:
		return nil, errOtherScheme
	}
	return parseFilters(b[indexHead:], uint64(le.Uint32(b[12:])), len(t.blocks))
}

func parseFilters(b []byte, blocks uint64, want int) ([]filter, error) {
	if blocks != uint64(want) || uint64(len(b)) < 4*blocks {
		return nil, fmt.Errorf("of %d blocks, want %d", blocks, want)
	}
	ends, words := b[:4*blocks], b[4*blocks:]
	all := make([]filter, blocks)
	from := uint64(0)
	for i := range all {
		e := le.Uint32(ends[4*i:])
		to := uint64(e&^anyKey) * 8
		if to < from || to > uint64(len(words)) {
			return nil, fmt.Errorf("filter %d is not as written", i)
		}
		all[i] = filter{bits: words[from:to], all: e&anyKey != 0}
		from = to
	}
	return all, nil
}

// readIndex reads the index beside a segment.
func readIndex(dir string, seg segmentFile, t *trailer, scheme uint32, v note.Verifier) ([]filter, error) {
	path := filepath.Join(dir, indexName(seg.first))
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errNoIndex
	}
	if err != nil {
		return nil, err
	}
	// No index of ours is larger.
	if most := int64(len(t.blocks))*(4+maxKeys*keyBits/8) + indexHead + maxNote + indexFoot; !fi.Mode().IsRegular() || fi.Size() > most {
		return nil, fmt.Errorf("%s of %d bytes, at most %d", fi.Mode().Type(), fi.Size(), most)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseIndex(b, t, scheme, v)
}

// writeIndex puts an index beside its segment. It need not be on disk: one that
// is not whole is not used.
func writeIndex(dir string, first uint64, b []byte) error {
	path := filepath.Join(dir, indexName(first))
	temp := path + tempSuffix
	if err := os.WriteFile(temp, b, 0o640); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return os.Rename(temp, path)
}
