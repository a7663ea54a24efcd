package respond

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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

// TestAheadOfTheJournal: an order that was only in the write-ahead log when the
// process died is in the next one's journal, once, and one that has its result
// has it still.
func TestAheadOfTheJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := reopen(t, path)
	first := newBatch(t, Request{Steps: []Kind{Log, Pause}})
	if !j.ahead(first) {
		t.Fatal("not ahead")
	}
	holds(t, killed(t, path), 1, first.Orders...)

	// The next finds the log taken, and takes along what is there.
	second := newBatch(t, Request{Steps: []Kind{Pause}})
	if j.ahead(second) {
		t.Fatal("two in the log")
	}
	if err := j.beginSoon(second); err != nil {
		t.Fatal(err)
	}
	all := append(first.Orders, second.Orders...)
	holds(t, killed(t, path), 2, all...)

	// A log that was not cleared, as after a power cut, brings nothing back.
	third := newBatch(t, Request{Steps: []Kind{Isolate}})
	if err := j.beginSoon(third); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(path + "-wal")
	if err != nil || parseWAL(log) == nil {
		t.Fatal("not in the log", err)
	}
	if err := j.end(&Result{Order: third.Orders[0].ID, Status: Done}); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(path + "-wal"); err != nil || parseWAL(now) != nil {
		t.Fatal("not cleared", err)
	}
	if err := os.WriteFile(path+"-wal", log, 0o600); err != nil {
		t.Fatal(err)
	}
	all = append(all, third.Orders...)
	holds(t, killed(t, path), 2, all...)
	holds(t, j, 2, all...)
}

// TestWALCutAnywhere cuts a batch in the log at each byte, and changes each: it is
// not there, and never another; nothing else is lost.
func TestWALCutAnywhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := reopen(t, path)
	before := newBatch(t, Request{Steps: []Kind{Pause}})
	b := newBatch(t, Request{Steps: []Kind{Log, Pause}, Reason: "why"})
	if err := j.begin(before); err != nil || !j.ahead(b) {
		t.Fatal("not ahead", err)
	}
	log, err := os.ReadFile(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	if len(log) != walSize || len(parseWAL(log).Orders) != 2 {
		t.Fatalf("%d bytes", len(log))
	}
	whole := len(bytes.TrimRight(log, "\x00"))
	for n := range whole {
		if got := parseWAL(log[:n]); got != nil {
			t.Errorf("of %d of %d bytes: %+v", n, whole, got)
		}
		torn := append(bytes.Clone(log[:n]), make([]byte, walSize-n)...)
		if got := parseWAL(torn); got != nil {
			t.Errorf("torn at %d of %d bytes: %+v", n, whole, got)
		}
		log[n] ^= 0x10
		if got := parseWAL(log); got != nil {
			t.Errorf("byte %d changed: %+v", n, got)
		}
		log[n] ^= 0x10
	}
	if err := os.Truncate(path+"-wal", int64(whole-1)); err != nil {
		t.Fatal(err)
	}
	j = killed(t, path)
	holds(t, j, 1, before.Orders...)
	if fi, err := j.wal.f.Stat(); err != nil || fi.Size() != walSize {
		t.Error(fi, err)
	}
}

// TestNotAhead: a batch that has no room in the log, and one that the log's disk
// refuses, go straight into the journal.
func TestNotAhead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := reopen(t, path)
	large := newBatch(t, Request{
		Steps: []Kind{Pause, Alert}, Reason: strings.Repeat("long ", maxText), Alerts: strings.Fields(strings.Repeat("x ", maxAlerts)),
	})
	if err := j.beginSoon(large); err != nil {
		t.Fatal(err)
	}
	if len(j.owed.Orders) != 0 {
		t.Error("it had room")
	}
	f := j.wal.f
	var err error
	if j.wal.f, err = os.Open(path + "-wal"); err != nil { // not to be written to
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	refused := newBatch(t, Request{Steps: []Kind{Pause}})
	if err := j.beginSoon(refused); err != nil {
		t.Fatal(err)
	}
	all := append(large.Orders, refused.Orders...)
	holds(t, killed(t, path), len(all), all...)
}

// TestAheadOfAJournalThatRotted: what was only in the log is not lost with a
// journal that is set aside, and what the record says of it stands.
func TestAheadOfAJournalThatRotted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := reopen(t, path)
	b := newBatch(t, Request{Steps: []Kind{Log, Pause}})
	if !j.ahead(b) {
		t.Fatal("not ahead")
	}
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
	f.Fuzz(func(t *testing.T, text []byte) {
		text = bytes.Clone(text)
		if len(text) > walHeader { // nobody guesses a checksum
			binary.LittleEndian.PutUint32(text, uint32(len(text)-walHeader))
			binary.LittleEndian.PutUint32(text[4:], crc32.Checksum(text[walHeader:], castagnoli))
		}
		b := parseWAL(text)
		if b == nil {
			return
		}
		again, err := b.encode()
		if err != nil {
			t.Skip(err) // a time that JSON has no word for
		}
		got := parseWAL(again)
		if got == nil || len(got.Orders) != len(b.Orders) || len(got.Results) != len(b.Results) {
			t.Fatalf("%+v is read as %+v", b, got)
		}
		for i := range b.Orders {
			if got.Orders[i].ID != b.Orders[i].ID || got.Orders[i].Kind != b.Orders[i].Kind {
				t.Fatalf("%+v is read as %+v", b.Orders[i], got.Orders[i])
			}
		}
	})
}
