package evidence

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// many is a store with n streams, to each of which a frame was appended.
func many(t testing.TB, n int, o Options) (*Store, []*Stream) {
	t.Helper()
	s := testStore(t, t.TempDir(), testKey(t), o)
	all := make([]*Stream, n)
	for i := range all {
		var id uuid.UUID
		binary.BigEndian.PutUint32(id[:], uint32(i+1))
		st, err := s.Stream(id)
		if err != nil {
			t.Fatal(err)
		}
		all[i] = st
	}
	frames(t, all)
	return s, all
}

// frames appends one frame to each.
func frames(t testing.TB, all []*Stream) {
	t.Helper()
	frame := make([]byte, benchFrame)
	for _, st := range all {
		if _, err := st.Append(KindFrame, at0, frame); err != nil {
			t.Fatal(err)
		}
	}
}

// counted makes the store count how often its file system is synced, which it
// takes for cheap. What during returns is the answer, where it is set.
func counted(s *Store, during func() error) *int {
	n := new(int)
	s.single = time.Hour
	s.syncfs = func(fd int) error {
		*n++
		if during != nil {
			if err := during(); err != nil {
				return err
			}
		}
		return unix.Syncfs(fd)
	}
	return n
}

func durable(t *testing.T, all []*Stream, less uint64) {
	t.Helper()
	for _, st := range all {
		if s := st.Stats(); s.Durable != s.Next-less {
			t.Errorf("%s: %d records of %d are durable", st.id, s.Durable, s.Next)
		}
	}
}

func TestFlushTogether(t *testing.T) {
	s, all := many(t, together, Options{SyncInterval: time.Hour})
	calls := counted(s, nil)
	s.flush()
	durable(t, all, 0)
	s.flush() // nothing is new
	frames(t, all[1:])
	s.flush() // one fewer than it takes
	durable(t, all, 0)
	if *calls != 1 {
		t.Errorf("the file system was synced %d times", *calls)
	}
}

// What is appended while the file system is synced may be on disk or not.
func TestFlushTogetherClaimsNoMore(t *testing.T) {
	var all []*Stream
	s, all := many(t, together, Options{SyncInterval: time.Hour})
	counted(s, func() error { frames(t, all); return nil })
	s.flush()
	durable(t, all, 1)
	s.flush()
}

// An error of the file system is some file's: each is asked.
func TestFlushTogetherFails(t *testing.T) {
	s, all := many(t, together, Options{SyncInterval: time.Hour})
	calls := counted(s, func() error { return unix.EIO })
	s.flush()
	durable(t, all, 0)
	all[3].f.Close() // whose it is
	frames(t, slices.Delete(slices.Clone(all), 3, 4))
	all[3].next++ // as if it had been appended to
	s.flush()
	if !all[3].stopped() || all[2].stopped() {
		t.Errorf("the broken stream stopped: %v, another one: %v", all[3].stopped(), all[2].stopped())
	}
	if *calls != 2 {
		t.Errorf("the file system was synced %d times", *calls)
	}
	if err := s.Close(); err == nil {
		t.Error("a broken stream closed without a word")
	}
}

// The file system is synced while that takes no more than twice the time of each
// file.
func TestFlushTogetherSlow(t *testing.T) {
	s, all := many(t, together, Options{})
	calls := counted(s, nil)
	s.single = 0
	flush := func(want int) {
		t.Helper()
		frames(t, all)
		s.flush()
		durable(t, all, 0)
		if *calls != want {
			t.Fatalf("the file system was synced %d times, want %d", *calls, want)
		}
	}
	flush(0) // how long each takes is not known yet
	if s.single == 0 {
		t.Error("it is not known now")
	}
	s.single = time.Hour
	flush(1)
	flush(2)
	s.single = 1
	flush(3) // and took too long
	for range aloneFor {
		flush(3)
	}
	flush(4)
}

// Full segments are synced and closed, and heads signed over what is durable.
func TestFlushTogetherSegments(t *testing.T) {
	s, all := many(t, together, Options{SyncInterval: time.Hour, SegmentSize: 2 * benchFrame, KeepPlain: true})
	calls := counted(s, nil)
	frames(t, all[:2])
	frames(t, all[:2])
	s.flush()
	durable(t, all, 0)
	for _, st := range all[:2] {
		if len(st.retired) != 0 || st.newFile {
			t.Errorf("%d files are still open", len(st.retired))
		}
	}
	if *calls != 1 {
		t.Errorf("the file system was synced %d times", *calls)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, st := range all {
		v, err := Verify(st.Dir(), s.keys.key().Verifier())
		if err != nil || v.Heads == 0 {
			t.Errorf("verified %+v, error %v", v, err)
		}
	}
}

// BenchmarkFlush is how long it takes to make many streams durable, each with a
// frame that is new: together, and one by one as a share of which.
func BenchmarkFlush(b *testing.B) {
	for _, n := range []int{together, 200, 1600} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, all := many(b, n, Options{SyncInterval: time.Hour, Quota: 1 << 50})
			took := func(do func()) time.Duration {
				frames(b, all)
				began := time.Now()
				do()
				return time.Since(began)
			}
			s.flush()
			var whole, single time.Duration
			for range b.N {
				whole += took(func() {
					if rest := s.syncTogether(all); len(rest) != 0 {
						b.Fatal(errors.New("not all of them"))
					}
				})
				single += took(func() { s.each(all, (*Stream).Sync) })
			}
			b.ReportMetric(float64(whole.Microseconds())/1e3/float64(b.N), "ms")
			b.ReportMetric(whole.Seconds()/single.Seconds(), "single-ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}
