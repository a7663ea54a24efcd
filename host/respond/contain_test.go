package respond

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
)

// TestIsolateAndConnect: what isolate took down is on disk before libvirt is
// asked, and connect brings up that and nothing else, also for a later process.
func TestIsolateAndConnect(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := reopen(t, path)
	b := newBox(j)
	b.links, b.down["c"] = []string{"a", "b", "c"}, true // its owner took c down
	b.setLinks = func(macs []string, up bool) error {
		if noted, err := j.Isolated(vm1); err != nil || !slices.Equal(noted, []string{"a", "b"}) {
			t.Errorf("when libvirt is asked the journal has %q, %v", noted, err)
		}
		return nil
	}
	r := New(j, b, b, b, nil)
	stop := run(t, r)
	if res := wait(t, r, submit(t, r, vm1, Isolate)[0]); res.Status != Done || res.Already || res.Detail != "down: a b" {
		t.Errorf("%+v", res)
	}
	if res := wait(t, r, submit(t, r, vm1, Isolate)[0]); res.Status != Done || !res.Already {
		t.Errorf("again: %+v", res)
	}
	stop()
	_ = j.Close()

	j = reopen(t, path)
	b.journal = j
	b.setLinks = nil
	r = New(j, b, b, b, nil)
	run(t, r)
	if all, err := j.AllIsolated(); err != nil || len(all) != 1 || len(all[vm1]) != 2 {
		t.Errorf("isolated: %v, %v", all, err)
	}
	if res := wait(t, r, submit(t, r, vm1, Connect)[0]); res.Status != Done || res.Detail != "up: a b" {
		t.Errorf("%+v", res)
	}
	if up, _ := b.LinksUp(t.Context(), vm1); !slices.Equal(up, []string{"a", "b"}) {
		t.Errorf("up in the end: %q", up)
	}
	if res := wait(t, r, submit(t, r, vm1, Connect)[0]); res.Status != Done || !res.Already {
		t.Errorf("with nothing down: %+v", res)
	}
	if all, err := j.AllIsolated(); err != nil || len(all) != 0 {
		t.Errorf("isolated: %v, %v", all, err)
	}
}

// TestIsolationOutlivesTheJournal: one that had to begin anew has the way back
// from the results on record.
func TestIsolationOutlivesTheJournal(t *testing.T) {
	first := journal(t)
	b := newBox(first)
	b.links = []string{"a", "b"}
	r := New(first, b, b, b, nil)
	run(t, r)
	wait(t, r, submit(t, r, vm1, Isolate)[0])
	wait(t, r, submit(t, r, vm1, Connect)[0])
	b.down["b"] = true
	wait(t, r, submit(t, r, vm1, Isolate)[0])
	var entries []Entry
	if err := first.Entries(func(e Entry) bool { entries = append([]Entry{e}, entries...); return true }); err != nil {
		t.Fatal(err)
	}
	second := journal(t)
	if err := second.Restore(entries); err != nil {
		t.Fatal(err)
	}
	if macs, err := second.Isolated(vm1); err != nil || !slices.Equal(macs, []string{"a"}) {
		t.Errorf("%q, %v", macs, err)
	}
}

// forGood is an error that trying again does not cure.
type forGood struct{ error }

func (forGood) Permanent() bool { return true }

// TestIsolateIsHeldToItsEffect: a link that stays up, and a device that libvirt
// does not know, are failures.
func TestIsolateIsHeldToItsEffect(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(b *box) func([]string, bool) error
		want string
	}{
		"a lie": {func(b *box) func([]string, bool) error {
			return func([]string, bool) error { b.links = append(b.links, "x"+b.links[len(b.links)-1]); return nil }
		}, "is up"},
		"another device": {func(*box) func([]string, bool) error {
			return func([]string, bool) error { return forGood{errors.New("-netdev user")} }
		}, "-netdev user"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal.db")
			synctest.Test(t, func(t *testing.T) {
				j := reopen(t, path)
				b := newBox(j)
				b.links = []string{"a"}
				b.setLinks = c.set(b)
				r := New(j, b, b, b, &Options{PauseWithin: 200 * time.Millisecond})
				run(t, r)
				if res := wait(t, r, submit(t, r, vm1, Isolate)[0]); res.Status != Failed || !strings.Contains(res.Error, c.want) {
					t.Errorf("%+v", res)
				}
			})
		})
	}
}

