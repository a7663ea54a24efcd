package link

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/outguard/outguard/vsockproto"
)

// Violations of the accounting, to branch on; they come in a *LedgerError. A
// gap is loss that nobody declared; after it the account goes on. The others
// are what no honest agent can produce.
var (
	ErrGap       = errors.New("records are missing")
	ErrExcess    = errors.New("more records than numbers")
	ErrDuplicate = errors.New("record seen before")
	ErrSettled   = errors.New("record at or below the watermark")
	ErrWindow    = errors.New("record too far ahead")
	ErrCPU       = errors.New("no such cpu")
)

// LedgerError says where the account does not hold.
type LedgerError struct {
	CPU      uint32
	Class    vsockproto.Class
	Err      error  // one of the above, or ErrBackwards
	Sequence uint64 // of the record, or the new watermark
	After    uint64 // the watermark before it
	Want     uint64 // ErrGap, ErrExcess: numbers given out from After to Sequence
	Got      uint64 // and of those received
	Lost     uint64 // and of those declared lost
}

func (e *LedgerError) Error() string {
	s := fmt.Sprintf("cpu %d, %s: %v: sequence %d after watermark %d", e.CPU, e.Class, e.Err, e.Sequence, e.After)
	if e.Err == ErrGap || e.Err == ErrExcess {
		s += fmt.Sprintf(": of %d numbers %d were received and %d declared lost", e.Want, e.Got, e.Lost)
	}
	return s
}

func (e *LedgerError) Unwrap() error { return e.Err }

// LedgerOptions are a ledger's; nil and zero mean the defaults.
type LedgerOptions struct {
	CPUs   uint32 // of the guest; default MaxCPUs
	Window int    // numbers that one (CPU, class) may be ahead of what is whole; default 1<<20
	Memory int    // bytes that all windows together may take; default 8 MiB

	// Join: the guest's numbers began before the ledger did. What each
	// (CPU, class) had given out before its first record here, and its losses
	// up to its second watermark, are not asked for: what is above the first may
	// have been sent before that was, in the session that is not known. The mark
	// of the second was taken when the first had been sent.
	Join bool
}

// Ledger proves that of every (CPU, class) each number was received exactly
// once or is declared lost. Records may arrive in any order inside the window.
// It is not safe for concurrent use.
type Ledger struct {
	cpus   uint32
	window uint64
	budget int // bytes of windows still to be had
	join   bool
	round  uint64 // settlements
	rows   []account
}

// Account is where one (CPU, class) stands.
type Account struct {
	CPU         uint32
	Class       vsockproto.Class
	Watermark   uint64 // proven up to here
	Highest     uint64 // highest number received
	Received    uint64 // records in all
	Lost        uint64 // declared lost up to Watermark
	Unaccounted uint64 // neither received nor declared, up to Watermark
}

// account keeps the numbers received above mark: all of (mark, whole], and
// above whole those whose bit is set. The bit of a number is number modulo
// the window's size; bits outside (whole, whole+size] are zero.
type account struct {
	mark, whole, highest        uint64
	received, lost, unaccounted uint64
	set                         []uint64
	since                       uint64 // settlement after which it has waited for one that moves its watermark
	joining                     uint8  // watermarks until its past does not matter: see LedgerOptions.Join
}

// firstWindow is the size in words of a window that is needed at all.
const firstWindow = 64

// NewLedger makes a ledger in which nothing was received.
func NewLedger(o *LedgerOptions) *Ledger {
	if o == nil {
		o = &LedgerOptions{}
	}
	words := (orDefault(o.Window, 1<<20) + 63) / 64
	return &Ledger{
		cpus:   min(orDefault(o.CPUs, vsockproto.MaxCPUs), vsockproto.MaxCPUs),
		window: 64 * uint64(1<<bits.Len(uint(words-1))),
		budget: orDefault(o.Memory, 8<<20),
		join:   o.Join,
	}
}

func row(cpu uint32, c vsockproto.Class) int { return int(cpu)*2 + int(c) - 1 }

func (l *Ledger) at(cpu uint32, c vsockproto.Class) *account {
	if cpu >= l.cpus || (c != vsockproto.Critical && c != vsockproto.Bulk) {
		return nil
	}
	for len(l.rows) <= row(cpu, c) {
		l.rows = append(l.rows, account{joining: l.joins()})
	}
	return &l.rows[row(cpu, c)]
}

// joins is how many watermarks of a row that is new are not held against it.
func (l *Ledger) joins() uint8 {
	if !l.join {
		return 0
	}
	return joinMarks - uint8(min(max(l.round, 1)-1, joinMarks)) // the settlement under way is counted
}

