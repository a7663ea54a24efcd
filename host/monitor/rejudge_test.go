package monitor

import (
	"context"
	"errors"
	"testing"

	"github.com/outguard/outguard/plugins/engine"
)

// What is no frame is passed over; a record that cannot be read, and an end,
// are errors: the gap is not judged then.
func TestRejudgeReadsTheRecord(t *testing.T) {
	b := twoRecords(t)
	b.m.captures = newCapturer(b.m)
	none := func(*engine.Batch) error { return errors.New("a finding is no batch") }
	if err := b.m.rejudge(t.Context(), sound, 0, 9, none); err != nil {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.m.rejudge(ended, sound, 0, 9, none); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
	rot(t, b, rotten, "a")
	if err := b.m.rejudge(t.Context(), rotten, 0, 9, none); err == nil {
		t.Error("a rotten record is no error")
	}
}
