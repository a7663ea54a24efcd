package evidence

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"time"

	"github.com/google/uuid"
)

// Kind says what a record's payload is. Numbers are never used again.
type Kind uint16

// What stands in the record. JSON payloads are the caller's.
const (
	KindOpen      Kind = 1  // a connection or session began: its facts
	KindClose     Kind = 2  // it ended, and how
	KindFrame     Kind = 3  // one frame, the very bytes as received
	KindFinding   Kind = 4  // what an engine or the monitor said
	KindDecision  Kind = 5  // what the playbook made of it
	KindOrder     Kind = 6  // a response about to be carried out
	KindResult    Kind = 7  // what came of it
	KindNote      Kind = 8  // anything else worth keeping
	KindTombstone Kind = 9  // bulk that was refused or removed: how much, and why
	KindHead      Kind = 10 // a signed head; written by this package
	KindRecovery  Kind = 11 // what a start after a crash cut off; written by this package
	KindGap       Kind = 12 // in a remainder: records that were given up; written by this package, and no reader is handed one
)

var kindNames = [...]string{
	KindOpen: "open", KindClose: "close", KindFrame: "frame", KindFinding: "finding",
	KindDecision: "decision", KindOrder: "order", KindResult: "result", KindNote: "note",
	KindTombstone: "tombstone", KindHead: "head", KindRecovery: "recovery", KindGap: "gap",
}

func (k Kind) known() bool { return k > 0 && int(k) < len(kindNames) }

func (k Kind) String() string {
	if k.known() {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint16(k))
}

// Sizes and limits, in bytes.
const (
	MaxPayload = 1 << 20 // of one record

	segmentHeaderSize = 64
	recordHeaderSize  = 24
	checkSize         = 8
	recordOverhead    = recordHeaderSize + checkSize
	maxRecord         = MaxPayload + recordOverhead
)

const flagCritical = 1

var le = binary.LittleEndian

var (
	// ErrCorrupt is wrapped by every error about bytes that are not what was
	// written; the error is a *CorruptError.
	ErrCorrupt = errors.New("evidence is corrupt")
	// ErrIncomplete: the last record's end is not there yet, or never will be.
	ErrIncomplete = errors.New("incomplete record at the end")
)

// CorruptError says where a stream stops being what was written.
type CorruptError struct {
	Segment string `json:"segment"` // file name in the stream's directory
	Offset  int64  `json:"offset"`  // in the plain segment, bytes
	Index   uint64 `json:"index"`   // of the first record that cannot be trusted
	Reason  string `json:"reason"`
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("segment %s, offset %d, record %d: %s: %v", e.Segment, e.Offset, e.Index, e.Reason, ErrCorrupt)
}

// Is makes errors.Is(err, ErrCorrupt) true.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// Record is one record as read. Payload is valid only until the callback that
// was given it returns.
type Record struct {
	Index    uint64
	Kind     Kind
	Critical bool
	Time     time.Time
	Payload  []byte
	Chain    Hash // h of this record
}

type recordHeader struct {
	length uint32
	kind   Kind
	flags  uint16
	index  uint64
	time   int64
}

func (h recordHeader) put(b []byte) {
	le.PutUint32(b, h.length)
	le.PutUint16(b[4:], uint16(h.kind))
	le.PutUint16(b[6:], h.flags)
	le.PutUint64(b[8:], h.index)
	le.PutUint64(b[16:], uint64(h.time))
}

// parseRecordHeader refuses what no writer would have written. A kind beyond
// those known is kept: a newer monitor may have written it.
func parseRecordHeader(b []byte, index uint64) (recordHeader, error) {
	h := recordHeader{
		length: le.Uint32(b), kind: Kind(le.Uint16(b[4:])), flags: le.Uint16(b[6:]),
		index: le.Uint64(b[8:]), time: int64(le.Uint64(b[16:])),
	}
	switch {
	case h.length < recordOverhead || h.length > maxRecord:
		return recordHeader{}, fmt.Errorf("record length %d", h.length)
	case h.kind == 0:
		return recordHeader{}, errors.New("record of kind 0")
	case h.flags&^flagCritical != 0:
		return recordHeader{}, fmt.Errorf("record flags %#x", h.flags)
	case h.index != index:
		return recordHeader{}, fmt.Errorf("record says index %d, want %d", h.index, index)
	}
	return h, nil
}

var segmentMagic = [8]byte{'O', 'U', 'T', 'G', 'E', 'V', 'D', 1}

// genesis is the chain before the first record of a stream.
func genesis(stream uuid.UUID) Hash {
	return sha256.Sum256(append([]byte("outguard evidence v1\n"), stream[:]...))
}

type segmentHeader struct {
	stream uuid.UUID
	first  uint64
	before Hash
}

func (h segmentHeader) append(b []byte) []byte {
	b = append(b, segmentMagic[:]...)
	b = append(b, h.stream[:]...)
	b = le.AppendUint64(b, h.first)
	return append(b, h.before[:]...)
}

func parseSegmentHeader(b []byte) (segmentHeader, error) {
	if len(b) < segmentHeaderSize {
		return segmentHeader{}, fmt.Errorf("segment header of %d bytes", len(b))
	}
	if [8]byte(b[:8]) != segmentMagic {
		return segmentHeader{}, fmt.Errorf("segment magic %q", b[:8])
	}
	return segmentHeader{stream: uuid.UUID(b[8:24]), first: le.Uint64(b[24:]), before: Hash(b[32:64])}, nil
}

// chain computes one link after another without allocating.
type chain struct {
	h    hash.Hash
	last Hash
}

func newChain(before Hash) *chain { return &chain{h: sha256.New(), last: before} }

// begin starts the next link; the record's bytes are then written to c.h.
func (c *chain) begin() {
	c.h.Reset()
	c.h.Write(c.last[:])
}

func (c *chain) end() { c.h.Sum(c.last[:0]) }
