package respond

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSaveAndRevert: each is asked of libvirt once, and the VM stands or runs
// afterwards as it did before.
func TestSaveAndRevert(t *testing.T) {
	j := journal(t)
	b := newBox(j)
	r := New(j, b, b, b, nil)
	run(t, r)
	order := func(k Kind, state string) Result {
		t.Helper()
		orders, err := r.Submit(t.Context(), Request{VM: vm1, Steps: []Kind{k}, State: state, Asked: "test"})
		if err != nil {
			t.Fatal(err)
		}
		return wait(t, r, orders[0])
	}
	if res := order(Save, "s1"); res.Status != Done || res.Attempts != 1 {
		t.Errorf("%+v", res)
	}
	if res := order(Save, "s1"); res.Status != Failed || !strings.Contains(res.Error, "already") {
		t.Errorf("again: %+v", res)
	}
	for _, paused := range []bool{false, true} {
		b.set(vm1, paused)
		if res := order(Revert, "s1"); res.Status != Done {
			t.Errorf("%+v", res)
		}
		if got, _ := b.Paused(t.Context(), vm1); got != paused {
			t.Errorf("it was paused: %v, and is now: %v", paused, got)
		}
	}
	b.saveErr = errors.New("a device does not migrate")
	if res := order(Save, "s2"); res.Status != Failed || res.Attempts != 1 || !strings.Contains(res.Error, "migrate") {
		t.Errorf("%+v", res)
	}
	if said := strings.Count(b.said(), "revert s1"); said != 2 {
		t.Errorf("reverted %d times: %s", said, b.said())
	}
	if res := order(Unsave, "s1"); res.Status != Done || b.saved["s1"] {
		t.Errorf("given up: %+v", res)
	}
	if res := order(Unsave, "s1"); res.Status != Failed || !strings.Contains(res.Error, "nothing is kept") {
		t.Errorf("given up twice: %+v", res)
	}
	for _, k := range []Kind{Save, Unsave} {
		if _, err := r.Submit(t.Context(), Request{VM: vm1, Steps: []Kind{k}, Asked: "test"}); err == nil {
			t.Errorf("%s without a name", k)
		}
	}
}

// TestRevertToTheLast: a playbook's revert without a name goes behind the event
// that its finding is about, and says where to.
func TestRevertToTheLast(t *testing.T) {
	j := journal(t)
	b := newBox(j)
	r := New(j, b, b, b, nil)
	run(t, r)
	for _, c := range []struct {
		received, found time.Time
		want            string
	}{
		{time.Unix(60, 0), time.Unix(61, 0), "last saved before 00:01:00; revert s1"},
		{time.Time{}, time.Unix(61, 0), "last saved before 00:01:01; revert s1"},
	} {
		orders, err := r.Submit(t.Context(), Request{VM: vm1, Steps: []Kind{Revert}, Asked: "test", Received: c.received, Found: c.found})
		if err != nil {
			t.Fatal(err)
		}
		if res := wait(t, r, orders[0]); res.Status != Done || res.Detail != "to s1" {
			t.Errorf("%+v", res)
		}
		if !strings.Contains(b.said(), c.want) {
			t.Errorf("%s, want %s", b.said(), c.want)
		}
	}
}

// TestRevertIsNotRepeated: what a process that was killed had begun is not done
// by the next; a state that it had saved whole is there.
func TestRevertIsNotRepeated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := reopen(t, path)
	b := newBox(j)
	r := New(j, b, b, b, nil) // does not run: as if it were killed
	var all []Order
	for _, steps := range [][]Kind{{Save}, {Revert, Resume}} {
		orders, err := r.Submit(t.Context(), Request{VM: vm1, Steps: steps, State: "s1", Asked: "test"})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, orders...)
	}
	_ = j.Close()
	j = reopen(t, path)
	b.journal, b.saved["s1"] = j, true
	r = New(j, b, b, b, nil)
	if err := r.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, r)
	if res := wait(t, r, all[0]); res.Status != Done || !res.Already {
		t.Errorf("save: %+v", res)
	}
	if res := wait(t, r, all[1]); res.Status != Skipped {
		t.Errorf("revert: %+v", res)
	}
	if res := wait(t, r, all[2]); res.Status != Skipped { // it was to run as it was before, and does not
		t.Errorf("resume: %+v", res)
	}
	if said := b.said(); strings.Contains(said, "revert s1") || strings.Contains(said, "save s1") {
		t.Errorf("libvirt was asked: %s", said)
	}
}
