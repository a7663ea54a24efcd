package evidence

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// exported is what a stream has from 250 s to 850 s, a part of which was given
// up, of a host whose key was rotated.
func exported(t *testing.T) (r *retained, out string, x Exported) {
	t.Helper()
	r = newRetained(t)
	r.now = at0.Add(1000 * time.Second)
	r.p = Retention{BulkAge: 400 * time.Second, Age: 800 * time.Second}
	r.store.retain(t.Context())
	out = filepath.Join(t.TempDir(), "case-7")
	all, err := ExportTime(t.Context(), []string{r.st.Dir()}, out, at0.Add(250*time.Second), at0.Add(850*time.Second), &ExportOptions{Key: r.key})
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	return r, out, all[0]
}

func TestExportTime(t *testing.T) {
	r, out, x := exported(t)
	rep, err := Verify(out, r.key.Verifier())
	if err != nil || rep.Unsigned != 0 || rep.First != x.First || rep.Next != x.Next || rep.Head == nil || *rep.Head != x.Head.Head {
		t.Fatalf("%+v, %+v, %v", rep, x, err)
	}
	if !x.GivenUp || rep.Remainders == 0 || rep.Remainders == rep.Segments || x.Left != 0 {
		t.Errorf("%+v, %+v", rep, x)
	}
	if rep.Earliest.After(at0.Add(250*time.Second)) || rep.Latest.Before(at0.Add(849*time.Second)) {
		t.Errorf("from %s to %s", rep.Earliest, rep.Latest)
	}
	here := map[uint64]Hash{}
	for _, rec := range readAll(t, out) {
		here[rec.Index] = rec.Chain
	}
	n := uint64(0)
	for _, rec := range readAll(t, r.st.Dir()) {
		if rec.Time.Before(x.Since) || !rec.Time.Before(x.Until) {
			continue
		}
		if n++; here[rec.Index] != rec.Chain {
			t.Errorf("record %d is not in the export", rec.Index)
		}
	}
	if n != x.Records || n < 300 {
		t.Errorf("%d records, said %d", n, x.Records)
	}
	if _, err := ExportTime(t.Context(), []string{r.st.Dir()}, out, time.Time{}, time.Time{}, nil); !errors.Is(err, os.ErrExist) {
		t.Errorf("over another: %v", err)
	}
	for name, to := range map[string]string{"a stream's name": filepath.Join(t.TempDir(), vm1.String()), "in the store": filepath.Join(filepath.Dir(r.st.Dir()), "x")} {
		if _, err := ExportTime(t.Context(), []string{r.st.Dir()}, to, time.Time{}, time.Time{}, nil); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	none := filepath.Join(t.TempDir(), "none")
	if x, err := ExportTime(t.Context(), []string{r.st.Dir()}, none, at0.Add(time.Hour), time.Time{}, nil); err == nil {
		t.Errorf("of no time: %+v", x)
	}
	if left, _ := os.ReadDir(filepath.Dir(none)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestExportEveryByte flips bytes all over an export, and takes its files away.
func TestExportEveryByte(t *testing.T) {
	r, out, _ := exported(t)
	l, err := list(out)
	if err != nil {
		t.Fatal(err)
	}
	v := r.key.Verifier()
	for i, seg := range l.segments {
		path := filepath.Join(out, seg.name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		step := 1 + len(good)/17
		for at := i % step; at < len(good); at += step {
			if err := flip(path, at); err != nil {
				t.Fatal(err)
			}
			if rep, err := Verify(out, v); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s, byte %d: %+v, %v", seg.name, at, rep, err)
			}
			if err := os.WriteFile(path, good, 0o640); err != nil {
				t.Fatal(err)
			}
		}
		if i == 0 || i == len(l.segments)-1 {
			continue // the range says where it begins and ends
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if rep, err := Verify(out, v); !errors.Is(err, ErrCorrupt) {
			t.Errorf("without %s: %+v, %v", seg.name, rep, err)
		}
		if err := os.WriteFile(path, good, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Verify(out, v); err != nil {
		t.Error(err)
	}
	if _, err := Verify(out, testKey(t).Verifier()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("by another host's key: %v", err)
	}
}

// TestExportUpToTheLastHead exports what a writer that was killed has left: what
// no head has signed stays behind, and that is said.
func TestExportUpToTheLastHead(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	s := testStore(t, dir, key, Options{})
	st := testStream(t, s)
	fill(t, st, 20)
	if _, err := st.SignHead(); err != nil {
		t.Fatal(err)
	}
	fill(t, st, 7)
	killed := filepath.Join(t.TempDir(), vm1.String())
	if err := os.CopyFS(killed, os.DirFS(st.Dir())); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "export")
	x, err := ExportTime(t.Context(), []string{killed}, out, time.Time{}, time.Time{}, &ExportOptions{Key: key})
	if err != nil || x[0].Left != 7 || x[0].Next != 21 {
		t.Fatalf("%+v, %v", x, err)
	}
	if r, err := VerifyExport(t.Context(), out, key.Verifier(), nil); err != nil || r.Streams[0].Stated.Left != 7 || r.Streams[0].Ends || !r.Streams[0].Begins {
		t.Errorf("%+v, %v", r, err)
	}
	if rep, err := Verify(out, key.Verifier()); err != nil || rep.Next != 21 {
		t.Errorf("%+v, %v", rep, err)
	}
}

// TestExportAfterRotation: who has the first key of a host verifies what the
// third one signed, by what is in the export.
func TestExportAfterRotation(t *testing.T) {
	dir, pinned := rotated(t)
	out := filepath.Join(t.TempDir(), "export")
	if _, err := ExportTime(t.Context(), []string{StreamDir(filepath.Join(dir, StoreDir), vm1)}, out, time.Time{}, time.Time{}, nil); err != nil {
		t.Fatal(err)
	}
	v, err := FollowFile(pinned, filepath.Join(out, KeysFile))
	if err != nil {
		t.Fatal(err)
	}
	if rep, err := Verify(out, v); err != nil || rep.First != 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	if err := flip(filepath.Join(out, KeysFile), 300); err != nil {
		t.Fatal(err)
	}
	if _, err := FollowFile(pinned, filepath.Join(out, KeysFile)); err == nil {
		t.Error("other rotations")
	}
}
