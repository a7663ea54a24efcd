package engines

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
)

// gapped runs a Supervisor whose engine comes to be there after two batches
// have passed.
func gapped(t *testing.T, opts *Options) *harness {
	t.Helper()
	path := filepath.Join(t.TempDir(), "engine")
	opts.MinBackoff, opts.CircuitAfter, opts.CircuitFor = time.Millisecond, 1, 10*time.Millisecond
	h := start(t, Config{Path: path}, opts)
	h.awaitRule(RuleCircuit)
	h.submit(vmA, 5, "a")
	h.submit(vmA, 7, "b")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return h
}

// What passed is judged from the record, before what comes after it, and then
// checkpoints cover all of it.
func TestWhatPassedIsJudgedInOrder(t *testing.T) {
	replaying, goOn := make(chan struct{}), make(chan struct{})
	h := gapped(t, &Options{
		CheckpointEvery: time.Hour,
		Replay: func(_ context.Context, vm uuid.UUID, from, to uint64, submit func(*engine.Batch) error) error {
			close(replaying)
			<-goOn
			if vm != vmA || from != 5 || to != 7 {
				t.Errorf("replay of %v from %d to %d", vm, from, to)
			}
			if err := submit(&engine.Batch{VM: vm, Session: session, Index: 5, Count: 1, Records: []byte("a")}); err != nil {
				return err
			}
			return submit(&engine.Batch{VM: vm, Session: session, Index: 7, Count: 1, Records: []byte("b")})
		},
	})
	<-replaying
	if h.TrySubmit(&engine.Batch{VM: vmA, Session: session, Index: 9, Count: 1, Records: []byte("c")}) {
		t.Error("the next batch did not wait")
	}
	h.submit(vmB, 1, "other")
	h.awaitReason("other 1")
	close(goOn)
	h.submit(vmA, 9, "c")
	h.awaitReason("c 21")
	if got := h.reasons(); !slices.Equal(got, []string{"other 1", "a 5", "b 12", "c 21"}) {
		t.Errorf("judged %v", got)
	}
	if f := h.awaitRule(RuleUnjudged); f.Severity != engine.Info || f.Detail["batches"] != "2" {
		t.Errorf("finding %+v", f)
	}
	h.stop()
	if _, index, ok, err := h.Covered(vmA); index != 9 || !ok || err != nil {
		t.Errorf("covered %d, %v, %v", index, ok, err)
	}
}

// What cannot be judged again is left to the next start: no checkpoint covers it.
func TestNoCheckpointCoversWhatWasNotJudged(t *testing.T) {
	for name, replay := range map[string]Replay{
		"nobody has the record": nil,
		"it cannot be read": func(context.Context, uuid.UUID, uint64, uint64, func(*engine.Batch) error) error {
			return errors.New("rotten")
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := gapped(t, &Options{CheckpointEvery: time.Hour, Replay: replay})
			if f := h.awaitRule(RuleUnjudged); f.Severity != engine.High || f.Detail["first"] != fmt.Sprintf("%s/5", session) {
				t.Errorf("finding %+v", f)
			}
			h.submit(vmA, 9, "c")
			h.awaitReason("c 9")
			h.stop()
			if of, index, ok, err := h.Covered(vmA); index != 4 || of != session || !ok || err != nil {
				t.Errorf("covered %v/%d, %v, %v", of, index, ok, err)
			}
		})
	}
}

// A batch that the process cannot survive does not open the circuit for ever
// by being handed in again.
func TestPoisonInTheGapIsPassedOver(t *testing.T) {
	h := gapped(t, &Options{Replay: func(_ context.Context, vm uuid.UUID, from, to uint64, submit func(*engine.Batch) error) error {
		if from <= 5 {
			if err := submit(&engine.Batch{VM: vm, Session: session, Index: 5, Count: 1, Records: []byte("crash")}); err != nil {
				return err
			}
		}
		return submit(&engine.Batch{VM: vm, Session: session, Index: 7, Count: 1, Records: []byte("b")})
	}})
	if f := h.awaitRule(RulePoison); f.Ref == nil || f.Ref.Index != 5 {
		t.Errorf("finding %+v", f)
	}
	h.awaitReason("b 7")
}
