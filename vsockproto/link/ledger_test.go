package link

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/outguard/outguard/vsockproto"
)

func counter(mark, lost uint64) []vsockproto.Counter {
	return []vsockproto.Counter{{CPU: 1, Class: vsockproto.Bulk, Watermark: mark, Lost: lost}}
}

func see(t *testing.T, l *Ledger, seqs ...uint64) {
	t.Helper()
	for _, s := range seqs {
		if err := l.Seen(1, vsockproto.Bulk, s); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLedgerHolds(t *testing.T) {
	l := NewLedger(nil)
	see(t, l, 2, 1, 3, 5, 9)
	if err := l.Settle(counter(6, 2)); err != nil { // 4 and 6 lost
		t.Fatal(err)
	}
	see(t, l, 8, 7, 10)
	if err := l.Settle(counter(10, 2)); err != nil {
		t.Fatal(err)
	}
	if err := l.Settle(counter(10, 2)); err != nil {
		t.Fatal("the same watermark again:", err)
	}
	if err := l.Settle(counter(1<<40, 2+1<<40-10)); err != nil {
		t.Fatal("a flood that was lost as a whole:", err)
	}
	see(t, l, 1<<40+1)
	want := Account{CPU: 1, Class: vsockproto.Bulk, Watermark: 1 << 40, Highest: 1<<40 + 1, Received: 9, Lost: 1<<40 - 8}
	if got := l.Accounts(); len(got) != 1 || got[0] != want {
		t.Fatalf("got %+v, want %+v", got, want)
	}
}

func TestLedgerViolations(t *testing.T) {
	for _, c := range []struct {
		name string
		want error
		do   func(l *Ledger) error
	}{
		{"duplicate of a whole run", ErrDuplicate, func(l *Ledger) error { return l.Seen(1, vsockproto.Bulk, 8) }},
		{"duplicate behind a hole", ErrDuplicate, func(l *Ledger) error { return l.Seen(1, vsockproto.Bulk, 20) }},
		{"settled", ErrSettled, func(l *Ledger) error { return l.Seen(1, vsockproto.Bulk, 5) }},
		{"lost and seen after all", ErrSettled, func(l *Ledger) error { return l.Seen(1, vsockproto.Bulk, 4) }},
		{"too far ahead", ErrWindow, func(l *Ledger) error { return l.Seen(1, vsockproto.Bulk, 9+4097) }},
		{"no such cpu", ErrCPU, func(l *Ledger) error { return l.Seen(4, vsockproto.Bulk, 1) }},
		{"no such class", ErrCPU, func(l *Ledger) error { return l.Seen(1, 3, 1) }},
		{"gap", ErrGap, func(l *Ledger) error { return l.Settle(counter(20, 2)) }},
		{"excess", ErrExcess, func(l *Ledger) error { return l.Settle(counter(9, 2)) }},
		{"watermark goes back", ErrBackwards, func(l *Ledger) error { return l.Settle(counter(4, 1)) }},
		{"lost goes back", ErrBackwards, func(l *Ledger) error { return l.Settle(counter(7, 0)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := NewLedger(&LedgerOptions{CPUs: 4, Window: 4096})
			see(t, l, 1, 2, 3, 5, 6, 7, 8, 9, 20)
			if err := l.Settle(counter(6, 1)); err != nil {
				t.Fatal(err)
			}
			err := c.do(l)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			var le *LedgerError
			if !errors.As(err, &le) || le.Sequence == 0 {
				t.Fatalf("%#v does not say where", err)
			}
		})
	}
}

func TestLedgerGoesOnAfterAGap(t *testing.T) {
	l := NewLedger(nil)
	see(t, l, 1, 4)
	err := l.Settle(counter(5, 1))
	var le *LedgerError
	if !errors.As(err, &le) || le.Want != 5 || le.Got != 2 || le.Lost != 1 {
		t.Fatalf("got %v", err)
	}
	see(t, l, 6)
	if err := l.Settle(counter(6, 1)); err != nil {
		t.Fatal(err)
	}
	if n := l.Accounts()[0].Unaccounted; n != 2 {
		t.Fatalf("%d unaccounted, want 2", n)
	}
}

func TestLedgerOverdue(t *testing.T) {
	l := NewLedger(nil)
	for i := range uint64(100) { // nothing to wait for, then watermarks that move
		see(t, l, i+1, i+2000)
		if err := l.Settle(counter(i+1, 0)); err != nil {
			t.Fatal(err)
		}
		if _, _, ok := l.Overdue(3, false); ok {
			t.Fatal("overdue though it moves")
		}
	}
	for range 4 {
		_ = l.Settle(counter(100, 0))
	}
	if cpu, c, ok := l.Overdue(3, false); !ok || cpu != 1 || c != vsockproto.Bulk {
		t.Fatal(cpu, c, ok)
	}
}

// TestJoinedLedger: a record above the first watermark may have gone out before it,
// to whoever was there then. What is missing above the second is missing.
func TestJoinedLedger(t *testing.T) {
	l := NewLedger(&LedgerOptions{Join: true})
	if err := l.Settle(counter(604, 3)); err != nil {
		t.Fatal(err)
	}
	see(t, l, 606)
	if err := l.Settle(counter(606, 3)); err != nil {
		t.Fatal(err)
	}
	if err := l.Settle([]vsockproto.Counter{{CPU: 7, Class: vsockproto.Bulk, Watermark: 1}}); !errors.Is(err, ErrGap) {
		t.Errorf("a CPU that counts for the first time: %v", err)
	}
	see(t, l, 608)
	if err := l.Settle(counter(608, 3)); !errors.Is(err, ErrGap) {
		t.Errorf("got %v", err)
	}
}

func TestLedgerKeepsItsState(t *testing.T) {
	for _, join := range []bool{false, true} {
		l := NewLedger(&LedgerOptions{Join: join})
		see(t, l, 5001, 5002, 5070, 5064, 9000)
		if err := l.Seen(3, vsockproto.Critical, 1); err != nil {
			t.Fatal(err)
		}
		state := l.AppendBinary(nil)
		m := NewLedger(nil)
		if err := m.UnmarshalBinary(state); err != nil {
			t.Fatal(err)
		}
		if got := m.AppendBinary(nil); !bytes.Equal(got, state) {
			t.Fatalf("got\n%x, want\n%x", got, state)
		}
		if err := m.Seen(1, vsockproto.Bulk, 5064); !errors.Is(err, ErrDuplicate) {
			t.Fatalf("got %v", err)
		}
		see(t, m, 5065)
		for n := range state {
			if err := NewLedger(nil).UnmarshalBinary(state[:n]); err == nil && n != 0 && n != len(state)-52 { // between two rows
				t.Fatalf("%d of %d bytes are taken", n, len(state))
			}
		}
	}
}

func FuzzLedgerState(f *testing.F) {
	l := NewLedger(nil)
	for _, s := range []uint64{1, 2, 9, 200} {
		_ = l.Seen(1, vsockproto.Bulk, s)
	}
	f.Add(l.AppendBinary(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		l := NewLedger(nil)
		if l.UnmarshalBinary(b) != nil {
			return
		}
		again := l.AppendBinary(nil)
		m := NewLedger(nil)
		if err := m.UnmarshalBinary(again); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(m.AppendBinary(nil), again) {
			t.Fatal("a state that changes when it is kept")
		}
	})
}

// TestLedgerAgainstMap plays random histories into the ledger and into a plain
// set, which must agree on every answer.
func TestLedgerAgainstMap(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 0))
		l := NewLedger(&LedgerOptions{Window: 8192})
		set := map[uint64]bool{}
		var mark, lost, highest uint64
		for range 400 {
			if rng.IntN(20) == 0 {
				to := mark + rng.Uint64N(highest-mark+3)
				got := uint64(0)
				for s := mark + 1; s <= to; s++ {
					if set[s] {
						got++
					}
				}
				miss := to - mark - got
				if err := l.Settle(counter(to, lost+miss)); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				mark, lost, highest = to, lost+miss, max(highest, to)
				continue
			}
			s := mark + 1 + rng.Uint64N(1+rng.Uint64N(3000))
			err := l.Seen(1, vsockproto.Bulk, s)
			if (err != nil) != set[s] {
				t.Fatalf("seed %d: number %d, seen before %v: %v", seed, s, set[s], err)
			}
			set[s], highest = true, max(highest, s)
		}
	}
}

