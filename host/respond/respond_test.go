package respond

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
)

func TestPauseAndCapture(t *testing.T) {
	j := journal(t)
	b := newBox(j)
	var seen []Entry
	r := New(j, b, b, b, &Options{Observe: func(e Entry) { seen = append(seen, e) }})
	stop := run(t, r)
	orders := submit(t, r, vm1, Pause, Capture)
	for _, o := range orders {
		res := wait(t, r, o)
		if res.Status != Done {
			t.Errorf("%s: %+v", o.Kind, res)
		}
		if res.Journaled.After(res.Started) || res.Effect.Before(res.Started) || res.Finished.Before(res.Effect) {
			t.Errorf("%s: times out of order: %+v", o.Kind, res)
		}
	}
	stop()
	want := "order pause; pause; pause done; order capture; capture; capture done"
	if got := b.said(); got != want {
		t.Errorf("calls:\n got %s\nwant %s", got, want)
	}
	e, err := j.Entry(orders[1].ID)
	if err != nil || e.Result == nil || e.Result.Bundle != "/bundles/"+orders[1].ID.String() {
		t.Errorf("journal: %+v, %v", e, err)
	}
	if len(seen) != 2 || orders[0].Group != orders[1].Group {
		t.Errorf("observed %d, groups %v %v", len(seen), orders[0].Group, orders[1].Group)
	}
	if s := r.Stats(); s.Given != 2 || s.Done != 2 || s.Waiting != 0 {
		t.Errorf("stats: %+v", s)
	}
}

func TestNothingWithoutJournal(t *testing.T) {
	j := journal(t)
	b := newBox(j)
	r := New(j, b, b, nil, nil)
	run(t, r)
	wait(t, r, submit(t, r, vm1, Log)[0])
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Submit(context.Background(), Request{VM: vm1, Steps: []Kind{Pause}, Asked: "test"}); err == nil {
		t.Error("submitted without a journal")
	}
	if got := b.said(); got != "" {
		t.Errorf("calls: %s", got)
	}
	if s := r.Stats(); s.Refused != 1 {
		t.Errorf("stats: %+v", s)
	}
}

func TestFailureSkipsTheRest(t *testing.T) {
	j := journal(t)
	b := newBox(j)
	b.pause = func(context.Context, uuid.UUID) error { return gone{} }
	r := New(j, b, b, b, nil)
	run(t, r)
	orders := submit(t, r, vm1, Pause, Capture)
	next := submit(t, r, vm1, Log)
	if res := wait(t, r, orders[0]); res.Status != Failed || res.Error != "gone" || res.Attempts != 1 {
		t.Errorf("pause: %+v", res)
	}
	if res := wait(t, r, orders[1]); res.Status != Skipped {
		t.Errorf("capture: %+v", res)
	}
	if res := wait(t, r, next[0]); res.Status != Done {
		t.Errorf("next request: %+v", res)
	}
}

type gone struct{}

func (gone) Error() string   { return "gone" }
func (gone) Permanent() bool { return true }

func TestSuccessWithoutEffectIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := journal(t)
		b := newBox(j)
		b.pause = func(context.Context, uuid.UUID) error { return nil } // a lie
		r := New(j, b, b, b, &Options{PauseWithin: 3 * time.Second})
		run(t, r)
		res := wait(t, r, submit(t, r, vm1, Pause)[0])
		if res.Status != Failed || !strings.Contains(res.Error, "paused is false") || res.Attempts < 3 {
			t.Errorf("%+v", res)
		}
		if took := res.Finished.Sub(res.Started); took != 3*time.Second {
			t.Errorf("took %s, the deadline is 3 s", took)
		}
	})
}

func TestRetriesUntilLibvirtIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := journal(t)
		b := newBox(j)
		n := 0
		b.pause = func(_ context.Context, vm uuid.UUID) error {
			if n++; n < 4 {
				return errors.New("no libvirtd")
			}
			b.set(vm, true)
			return nil
		}
		r := New(j, b, b, b, nil)
		run(t, r)
		if res := wait(t, r, submit(t, r, vm1, Pause)[0]); res.Status != Done || res.Attempts != 4 {
			t.Errorf("%+v", res)
		}
		if s := r.Stats(); s.Retries != 3 {
			t.Errorf("%+v", s)
		}
	})
}

func TestEffectAfterAHungCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := journal(t)
		b := newBox(j)
		b.pause = func(ctx context.Context, vm uuid.UUID) error {
			<-ctx.Done()
			b.set(vm, true)
			return ctx.Err()
		}
		r := New(j, b, b, b, nil)
		run(t, r)
		if res := wait(t, r, submit(t, r, vm1, Pause)[0]); res.Status != Done || res.Detail != "after the deadline" {
			t.Errorf("%+v", res)
		}
	})
}

func TestSerialPerVM(t *testing.T) {
	j := journal(t)
	b := newBox(j)
	hold := make(chan struct{})
	b.capture = func(ctx context.Context, o Order) (string, error) {
		if o.VM == vm1 {
			if _, err := until(ctx, hold); err != nil {
				return "", err
			}
		}
		return "/b", nil
	}
	r := New(j, b, b, nil, nil)
	run(t, r)
	first := submit(t, r, vm1, Capture)[0]
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all []Order
	for range 10 {
		wg.Go(func() {
			o, err := r.Submit(t.Context(), Request{VM: vm1, Steps: []Kind{Pause, Resume}, Asked: "test"})
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			all = append(all, o...)
			mu.Unlock()
		})
	}
	wg.Wait()
	if res := wait(t, r, submit(t, r, vm2, Pause, Capture)[1]); res.Status != Done {
		t.Errorf("another VM waits behind the first: %+v", res)
	}
	close(hold)
	wait(t, r, first)
	for _, o := range all {
		if res := wait(t, r, o); res.Status != Done {
			t.Errorf("%+v", res)
		}
	}
	if b.overlap {
		t.Error("two orders of one VM ran at once")
	}
}

func TestQueueIsBounded(t *testing.T) {
	j := journal(t)
	b := newBox(j)
	r := New(j, b, b, b, &Options{Waiting: 3})
	full := func(vm uuid.UUID, steps ...Kind) bool {
		_, err := r.Submit(context.Background(), Request{VM: vm, Steps: steps, Asked: "test"})
		return errors.Is(err, ErrQueueFull)
	}
	submit(t, r, vm1, Capture, Resume)
	if !full(vm1, Capture, Resume) {
		t.Error("4 of 3 wait")
	}
	submit(t, r, vm1, Capture)
	if full(vm1, Pause, Capture) { // what stops a VM has room that others cannot take
		t.Error("no room for a pause")
	}
	submit(t, r, vm2, Capture)
	last := submit(t, r, vm1, Pause)[0]
	if !full(vm1, Pause) {
		t.Error("7 of twice 3 wait")
	}
	run(t, r)
	if res := wait(t, r, last); res.Status != Done {
		t.Errorf("%+v", res)
	}
	for range 20 { // places are given back
		wait(t, r, submit(t, r, vm1, Capture, Resume)[1])
	}
}

