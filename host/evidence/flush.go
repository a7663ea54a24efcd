package evidence

import (
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// flushers is how many streams are synced at once: a file system commits what
	// is asked for at the same time together.
	flushers = 8

	// together is from how many streams on the whole file system is synced with
	// one call, which takes less time than a call for each: see BenchmarkFlush.
	together = 16

	// aloneFor is for how many flushes it is not after it took twice as much: then
	// somebody else has written there a lot, which is not the record's to wait for,
	// nor to press on the disk. Twice, since it takes less of the processors' time
	// even where it waits for the disk longer.
	aloneFor = 30
)

func (s *Store) open() []*Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Stream, 0, len(s.streams))
	for _, st := range s.streams {
		all = append(all, st)
	}
	return all
}

// flush syncs what was appended, and signs the heads that are due.
func (s *Store) flush() {
	now := s.opts.Now()
	var dirty, due []*Stream
	for _, st := range s.open() {
		sync, head := st.dirty(now)
		if sync {
			dirty = append(dirty, st)
		}
		if head {
			due = append(due, st)
		}
	}
	s.sync(dirty)
	s.each(due, func(st *Stream) error {
		_, err := st.SignHead()
		return err
	})
}

// each calls do for all of them, some at a time. One stream's error is none of
// the others'.
func (s *Store) each(all []*Stream, do func(*Stream) error) {
	var g errgroup.Group
	g.SetLimit(flushers)
	for _, st := range all {
		g.Go(func() error {
			if err := do(st); err != nil {
				s.opts.Log.Error("sync evidence", "vm", st.id, "err", err)
			}
			return nil
		})
	}
	_ = g.Wait() // each was logged
}

// sync makes the streams durable, together unless that took too long lately.
func (s *Store) sync(all []*Stream) {
	if len(all) < together {
		s.each(all, (*Stream).Sync)
		return
	}
	began := time.Now()
	if s.single == 0 || s.alone > 0 {
		s.each(all, (*Stream).Sync)
		s.alone, s.single = max(0, s.alone-1), max(1, time.Since(began)/time.Duration(len(all)))
		return
	}
	rest := s.syncTogether(all)
	if time.Since(began) > 2*s.single*time.Duration(len(all)) {
		s.alone = aloneFor
	}
	s.each(rest, (*Stream).Sync)
}

// syncTogether syncs the streams by syncing their file system, and returns those
// that are still to be synced. An error there (Linux tells of one since 5.8) is
// not said to be of a file: then all are, and fsync tells.
func (s *Store) syncTogether(all []*Stream) (rest []*Stream) {
	device := deviceOf(s.dir)
	marks := make([]mark, 0, len(all))
	for _, st := range all {
		if m, ok := st.mark(device); ok {
			marks = append(marks, m)
		} else {
			rest = append(rest, st)
		}
	}
	if err := s.syncfs(int(s.lock.Fd())); err != nil {
		return all
	}
	for i := range marks {
		marks[i].synced()
	}
	return rest
}

// deviceOf is the file system that a directory is on; 0 if nobody can say.
func deviceOf(dir string) uint64 {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return 0
	}
	return st.Dev
}

// mark is what of a stream is on disk once its file system has been synced.
type mark struct {
	*Stream
	upTo    uint64
	newFile bool
}

// mark returns false where syncing that device is not enough: the stream is on
// another, has stopped, or has full segments to close.
func (s *Stream) mark(device uint64) (mark, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ok := s.check() == nil && len(s.retired) == 0 && s.device == device && device != 0
	return mark{s, s.next, s.newFile}, ok
}

func (m *mark) synced() {
	s := m.Stream
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	s.durable = max(s.durable, m.upTo)
	if m.newFile && len(s.retired) == 0 { // else another file has been begun since
		s.newFile = false
	}
}

// dirty says whether there is anything to sync, and whether a head is due.
func (s *Stream) dirty(now time.Time) (sync, head bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return false, false
	}
	return s.next > s.durable, (s.next > s.heads || s.refused.Frames > 0) && now.Sub(s.headTime) >= s.opts.HeadInterval
}
