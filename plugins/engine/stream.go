package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
)

// The event stream is two socket pairs beside go-plugin's gRPC, one for what the
// host sends and one for what the engine answers. Every message has an 8-byte
// header, little endian as all that follows:
//
//	 0        4      5   6      8
//	+--------+------+---+------+----------
//	| length | kind | v | zero | payload …
//	+--------+------+---+------+----------
//
// The host sends Batch messages, numbered 1, 2, 3 … for each process. The engine
// answers each with its Findings and then one Judged, in the order of the
// batches; a Judged is the watermark "judged up to this number".
//
//	Batch    number u64 | vm 16 | session 16 | index u64 | received u64, ns since 1970 |
//	         count u32 | bytes u32 | records
//	Finding  number u64 | boot_ns u64 | pid u32 | severity u8 | has_ref u8 | details u8 | zero u8 |
//	         ref: session 16 | index u64 | sequence u64 | cpu u32 | class u8 | zero 3 |
//	         rule, technique, reason, event, comm, path, then key and value of each
//	         detail: length u16, bytes
//	Judged   number u64 | findings u32 | zero u32
//	Broken   number u64 | reason: length u16, bytes
const (
	StreamVersion = 1
	MessageHeader = 8

	MaxBatchBytes    = 1 << 20  // records in one Batch
	MaxFindingBytes  = 32 << 10 // one Finding message
	MaxBatchFindings = 1024     // findings of one batch; Serve counts the rest in one more
	MaxDetails       = 32       // details of one finding
	maxText          = 4096     // any one string of a finding

	batchFixed   = 64
	findingFixed = 24 + refSize
	refSize      = 40
	judgedSize   = 16
)

// Kind says what a message is.
type Kind uint8

const (
	KindBatch   Kind = 1
	KindFinding Kind = 2
	KindJudged  Kind = 3
	KindBroken  Kind = 4
)

// Errors of the codec, to branch on.
var (
	ErrShort   = errors.New("short")
	ErrTooLong = errors.New("longer than the limit")
	ErrInvalid = errors.New("invalid value")
)

var le = binary.LittleEndian

// ParseMessageHeader returns a message's kind and the length of the payload
// that follows the header. limit bounds that length.
func ParseMessageHeader(b []byte, limit int) (Kind, int, error) {
	if len(b) < MessageHeader {
		return 0, 0, fmt.Errorf("message header: %w", ErrShort)
	}
	n := le.Uint32(b)
	switch {
	case n < MessageHeader:
		return 0, 0, fmt.Errorf("message length %d: %w", n, ErrInvalid)
	case int64(n)-MessageHeader > int64(limit):
		return 0, 0, fmt.Errorf("message length %d, limit %d: %w", n, limit, ErrTooLong)
	case b[5] != StreamVersion || b[6] != 0 || b[7] != 0:
		return 0, 0, fmt.Errorf("message version %d: %w", b[5], ErrInvalid)
	case b[4] < byte(KindBatch) || b[4] > byte(KindBroken):
		return 0, 0, fmt.Errorf("message kind %d: %w", b[4], ErrInvalid)
	}
	return Kind(b[4]), int(n) - MessageHeader, nil
}

// MaxBatchMessage and MaxAnswer are the payload limits of the two directions.
const (
	MaxBatchMessage = batchFixed + MaxBatchBytes
	MaxAnswer       = MaxFindingBytes
)

func appendHeader(b []byte, k Kind, payload int) []byte {
	b = le.AppendUint32(b, uint32(MessageHeader+payload))
	return append(b, byte(k), StreamVersion, 0, 0)
}

// AppendBatch appends batch as the message of that number.
func AppendBatch(b []byte, number uint64, batch *Batch) ([]byte, error) {
	if len(batch.Records) > MaxBatchBytes || batch.Count < 0 || batch.Count > len(batch.Records) {
		return b, fmt.Errorf("batch of %d records, %d bytes: %w", batch.Count, len(batch.Records), ErrTooLong)
	}
	b = appendHeader(b, KindBatch, batchFixed+len(batch.Records))
	b = le.AppendUint64(b, number)
	b = append(b, batch.VM[:]...)
	b = append(b, batch.Session[:]...)
	b = le.AppendUint64(b, batch.Index)
	b = le.AppendUint64(b, uint64(batch.Received.UnixNano()))
	b = le.AppendUint32(b, uint32(batch.Count))
	b = le.AppendUint32(b, uint32(len(batch.Records)))
	return append(b, batch.Records...), nil
}

