package evidence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
)

// retained is a stream of 1000 records, a second apart, in ten segments or more:
// each tenth is a finding about the frame 5 before it, each hundredth frame is
// critical.
type retained struct {
	t     *testing.T
	key   *Key
	store *Store
	st    *Stream
	p     Retention
	need  uint64
	now   time.Time
	done  []GivenUp
}

type cites struct{ Cites uint64 }

func newRetained(t *testing.T) *retained {
	t.Helper()
	r := &retained{t: t, key: testKey(t), now: at0, need: ^uint64(0)}
	r.open(t.TempDir())
	noise, body := rand.NewChaCha8([32]byte{1}), make([]byte, 1000)
	for i := uint64(0); i < 1000; i++ {
		_, _ = noise.Read(body)
		at := at0.Add(time.Duration(i) * time.Second)
		next := r.st.Stats().Next
		var err error
		switch {
		case i%100 == 50:
			_, err = r.st.AppendCritical(KindFrame, at, []byte("critical "), body)
		case i%10 == 9:
			_, err = r.st.Append(KindFinding, at, mustJSON(cites{next - 5}))
		default:
			_, err = r.st.Append(KindFrame, at, []byte("frame "), body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := r.st.sealFull(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *retained) open(dir string) {
	r.t.Helper()
	r.store = testStore(r.t, dir, r.key, Options{
		SegmentSize: 64 << 10, Now: func() time.Time { return r.now }, Keys: wordKeys(1),
		Retain: &Retaining{
			Of:     func(uuid.UUID) Retention { return r.p },
			Needed: func(uuid.UUID) uint64 { return r.need },
			Done:   func(_ uuid.UUID, g GivenUp) { r.done = append(r.done, g) },
			Cites: func(rec *Record, cite func(uint64)) {
				var c cites
				if rec.Kind == KindFinding && json.Unmarshal(rec.Payload, &c) == nil {
					cite(c.Cites)
				}
			},
		},
	})
	r.st = testStream(r.t, r.store)
}

func (r *retained) verify() Report {
	r.t.Helper()
	rep, err := Verify(r.st.Dir(), r.key.Verifier())
	if err != nil {
		r.t.Fatal(err)
	}
	return rep
}

// sound holds what is there against what was: nothing else, nothing changed, and
// nothing missing but bulk that no finding cites.
func (r *retained) sound(before []Record) (missing int) {
	r.t.Helper()
	now := map[uint64]Record{}
	for _, rec := range readAll(r.t, r.st.Dir()) {
		now[rec.Index] = rec
	}
	cited := map[uint64]bool{}
	for _, rec := range before {
		var c cites
		if rec.Kind == KindFinding && json.Unmarshal(rec.Payload, &c) == nil {
			cited[c.Cites] = true
		}
	}
	for _, rec := range before {
		got, there := now[rec.Index]
		switch {
		case there && (got.Chain != rec.Chain || !bytes.Equal(got.Payload, rec.Payload)):
			r.t.Fatalf("record %d is another", rec.Index)
		case !there && (rec.Kind != KindFrame || rec.Critical || cited[rec.Index]):
			r.t.Fatalf("record %d, %s, is gone", rec.Index, rec.Kind)
		case !there:
			missing++
		}
	}
	return missing
}

func TestRetentionByAge(t *testing.T) {
	r := newRetained(t)
	before := readAll(t, r.st.Dir())
	r.now = at0.Add(1000 * time.Second)
	r.p = Retention{BulkAge: 500 * time.Second}
	r.store.retain(t.Context())
	missing := r.sound(before)
	rep := r.verify()
	if missing < 300 || missing > 450 || rep.GivenUp != uint64(missing) || rep.Remainders < 4 || rep.Gone != nil || rep.Heads < 10 {
		t.Errorf("%d missing: %+v", missing, rep)
	}
	if got, want := r.st.Stats().Used, onDisk(t, r.st.Dir()); got != want {
		t.Errorf("%d bytes used, %d on disk", got, want)
	}
	n := len(r.done)
	if r.store.retain(t.Context()); len(r.done) != n {
		t.Errorf("given up again: %+v", r.done[n:])
	}
	for _, g := range r.done {
		if g.Reason != ReasonAge || g.All || g.Records == 0 {
			t.Errorf("%+v", g)
		}
	}

	// Everything that is older than 700 s goes.
	r.p.Age = 700 * time.Second
	r.store.retain(t.Context())
	rep = r.verify()
	if rep.Gone == nil || rep.First < 200 || rep.First > 310 || rep.Gone.Next != rep.First || rep.Gone.Reason != ReasonAge {
		t.Errorf("%+v, %+v", rep, rep.Gone)
	}
	if got := readAll(t, r.st.Dir())[0]; got.Index < rep.First {
		t.Errorf("begins at %d", got.Index)
	}
	stones, _ := filepath.Glob(filepath.Join(r.st.Dir(), "*"+goneSuffix))
	if len(stones) != 1 {
		t.Errorf("tombstones: %v", stones)
	}
	// The record itself says what was given up.
	said := 0
	for _, rec := range readAll(t, r.st.Dir()) {
		var g GivenUp
		if rec.Kind == KindTombstone && json.Unmarshal(rec.Payload, &g) == nil {
			said++
		}
	}
	if said != len(r.done) {
		t.Errorf("%d on record, %d done", said, len(r.done))
	}
	fill(t, r.st, 10)
	if err := r.store.Close(); err != nil {
		t.Fatal(err)
	}
	r.open(filepath.Dir(r.st.Dir()))
	fill(t, r.st, 10)
	if again := r.verify(); again.First != rep.First || again.Remainders != rep.Remainders {
		t.Errorf("after a start: %+v", again)
	}
	if got, want := r.st.Stats().Used, segmentsOnDisk(t, r.st.Dir()); got != want {
		t.Errorf("after a start %d bytes used, %d on disk", got, want)
	}
}

func segmentsOnDisk(t *testing.T, dir string) (n int64) {
	t.Helper()
	stones, _ := filepath.Glob(filepath.Join(dir, "*"+goneSuffix))
	n = onDisk(t, dir)
	for _, s := range stones {
		fi, err := os.Stat(s)
		if err != nil {
			t.Fatal(err)
		}
		n -= fi.Size()
	}
	return n
}

// TestRetentionBySize: bulk goes before anything else does, the oldest first, and
// the rest when there is no more bulk.
func TestRetentionBySize(t *testing.T) {
	r := newRetained(t)
	before := readAll(t, r.st.Dir())
	total := onDisk(t, r.st.Dir())
	last := 0
	for _, size := range []int64{total * 9 / 10, total * 8 / 10} {
		r.p = Retention{Size: size}
		r.store.retain(t.Context())
		missing := r.sound(before)
		if missing <= last || r.verify().Gone != nil {
			t.Errorf("at %d bytes %d missing", size, missing)
		}
		last = missing
	}
	r.p = Retention{Size: 1}
	r.store.retain(t.Context())
	rep := r.verify()
	if rep.Gone == nil || rep.Remainders != 0 || rep.Sealed != 0 || rep.First < 900 {
		t.Errorf("%+v", rep)
	}
	if i := slices.IndexFunc(r.done, func(g GivenUp) bool { return g.All }); i < 0 || slices.ContainsFunc(r.done[i:], func(g GivenUp) bool { return !g.All }) {
		t.Errorf("%+v", r.done)
	}
}

// TestRetentionKeepsWhatIsNeeded: what engines have not judged stays, however
// old and much it is.
func TestRetentionKeepsWhatIsNeeded(t *testing.T) {
	r := newRetained(t)
	r.now, r.need = at0.Add(time.Hour), 400
	r.p = Retention{BulkAge: time.Minute, Age: time.Minute, Size: 1}
	r.store.retain(t.Context())
	rep := r.verify()
	if rep.First == 0 || rep.First > 400 || rep.GivenUp != 0 {
		t.Errorf("%+v", rep)
	}
	all := readAll(t, r.st.Dir())
	if want := rep.Next - rep.First; uint64(len(all)) != want {
		t.Errorf("%d records, want %d", len(all), want)
	}
}

// TestGivenUpWithoutTombstone takes away what retention has not given up.
func TestGivenUpWithoutTombstone(t *testing.T) {
	r := newRetained(t)
	r.now = at0.Add(1000 * time.Second)
	r.p = Retention{BulkAge: 600 * time.Second, Age: 800 * time.Second}
	r.store.retain(t.Context())
	r.verify()
	dir := r.st.Dir()
	l, err := list(dir)
	if err != nil || !l.segments[0].rest || l.gone == 0 {
		t.Fatalf("%+v, %v", l, err)
	}
	without := func(what string, do func(dir string) error) {
		t.Helper()
		copied := filepath.Join(t.TempDir(), vm1.String())
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(copied, r.key.Verifier()); err != nil {
			t.Fatal(err)
		}
		if err := do(copied); err != nil {
			t.Fatal(err)
		}
		if rep, err := Verify(copied, r.key.Verifier()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %+v, %v", what, rep, err)
		}
	}
	first, stone := l.segments[0], l.stones[0].name
	without("no tombstone", func(dir string) error { return os.Remove(filepath.Join(dir, stone)) })
	without("the first remainder", func(dir string) error { return os.Remove(filepath.Join(dir, first.name)) })
	without("a remainder", func(dir string) error { return os.Remove(filepath.Join(dir, l.segments[1].name)) })
	without("a tombstone for more", func(dir string) error {
		return os.Rename(filepath.Join(dir, stone), filepath.Join(dir, goneName(l.segments[1].first)))
	})
	without("a tombstone's byte", func(dir string) error { return flip(filepath.Join(dir, stone), 50) })
	for at := 0; at < 2000; at += 61 {
		without(fmt.Sprintf("byte %d of a remainder", at), func(dir string) error { return flip(filepath.Join(dir, first.name), at) })
	}
	without("another host's tombstone", func(dir string) error {
		t0, err := readTombstone(dir, l.gone, r.key.Verifier())
		if err != nil {
			return err
		}
		b, err := SignNote(t0.text(), testKey(t))
		return errors.Join(err, os.WriteFile(filepath.Join(dir, stone), b, 0o640))
	})
}

func flip(path string, at int) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b[at%len(b)] ^= 0x10
	return os.WriteFile(path, b, 0o640)
}

// TestRetentionCutAnywhere leaves every state between the steps of giving up a
// segment, as a crash may: it verifies, opens, and goes on.
func TestRetentionCutAnywhere(t *testing.T) {
	r := newRetained(t)
	dir := r.st.Dir()
	states := t.TempDir()
	n := 0
	snap := func() {
		n++
		if err := os.CopyFS(filepath.Join(states, fmt.Sprint(n), vm1.String()), os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
	}
	// Hard links of the segments as they are before each pass stand for what is
	// not yet removed after it.
	r.now = at0.Add(500 * time.Second)
	for _, p := range []Retention{{BulkAge: 300 * time.Second}, {BulkAge: 300 * time.Second, Age: 300 * time.Second}} {
		before := t.TempDir()
		if err := os.CopyFS(filepath.Join(before, "s"), os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		r.p = p
		r.store.retain(t.Context())
		snap()
		old, err := list(filepath.Join(before, "s"))
		if err != nil {
			t.Fatal(err)
		}
		for _, seg := range append(old.segments, old.stones...) {
			if seg.rest || seg.sealed || seg.first > 0 {
				put := filepath.Join(states, fmt.Sprint(n), vm1.String(), seg.name)
				if _, err := os.Stat(put); err == nil || !seg.sealed {
					continue
				}
				b, err := os.ReadFile(filepath.Join(before, "s", seg.name))
				if err == nil {
					err = os.WriteFile(put, b, 0o640)
				}
				if err != nil {
					t.Fatal(err)
				}
				snap()
			}
		}
		for _, name := range []string{restName(0) + tempSuffix, goneName(77) + tempSuffix} {
			if err := os.WriteFile(filepath.Join(states, fmt.Sprint(n), vm1.String(), name), []byte("cut"), 0o640); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := 1; i <= n; i++ {
		state := filepath.Join(states, fmt.Sprint(i))
		if rep, err := Verify(filepath.Join(state, vm1.String()), r.key.Verifier()); err != nil {
			t.Fatalf("state %d: %+v, %v", i, rep, err)
		}
		o := newOpened(t, r.key, state)
		fill(t, o, 3)
		if rep, err := Verify(o.Dir(), r.key.Verifier()); err != nil {
			t.Fatalf("state %d, opened: %+v, %v", i, rep, err)
		}
		l, err := list(o.Dir())
		if err != nil || len(l.leftover)+len(l.spent)+len(l.temps)+len(l.strange) > 0 || len(l.stones) > 1 {
			t.Errorf("state %d: %+v, %v", i, l, err)
		}
	}
}

func newOpened(t *testing.T, key *Key, dir string) *Stream {
	t.Helper()
	return testStream(t, testStore(t, dir, key, Options{SegmentSize: 64 << 10}))
}

// TestReadersGoOnWhileItIsGivenUp reads and verifies a stream of which records
// are given up meanwhile.
func TestReadersGoOnWhileItIsGivenUp(t *testing.T) {
	r := newRetained(t)
	r.now = at0.Add(1000 * time.Second)
	last, next := uint64(0), r.st.Stats().Next
	read := func(rec *Record) error {
		if rec.Index < last {
			return fmt.Errorf("%d after %d", rec.Index, last)
		}
		last = rec.Index
		if rec.Index == 5 {
			r.p = Retention{BulkAge: 300 * time.Second}
			r.store.retain(t.Context())
			r.p = Retention{BulkAge: 300 * time.Second, Age: 300 * time.Second}
			r.store.retain(t.Context())
		}
		return nil
	}
	if err := NewReader(r.st.Dir()).Read(0, ^uint64(0), read); err != nil || last < next-1 {
		t.Errorf("read to %d of %d: %v", last, next, err)
	}
	last = 0
	if _, err := NewReader(r.st.Dir()).Select(&Selection{}, read); err != nil || last < next-1 {
		t.Errorf("selected to %d of %d: %v", last, next, err)
	}
}

// TestSelectSaysWhatIsGivenUp: of all, of a time from which nothing was, and of one
// from which a part was.
func TestSelectSaysWhatIsGivenUp(t *testing.T) {
	r := newRetained(t)
	r.now = at0.Add(1000 * time.Second)
	r.p = Retention{BulkAge: 400 * time.Second, Age: 800 * time.Second}
	r.store.retain(t.Context())
	rep := r.verify()
	x := &IndexReader{Scheme: 1, Verifier: r.key.Verifier()}
	for since, want := range map[time.Duration]func(uint64) bool{
		0:                 func(n uint64) bool { return n == rep.First+rep.GivenUp },
		300 * time.Second: func(n uint64) bool { return n > 0 && n < rep.GivenUp },
		700 * time.Second: func(n uint64) bool { return n == 0 },
	} {
		done, err := NewReader(r.st.Dir()).Select(&Selection{Since: at0.Add(since), Index: x}, func(*Record) error { return nil })
		if err != nil || !want(done.GivenUp) {
			t.Errorf("since %s: %+v, %v; %+v", since, done, err, rep)
		}
	}
}

// TestExportAfterAGap: a bundle's range begins after what was given up.
func TestExportAfterAGap(t *testing.T) {
	r := newRetained(t)
	r.now = at0.Add(500 * time.Second)
	r.p = Retention{BulkAge: 100 * time.Second, Age: 300 * time.Second}
	r.store.retain(t.Context())
	first := r.verify().First
	out := filepath.Join(t.TempDir(), "evidence")
	got, err := Export(t.Context(), r.st.Dir(), out, 0, 900)
	if err != nil || got.First <= first || got.First > 450 {
		t.Fatalf("%+v, %v", got, err)
	}
	rep, err := Verify(out, r.key.Verifier())
	if err != nil || rep.First != got.First || rep.Unsigned != 0 {
		t.Errorf("%+v, %v", rep, err)
	}
}
