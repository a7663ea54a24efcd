package domain

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
)

// Enrolled reads what is new or may have changed, and nothing else.
func TestEnrolled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "enroll")
	r := NewEnrolled(dir)
	read := func(what string, want int, changed bool) []Enrolment {
		t.Helper()
		list, got, err := r.Read()
		if len(list) != want || got != changed || err != nil {
			t.Errorf("%s: %d enrolments, changed %v, error %v; want %d, %v", what, len(list), got, err, want, changed)
		}
		return list
	}
	put := func(e *Enrolment) string {
		t.Helper()
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, e.UUID.String()+".json")
		for before, _ := os.Stat(path); ; { // again while it is the same tick, which r.now says is long over
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if now, err := os.Stat(path); err != nil || before == nil || now.ModTime() != before.ModTime() {
				return path
			}
		}
	}
	read("no directory", 0, true)
	read("still none", 0, false)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	read("an empty one", 0, false)
	a, b := testEnrolment(VhostUser), testEnrolment(VhostUser)
	b.UUID, b.Name = uuid.New(), "zzz"
	began := time.Now()
	r.now = func() time.Time { return began } // however long this takes, they are young
	put(a)
	file := put(b)
	read("two", 2, true)
	read("young files, which may have changed within one tick", 2, true)
	r.now = func() time.Time { return time.Now().Add(time.Minute) }
	read("old ones for the first time", 2, true)
	read("unchanged", 2, false)
	a.Key[5]++
	put(a)
	if list := read("another key", 2, true); list[0].Key != a.Key {
		t.Error("the key is the old one")
	}
	read("unchanged again", 2, false)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	read("one is gone", 1, true)
	put(b)
	read("and back", 2, true)
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, changed := range []bool{true, false} {
		if list, got, err := r.Read(); len(list) != 1 || err == nil || got != changed {
			t.Errorf("a broken one: %d enrolments, changed %v, error %v", len(list), got, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	read("the directory is gone", 0, true)
}

// BenchmarkEnrolled is how long a look at 6,000 enrolments takes that are as
// they were, and as a share of reading them.
func BenchmarkEnrolled(b *testing.B) {
	dir := b.TempDir()
	for range 6000 {
		e := testEnrolment(VhostUser)
		e.UUID = uuid.New()
		text, err := json.Marshal(e)
		if err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, e.UUID.String()+".json"), text, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	r := NewEnrolled(dir)
	r.now = func() time.Time { return time.Now().Add(time.Minute) }
	took := func(r *Enrolled) time.Duration {
		began := time.Now()
		if list, _, err := r.Read(); len(list) != 6000 || err != nil {
			b.Fatal(len(list), err)
		}
		return time.Since(began)
	}
	took(r)
	var look, whole time.Duration
	for range b.N {
		look += took(r)
		whole += took(NewEnrolled(dir))
	}
	b.ReportMetric(float64(look.Microseconds())/1e3/float64(b.N), "ms")
	b.ReportMetric(look.Seconds()/whole.Seconds(), "read-ratio")
	b.ReportMetric(0, "ns/op")
}
