package engine

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

func fullFinding() Finding {
	return Finding{
		BootNs: 1, Rule: "r/ule", Severity: High, Technique: "T1059", Reason: "It did.", Event: "file_open",
		PID: 7, Comm: "sh", Path: "/x", Detail: map[string]string{"b": "2", "a": "1"},
		Ref: &Ref{Session: uuid.UUID{1}, Index: 2, CPU: 3, Class: 2, Sequence: 4},
	}
}

// payload takes the header off a message, which must be exactly one.
func payload(t testing.TB, b []byte, want Kind, limit int) []byte {
	t.Helper()
	kind, n, err := ParseMessageHeader(b, limit)
	if err != nil || kind != want || n != len(b)-MessageHeader {
		t.Fatalf("kind %d, payload of %d bytes, error %v", kind, n, err)
	}
	return b[MessageHeader:]
}

func TestBatchMessage(t *testing.T) {
	in := Batch{VM: uuid.UUID{1}, Session: uuid.UUID{2}, Index: 3, Received: time.Unix(4, 5), Count: 1, Records: []byte("abc")}
	b, err := AppendBatch(nil, 9, &in)
	if err != nil {
		t.Fatal(err)
	}
	const want = "4b000000" + "01010000" + "0900000000000000" +
		"01000000000000000000000000000000" + "02000000000000000000000000000000" +
		"0300000000000000" + "05286bee00000000" + "01000000" + "03000000" + "616263"
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("message\n%s, want\n%s", got, want)
	}
	number, out, err := ParseBatch(payload(t, b, KindBatch, MaxBatchMessage))
	if diff := cmp.Diff(in, out); number != 9 || err != nil || diff != "" {
		t.Errorf("number %d, error %v, batch (-want +got):\n%s", number, err, diff)
	}
	in.Records = make([]byte, MaxBatchBytes+1)
	if _, err := AppendBatch(nil, 1, &in); !errors.Is(err, ErrTooLong) {
		t.Errorf("error %v", err)
	}
}

func TestFindingMessage(t *testing.T) {
	for name, in := range map[string]Finding{"full": fullFinding(), "empty": {Severity: Info}} {
		number, out, err := ParseFinding(payload(t, AppendFinding(nil, 9, &in), KindFinding, MaxAnswer))
		if diff := cmp.Diff(in, out); number != 9 || err != nil || diff != "" {
			t.Errorf("%s: number %d, error %v, finding (-want +got):\n%s", name, number, err, diff)
		}
	}
}

// Whatever an engine says fits a message that the host takes.
func TestFindingTooMuch(t *testing.T) {
	long := strings.Repeat("x", 3*maxText)
	f := Finding{Rule: long, Technique: long, Reason: long, Event: long, Comm: long, Path: long, Severity: 200, Detail: map[string]string{}}
	for i := range 3 * MaxDetails {
		f.Detail[fmt.Sprint(i, long)] = long
	}
	_, out, err := ParseFinding(payload(t, AppendFinding(nil, 1, &f), KindFinding, MaxAnswer))
	if err != nil || out.Severity != Severest || out.Reason != long[:maxText] {
		t.Errorf("error %v, severity %d, reason of %d bytes", err, out.Severity, len(out.Reason))
	}
}

func TestMessageHeaderRefused(t *testing.T) {
	for name, c := range map[string]struct {
		header string
		err    error
	}{
		"short":         {"0800", ErrShort},
		"below header":  {"0700000002010000", ErrInvalid},
		"over limit":    {"ffffffff02010000", ErrTooLong},
		"kind":          {"0800000009010000", ErrInvalid},
		"version":       {"0800000002020000", ErrInvalid},
		"reserved bits": {"0800000002010001", ErrInvalid},
	} {
		b, err := hex.DecodeString(c.header)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := ParseMessageHeader(b, 100); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", name, err, c.err)
		}
	}
}

func FuzzParseFinding(f *testing.F) {
	full := fullFinding()
	f.Add(AppendFinding(nil, 1, &full)[MessageHeader:])
	f.Add(AppendFinding(nil, math.MaxUint64, &Finding{})[MessageHeader:])
	f.Fuzz(func(t *testing.T, p []byte) {
		number, out, err := ParseFinding(p)
		if err != nil {
			return
		}
		if b := AppendFinding(nil, number, &out); !bytes.Equal(b[MessageHeader:], p) {
			t.Errorf("bytes differ after a round trip:\n%x\n%x", b[MessageHeader:], p)
		}
	})
}