// TestLogNeedsNoTurn: what is only logged is settled by its journal entry and
// takes no place in the queue, though a capture holds it.
func TestLogNeedsNoTurn(t *testing.T) {
	j := journal(t)
	b := newBox(j)
	hold := make(chan struct{})
	b.capture = func(ctx context.Context, _ Order) (string, error) { _, err := until(ctx, hold); return "/b", err }
	r := New(j, b, b, b, &Options{Waiting: 2})
	run(t, r)
	capture := submit(t, r, vm1, Capture)[0]
	for range 100 {
		o := submit(t, r, vm1, Log)[0]
		if res := wait(t, r, o); res.Status != Done {
			t.Fatalf("%+v", res)
		}
	}
	orders := submit(t, r, vm1, Log, Pause)
	if e, err := j.Entry(orders[0].ID); err != nil || e.Result == nil || e.Result.Status != Done {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err := j.Entry(orders[1].ID); err != nil || e.Result != nil {
		t.Errorf("%+v, %v", e, err)
	}
	close(hold)
	wait(t, r, capture)
	if res := wait(t, r, orders[1]); res.Status != Done {
		t.Errorf("%+v", res)
	}
	if n, m := strings.Count(b.said(), "order log"), strings.Count(b.said(), "log done"); n != 101 || m != 101 {
		t.Errorf("%d and %d of 101 logs are on the record", n, m)
	}
	waiting(t, r, 0)
	if s := r.Stats(); s.Given != 103 || s.Done != 103 {
		t.Errorf("%+v", s)
	}
}

func TestBadRequests(t *testing.T) {
	r := New(journal(t), newBox(nil), nil, nil, nil)
	for name, q := range map[string]Request{
		"no VM":        {Steps: []Kind{Pause}, Asked: "a"},
		"no steps":     {VM: vm1, Asked: "a"},
		"nobody":       {VM: vm1, Steps: []Kind{Pause}},
		"unknown step": {VM: vm1, Steps: []Kind{"dance"}, Asked: "a"},
		"many":         {VM: vm1, Steps: slices.Repeat([]Kind{Log}, 9), Asked: "a"},
	} {
		if _, err := r.Submit(context.Background(), q); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if p, _ := r.journal.Pending(); len(p) != 0 {
		t.Errorf("journaled: %v", p)
	}
}

// TestStopDuringCapture leaves the order for the next process.
func TestStopDuringCapture(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j.db")
	synctest.Test(t, func(t *testing.T) {
		j := reopen(t, path)
		b := newBox(j)
		entered := make(chan struct{})
		b.capture = func(ctx context.Context, _ Order) (string, error) {
			close(entered)
			<-ctx.Done()
			return "", ctx.Err()
		}
		r := New(j, b, b, b, nil)
		stop := run(t, r)
		orders := submit(t, r, vm1, Pause, Capture, Resume)
		<-entered
		stop()
		if _, err := r.Wait(context.Background(), orders[1].ID); !errors.Is(err, ErrStopped) {
			t.Errorf("Wait: %v", err)
		}
		if _, err := r.Submit(context.Background(), Request{VM: vm1, Steps: []Kind{Log}, Asked: "a"}); !errors.Is(err, ErrStopped) {
			t.Errorf("Submit: %v", err)
		}
		_ = j.Close()

		j = reopen(t, path)
		next := newBox(j)
		next.set(vm1, true)
		r = New(j, next, next, next, nil)
		run(t, r)
		capture, resume := wait(t, r, orders[1]), wait(t, r, orders[2])
		if capture.Status != Done || !capture.Recovered || resume.Status != Done {
			t.Errorf("capture %+v, resume %+v", capture, resume)
		}
		calls := strings.Split(next.said(), "; ") // packed beside what follows
		calls = slices.DeleteFunc(calls, func(s string) bool { return s == "capture done" })
		if got := strings.Join(calls, "; "); got != "order capture; capture; order resume; resume; resume done" {
			t.Errorf("calls: %s", next.said())
		}
	})
}

// TestPackingHoldsNothingUp: what a capture took is packed while the VM's next
// orders are carried out, the order has its result when that is done, and what
// comes of it changes nothing for those.
func TestPackingHoldsNothingUp(t *testing.T) {
	j := journal(t)
	b := newBox(j)
	hold := make(chan error, 1)
	b.pack = func(ctx context.Context, _ Order) (string, error) {
		failed, err := until(ctx, hold)
		return "/b", errors.Join(failed, err)
	}
	r := New(j, b, b, b, nil)
	run(t, r)
	for _, c := range []struct {
		err  error
		want Status
	}{{nil, Done}, {errors.New("the disk is full"), Failed}} {
		orders := submit(t, r, vm1, Pause, Capture, Resume)
		if res := wait(t, r, orders[2]); res.Status != Done {
			t.Errorf("resume: %+v", res)
		}
		if e, err := j.Entry(orders[1].ID); err != nil || e.Result != nil {
			t.Errorf("capture has a result before it is packed: %+v, %v", e.Result, err)
		}
		waiting(t, r, 1)
		hold <- c.err
		res := wait(t, r, orders[1])
		if res.Status != c.want || res.Taken.IsZero() || res.Taken.After(res.Finished) || c.err == nil && (res.Bundle != "/b" || res.Effect.Before(res.Taken)) {
			t.Errorf("capture: %+v", res)
		}
		waiting(t, r, 0)
	}
	if s := r.Stats(); s.Done != 5 || s.Failed != 1 {
		t.Errorf("%+v", s)
	}
}

// TestStopWhilePacking: the next process packs what was taken, though the VM has
// long run on, and takes nothing again.
func TestStopWhilePacking(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j.db")
	j := reopen(t, path)
	b := newBox(j)
	b.pack = func(ctx context.Context, _ Order) (string, error) { <-ctx.Done(); return "", ctx.Err() }
	r := New(j, b, b, b, nil)
	stop := run(t, r)
	orders := submit(t, r, vm1, Pause, Capture, Resume)
	wait(t, r, orders[2])
	stop()
	if _, err := r.Wait(context.Background(), orders[1].ID); !errors.Is(err, ErrStopped) {
		t.Errorf("Wait: %v", err)
	}
	_ = j.Close()

	j = reopen(t, path)
	next := newBox(j)
	at := time.Now().Add(-time.Minute)
	next.taken[orders[1].ID] = at
	r = New(j, next, next, next, nil)
	run(t, r)
	if res := wait(t, r, orders[1]); res.Status != Done || !res.Recovered || !res.Taken.Equal(at) || res.Bundle == "" {
		t.Errorf("%+v", res)
	}
	if want := "order capture; capture done"; next.said() != want {
		t.Errorf("calls: %s", next.said())
	}
}

// TestTakenAndOfNoUse: the order fails with the reason, and nothing is captured
// in its place.
func TestTakenAndOfNoUse(t *testing.T) {
	j := journal(t)
	q := Request{VM: vm1, Steps: []Kind{Capture}, Asked: "earlier"}
	orders, err := q.orders(time.Now(), &Options{Away: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.begin(&batch{Orders: orders}); err != nil {
		t.Fatal(err)
	}
	b := newBox(j)
	b.useless = errors.New("the host went down before it was on disk")
	r := New(j, b, b, b, nil)
	run(t, r)
	if res := wait(t, r, orders[0]); res.Status != Failed || res.Error != b.useless.Error() {
		t.Errorf("%+v", res)
	}
	if want := "order capture; capture failed"; b.said() != want {
		t.Errorf("calls: %s", b.said())
	}
}

// TestRecovery holds each kind of order found at the start against what the
// VM is then.
func TestRecovery(t *testing.T) {
	for _, c := range []struct {
		name    string
		kind    Kind
		age     time.Duration
		paused  bool
		bundle  string
		status  Status
		already bool
		calls   string
	}{
		{"pause that had its effect", Pause, time.Hour, true, "", Done, true, "order pause; pause done"},
		{"pause that had none", Pause, time.Hour, false, "", Done, false, "order pause; pause; pause done"},
		{"resume that had its effect", Resume, time.Hour, false, "", Done, true, "order resume; resume done"},
		{"fresh resume", Resume, time.Second, true, "", Done, false, "order resume; resume; resume done"},
		{"old resume", Resume, time.Hour, true, "", Skipped, false, "order resume; resume skipped"},
		{"whole bundle", Capture, time.Hour, false, "/b", Done, true, "order capture; capture done"},
		{"half a bundle, still paused", Capture, time.Hour, true, "", Done, false, "order capture; capture; capture done"},
		{"half a bundle, ran on", Capture, time.Hour, false, "", Failed, false, "order capture; capture failed"},
		{"log", Log, time.Hour, false, "", Done, false, "order log; log done"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "j.db")
			synctest.Test(t, func(t *testing.T) {
				j := reopen(t, path)
				q := Request{VM: vm1, Steps: []Kind{c.kind}, Asked: "earlier"}
				orders, err := q.orders(time.Now().Add(-c.age), &Options{Away: time.Hour})
				if err != nil {
					t.Fatal(err)
				}
				if err := j.begin(&batch{Orders: orders}); err != nil {
					t.Fatal(err)
				}
				b := newBox(j)
				b.set(vm1, c.paused)
				b.bundles[orders[0].ID] = c.bundle
				r := New(j, b, b, b, nil)
				run(t, r)
				res, err := r.Wait(context.Background(), orders[0].ID)
				if err != nil || res.Status != c.status || res.Already != c.already || !res.Recovered {
					t.Errorf("%+v, %v", res, err)
				}
				if got := b.said(); got != c.calls {
					t.Errorf("calls: %s, want %s", got, c.calls)
				}
				if p, _ := j.Pending(); len(p) != 0 {
					t.Errorf("still pending: %v", p)
				}
			})
		})
	}
}

func TestEvidenceRefusing(t *testing.T) {
	j := journal(t)
	b := newBox(j)
	b.recErr = errors.New("quota")
	r := New(j, b, b, b, nil)
	run(t, r)
	if res := wait(t, r, submit(t, r, vm1, Pause)[0]); res.Status != Done {
		t.Errorf("%+v", res)
	}
	if s := r.Stats(); s.Unrecorded != 2 {
		t.Errorf("%+v", s)
	}
}

func TestJournalKeepsABound(t *testing.T) {
	j := journal(t)
	j.keep = 5
	b := newBox(j)
	r := New(j, b, b, nil, nil)
	run(t, r)
	var last Order
	for range 12 {
		last = submit(t, r, vm1, Log)[0]
		wait(t, r, last)
	}
	var got []Entry
	if err := j.Entries(func(e Entry) bool { got = append(got, e); return true }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 5 || got[0].Order.ID != last.ID || got[0].Result == nil {
		t.Errorf("%d entries, newest %v", len(got), got[0].Order.ID)
	}
}

func TestJournalIsHeldByOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j.db")
	reopen(t, path)
	if _, err := OpenJournal(path); err == nil || !strings.Contains(err.Error(), "another") {
		t.Errorf("got %v", err)
	}
}

// nobody is a libvirt that is away.
type nobody struct{}

func (nobody) Error() string { return "nobody answers" }
func (nobody) Away() bool    { return true }

// TestOrdersWaitForLibvirt: while libvirt is away an order stands in the journal
// as one that waits, over restarts, and is carried out once when it is back.
func TestOrdersWaitForLibvirt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	synctest.Test(t, func(t *testing.T) {
		j := reopen(t, path)
		b := newBox(j)
		b.pause = func(context.Context, uuid.UUID) error { return nobody{} }
		var held []Entry
		opts := &Options{Held: func(e Entry) { held = append(held, e) }}
		r := New(j, b, b, b, opts)
		stop := run(t, r)
		orders := submit(t, r, vm1, Pause, Capture)
		if _, err := r.WaitUnlessAway(t.Context(), orders[0].ID); !errors.Is(err, ErrAway) || !strings.Contains(err.Error(), "nobody answers") {
			t.Errorf("who does not wait: %v", err)
		}
		behind := submit(t, r, vm1, Resume)
		if _, err := r.WaitUnlessAway(t.Context(), behind[0].ID); !errors.Is(err, ErrAway) {
			t.Errorf("who waits behind it: %v", err)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		e, err := j.Entry(orders[0].ID)
		if err != nil || e.Result != nil || e.Waiting == nil || e.Waiting.Error != "nobody answers" || !e.Order.Deadline.Equal(e.Order.Given.Add(time.Hour)) {
			t.Errorf("entry: %+v, %v", e, err)
		}
		if n := strings.Count(b.said(), "pause"); n > 150 || len(held) != 1 {
			t.Errorf("tried %d times in ten minutes, held %d times", n, len(held))
		}
		since := e.Waiting.Since
		began := time.Now()
		stop()
		if took := time.Since(began); took > 0 {
			t.Errorf("stopping waited %s for libvirt", took)
		}

		r = New(j, b, b, b, nil)
		run(t, r)
		time.Sleep(time.Minute)
		synctest.Wait()
		if e, _ := j.Entry(orders[0].ID); e.Waiting == nil || !e.Waiting.Since.Equal(since) {
			t.Errorf("after a restart: %+v", e)
		}
		b.mu.Lock()
		b.pause, b.calls = nil, nil
		b.mu.Unlock()
		for _, o := range orders {
			if res := wait(t, r, o); res.Status != Done || !res.Recovered {
				t.Errorf("%s: %+v", o.Kind, res)
			}
		}
		if res := wait(t, r, behind[0]); res.Status != Skipped { // it is eleven minutes old
			t.Errorf("%+v", res)
		}
		calls := slices.DeleteFunc(strings.Split(b.said(), "; "), func(s string) bool { return s == "capture done" }) // beside what follows
		if want := "pause; pause done; order capture; capture; order resume; resume skipped"; strings.Join(calls, "; ") != want {
			t.Errorf("said: %s", b.said())
		}
		if e, _ := j.Entry(orders[0].ID); e.Waiting != nil || e.Result == nil {
			t.Errorf("in the end: %+v", e)
		}
	})
}

// TestWaitingHasADeadline: an order that libvirt is not there for fails at its
// deadline, and one to resume does not wait.
func TestWaitingHasADeadline(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	synctest.Test(t, func(t *testing.T) {
		j := reopen(t, path)
		b := newBox(j)
		b.pause = func(context.Context, uuid.UUID) error { return nobody{} }
		r := New(j, b, b, b, &Options{Away: time.Minute})
		run(t, r)
		began := time.Now()
		orders := submit(t, r, vm1, Pause, Capture)
		res := wait(t, r, orders[0])
		if took := time.Since(began); res.Status != Failed || !strings.Contains(res.Error, "until the order's deadline") || took < time.Minute || took > 70*time.Second {
			t.Errorf("after %s: %+v", took, res)
		}
		if res := wait(t, r, orders[1]); res.Status != Skipped {
			t.Errorf("the capture: %+v", res)
		}
		b.set(vm2, true)
		b.resume = func(context.Context, uuid.UUID) error { return nobody{} }
		began = time.Now()
		if res := wait(t, r, submit(t, r, vm2, Resume)[0]); res.Status != Failed || time.Since(began) > 10*time.Second {
			t.Errorf("resume after %s: %+v", time.Since(began), res)
		}
	})
}

// TestLibvirtGoesAwayDuringACapture: the capture is made anew when it is back,
// if the VM has stood still.
func TestLibvirtGoesAwayDuringACapture(t *testing.T) {
	for _, ranOn := range []bool{false, true} {
		t.Run(fmt.Sprintf("ran on %v", ranOn), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal.db")
			synctest.Test(t, func(t *testing.T) {
				j := reopen(t, path)
				b := newBox(j)
				times := 0
				b.capture = func(context.Context, Order) (string, error) {
					if times++; times == 1 {
						b.set(vm1, !ranOn)
						return "", nobody{}
					}
					return "/bundle", nil
				}
				r := New(j, b, b, b, nil)
				run(t, r)
				res := wait(t, r, submit(t, r, vm1, Pause, Capture)[1])
				if want := map[bool]Status{false: Done, true: Failed}[ranOn]; res.Status != want {
					t.Errorf("%+v", res)
				}
			})
		})
	}
}

// TestSubmittedWhileRunStarts: an order that is journaled and not yet queued
// when Run takes over what the journal holds is carried out once.
func TestSubmittedWhileRunStarts(t *testing.T) {
	j := journal(t)
	b := newBox(j)
	r := New(j, b, b, b, nil)
	req := Request{VM: vm1, Steps: []Kind{Pause}, Asked: "test"}
	orders, err := req.orders(time.Now(), &Options{Away: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	jobs := split(orders, time.Now()).jobs
	q, err := r.reserve(lane{vm: vm1}, jobs)
	if err == nil {
		err = j.begin(&batch{Orders: orders})
	}
	if err != nil {
		t.Fatal(err)
	}
	run(t, r)
	<-r.opened
	r.enqueue(q, jobs, nil)
	wait(t, r, orders[0])
	wait(t, r, submit(t, r, vm1, Resume)[0])
	if want := "order pause; pause; pause done; order resume; resume; resume done"; b.said() != want {
		t.Errorf("said: %s", b.said())
	}
}

// TestResultsReachTheRecord: a process that was killed after it had journaled a
// result has it put on record by the next, and only that one.
func TestResultsReachTheRecord(t *testing.T) {
	j := journal(t)
	b := newBox(j)
	r := New(j, b, b, b, nil)
	stop := run(t, r)
	done := submit(t, r, vm1, Log, Pause)
	wait(t, r, done[1])
	stop()
	req := Request{VM: vm1, Steps: []Kind{Log, Resume}, Asked: "test"}
	killed, err := req.orders(time.Now(), &Options{Away: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(j.begin(&batch{killed, []Result{{Order: killed[0].ID, Status: Done}}}),
		j.end(&Result{Order: killed[1].ID, Status: Done}))
	if err != nil {
		t.Fatal(err)
	}
	pruned := func() string { return strings.ReplaceAll(b.said(), "RECORDED BEFORE JOURNALED; ", "") } // settled ones are not pending
	said := pruned()
	for range 2 {
		r = New(j, b, b, b, nil)
		if err := r.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		run(t, r)()
	}
	want := said + "; order log; log done; order resume; resume done"
	if got := pruned(); got != want {
		t.Errorf("said: %s\nwant: %s", got, want)
	}
}

func TestFirstResultStands(t *testing.T) {
	j := journal(t)
	q := Request{VM: vm1, Steps: []Kind{Pause}, Asked: "a"}
	orders, _ := q.orders(time.Now(), &Options{Away: time.Hour})
	if err := j.begin(&batch{Orders: orders}); err != nil {
		t.Fatal(err)
	}
	if err := j.end(&Result{Order: orders[0].ID, Status: Done}); err != nil {
		t.Fatal(err)
	}
	if err := j.end(&Result{Order: orders[0].ID, Status: Failed}); err == nil {
		t.Error("a second result was taken")
	}
	if err := j.end(&Result{Order: vm1, Status: Failed}); !errors.Is(err, ErrNoOrder) {
		t.Errorf("result without an order: %v", err)
	}
}