// TestResetAndDestroy: a reset that failed is tried again and one that cannot be
// is none; what is off is destroyed.
func TestResetAndDestroy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	synctest.Test(t, func(t *testing.T) {
		j := reopen(t, path)
		b := newBox(j)
		times := 0
		b.reset = func() error {
			if times++; times == 1 {
				return errors.New("busy")
			}
			return nil
		}
		r := New(j, b, b, b, nil)
		run(t, r)
		if res := wait(t, r, submit(t, r, vm1, Reset)[0]); res.Status != Done || res.Attempts != 2 {
			t.Errorf("%+v", res)
		}
		b.reset = func() error { return errors.New("never") }
		if res := wait(t, r, submit(t, r, vm1, Reset)[0]); res.Status != Failed || !strings.Contains(res.Error, "never") {
			t.Errorf("%+v", res)
		}
		for _, already := range []bool{false, true} {
			if res := wait(t, r, submit(t, r, vm1, Destroy)[0]); res.Status != Done || res.Already != already {
				t.Errorf("%+v", res)
			}
		}
	})
}

// TestOldOrdersThatNobodyExpects: an old order of an earlier process neither
// resets nor destroys a VM that runs, nor brings it back to the network.
func TestOldOrdersThatNobodyExpects(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	synctest.Test(t, func(t *testing.T) {
		j := reopen(t, path)
		b := newBox(j)
		if err := j.isolate(vm1, []string{"a"}); err != nil {
			t.Fatal(err)
		}
		orders := submit(t, New(j, b, b, b, nil), vm1, Reset, Connect, Destroy) // never run
		time.Sleep(time.Minute)
		r := New(j, b, b, b, nil)
		run(t, r)
		for _, o := range orders {
			if res := wait(t, r, o); res.Status != Skipped || !res.Recovered {
				t.Errorf("%s: %+v", o.Kind, res)
			}
		}
		if s := b.said(); strings.Contains(s, "; destroy;") || strings.Contains(s, "; reset;") || strings.Contains(s, "links") {
			t.Errorf("said: %s", s)
		}
	})
}

