package evidence

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/host/fulldisk"
)

const appendUntilKilled = "EVIDENCE_TEST_APPEND_UNTIL_KILLED"

func TestMain(m *testing.M) {
	if dir := os.Getenv(appendUntilKilled); dir != "" {
		fmt.Fprintln(os.Stderr, appendForever(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func appendForever(dir string) error {
	key, err := LoadOrCreateKey(dir, "test-host")
	if err != nil {
		return err
	}
	s, err := Open(filepath.Join(dir, StoreDir), key, &Options{SegmentSize: 64 << 10})
	if err != nil {
		return err
	}
	st, err := s.Stream(vm1)
	if err != nil {
		return err
	}
	frame := make([]byte, 3000)
	for {
		i, err := st.Append(KindFrame, at0, frame)
		if err != nil {
			return err
		}
		fmt.Println(i)
	}
}

// TestKilledWriterLosesNothing kills a writing process and finds everything
// that its appends had returned for.
func TestKilledWriterLosesNothing(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), appendUntilKilled+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last, lines := uint64(0), bufio.NewReader(out)
	for n := 0; ; n++ {
		line, err := lines.ReadString('\n')
		if err == io.EOF && n >= 500 {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if last, err = strconv.ParseUint(strings.TrimSpace(line), 10, 64); err != nil {
			t.Fatal(err)
		}
		if n == 500 {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the writer ended by itself")
	}
	key, err := LoadOrCreateKey(dir, "test-host")
	if err != nil {
		t.Fatal(err)
	}
	s := testStore(t, filepath.Join(dir, StoreDir), key, Options{})
	st := testStream(t, s)
	if next := st.Stats().Next; next <= last {
		t.Errorf("records up to %d, the writer had appended %d", next, last)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(st.Dir(), key.Verifier()); err != nil {
		t.Error(err)
	}
}

// TestFullDisk stands in for one with a limit on the size of files: what does
// not fit is an error, what did fit stays whole, and the next one that fits is
// taken.
func TestFullDisk(t *testing.T) {
	if fulldisk.Alone(t) {
		return
	}
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{})
	st := testStream(t, s)
	fill(t, st, 5)
	var big, small error
	fulldisk.Within(t, st.size+1000, func() {
		_, big = st.Append(KindNote, at0, make([]byte, 5000))
		_, small = st.Append(KindNote, at0, make([]byte, 500))
	})
	if !errors.Is(big, unix.ENOSPC) || !errors.Is(big, ErrFull) || small != nil {
		t.Errorf("big: %v; small: %v", big, small)
	}
	if _, err := st.Append(KindFrame, at0, nil); !errors.Is(err, ErrFull) {
		t.Errorf("a frame after that: %v", err)
	}
	s.room.last = time.Time{}
	s.room.look() // as Run does
	fill(t, st, 2)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	rep, err := Verify(st.Dir(), key.Verifier())
	if err != nil || rep.Kinds["note"] != 1 || rep.Next != 9 {
		t.Errorf("%+v, %v", rep, err)
	}
}

// TestFullDiskAtTheCheck: a record whose check finds no room is not kept, what is
// appended after it can be appended later, and the stream goes on then.
func TestFullDiskAtTheCheck(t *testing.T) {
	if fulldisk.Alone(t) {
		return
	}
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{})
	st := testStream(t, s)
	fill(t, st, 5)
	var kept, checked, after error
	fulldisk.Within(t, st.size+recordHeaderSize+100+checkSize/2, func() {
		_, kept = st.AppendUnchecked(KindFrame, false, at0, make([]byte, 100))
		_, after = st.AppendCritical(KindFinding, at0, nil)
		checked = st.Check()
	})
	if kept != nil || !errors.Is(checked, ErrFull) || !errors.Is(after, ErrFull) {
		t.Errorf("%v; check: %v; after it: %v", kept, checked, after)
	}
	s.room.last = time.Time{}
	s.room.look() // as Run does
	if _, err := testStream(t, s).AppendCritical(KindFinding, at0, nil); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	rep, err := Verify(st.Dir(), key.Verifier())
	if err != nil || len(rep.Cuts) != 1 || rep.Kinds["finding"] != 2 || rep.Kinds["frame"] != 4 { // one of the five is a finding
		t.Errorf("%+v, %v", rep, err)
	}
}

// TestReserve: frames leave the reserve free, whatever else is said does not.
func TestReserve(t *testing.T) {
	key := testKey(t)
	var told []bool
	s := testStore(t, t.TempDir(), key, Options{Reserve: 1 << 62, Room: func(full bool, _ int64) { told = append(told, full) }})
	st := testStream(t, s)
	if _, err := st.Append(KindFrame, at0, make([]byte, lookEvery)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := st.AppendCritical(KindFrame, at0, nil); !errors.Is(err, ErrFull) {
			t.Errorf("a frame into the reserve: %v", err)
		}
	}
	for _, kind := range []Kind{KindFinding, KindDecision, KindOrder, KindResult, KindOpen, KindClose, KindNote} {
		if _, err := st.Append(kind, at0, nil); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	s.room.reserve = 1
	s.room.look()
	if _, err := st.Append(KindFrame, at0, nil); err != nil || !slices.Equal(told, []bool{true, false}) {
		t.Errorf("with room again: %v, told %v", err, told)
	}
	if n := st.Stats(); n.RefusedFrames != 0 {
		t.Errorf("counted as given up: %+v", n)
	}
}

// TestCorruptIsNoCrash changes a byte that a signed head says was on disk, and
// tears the end: the stream is not cut at the changed byte but refused, and a
// new one can begin beside it.
func TestCorruptIsNoCrash(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{})
	st := testStream(t, s)
	fill(t, st, 5)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(st.Dir(), segmentName(0, false))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[recordEnds(b)[1]+recordHeaderSize] ^= 1
	b = append(b, "torn"...)
	if err := os.WriteFile(path, b, 0o640); err != nil {
		t.Fatal(err)
	}
	s = testStore(t, dir, key, Options{})
	var bad *CorruptError
	if _, err := s.Stream(vm1); !errors.As(err, &bad) || bad.Index != 2 {
		t.Fatalf("opened: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, b) {
		t.Errorf("the corrupt segment was touched: %v", err)
	}
	aside, err := s.SetAside(vm1)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, testStream(t, s), 3)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(aside, key.Verifier()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("the old stream verifies: %v", err)
	}
	if _, err := Verify(st.Dir(), key.Verifier()); err != nil {
		t.Error(err)
	}
	if reps, err := VerifyStore(dir, key.Verifier()); len(reps) != 2 || err == nil {
		t.Errorf("the store's report leaves the corrupt stream out: %+v, %v", reps, err)
	}
}

// TestSetAsideByItself is TestCorruptIsNoCrash for a store that goes on alone.
func TestSetAsideByItself(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	path := filepath.Join(StreamDir(dir, vm1), segmentName(0, false))
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		t.Fatal(err)
	}
	other := segmentHeader{uuid.UUID{1}, 0, genesis(uuid.UUID{1})}.append(nil)
	if err := os.WriteFile(path, other, 0o640); err != nil {
		t.Fatal(err)
	}
	var s *Store
	var told string
	s = testStore(t, dir, key, Options{SetAside: func(vm uuid.UUID, err error, aside string) {
		st, serr := s.Stream(vm) // the store must be usable from here
		if serr != nil || !errors.Is(err, ErrCorrupt) {
			t.Errorf("%v, %v", serr, err)
		}
		fill(t, st, 1)
		told = aside
	}})
	st := testStream(t, s)
	if b, err := os.ReadFile(filepath.Join(told, filepath.Base(path))); err != nil || !bytes.Equal(b, other) {
		t.Errorf("set aside: %v", err)
	}
	if all := readAll(t, st.Dir()); len(all) != 2 || all[0].Kind != KindRecovery {
		t.Errorf("%+v", all)
	}
}

// TestStartReadsFromTheLastHead changes a byte before the last head: the start
// does not read it, goes on with the right chain, and Verify names it.
func TestStartReadsFromTheLastHead(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{})
	st := testStream(t, s)
	fill(t, st, 5)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(st.Dir(), segmentName(0, false))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := recordEnds(whole)[1] + recordHeaderSize
	changed := bytes.Clone(whole)
	changed[at] ^= 1
	if err := os.WriteFile(path, changed, 0o640); err != nil {
		t.Fatal(err)
	}
	s = testStore(t, dir, key, Options{})
	fill(t, testStream(t, s), 3)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var bad *CorruptError
	if _, err := Verify(st.Dir(), key.Verifier()); !errors.As(err, &bad) || bad.Index != 2 {
		t.Errorf("%v", err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] = whole[at]
	if err := os.WriteFile(path, b, 0o640); err != nil {
		t.Fatal(err)
	}
	if rep, err := Verify(st.Dir(), key.Verifier()); err != nil || rep.Next != 10 {
		t.Errorf("%+v, %v", rep, err)
	}
}

// TestForgedHead has a guest send bytes that look like a head of its stream.
func TestForgedHead(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{})
	st := testStream(t, s)
	fill(t, st, 5)
	signed, err := st.SignHead()
	if err != nil {
		t.Fatal(err)
	}
	h := Head{Stream: vm1, Records: 2, Durable: 2, Time: at0}
	forged, err := SignNote(h.text(), testKey(t))
	if err != nil {
		t.Fatal(err)
	}
	replayed := append(make([]byte, recordHeaderSize), signed.Note...)
	for _, frame := range [][]byte{forged, replayed, []byte(headTitle + "\n")} {
		if _, err := st.Append(KindFrame, at0, frame); err != nil {
			t.Fatal(err)
		}
	}
	before := readAll(t, st.Dir())
	cut := copyStore(t, dir)
	s2 := testStore(t, cut, key, Options{})
	st2 := testStream(t, s2)
	if st2.Stats().Next != uint64(len(before)) {
		t.Errorf("next %d, want %d", st2.Stats().Next, len(before))
	}
	fill(t, st2, 2)
	if err := s2.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(st2.Dir(), key.Verifier()); err != nil {
		t.Error(err)
	}
}

// TestCutLosesNothing leaves garbage at the end, as a power cut can, and finds
// it set aside.
func TestCutLosesNothing(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{SegmentSize: 600})
	st := testStream(t, s)
	fill(t, st, 12)
	l, _ := list(st.Dir())
	spoiled := l.segments[len(l.segments)-2]
	copied := StreamDir(copyStore(t, dir), vm1)
	path := filepath.Join(copied, spoiled.name)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := recordEnds(b)[0]
	copy(b[at:], make([]byte, 40)) // a page that never reached the disk
	if err := os.WriteFile(path, b, 0o640); err != nil {
		t.Fatal(err)
	}
	s2 := testStore(t, filepath.Dir(copied), key, Options{})
	st2 := testStream(t, s2)
	var cuts []Recovery
	err = NewReader(copied).Read(spoiled.first, ^uint64(0), func(r *Record) error {
		if r.Kind == KindRecovery {
			var c Recovery
			cuts = append(cuts, c)
		}
		return nil
	})
	if err != nil || len(cuts) != 2 || st2.Stats().Next != spoiled.first+1+2 {
		t.Errorf("%d cuts, next %d, %v", len(cuts), st2.Stats().Next, err)
	}
	kept, err := os.ReadFile(filepath.Join(copied, fmt.Sprintf("%020d.%d.cut", spoiled.first, at)))
	if err != nil || !bytes.Equal(kept, b[at:]) {
		t.Errorf("kept %d bytes of %d: %v", len(kept), len(b)-at, err)
	}
	s2.Close()
	if rep, err := Verify(copied, key.Verifier()); err != nil || len(rep.Cuts) != 2 {
		t.Errorf("%+v, %v", rep, err)
	}
}
