package monitor

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/respond"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// FuzzParseConfig: a configuration is refused, or what it says can stand.
func FuzzParseConfig(f *testing.F) {
	for _, text := range []string{
		"", "state_dir: /srv/og\nsession: {heartbeat: 500ms, credit: 8MiB}\n",
		"engines:\n  - {name: tsem, path: /opt/tsem, sha256: \"\"}\norders: {wait: 2h}\n",
		"a: &a [*a]\n", "evidence: {quota: 99999999999GiB}\n", "state_dir: {\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseConfig(text)
		if err != nil {
			if c != nil {
				t.Error("a configuration beside an error")
			}
			return
		}
		if path, err := c.check(); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if c.Session.Heartbeat <= 0 || c.Evidence.Segment <= 0 || c.Evidence.Quota < c.Evidence.Segment || c.Evidence.Reserve <= 0 || len(c.Engines) > 0 && c.Engines[0].Memory <= 0 {
			t.Errorf("%+v", c)
		}
	})
}

// FuzzFrame reads any bytes as a frame's record: a batch is part of it, and
// whole records.
func FuzzFrame(f *testing.F) {
	var e [envelopeSize]byte
	putEnvelope(&e, uuid.UUID{1}, true)
	record, err := prototest.Sample(vsockproto.FileOpen).Append(nil)
	if err != nil {
		f.Fatal(err)
	}
	frame := func(count int, records []byte) []byte {
		var head [vsockproto.EventsHeader]byte
		payload := append(vsockproto.AppendEventsHeader(head[:0], count), records...)
		return append(bytes.Clone(e[:]), append(vsockproto.AppendFrame(nil, vsockproto.FrameEvents, 1, len(payload)), payload...)...)
	}
	f.Add(frame(1, record))
	f.Add(frame(2, append(bytes.Clone(record), record[:40]...)))
	f.Add(e[:])
	f.Fuzz(func(t *testing.T, payload []byte) {
		rec := &evidence.Record{Kind: evidence.KindFrame, Payload: payload}
		b, ok := newAgain(uuid.UUID{2}).batch(rec)
		if !ok {
			return
		}
		if !bytes.Contains(payload, b.Records) || b.Count == 0 {
			t.Errorf("batch of %d records", b.Count)
		}
		var event vsockproto.Event
		n := 0
		for rest := b.Records; len(rest) > 0; n++ {
			if rest, err = event.Parse(rest); err != nil {
				t.Fatal(err)
			}
			if !holds(&b, &engine.Ref{CPU: event.CPU, Class: uint8(event.Class), Sequence: event.Sequence}) {
				t.Error("it does not hold what is in it")
			}
		}
		if n != b.Count {
			t.Errorf("%d records of %d", n, b.Count)
		}
	})
}

// FuzzRecall reads any bytes as what the monitor itself put on record.
func FuzzRecall(f *testing.F) {
	for kind, text := range map[evidence.Kind]string{
		evidence.KindFinding:  `{"ID":"a","VM":"6f1d7f5e-3c0a-4b0e-9a53-0d8a2b0f6c11","Rule":"r","Ref":{"Index":3}}`,
		evidence.KindDecision: `{"Finding":"a","Steps":["pause"]}`,
		evidence.KindOrder:    `{"id":"6f1d7f5e-3c0a-4b0e-9a53-0d8a2b0f6c11","finding":"a"}`,
		evidence.KindResult:   `{"order":"6f1d7f5e-3c0a-4b0e-9a53-0d8a2b0f6c11","status":"done"}`,
		evidence.KindNote:     `{"what":"order-refused","finding":"a"}`,
	} {
		f.Add(uint16(kind), []byte(text))
	}
	f.Fuzz(func(t *testing.T, kind uint16, payload []byte) {
		j := &judge{known: map[place]*earlier{}, ordered: map[string]bool{}, kept: map[keptID]bool{}, orders: map[uuid.UUID]respond.Entry{}}
		byID := map[string]*earlier{}
		at := &evidence.Record{Kind: evidence.KindFinding, Time: time.Now(), Payload: []byte(`{"ID":"a","VM":"6f1d7f5e-3c0a-4b0e-9a53-0d8a2b0f6c11"}`)}
		if err := j.note(at, byID); err != nil {
			t.Fatal(err)
		}
		_ = j.note(&evidence.Record{Kind: evidence.Kind(kind), Payload: payload}, byID) // an error or not, and no more
		if len(byID) == 0 || len(byID) > 2 {
			t.Errorf("%d findings", len(byID))
		}
	})
}