// BatchRecords is where the records stand in a Batch message.
const BatchRecords = MessageHeader + batchFixed

// NumberBatch makes a Batch message that of another number, in place: a host
// that keeps messages sends one again under a new number.
func NumberBatch(message []byte, number uint64) { le.PutUint64(message[MessageHeader:], number) }

// ParseBatch reads the payload of a Batch message. Records alias p.
func ParseBatch(p []byte) (number uint64, batch Batch, err error) {
	if len(p) < batchFixed {
		return 0, Batch{}, fmt.Errorf("batch: %w", ErrShort)
	}
	count, n := le.Uint32(p[56:]), le.Uint32(p[60:])
	if int(n) != len(p)-batchFixed || n > MaxBatchBytes || count > n {
		return 0, Batch{}, fmt.Errorf("batch of %d records, %d bytes: %w", count, n, ErrInvalid)
	}
	batch = Batch{
		VM: uuid.UUID(p[8:24]), Session: uuid.UUID(p[24:40]), Index: le.Uint64(p[40:]),
		Received: time.Unix(0, int64(le.Uint64(p[48:]))),
		Count:    int(count), Records: p[batchFixed:],
	}
	return le.Uint64(p), batch, nil
}

// AppendFinding appends f as a message about the batch of that number. What
// the host sets is not carried; text beyond its limit is cut, so that every
// finding has a message.
func AppendFinding(b []byte, number uint64, f *Finding) []byte {
	start := len(b)
	b = appendHeader(b, KindFinding, 0)
	b = le.AppendUint64(b, number)
	b = le.AppendUint64(b, f.BootNs)
	b = le.AppendUint32(b, f.PID)
	b = append(b, byte(clampSeverity(f.Severity)), 0, 0, 0)
	b = appendRef(b, f.Ref)
	if f.Ref != nil {
		b[start+MessageHeader+21] = 1
	}
	for _, s := range [...]string{f.Rule, f.Technique, f.Reason, f.Event, f.Comm, f.Path} {
		b = appendText(b, cut(s, maxText))
	}
	b, details := appendDetails(b, start+MessageHeader+MaxFindingBytes, f.Detail)
	b[start+MessageHeader+22] = details
	le.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

func clampSeverity(s Severity) Severity { return min(max(s, Info), Severest) }

// appendDetails appends what of m has room before end, keys ascending, and
// says how many they are.
func appendDetails(b []byte, end int, m map[string]string) ([]byte, byte) {
	if len(m) == 0 {
		return b, 0
	}
	n := byte(0)
	for _, k := range slices.Sorted(maps.Keys(m)) {
		v := cut(m[k], maxText)
		if n < MaxDetails && len(k) <= maxText && len(b)+4+len(k)+len(v) <= end {
			b = appendText(appendText(b, k), v)
			n++
		}
	}
	return b, n
}

func appendRef(b []byte, r *Ref) []byte {
	if r == nil {
		return append(b, make([]byte, refSize)...)
	}
	b = append(b, r.Session[:]...)
	b = le.AppendUint64(b, r.Index)
	b = le.AppendUint64(b, r.Sequence)
	b = le.AppendUint32(b, r.CPU)
	return append(b, r.Class, 0, 0, 0)
}

func appendText(b []byte, s string) []byte {
	return append(le.AppendUint16(b, uint16(len(s))), s...)
}

func cut(s string, n int) string {
	return s[:min(len(s), n)]
}

// ParseFinding reads the payload of a Finding message. Nothing aliases p.
func ParseFinding(p []byte) (number uint64, f Finding, err error) {
	if len(p) < findingFixed {
		return 0, Finding{}, fmt.Errorf("finding: %w", ErrShort)
	}
	if len(p) > MaxFindingBytes {
		return 0, Finding{}, fmt.Errorf("finding of %d bytes: %w", len(p), ErrTooLong)
	}
	number = le.Uint64(p)
	f.BootNs, f.PID, f.Severity = le.Uint64(p[8:]), le.Uint32(p[16:]), Severity(p[20])
	hasRef, details := p[21], int(p[22])
	if f.Severity < Info || f.Severity > Severest || hasRef > 1 || details > MaxDetails || p[23] != 0 {
		return 0, Finding{}, fmt.Errorf("finding of severity %d: %w", p[20], ErrInvalid)
	}
	if f.Ref, err = parseRef(p[24:findingFixed], hasRef == 1); err != nil {
		return 0, Finding{}, err
	}
	r := textReader{b: p[findingFixed:]}
	for _, s := range [...]*string{&f.Rule, &f.Technique, &f.Reason, &f.Event, &f.Comm, &f.Path} {
		*s = r.text()
	}
	f.Detail = r.details(details)
	if r.bad || len(r.b) > 0 {
		return 0, Finding{}, fmt.Errorf("finding text: %w", ErrInvalid)
	}
	return number, f, nil
}

func parseRef(p []byte, has bool) (*Ref, error) {
	r := Ref{
		Session: uuid.UUID(p[:16]), Index: le.Uint64(p[16:]), Sequence: le.Uint64(p[24:]),
		CPU: le.Uint32(p[32:]), Class: p[36],
	}
	if p[37]|p[38]|p[39] != 0 || (!has && r != Ref{}) {
		return nil, fmt.Errorf("finding ref: %w", ErrInvalid)
	}
	if !has {
		return nil, nil
	}
	return &r, nil
}

type textReader struct {
	b   []byte
	bad bool
}

func (r *textReader) text() string {
	if len(r.b) < 2 {
		r.bad = true
		return ""
	}
	n := int(le.Uint16(r.b))
	if n > maxText || n > len(r.b)-2 {
		r.bad = true
		return ""
	}
	s := string(r.b[2 : 2+n])
	r.b = r.b[2+n:]
	return s
}

// details reads n pairs, whose keys must ascend.
func (r *textReader) details(n int) map[string]string {
	if n == 0 {
		return nil
	}
	m, last := make(map[string]string, n), ""
	for i := range n {
		k := r.text()
		if i > 0 && k <= last {
			r.bad = true
		}
		m[k], last = r.text(), k
	}
	return m
}

// AppendJudged appends the watermark: every batch up to number is judged, and
// this one had that many findings.
func AppendJudged(b []byte, number uint64, findings uint32) []byte {
	b = appendHeader(b, KindJudged, judgedSize)
	b = le.AppendUint64(b, number)
	b = le.AppendUint32(b, findings)
	return le.AppendUint32(b, 0)
}

// ParseJudged reads the payload of a Judged message.
func ParseJudged(p []byte) (number uint64, findings uint32, err error) {
	if len(p) != judgedSize || le.Uint32(p[12:]) != 0 {
		return 0, 0, fmt.Errorf("judged of %d bytes: %w", len(p), ErrInvalid)
	}
	return le.Uint64(p), le.Uint32(p[8:]), nil
}

// AppendBroken appends an engine's last words: why it could not judge.
func AppendBroken(b []byte, number uint64, reason string) []byte {
	reason = cut(reason, maxText)
	b = appendHeader(b, KindBroken, 10+len(reason))
	b = le.AppendUint64(b, number)
	b = le.AppendUint16(b, uint16(len(reason)))
	return append(b, reason...)
}

// ParseBroken reads the payload of a Broken message.
func ParseBroken(p []byte) (number uint64, reason string, err error) {
	if len(p) < 8 {
		return 0, "", fmt.Errorf("broken: %w", ErrShort)
	}
	r := textReader{b: p[8:]}
	reason = r.text()
	if r.bad || len(r.b) > 0 {
		return 0, "", fmt.Errorf("broken: %w", ErrInvalid)
	}
	return le.Uint64(p), reason, nil
}