func TestLedgerMemoryIsBounded(t *testing.T) {
	l := NewLedger(&LedgerOptions{Memory: 64 << 10})
	refused := 0
	for cpu := range uint32(vsockproto.MaxCPUs) {
		if err := l.Seen(cpu, vsockproto.Bulk, 4000); errors.Is(err, ErrWindow) {
			refused++
		}
	}
	total := 0
	for i := range l.rows {
		total += 8 * len(l.rows[i].set)
	}
	if total > 64<<10 || refused == 0 {
		t.Fatalf("%d bytes of windows, %d refused", total, refused)
	}
}

func TestLedgerAllocatesNothing(t *testing.T) {
	l := NewLedger(nil)
	seq, lost := uint64(0), uint64(0)
	cs := counter(0, 0)
	round := func() {
		for _, d := range []uint64{3, 1, 2, 700, 5} {
			if err := l.Seen(1, vsockproto.Bulk, seq+d); err != nil {
				t.Fatal(err)
			}
		}
		lost += 700 - 5
		seq += 700
		cs[0].Watermark, cs[0].Lost = seq, lost
		if err := l.Settle(cs); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func BenchmarkLedgerSeen(b *testing.B) {
	for _, behind := range []uint64{0, 500} {
		b.Run(fmt.Sprintf("behind=%d", behind), func(b *testing.B) {
			l := NewLedger(nil)
			b.ReportAllocs()
			n := uint64(0)
			for b.Loop() {
				// Every second number comes late by behind.
				seq := n + 1
				if behind > 0 && n%2 == 0 {
					seq += behind
				} else if behind > 0 {
					seq = n + 1
				}
				_ = l.Seen(0, vsockproto.Bulk, seq)
				n++
			}
		})
	}
}