// TestDestroyWaitedForLibvirt: what waited for libvirt was not carried out, and
// is when it is back, by a later process as well.
func TestDestroyWaitedForLibvirt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	synctest.Test(t, func(t *testing.T) {
		j := reopen(t, path)
		b := newBox(j)
		r := New(j, b, b, b, nil)
		o := submit(t, r, vm1, Destroy)[0]
		if err := j.wait(o.ID, Waiting{Since: time.Now(), Error: "away"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		r = New(j, b, b, b, nil)
		run(t, r)
		if res := wait(t, r, o); res.Status != Done || res.Already {
			t.Errorf("%+v", res)
		}
	})
}

func alerting(t *testing.T, r *Responder, targets ...string) []Order {
	t.Helper()
	orders, err := r.Submit(context.Background(), Request{VM: vm1, Name: "web", Steps: []Kind{Alert, Pause}, Alerts: targets, Asked: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return orders
}

// TestAlertDelaysNothing: an alert that hangs, and one whose queue is full, hold
// up neither the pause nor another target's, and are results on record.
func TestAlertDelaysNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	synctest.Test(t, func(t *testing.T) {
		j := reopen(t, path)
		b := newBox(j)
		hangs := make(chan struct{})
		b.told = func(ctx context.Context, o Order) (string, error) {
			if o.Target == "hangs" {
				select {
				case <-hangs:
				case <-ctx.Done():
					return "", ctx.Err()
				}
			}
			return "taken", nil
		}
		r := New(j, b, b, b, &Options{Waiting: 3, Alerts: b})
		stop := run(t, r)
		began := time.Now()
		var alerts []Order
		for range 5 {
			orders := alerting(t, r, "hangs", "ok")
			if len(orders) != 3 || orders[0].Target != "hangs" || orders[1].Target != "ok" {
				t.Fatalf("%+v", orders)
			}
			for _, o := range orders[1:] {
				if res := wait(t, r, o); res.Status != Done {
					t.Errorf("%s %s: %+v", o.Kind, o.Target, res)
				}
			}
			alerts = append(alerts, orders[0])
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("the pauses waited %s", took)
		}
		for _, o := range alerts[3:] {
			if res := wait(t, r, o); res.Status != Skipped || !strings.Contains(res.Error, "full") {
				t.Errorf("%+v", res)
			}
		}
		close(hangs)
		for _, o := range alerts[:3] {
			if res := wait(t, r, o); res.Status != Done || res.Detail != "taken" {
				t.Errorf("%+v", res)
			}
		}
		stop()
		if n := strings.Count(b.said(), "order alert"); n != 10 {
			t.Errorf("%d alerts are on record: %s", n, b.said())
		}
	})
}

// TestAlertIsTriedAgain: with a growing wait until its deadline, or until the
// target says that it never will; a failed one is a result and no more.
func TestAlertIsTriedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	synctest.Test(t, func(t *testing.T) {
		j := reopen(t, path)
		b := newBox(j)
		var at []time.Duration
		began := time.Now()
		b.told = func(context.Context, Order) (string, error) {
			at = append(at, time.Since(began))
			return "", errors.New("503")
		}
		r := New(j, b, b, b, &Options{Alerts: b, AlertWithin: 10 * time.Second})
		stop := run(t, r)
		res := wait(t, r, alerting(t, r, "x")[0])
		if res.Status != Failed || res.Error != "not within 10s: 503" || !slices.Equal(at, []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second}) {
			t.Errorf("at %v: %+v", at, res)
		}
		b.told = func(context.Context, Order) (string, error) { return "", forGood{errors.New("404")} }
		if res := wait(t, r, alerting(t, r, "x")[0]); res.Status != Failed || res.Attempts != 1 {
			t.Errorf("%+v", res)
		}
		stop()

		o := Order{ID: uuid.Must(uuid.NewV7()), Group: uuid.New(), VM: vm1, Kind: Alert, Target: "x", Asked: "test", Given: time.Now(), Deadline: time.Now().Add(time.Second)}
		if err := j.begin(&batch{Orders: []Order{o}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // no monitor runs
		b.told = nil
		r = New(j, b, b, b, &Options{Alerts: b})
		run(t, r)
		if res := wait(t, r, o); res.Status != Done || !res.Recovered {
			t.Errorf("after a restart: %+v", res)
		}
	})
}

// tame is a guest that does what it is asked.
type tame struct {
	frozen map[string]bool
	kill   func() (string, bool, error)
	thaw   error
	gone   bool
}

func (g *tame) Kill(context.Context, Order, bool) (string, bool, error) { return g.kill() }
func (g *tame) Cgroup(context.Context, Order) (string, error)           { return "77", nil }
func (g *tame) Freeze(_ context.Context, _ uuid.UUID, cgroup string, on bool) (bool, error) {
	if !on && g.thaw != nil {
		return g.gone, g.thaw
	}
	g.frozen[cgroup] = on
	return false, nil
}

// TestWhatTheGuestDoes: its word is no more than that, and where it does nothing
// the VM is stopped all the same.
func TestWhatTheGuestDoes(t *testing.T) {
	for name, c := range map[string]struct {
		kill func() (string, bool, error)
		want Status
	}{
		"shown":   {func() (string, bool, error) { return "ended", true, nil }, Done},
		"said":    {func() (string, bool, error) { return "says the guest", false, nil }, Asked},
		"refused": {func() (string, bool, error) { return "", false, errors.New("no") }, Failed},
	} {
		t.Run(name, func(t *testing.T) {
			j := journal(t)
			b := newBox(j)
			r := New(j, b, b, b, &Options{Guest: &tame{kill: c.kill}})
			run(t, r)
			orders := submit(t, r, vm1, Kill, Pause)
			if res := wait(t, r, orders[0]); res.Status != c.want {
				t.Errorf("%+v", res)
			}
			if res := wait(t, r, orders[1]); res.Status != Done {
				t.Errorf("the pause: %+v", res)
			}
		})
	}
}

// TestFreezeAndThaw: what was frozen is on disk before the guest is asked, thaw
// is the way back, also where the cgroup is no more and where the journal had to
// begin anew.
func TestFreezeAndThaw(t *testing.T) {
	j := journal(t)
	b := newBox(j)
	g := &tame{frozen: map[string]bool{}}
	r := New(j, b, b, b, &Options{Guest: g})
	run(t, r)
	if res := wait(t, r, submit(t, r, vm1, Thaw)[0]); res.Status != Done || !res.Already {
		t.Errorf("nothing is frozen: %+v", res)
	}
	if res := wait(t, r, submit(t, r, vm1, Freeze)[0]); res.Status != Asked || res.Detail != "cgroup 77" || !g.frozen["77"] {
		t.Errorf("%+v", res)
	}
	frozen := func(j *Journal, want ...string) {
		t.Helper()
		if all, err := j.Frozen(vm1); err != nil || !slices.Equal(all, want) {
			t.Errorf("frozen: %q, %v", all, err)
		}
	}
	frozen(j, "77")
	var entries []Entry
	if err := j.Entries(func(e Entry) bool { entries = append([]Entry{e}, entries...); return true }); err != nil {
		t.Fatal(err)
	}
	second := journal(t)
	if err := second.Restore(entries); err != nil {
		t.Fatal(err)
	}
	frozen(second, "77")
	g.thaw = errors.New("busy")
	if res := wait(t, r, submit(t, r, vm1, Thaw)[0]); res.Status != Failed {
		t.Errorf("%+v", res)
	}
	frozen(j, "77")
	g.gone = true
	if res := wait(t, r, submit(t, r, vm1, Thaw)[0]); res.Status != Asked || res.Detail != "cgroups 77" {
		t.Errorf("%+v", res)
	}
	frozen(j)
}
