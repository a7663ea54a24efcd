package monitor

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// TestNothingIsGivenUpBeforeNamesAreKnown: what is kept for longer is so by a domain's
// name, which a monitor that starts does not know yet.
func TestNothingIsGivenUpBeforeNamesAreKnown(t *testing.T) {
	m := New(&Config{}, "", nil)
	m.cfg.Evidence.Retention = Retention{Age: time.Hour, VMs: []VMRetention{{Match: "prod-*", Age: 1000 * time.Hour}}}
	m.domains = newDomains()
	vm := uuid.UUID{1}
	of := m.retaining().Of
	if r := of(vm); r != (evidence.Retention{}) {
		t.Errorf("before: %+v", r)
	}
	m.domains.setDomains([]domain.Domain{{UUID: vm, Name: "prod-1"}}, time.Now(), time.Now())
	m.settled.Store(true)
	if r := of(vm); r.Age != 1000*time.Hour {
		t.Errorf("then: %+v", r)
	}
	if r := of(uuid.Nil); r != (evidence.Retention{}) {
		t.Errorf("the host's own: %+v", r)
	}
}

// TestReadOnBehindATombstone: frames that a quota refused are not there, and those after
// them are of the same session all the same.
func TestReadOnBehindATombstone(t *testing.T) {
	var e [envelopeSize]byte
	putEnvelope(&e, uuid.UUID{1}, true)
	event := prototest.Sample(vsockproto.FileOpen)
	event.Sequence = 1
	record, err := event.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	payload := append(vsockproto.AppendEventsHeader(nil, 1), record...)
	frame := func(index, sequence uint64) *evidence.Record {
		raw := append(vsockproto.AppendFrame(nil, vsockproto.FrameEvents, sequence, len(payload)), payload...)
		return &evidence.Record{Index: index, Kind: evidence.KindFrame, Payload: append(bytes.Clone(e[:]), raw...)}
	}
	a := newAgain(uuid.UUID{2})
	for _, c := range []struct {
		rec  *evidence.Record
		want bool
	}{
		{frame(0, 1), true},
		{frame(1, 3), false}, // none was refused: it is out of order
		{frame(2, 2), true},
		{&evidence.Record{Index: 3, Kind: evidence.KindTombstone}, false},
		{frame(4, 7), true},
		{frame(5, 8), true},
	} {
		if _, ok := a.batch(c.rec); ok != c.want {
			t.Errorf("record %d: %t", c.rec.Index, ok)
		}
	}
}
