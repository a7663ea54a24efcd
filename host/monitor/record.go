package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/session"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

// A frame's record is the frame as it was received behind an envelope of the
// host's:
//
//	 0         16      17     24
//	+---------+-------+------+-------
//	| session | flags | zero | bytes …
//	+---------+-------+------+-------
//
// session is zero before the agent had proven its key. Flag bit 0: the bytes
// are one whole frame, and not what is left of one that broke off.
const (
	envelopeSize  = 24
	envelopeWhole = 1
)

func putEnvelope(e *[envelopeSize]byte, session uuid.UUID, whole bool) {
	*e = [envelopeSize]byte{}
	copy(e[:], session[:])
	if whole {
		e[16] = envelopeWhole
	}
}

func parseEnvelope(payload []byte) (session uuid.UUID, whole bool, raw []byte, err error) {
	if len(payload) < envelopeSize || payload[16]&^envelopeWhole != 0 || [7]byte(payload[17:24]) != [7]byte{} {
		return uuid.Nil, false, nil, fmt.Errorf("envelope of a frame: %w", vsockproto.ErrInvalid)
	}
	copy(session[:], payload)
	return session, payload[16] == envelopeWhole, payload[envelopeSize:], nil
}

// recorder puts what sessions receive on the record of their VM.
type recorder struct{ m *Monitor }

func (r recorder) Record(f *session.Received) (uint64, error) {
	s, err := r.m.store.Stream(f.VM)
	if errors.Is(err, evidence.ErrFull) {
		return 0, fmt.Errorf("%w: %w", session.ErrFull, err)
	}
	if err != nil {
		return 0, err
	}
	var e [envelopeSize]byte
	putEnvelope(&e, f.Session, f.Whole)
	var index uint64
	switch {
	case f.Held:
		index, err = s.AppendUnchecked(evidence.KindFrame, f.Critical, f.At, e[:], f.Raw)
	case f.Critical:
		index, err = s.AppendCritical(evidence.KindFrame, f.At, e[:], f.Raw)
	default:
		index, err = s.Append(evidence.KindFrame, f.At, e[:], f.Raw)
	}
	counts := r.m.metrics.VM(f.VM, "")
	if errors.Is(err, evidence.ErrQuota) {
		counts.Refused()
		return index, fmt.Errorf("%w: %w", session.ErrNotKept, err)
	}
	if errors.Is(err, evidence.ErrFull) {
		return 0, fmt.Errorf("%w: %w", session.ErrFull, err)
	}
	if err == nil {
		counts.Frame(len(f.Raw))
	}
	return index, err
}

// Recorded puts the record's check behind it: the engines have its events by now,
// and have not waited for a hash of all its bytes.
func (r recorder) Recorded(vm uuid.UUID) error { return r.m.store.Check(vm) }

// Room compares what is on disk with the quota for bulk. Of a quota that is small
// beside n a quarter is enough.
func (r recorder) Room(vm uuid.UUID, n int) bool {
	s, err := r.m.store.Stream(vm)
	if err != nil {
		return true // Record will say what is wrong
	}
	t := s.Stats()
	return t.Used+min(int64(n), t.Quota/4) <= t.Quota
}

func (r recorder) Opened(s *session.Status) error {
	r.m.metrics.VM(s.VM, r.m.domains.name(s.VM)).SessionBegun()
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return r.m.append(entry{s.VM, evidence.KindOpen, time.Now(), text}) // or the session does not begin
}

func (r recorder) Closed(s *session.Status) error {
	r.m.metrics.VM(s.VM, "").SessionEnded()
	return r.m.recordJSON(s.VM, evidence.KindClose, time.Now(), s)
}

