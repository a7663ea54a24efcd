package evidence

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

var (
	vm2 = uuid.MustParse("7a1d7f5e-3c0a-4b0e-9a53-0d8a2b0f6c22")
	vm3 = uuid.MustParse("8b1d7f5e-3c0a-4b0e-9a53-0d8a2b0f6c33")
)

// fleet is a store with the records of three VMs: one a second for 100 s with a
// head every ten, of vm3 only from 200 s on.
func fleet(t *testing.T) (key *Key, store string) {
	t.Helper()
	key = testKey(t)
	at := at0
	s := testStore(t, t.TempDir(), key, Options{SegmentSize: 100 << 10, Now: func() time.Time { return at }})
	for _, vm := range []uuid.UUID{vm1, vm2, vm3} {
		st, err := s.Stream(vm)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			at = at0.Add(time.Duration(i) * time.Second)
			if vm == vm3 {
				at = at.Add(200 * time.Second)
			}
			if _, err := st.Append(KindFrame, at, []byte("record "), payload(uint64(i))); err != nil {
				t.Fatal(err)
			}
			if i%10 == 9 {
				if _, err := st.SignHead(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return key, s.Dir()
}

// exportFleet is what the fleet has from 25 s to 45 s.
func exportFleet(t *testing.T, vms ...uuid.UUID) (key *Key, out string, all []Exported) {
	t.Helper()
	key, store := fleet(t)
	var streams []string
	for _, vm := range vms {
		streams = append(streams, StreamDir(store, vm))
	}
	out = filepath.Join(t.TempDir(), "case-7")
	all, err := ExportTime(t.Context(), streams, out, at0.Add(25*time.Second), at0.Add(45*time.Second),
		&ExportOptions{Key: key, Now: func() time.Time { return at0.Add(time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	return key, out, all
}

// TestExportOfSeveral: each stream has its place, the record shows both ends of the
// time that was asked for, and a VM of which there is nothing is said to have
// nothing.
func TestExportOfSeveral(t *testing.T) {
	key, out, all := exportFleet(t, vm3, vm2, vm1, vm2)
	r, err := VerifyExport(t.Context(), out, key.Verifier(), nil)
	if err != nil || len(r.Streams) != 2 || len(all) != 3 || len(r.Statement.Streams) != 3 {
		t.Fatalf("%+v, %v, %+v", r, err, all)
	}
	for i, x := range r.Streams {
		// A head after each ten records, each of its time: 25 s is record 27, and 45 s 49.
		if x.Stream != []uuid.UUID{vm1, vm2}[i] || x.First != 26 || x.Next != 55 || x.Stated.Records != 22 || !x.Begins || !x.Ends || x.Unsigned != 0 {
			t.Errorf("%+v", x)
		}
		if all[i].Dir != x.Dir || all[i].Dir != filepath.Join(out, x.Stream.String()+exportSuffix) {
			t.Errorf("in %s, and %s", all[i].Dir, x.Dir)
		}
	}
	if st := r.Statement.Streams[2]; st.Stream != vm3 || st.Range != nil || st.Records != 0 || st.End != 110 || all[2].Dir != "" {
		t.Errorf("%+v", st)
	}
	if want := at0.Add(25 * time.Second); !r.Statement.Since.Equal(want) || !r.Statement.Made.Equal(at0.Add(time.Hour)) {
		t.Errorf("%+v", r.Statement)
	}
}

// TestExportOfOneTwice: a VM that was named twice, as by its name and its UUID, is
// one stream, and verifies as that.
func TestExportOfOneTwice(t *testing.T) {
	key, out, all := exportFleet(t, vm1, vm1)
	r, err := VerifyExport(t.Context(), out, key.Verifier(), nil)
	if err != nil || len(r.Streams) != 1 || len(all) != 1 || all[0].Dir != out {
		t.Errorf("%+v, %v, %+v", r, err, all)
	}
}

// TestExportIsCutAtNeitherEnd: who receives an export can tell that somebody took
// the first records away, or the last.
func TestExportIsCutAtNeitherEnd(t *testing.T) {
	for _, vms := range [][]uuid.UUID{{vm1}, {vm1, vm2}} {
		key, out, all := exportFleet(t, vms...)
		l, err := list(all[0].Dir)
		if err != nil || len(l.segments) != 1 {
			t.Fatalf("%+v, %v", l, err)
		}
		whole := readAll(t, all[0].Dir)
		for name, span := range map[string][2]uint64{"the first gone": {whole[0].Index + 3, whole[len(whole)-1].Index}, "the last gone": {whole[0].Index, 40}} {
			cut := filepath.Join(t.TempDir(), "cut")
			if _, err := Export(t.Context(), all[0].Dir, cut, span[0], span[1]); err != nil {
				t.Fatal(err)
			}
			if _, err := Verify(cut, key.Verifier()); err != nil {
				t.Fatalf("%s: it is a part of the record as well: %v", name, err)
			}
			to := filepath.Join(t.TempDir(), "export")
			if err := os.CopyFS(to, os.DirFS(out)); err != nil {
				t.Fatal(err)
			}
			place := filepath.Join(to, strings.TrimPrefix(all[0].Dir, out))
			if err := os.Remove(filepath.Join(place, l.segments[0].name)); err != nil {
				t.Fatal(err)
			}
			if err := os.CopyFS(place, os.DirFS(cut)); err != nil {
				t.Fatal(err)
			}
			if r, err := VerifyExport(t.Context(), to, key.Verifier(), nil); !errors.Is(err, ErrCorrupt) || r.Streams[0].Problem == nil {
				t.Errorf("%d VMs, %s: %+v, %v", len(vms), name, r, err)
			}
		}
	}
}

// TestStatementEveryByte flips each byte of a statement, takes it away, and brings
// another host's.
func TestStatementEveryByte(t *testing.T) {
	key, out, _ := exportFleet(t, vm1, vm2)
	path := filepath.Join(out, StatementFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1 << (i % 8)
		if err := os.WriteFile(path, b, 0o640); err != nil {
			t.Fatal(err)
		}
		if r, err := VerifyExport(t.Context(), out, key.Verifier(), nil); !errors.Is(err, ErrCorrupt) || r.Problem == nil {
			t.Fatalf("byte %d: %+v, %v", i, r, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if r, err := VerifyExport(t.Context(), out, key.Verifier(), nil); !errors.Is(err, fs.ErrNotExist) || r.Statement != nil {
		t.Errorf("%+v, %v", r, err)
	}
	s, err := parseStatement(noteText(whole))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.write(out, testKey(t)); err != nil {
		t.Fatal(err)
	}
	if r, err := VerifyExport(t.Context(), out, key.Verifier(), nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another host's: %+v, %v", r, err)
	}
}

// TestExportStrangers: a stream that is missing, one too many, and one in
// another's place.
func TestExportStrangers(t *testing.T) {
	one, two := vm1.String()+exportSuffix, vm2.String()+exportSuffix
	for name, do := range map[string]func(out string) error{
		"missing": func(out string) error { return os.RemoveAll(filepath.Join(out, two)) },
		"a file":  func(out string) error { return os.WriteFile(filepath.Join(out, "x"), nil, 0o600) },
		"one of none": func(out string) error {
			return os.CopyFS(filepath.Join(out, vm3.String()+exportSuffix), os.DirFS(filepath.Join(out, one)))
		},
		"exchanged": func(out string) error {
			return errors.Join(os.RemoveAll(filepath.Join(out, two)), os.CopyFS(filepath.Join(out, two), os.DirFS(filepath.Join(out, one))))
		},
	} {
		t.Run(name, func(t *testing.T) {
			key, out, _ := exportFleet(t, vm1, vm2, vm3)
			if err := do(out); err != nil {
				t.Fatal(err)
			}
			if r, err := VerifyExport(t.Context(), out, key.Verifier(), nil); err == nil || name != "missing" && !errors.Is(err, ErrCorrupt) {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

// TestExportOfEverything: without bounds the record's own beginning is one end, and
// the other is what the exporter says.
func TestExportOfEverything(t *testing.T) {
	key, store := fleet(t)
	out := filepath.Join(t.TempDir(), "all")
	if _, err := ExportTime(t.Context(), []string{StreamDir(store, vm1)}, out, time.Time{}, time.Time{}, &ExportOptions{Key: key}); err != nil {
		t.Fatal(err)
	}
	r, err := VerifyExport(t.Context(), out, key.Verifier(), nil)
	if err != nil || !r.Streams[0].Begins || r.Streams[0].Ends || r.Streams[0].Stated.Records != 110 || r.Streams[0].Next != r.Streams[0].Stated.End {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := ExportTime(t.Context(), []string{StreamDir(store, vm1), StreamDir(store, vm2)}, out+"2", at0.Add(time.Hour), time.Time{}, nil); !errors.Is(err, errNothing) {
		t.Errorf("of no time: %v", err)
	}
}

// TestExportBeginsWithItsTombstone: what was given up before all of it is shown by
// retention's own statement.
func TestExportBeginsWithItsTombstone(t *testing.T) {
	r, _, _ := exported(t)
	out := filepath.Join(t.TempDir(), "all")
	x, err := ExportTime(t.Context(), []string{r.st.Dir()}, out, time.Time{}, time.Time{}, &ExportOptions{Key: r.key})
	if err != nil {
		t.Fatal(err)
	}
	rep, err := VerifyExport(t.Context(), out, r.key.Verifier(), nil)
	if err != nil || rep.Streams[0].Gone == nil || !rep.Streams[0].Begins || !x[0].GivenUp || x[0].First == 0 {
		t.Errorf("%+v, %v", rep, err)
	}
}
