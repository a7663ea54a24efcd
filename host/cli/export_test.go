package cli

import (
	"bytes"
	"testing"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// TestExportWithoutCanaries: what no engine judges is in no export of what they
// judged, or its replay would measure to something else.
func TestExportWithoutCanaries(t *testing.T) {
	var all, want []byte
	for i, flags := range []uint32{0, vsockproto.FlagCanary, 0, vsockproto.FlagCanary} {
		e := prototest.Sample(vsockproto.FileOpen)
		e.Header.Sequence, e.Header.Flags = uint64(i+1), flags
		b, err := e.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		if all = append(all, b...); flags == 0 {
			want = append(want, b...)
		}
	}
	id := uuid.New()
	b, err := batchOf(&apipb.RecordsResponse{Session: id[:], Index: 7, Received: "2026-01-02T03:04:05Z", Count: 4, Records: all})
	if err != nil || b.Count != 2 || !bytes.Equal(b.Records, want) {
		t.Errorf("%d records, %d bytes of %d, %v", b.Count, len(b.Records), len(want), err)
	}
}