// Replay gives a session the frames that are on record after an index.
func (r recorder) Replay(vm, id uuid.UUID, after uint64, frame func(uint64, []byte) error) error {
	return r.m.reader(vm).Read(after+1, 1<<63, func(rec *evidence.Record) error {
		if rec.Kind != evidence.KindFrame {
			return nil
		}
		of, whole, raw, err := parseEnvelope(rec.Payload)
		if err != nil || !whole || of != id {
			return err
		}
		return frame(rec.Index, raw)
	})
}

// frameBatch makes of a recorded frame the batch that engines were given;
// false for a frame without events.
func frameBatch(vm uuid.UUID, rec *evidence.Record) (engine.Batch, bool) {
	id, whole, raw, err := parseEnvelope(rec.Payload)
	if err != nil || !whole || id == uuid.Nil {
		return engine.Batch{}, false
	}
	h, err := vsockproto.ParseFrameHeader(raw, vsockproto.MaxFrame)
	if err != nil || h.Type != vsockproto.FrameEvents || int(h.Length) != len(raw) {
		return engine.Batch{}, false
	}
	e, err := vsockproto.ParseEvents(raw[vsockproto.FrameHeaderSize:])
	if err != nil {
		return engine.Batch{}, false
	}
	return engine.Batch{VM: vm, Session: id, Index: rec.Index, Received: rec.Time, Count: int(e.Count), Records: e.Records}, true
}

// again makes of the frames that are read from a record the batches that engines
// were given: what a session refused is on record, and was not judged.
type again struct {
	vm    uuid.UUID
	next  map[uuid.UUID]uint64 // frame of each session that belongs next
	after uint64               // index after the last record
	event vsockproto.Event
}

func newAgain(vm uuid.UUID) *again { return &again{vm: vm, next: map[uuid.UUID]uint64{}} }

// batch returns false for what held no event, or none that was judged. Of a
// session that began before the first record, or before records that were given
// up, its first frame here is taken to be in order.
func (a *again) batch(rec *evidence.Record) (engine.Batch, bool) {
	if rec.Index != a.after || rec.Kind == evidence.KindTombstone {
		clear(a.next) // what was between has been given up, or was never kept
	}
	a.after = rec.Index + 1
	if rec.Kind != evidence.KindFrame {
		return engine.Batch{}, false
	}
	id, whole, raw, err := parseEnvelope(rec.Payload)
	if err != nil || !whole || id == uuid.Nil {
		return engine.Batch{}, false
	}
	h, err := vsockproto.ParseFrameHeader(raw, vsockproto.MaxFrame)
	if want, known := a.next[id]; err != nil || int(h.Length) != len(raw) || h.Sequence == 0 || (known && h.Sequence != want) {
		return engine.Batch{}, false // of the handshake, or out of order
	}
	a.next[id] = h.Sequence + 1
	b, ok := frameBatch(a.vm, rec)
	if ok {
		b.Records, b.Count = a.sound(b.Records)
	}
	return b, b.Count > 0
}

// sound cuts records off at the first that is malformed.
func (a *again) sound(records []byte) ([]byte, int) {
	rest, count := records, 0
	for len(rest) > 0 {
		after, err := a.event.Parse(rest)
		if err != nil || a.event.Class != a.event.Type.Class() {
			break
		}
		rest = after
		count++
	}
	return records[:len(records)-len(rest)], count
}

// holds reports whether a batch has the event that ref names.
func holds(b *engine.Batch, ref *engine.Ref) bool {
	for rest := b.Records; len(rest) > 0; {
		h, err := vsockproto.ParseHeader(rest)
		if err != nil {
			return false
		}
		if h.CPU == ref.CPU && uint8(h.Class) == ref.Class && h.Sequence == ref.Sequence {
			return true
		}
		rest = rest[h.Length:]
	}
	return false
}

// unmarshal reads a JSON record of the host's own.
func unmarshal[T any](rec *evidence.Record) (T, error) {
	var v T
	if err := json.Unmarshal(rec.Payload, &v); err != nil {
		return v, fmt.Errorf("%s in record %d: %w", rec.Kind, rec.Index, err)
	}
	return v, nil
}
