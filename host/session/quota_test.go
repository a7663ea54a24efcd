package session

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

const (
	testQuota = 50_000
	testHard  = 100_000
	slack     = 1000 // a frame, or the host's word that frames were refused
)

// budgeted is a world whose frames go on a real record, with a small quota.
type budgeted struct {
	*world
	stream *evidence.Stream
}

func newBudgeted(t *testing.T) *budgeted {
	t.Helper()
	key, err := evidence.LoadOrCreateKey(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	s, err := evidence.Open(t.TempDir(), key, &evidence.Options{Quota: testQuota, HardQuota: testHard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	st, err := s.Stream(vmID)
	if err != nil {
		t.Fatal(err)
	}
	return &budgeted{world: newWorld(), stream: st}
}

// Record hands out the world's own indexes, by which Deliver looks frames up.
func (b *budgeted) Record(r *Received) (uint64, error) {
	add := b.stream.Append
	if r.Critical {
		add = b.stream.AppendCritical
	}
	_, err := add(evidence.KindFrame, r.At, r.Raw)
	index, _ := b.world.Record(r)
	if errors.Is(err, evidence.ErrQuota) {
		return index, fmt.Errorf("%w: %w", ErrNotKept, err)
	}
	return index, err
}

// flood sends n frames after an honest handshake and returns when they have
// been taken.
func (b *budgeted) flood(t *testing.T, n int, frame func(seq uint64) []byte) *Manager {
	t.Helper()
	m := b.manager(nil)
	m.p.Recorder = b
	ac, hc := prototest.Pipe()
	done := make(chan struct{})
	go func() { defer close(done); _ = m.Serve(t.Context(), hc, vmID, "hybrid") }()
	if !shakeHands(ac, ac) {
		t.Fatal("no handshake")
	}
	go io.Copy(io.Discard, ac)
	for seq := range uint64(n) {
		if _, err := ac.Write(frame(seq + 1)); err != nil {
			break // it was rejected
		}
	}
	synctest.Wait()
	ac.Close()
	<-done
	return m
}

func eventFrame(seq uint64, e *vsockproto.Event) []byte {
	e.Sequence = seq
	b, err := e.Append(vsockproto.AppendEventsHeader(nil, 1))
	if err != nil {
		panic(err) // a sample
	}
	return frameOf(vsockproto.FrameEvents, seq, b)
}

// TestForkFloodStaysUnderTheBound forks and opens files, all of it well-formed:
// critical events outlast bulk, and not for ever. All is judged.
func TestForkFloodStaysUnderTheBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudgeted(t)
		fork, open := prototest.Sample(vsockproto.TaskNewtask), prototest.Sample(vsockproto.FileOpen)
		b.flood(t, 2000, func(seq uint64) []byte {
			e := fork
			if seq%2 == 0 {
				e = open
			}
			e.Sequence = (seq + 1) / 2
			p, err := e.Append(vsockproto.AppendEventsHeader(nil, 1))
			if err != nil {
				t.Fatal(err)
			}
			return frameOf(vsockproto.FrameEvents, seq, p)
		})
		if used := b.stream.Stats().Used; used > testHard+slack || used < testHard-slack {
			t.Errorf("%d bytes on record", used)
		}
		want(t, "findings", b.rules(), "quota quota!")
		if n := len(b.batches); n != 2000 {
			t.Errorf("%d records were judged", n)
		}
	})
}

// TestHeartbeatFlood sends heartbeats as fast as it can.
func TestHeartbeatFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudgeted(t)
		beat := vsockproto.AppendHeartbeat(nil, &vsockproto.Heartbeat{Counters: []vsockproto.Counter{{Class: vsockproto.Critical}}})
		b.flood(t, 5000, func(seq uint64) []byte { return frameOf(vsockproto.FrameHeartbeat, seq, beat) })
		kept := int64(controlBurst * (vsockproto.FrameHeaderSize + len(beat) + 32))
		if used := b.stream.Stats().Used; used > kept+slack || used < kept {
			t.Errorf("%d bytes on record, want %d", used, kept)
		}
		want(t, "findings", b.rules(), "quota flood")
	})
}

// TestHeartbeatsThatWaitedAreNoFlood sends what a sink held up for minutes.
func TestHeartbeatsThatWaitedAreNoFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudgeted(t)
		beat := vsockproto.AppendHeartbeat(nil, &vsockproto.Heartbeat{})
		b.flood(t, 300, func(seq uint64) []byte { return frameOf(vsockproto.FrameHeartbeat, seq, beat) })
		want(t, "findings", b.rules(), "")
	})
}

// TestFalseClassDoesNotEscapeTheQuota fills the quota with bulk, and goes on
// with bulk that calls itself critical.
func TestFalseClassDoesNotEscapeTheQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudgeted(t)
		e := prototest.Sample(vsockproto.FileOpen)
		b.flood(t, 1000, func(seq uint64) []byte {
			f := eventFrame(seq, e)
			if seq > 500 {
				f[vsockproto.FrameHeaderSize+vsockproto.EventsHeader+7] = byte(vsockproto.Critical)
			}
			return f
		})
		if used := b.stream.Stats().Used; used > testQuota+slack || used < testQuota-slack {
			t.Errorf("%d bytes on record", used)
		}
		want(t, "findings", b.rules(), "quota malformed!")
		if n := len(b.batches); n != 500 {
			t.Errorf("%d records were judged", n)
		}
	})
}

// TestOversizeFrameAfterTheProof announces a frame over the limit behind a good
// one: the good one is on record and judged, and so is the header on record.
func TestOversizeFrameAfterTheProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		ac, hc := prototest.Pipe()
		end := make(chan error, 1)
		go func() { end <- m.Serve(t.Context(), hc, vmID, "hybrid") }()
		if !shakeHands(ac, ac) {
			t.Fatal("no handshake")
		}
		heard := make(chan []byte, 1)
		go func() { all, _ := io.ReadAll(ac); heard <- all }()
		good := eventFrame(1, prototest.Sample(vsockproto.FileOpen))
		long := vsockproto.AppendFrame(nil, vsockproto.FrameEvents, 2, vsockproto.MaxFrame)
		ac.Write(append(bytes.Clone(good), long...))
		if err := <-end; !errors.Is(err, vsockproto.ErrTooLong) {
			t.Errorf("it ends with %v", err)
		}
		want(t, "findings", w.rules(), "malformed!")
		want(t, "delivered", w.delivered(), "file_open/1")
		n := len(w.record)
		if n < 2 || !bytes.Equal(w.record[n-2].raw, good) || !bytes.Equal(w.record[n-1].raw, long) || w.record[n-1].whole {
			t.Errorf("the record ends with %+v", w.record[max(0, n-2):])
		}
		want(t, "frames to the agent", frameTypes(t, <-heard), "policy ack ack reject")
		if s, _ := m.StatusOf(vmID); s.State == Live || !strings.Contains(s.Reason, "long") {
			t.Errorf("status %+v", s)
		}
	})
}

func frameTypes(t *testing.T, b []byte) string {
	t.Helper()
	var all []string
	for len(b) > 0 {
		h, err := vsockproto.ParseFrameHeader(b, vsockproto.MaxFrame)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h.Type.String())
		b = b[h.Length:]
	}
	return strings.Join(all, " ")
}