func FuzzParseBatch(f *testing.F) {
	b, err := AppendBatch(nil, 1, &Batch{Count: 1, Records: []byte("record")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[MessageHeader:])
	f.Fuzz(func(t *testing.T, p []byte) {
		number, out, err := ParseBatch(p)
		if err != nil {
			return
		}
		if b, err := AppendBatch(nil, number, &out); err != nil || !bytes.Equal(b[MessageHeader:], p) {
			t.Errorf("error %v, bytes differ after a round trip:\n%x\n%x", err, b[MessageHeader:], p)
		}
	})
}

func FuzzParseJudged(f *testing.F) {
	f.Add(AppendJudged(nil, 1, 2)[MessageHeader:])
	f.Add(AppendBroken(nil, 1, "why")[MessageHeader:])
	f.Fuzz(func(t *testing.T, p []byte) {
		if number, findings, err := ParseJudged(p); err == nil && !bytes.Equal(AppendJudged(nil, number, findings)[MessageHeader:], p) {
			t.Error("judged: bytes differ after a round trip")
		}
		if number, reason, err := ParseBroken(p); err == nil && !bytes.Equal(AppendBroken(nil, number, reason)[MessageHeader:], p) {
			t.Error("broken: bytes differ after a round trip")
		}
	})
}

// quiet is an engine that has nothing to say.
type quiet struct{ Engine }

func (quiet) Judge(*Batch, func(Finding)) error { return nil }

// The stream's loop judges without allocating.
func TestStreamAllocs(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	s := newServer(quiet{})
	done := make(chan error, 1)
	go func() { done <- s.stream(theirs) }()
	message, err := AppendBatch(nil, 1, &Batch{Count: 1, Records: make([]byte, 30000)})
	if err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, MessageHeader+judgedSize)
	trip := func() {
		if _, err := ours.Write(message); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(ours, answer); err != nil {
			t.Fatal(err)
		}
	}
	trip()
	if n := testing.AllocsPerRun(100, trip); n > 0.5 {
		t.Errorf("%g allocations", n)
	}
	ours.Close()
	if err := <-done; err != nil {
		t.Errorf("stream: %v", err)
	}
}

// An engine process that is told nonsense ends with an error.
func TestStreamRefuses(t *testing.T) {
	batch, err := AppendBatch(nil, 1, &Batch{Count: 1, Records: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	for name, bytes := range map[string][]byte{
		"no header": []byte("nonsense"), "an answer": AppendJudged(nil, 1, 0), "half a batch": batch[:20],
	} {
		s := newServer(quiet{})
		err := s.stream(struct {
			io.Reader
			io.Writer
		}{strings.NewReader(string(bytes)), io.Discard})
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestCanariesAreNotJudged: an engine is not given what an agent did because
// the host asked for it, and a batch of nothing else is judged all the same.
func TestCanariesAreNotJudged(t *testing.T) {
	var plain, canaries []byte
	for _, e := range prototest.CanaryEvents([16]byte{1}) {
		e.Sequence = 1
		canaries, _ = e.Append(canaries)
	}
	for _, typ := range vsockproto.EventTypes() {
		e := prototest.Sample(typ)
		e.Sequence = 1
		plain, _ = e.Append(plain)
	}
	n, m := len(vsockproto.EventTypes()), len(vsockproto.CanaryTypes())
	var in bytes.Buffer
	for i, b := range []Batch{
		{Count: m, Records: canaries},
		{Count: n + m, Records: append(bytes.Clone(canaries), plain...)},
	} {
		message, err := AppendBatch(nil, uint64(i+1), &b)
		if err != nil {
			t.Fatal(err)
		}
		in.Write(message)
	}
	e := &eater{}
	s := newServer(e)
	if err := s.stream(struct {
		io.Reader
		io.Writer
	}{&in, io.Discard}); err != nil {
		t.Fatal(err)
	}
	if s.judged != 2 || e.count != n || !bytes.Equal(e.records, plain) {
		t.Errorf("judged up to %d: %d records, %d bytes, want %d, %d", s.judged, e.count, len(e.records), n, len(plain))
	}
}

// eater remembers what it was given.
type eater struct {
	Engine
	count   int
	records []byte
}

func (e *eater) Judge(b *Batch, _ func(Finding)) error {
	e.count += b.Count
	e.records = append(e.records, b.Records...)
	return nil
}

// FuzzMessageHeader: a message's length is within the limit, whatever its bytes.
func FuzzMessageHeader(f *testing.F) {
	f.Add(AppendJudged(nil, 1, 2), MaxAnswer)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 2, 1, 0, 0}, MaxAnswer)
	f.Fuzz(func(t *testing.T, b []byte, limit int) {
		if len(b) < MessageHeader {
			return // the readers have that many
		}
		if _, n, err := ParseMessageHeader(b, limit); err == nil && (n < 0 || n > limit) {
			t.Errorf("%d bytes, limit %d", n, limit)
		}
	})
}