// Seen enters a record. An error is a *LedgerError and changes nothing.
func (l *Ledger) Seen(cpu uint32, c vsockproto.Class, seq uint64) error {
	a := l.at(cpu, c)
	if a == nil {
		return &LedgerError{CPU: cpu, Class: c, Err: ErrCPU, Sequence: seq}
	}
	if err := l.enter(a, seq); err != nil {
		return &LedgerError{CPU: cpu, Class: c, Err: err, Sequence: seq, After: a.mark}
	}
	return nil
}

// joinMarks is how many watermarks are taken for what they say.
const joinMarks = 2

// joinSlack is how many numbers before the first record that was heard may
// still come, since records arrive out of order.
const joinSlack = 4096

func (l *Ledger) enter(a *account, seq uint64) error {
	if a.joining > 0 && a.highest == 0 && seq > joinSlack {
		a.mark, a.whole = seq-joinSlack, seq-joinSlack
	}
	switch {
	case seq <= a.mark:
		return ErrSettled
	case seq <= a.whole:
		return ErrDuplicate
	case seq-a.whole > uint64(len(a.set))*64 && seq != a.whole+1:
		if err := l.grow(a, seq-a.whole); err != nil {
			return err
		}
	}
	if seq == a.whole+1 {
		a.whole++
		a.advance()
	} else if !a.add(seq) {
		return ErrDuplicate
	}
	a.received++
	if a.highest <= a.mark {
		a.since = l.round
	}
	a.highest = max(a.highest, seq)
	return nil
}

// grow makes the window hold ahead numbers, doubling it.
func (l *Ledger) grow(a *account, ahead uint64) error {
	if ahead > l.window {
		return ErrWindow
	}
	words := max(firstWindow, len(a.set))
	for uint64(words)*64 < ahead {
		words *= 2
	}
	need := 8 * (words - len(a.set))
	if need > l.budget {
		return ErrWindow
	}
	l.budget -= need
	old := *a
	a.set = make([]uint64, words)
	for seq := old.whole + 1; seq <= old.highest; seq++ {
		if old.has(seq) {
			a.add(seq)
		}
	}
	return nil
}

func (a *account) bit(seq uint64) (word *uint64, mask uint64) {
	return &a.set[seq/64%uint64(len(a.set))], 1 << (seq % 64)
}

func (a *account) has(seq uint64) bool {
	if seq-a.whole > uint64(len(a.set))*64 {
		return false
	}
	w, m := a.bit(seq)
	return *w&m != 0
}

func (a *account) add(seq uint64) bool {
	w, m := a.bit(seq)
	if *w&m != 0 {
		return false
	}
	*w |= m
	return true
}

// advance moves whole over the numbers that follow it without a hole.
func (a *account) advance() {
	for a.whole < a.highest {
		w, m := a.bit(a.whole + 1)
		if *w&m == 0 {
			return
		}
		*w &^= m
		a.whole++
	}
}

