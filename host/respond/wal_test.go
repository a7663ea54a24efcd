package respond

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/fulldisk"
)

// newBatch is a request's orders, and the results that are known of them.
func newBatch(t testing.TB, req Request) *batch {
	t.Helper()
	req.VM, req.Asked = vm1, "test"
	orders, err := req.orders(time.Now(), &Options{Away: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return &batch{orders, split(orders, time.Now()).results}
}

// killed copies a journal as the death of its process would leave it, and opens
// the copy.
func killed(t *testing.T, path string) *Journal {
	t.Helper()
	to := filepath.Join(t.TempDir(), "journal.db")
	for _, suffix := range []string{"", "-wal"} {
		text, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to+suffix, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return reopen(t, to)
}

// holds compares the orders of a journal, and those without a result among them.
func holds(t *testing.T, j *Journal, pending int, orders ...Order) {
	t.Helper()
	without, err := j.Pending()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := j.Entries(func(Entry) bool { n++; return true }); err != nil {
		t.Fatal(err)
	}
	if n != len(orders) || len(without) != pending {
		t.Errorf("%d orders, %d of them pending; want %d and %d", n, len(without), len(orders), pending)
	}
	for _, o := range orders {
		if e, err := j.Entry(o.ID); err != nil || e.Order.Kind != o.Kind {
			t.Errorf("%+v, %v", e, err)
		}
	}
}

// ahead puts a batch into the log alone.
func ahead(t *testing.T, j *Journal, b *batch) *batch {
	t.Helper()
	if err := j.ahead(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// inLog reads the log's bytes, and how many orders are in them.
func inLog(t *testing.T, path string) (text []byte, orders int) {
	t.Helper()
	text, err := os.ReadFile(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	b, err := parseWAL(text)
	if err != nil {
		t.Fatal(err)
	}
	return text, len(b.Orders)
}

// TestAheadOfTheJournal: an order that was only in the write-ahead log when the
// process died is in the next one's journal, once, and one that has its result
// has it still.
func TestAheadOfTheJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := reopen(t, path)
	first := ahead(t, j, newBatch(t, Request{Steps: []Kind{Log, Pause}}))
	holds(t, killed(t, path), 1, first.Orders...)

	// The next finds the log taken, and takes along what is there.
	second := newBatch(t, Request{Steps: []Kind{Pause}})
	if err := j.ahead(second); !errors.Is(err, errTaken) {
		t.Fatal(err)
	}
	if err := j.begin(second); err != nil {
		t.Fatal(err)
	}
	all := append(first.Orders, second.Orders...)
	holds(t, killed(t, path), 2, all...)

	// A log that was not cleared, as after a power cut, brings nothing back.
	third := ahead(t, j, newBatch(t, Request{Steps: []Kind{Isolate}}))
	text, n := inLog(t, path)
	if n != 1 {
		t.Fatalf("%d orders in the log", n)
	}
	if err := j.end(&Result{Order: third.Orders[0].ID, Status: Done}); err != nil {
		t.Fatal(err)
	}
	if _, n := inLog(t, path); n != 0 {
		t.Fatalf("%d orders in the log", n)
	}
	if err := os.WriteFile(path+"-wal", text, 0o600); err != nil {
		t.Fatal(err)
	}
	all = append(all, third.Orders...)
	holds(t, killed(t, path), 2, all...)
	holds(t, j, 2, all...)
}

// TestWALCutAnywhere has a batch cut at each byte, over nothing and over a longer
// one that was there before, and changes each byte: it is not there, which is
// said, and never another; nothing else is lost.
func TestWALCutAnywhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := reopen(t, path)
	longer := ahead(t, j, newBatch(t, Request{Steps: []Kind{Pause}, Reason: strings.Repeat("long ", 200)}))
	old, _ := inLog(t, path)
	if err := j.commit(); err != nil {
		t.Fatal(err)
	}
	ahead(t, j, newBatch(t, Request{Steps: []Kind{Log, Pause}, Reason: "why"}))
	text, n := inLog(t, path)
	if len(text) != walSize || n != 2 {
		t.Fatalf("%d bytes, %d orders", len(text), n)
	}
	old = append(make([]byte, walHeader), old[walHeader:]...) // as it was cleared
	whole := walHeader + int(binary.LittleEndian.Uint32(text[4:]))
	for n := range whole {
		for what, torn := range map[string][]byte{
			"cut": text[:n], "over nothing": append(bytes.Clone(text[:n]), make([]byte, walSize-n)...), "over another": append(bytes.Clone(text[:n]), old[n:]...),
		} {
			if b, err := parseWAL(torn); len(b.Orders) != 0 || (err == nil) != (n == 0 && what != "cut") {
				t.Errorf("%s at %d of %d bytes: %+v, %v", what, n, whole, b, err)
			}
		}
		text[n] ^= 0x10
		if b, err := parseWAL(text); len(b.Orders) != 0 || err == nil {
			t.Errorf("byte %d changed: %+v", n, b)
		}
		text[n] ^= 0x10
	}
	if err := os.Truncate(path+"-wal", int64(whole-1)); err != nil {
		t.Fatal(err)
	}
	j = killed(t, path)
	holds(t, j, 1, longer.Orders...)
	if j.Torn() == nil {
		t.Error("nothing is said")
	}
	if fi, err := j.wal.f.Stat(); err != nil || fi.Size() != walSize {
		t.Error(fi, err)
	}
	if j = killed(t, j.db.Path()); j.Torn() != nil {
		t.Errorf("said again: %v", j.Torn())
	}
}

// TestNotAhead: a batch that has no room in the log, and one that the log's disk
// refuses, go straight into the journal; the second is said.
func TestNotAhead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := reopen(t, path)
	b := newBox(j)
	var said strings.Builder
	r := New(j, b, b, b, &Options{Log: slog.New(slog.NewTextHandler(&said, nil))})
	large, err := r.Submit(t.Context(), Request{
		VM: vm1, Asked: "test", Steps: []Kind{Pause, Alert}, Reason: strings.Repeat("long ", maxText), Alerts: strings.Fields(strings.Repeat("x ", maxAlerts)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, n := inLog(t, path); n != 0 || said.Len() != 0 {
		t.Errorf("%d in the log; said %q", n, said.String())
	}
	f := j.wal.f
	if j.wal.f, err = os.Open(path + "-wal"); err != nil { // not to be written to
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	refused, err := r.Submit(t.Context(), Request{VM: vm1, Asked: "test", Steps: []Kind{Pause}})
	if err != nil {
		t.Fatal(err)
	}
	all := append(large, refused...)
	holds(t, killed(t, path), len(all), all...)
	if !strings.Contains(said.String(), "write-ahead log") {
		t.Errorf("said %q", said.String())
	}
}

// watched is a box that says, when a VM is to be stopped, whether the journal's
// file is owed the order.
type watched struct {
	*box
	owed chan bool
}

func (w watched) note() {
	w.journal.mu.Lock()
	defer w.journal.mu.Unlock()
	w.owed <- len(w.journal.owed.Orders) > 0
}

func (w watched) Pause(ctx context.Context, vm uuid.UUID) error {
	w.note()
	return w.box.Pause(ctx, vm)
}

func (w watched) Destroy(ctx context.Context, vm uuid.UUID) error {
	w.note()
	return w.box.Destroy(ctx, vm)
}

// TestOneSyncBeforeTheMachine: what stops a VM waits for no transaction.
func TestOneSyncBeforeTheMachine(t *testing.T) {
	for _, kind := range []Kind{Pause, Destroy} {
		synctest.Test(t, func(t *testing.T) {
			j := reopen(t, filepath.Join(t.TempDir(), "journal.db"))
			b := watched{newBox(j), make(chan bool, 1)}
			r := New(j, b, b, b, nil)
			stop := run(t, r)
			submit(t, r, vm1, Log, kind)
			if !<-b.owed {
				t.Errorf("%s: the journal's file had it", kind)
			}
			stop()
		})
	}
}

// TestTheFileKeepsUp: an order that nothing follows, and that one is on record, are
// in the journal's file a second later.
func TestTheFileKeepsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "journal.db")
		j := reopen(t, path)
		b := newBox(j)
		b.pause = func(ctx context.Context, _ uuid.UUID) error { <-ctx.Done(); return ctx.Err() }
		r := New(j, b, b, b, &Options{PauseWithin: time.Hour})
		stop := run(t, r)
		submit(t, r, vm1, Log, Pause)
		if _, n := inLog(t, path); n != 2 {
			t.Errorf("%d orders in the log", n)
		}
		time.Sleep(behind + time.Millisecond)
		synctest.Wait()
		if _, n := inLog(t, path); n != 0 {
			t.Errorf("%d orders in the log", n)
		}
		if untold, err := killed(t, path).Untold(); err != nil || len(untold) != 0 {
			t.Errorf("%v, %v", untold, err)
		}
		stop()
	})
}

// TestReadOnAFullDisk: what was ordered is read also while the disk takes no
// transaction, and is nowhere twice when it does again.
func TestReadOnAFullDisk(t *testing.T) {
	if fulldisk.Alone(t) {
		return
	}
	path := filepath.Join(t.TempDir(), "journal.db")
	j := reopen(t, path)
	before := newBatch(t, Request{Steps: []Kind{Log}})
	if err := j.begin(before); err != nil {
		t.Fatal(err)
	}
	j.told(before.Orders[0].ID)
	b := ahead(t, j, newBatch(t, Request{Steps: []Kind{Pause}}))
	all := append(before.Orders, b.Orders...)
	fulldisk.Within(t, 1, func() {
		if err := j.commit(); err == nil {
			t.Fatal("the disk is not full")
		}
		holds(t, j, 1, all...)
		if untold, err := j.Untold(); err != nil || len(untold) != 0 {
			t.Errorf("%v, %v", untold, err)
		}
	})
	holds(t, j, 1, all...)
	holds(t, killed(t, path), 1, all...)
}

// TestAheadOfAJournalThatRotted: what was only in the log is not lost with a
// journal that is set aside, and what the record says of it stands.
func TestAheadOfAJournalThatRotted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := reopen(t, path)
	b := newBatch(t, Request{Steps: []Kind{Log, Pause}})
	ahead(t, j, b)
	if err := j.db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 5000); err != nil {
		t.Fatal(err)
	}
	j = killed(t, path)
	if j.Cut() == nil {
		t.Fatal("not set aside")
	}
	holds(t, j, 1, b.Orders...)
	done := Result{Order: b.Orders[1].ID, Status: Done}
	if err := j.Restore([]Entry{{Order: b.Orders[0], Result: &b.Results[0]}, {Order: b.Orders[1], Result: &done}}); err != nil {
		t.Fatal(err)
	}
	holds(t, j, 0, b.Orders...)
}

// TestToldIsNotedLater: that results are on record is noted with the next
// transaction, and at the latest when the journal is closed.
func TestToldIsNotedLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := reopen(t, path)
	b := newBatch(t, Request{Steps: []Kind{Log}})
	if err := j.begin(b); err != nil {
		t.Fatal(err)
	}
	j.told(b.Orders[0].ID)
	if untold, err := killed(t, path).Untold(); err != nil || len(untold) != 1 {
		t.Errorf("after a crash: %v, %v", untold, err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if untold, err := reopen(t, path).Untold(); err != nil || len(untold) != 0 {
		t.Errorf("after a close: %v, %v", untold, err)
	}
}

// FuzzWAL: any bytes are a batch, which is then written and read as it is, or none.
func FuzzWAL(f *testing.F) {
	text, err := newBatch(f, Request{Steps: []Kind{Log, Pause}}).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	empty, err := (&batch{}).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(empty)
	f.Fuzz(func(t *testing.T, in []byte) {
		text := in
		if len(text) > walHeader { // nobody guesses a checksum
			text = binary.LittleEndian.AppendUint32(text[:0:0], walMagic)
			text = binary.LittleEndian.AppendUint32(text, uint32(len(in)-walHeader))
			text = binary.LittleEndian.AppendUint32(text, crc32.Checksum(in[walHeader:], castagnoli))
			text = append(text, in[walHeader:]...)
		}
		b, err := parseWAL(text)
		if err != nil {
			return
		}
		again, err := b.encode()
		if errors.Is(err, errTooLarge) { // text is longer where it is escaped
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseWAL(again)
		if err != nil || len(got.Orders) != len(b.Orders) || len(got.Results) != len(b.Results) {
			t.Fatalf("%+v is read as %+v, %v", b, got, err)
		}
		for i := range b.Orders {
			if got.Orders[i].ID != b.Orders[i].ID || got.Orders[i].Kind != b.Orders[i].Kind {
				t.Fatalf("%+v is read as %+v", b.Orders[i], got.Orders[i])
			}
		}
	})
}
