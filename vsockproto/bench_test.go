package vsockproto_test

import (
	"fmt"
	"testing"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

func samples(t testing.TB) (events []*vsockproto.Event, all []byte) {
	for _, typ := range vsockproto.EventTypes() {
		e := prototest.Sample(typ)
		e.Sequence = 1
		var err error
		if all, err = e.Append(all); err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	return events, all
}

func TestDecodeAndAppendAllocateNothing(t *testing.T) {
	events, all := samples(t)
	var e vsockproto.Event
	decode := testing.AllocsPerRun(100, func() {
		for rest := all; len(rest) > 0; {
			var err error
			if rest, err = e.Parse(rest); err != nil {
				t.Fatal(err)
			}
		}
	})
	buf := make([]byte, 0, len(all))
	encode := testing.AllocsPerRun(100, func() {
		b := buf
		for _, e := range events {
			b, _ = e.Append(b)
		}
	})
	if decode != 0 || encode != 0 {
		t.Fatalf("%v allocations to decode, %v to append", decode, encode)
	}
}

func BenchmarkDecode(b *testing.B) {
	_, all := samples(b)
	n := len(vsockproto.EventTypes())
	b.SetBytes(int64(len(all)))
	b.ReportAllocs()
	var e vsockproto.Event
	for b.Loop() {
		for rest := all; len(rest) > 0; {
			rest, _ = e.Parse(rest)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

func BenchmarkDecodeOne(b *testing.B) {
	for _, typ := range []vsockproto.EventType{vsockproto.FileOpen, vsockproto.BprmCommittedCreds, vsockproto.TaskNewtask} {
		b.Run(fmt.Sprint(typ), func(b *testing.B) {
			e := prototest.Sample(typ)
			e.Sequence = 1
			raw, _ := e.Append(nil)
			b.ReportAllocs()
			for b.Loop() {
				_, _ = e.Parse(raw)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	events, all := samples(b)
	b.SetBytes(int64(len(all)))
	b.ReportAllocs()
	for b.Loop() {
		out := all[:0]
		for _, e := range events {
			out, _ = e.Append(out)
		}
	}
	b.ReportMetric(float64(len(events))*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