// Settle closes the account up to each counter's watermark: what was received
// and what was declared lost must be all the numbers up to it. It goes through
// all counters; the error joins one *LedgerError for each that does not hold.
func (l *Ledger) Settle(counters []vsockproto.Counter) error {
	var errs []error
	l.round++
	for i := range counters {
		if err := l.settle(&counters[i]); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (l *Ledger) settle(c *vsockproto.Counter) error {
	e := LedgerError{CPU: c.CPU, Class: c.Class, Sequence: c.Watermark}
	a := l.at(c.CPU, c.Class)
	if a == nil {
		e.Err = ErrCPU
		return e.because()
	}
	e.After = a.mark
	if c.Watermark < a.mark || c.Lost < a.lost {
		e.Err = ErrBackwards
		return e.because()
	}
	e.Want, e.Lost = c.Watermark-a.mark, c.Lost-a.lost
	if c.Watermark > a.mark {
		a.since = l.round
	}
	e.Got = a.take(c.Watermark)
	a.lost = c.Lost
	if a.joining > 0 {
		a.joining--
		return nil
	}
	switch missing := e.Want - e.Got; {
	case e.Lost < missing:
		a.unaccounted += missing - e.Lost
		e.Err = ErrGap
		return e.because()
	case e.Lost > missing:
		e.Err = ErrExcess
		return e.because()
	}
	return nil
}

// because copies e, so that only an error costs an allocation.
func (e LedgerError) because() error { return &e }

// take moves the watermark and returns how many numbers up to it were received.
func (a *account) take(mark uint64) uint64 {
	if mark <= a.whole {
		n := mark - a.mark
		a.mark = mark
		return n
	}
	n := a.whole - a.mark
	for end := min(mark, a.highest); a.whole < end; {
		n += a.clear(min(end-a.whole, 64-(a.whole+1)%64))
	}
	a.mark, a.whole = mark, mark
	a.advance()
	return n
}

// clear moves whole by n numbers that lie in one word and counts those set.
func (a *account) clear(n uint64) uint64 {
	w, m := a.bit(a.whole + 1)
	mask := m * (1<<n - 1) // m is the lowest bit, n ones from there on
	got := bits.OnesCount64(*w & mask)
	*w &^= mask
	a.whole += n
	return uint64(got)
}

// Unsettled counts the numbers received above the watermarks.
func (l *Ledger) Unsettled() uint64 {
	var n uint64
	for i := range l.rows {
		n += l.rows[i].highest - min(l.rows[i].highest, l.rows[i].mark)
	}
	return n
}

// Overdue finds a (CPU, class) that has waited for more than so many
// settlements for one that moves its watermark, though it has records above it.
// Withheld: bulk is not asked for, and so not missed.
func (l *Ledger) Overdue(settlements uint64, withheld bool) (cpu uint32, c vsockproto.Class, ok bool) {
	for i := range l.rows {
		a := &l.rows[i]
		if withheld && i%2 == 1 {
			a.since = l.round
			continue
		}
		if a.highest > a.mark && l.round-a.since > settlements {
			return uint32(i / 2), vsockproto.Class(i%2 + 1), true
		}
	}
	return 0, 0, false
}

// Accounts lists every (CPU, class) of which anything was heard.
func (l *Ledger) Accounts() []Account {
	var all []Account
	for i := range l.rows {
		a := &l.rows[i]
		if a.highest == 0 && a.mark == 0 {
			continue
		}
		all = append(all, Account{
			CPU: uint32(i / 2), Class: vsockproto.Class(i%2 + 1),
			Watermark: a.mark, Highest: a.highest, Received: a.received, Lost: a.lost, Unaccounted: a.unaccounted,
		})
	}
	return all
}

// LostByClass counts what is declared lost, of critical records and of bulk.
func (l *Ledger) LostByClass() (lost [2]uint64) {
	for i := range l.rows {
		lost[i%2] += l.rows[i].lost
	}
	return lost
}

// Lost counts all that is declared lost.
func (l *Ledger) Lost() uint64 {
	lost := l.LostByClass()
	return lost[0] + lost[1]
}

const joiningShift = 30 // in a row's number

// AppendBinary appends the ledger's state, for UnmarshalBinary.
func (l *Ledger) AppendBinary(b []byte) []byte {
	for i := range l.rows {
		a := &l.rows[i]
		if a.highest == 0 && a.mark == 0 {
			continue
		}
		b = le.AppendUint32(b, uint32(i)|uint32(a.joining)<<joiningShift)
		for _, v := range [...]uint64{a.mark, a.whole, a.highest, a.received, a.lost, a.unaccounted} {
			b = le.AppendUint64(b, v)
		}
		for seq := a.whole + 1; seq <= a.highest; seq += 64 {
			var w uint64
			for k := seq; k <= min(a.highest, seq+63); k++ {
				if a.has(k) {
					w |= 1 << (k - seq)
				}
			}
			b = le.AppendUint64(b, w)
		}
	}
	return b
}

// UnmarshalBinary sets l, which is new, to a state that AppendBinary gave.
func (l *Ledger) UnmarshalBinary(b []byte) error {
	for len(b) > 0 {
		if len(b) < 4+6*8 {
			return fmt.Errorf("ledger: %w", vsockproto.ErrShort)
		}
		i, joining := le.Uint32(b)&(1<<joiningShift-1), uint8(le.Uint32(b)>>joiningShift)
		if joining > joinMarks {
			return fmt.Errorf("ledger row %d: %w", i, vsockproto.ErrInvalid)
		}
		a := l.at(i/2, vsockproto.Class(i%2+1))
		if a == nil {
			return fmt.Errorf("ledger row %d: %w", i, ErrCPU)
		}
		var v [6]uint64
		for k := range v {
			v[k] = le.Uint64(b[4+8*k:])
		}
		b = b[4+6*8:]
		*a = account{since: l.round, mark: v[0], whole: v[1], highest: v[2], received: v[3], lost: v[4], unaccounted: v[5], joining: joining}
		var err error
		if b, err = l.restore(a, b); err != nil {
			return fmt.Errorf("ledger row %d: %w", i, err)
		}
	}
	return nil
}

// restore sets the window's bits, from whole to highest.
func (l *Ledger) restore(a *account, b []byte) ([]byte, error) {
	if a.whole < a.mark {
		return nil, vsockproto.ErrInvalid
	}
	if a.highest <= a.whole {
		return b, nil
	}
	ahead, highest := a.highest-a.whole, a.highest
	a.highest = a.whole // nothing to move when it grows
	if err := l.grow(a, ahead); err != nil {
		return nil, err
	}
	a.highest = highest
	for seq := a.whole + 1; seq <= highest; seq += 64 {
		if len(b) < 8 {
			return nil, vsockproto.ErrShort
		}
		for w := le.Uint64(b); w != 0; w &= w - 1 {
			k := seq + uint64(bits.TrailingZeros64(w))
			if k > highest || k == a.whole+1 {
				return nil, vsockproto.ErrInvalid
			}
			a.add(k)
		}
		b = b[8:]
	}
	return b, nil
}
