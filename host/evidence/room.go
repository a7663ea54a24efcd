package evidence

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrFull: the disk has no room, or none but what is reserved. A frame that is
// refused with it was not kept and is not counted: whoever received it still has
// it, and can try again.
var ErrFull = errors.New("no room on the disk")

// room says whether frames may be appended: not while the file system has less
// than the reserve, which findings, decisions, orders and the journal beside the
// store are to find there.
type room struct {
	fd      int
	reserve int64
	tell    func(full bool, free int64) // nil: nobody

	full  atomic.Bool
	since atomic.Int64 // bytes appended since the last look

	mu   sync.Mutex // one look at a time
	last time.Time  // when an append last found no room
}

// doubt is for how long a file system is not believed that says that it has room
// after an append had found none: it may be a quota's, or out of inodes.
const doubt = 5 * time.Second

// lookEvery is how much is appended between two looks: one costs a microsecond.
const lookEvery = 256 << 10

// look asks the file system. It has room again when there is an eighth more than
// the reserve, so that one frame does not make it change its mind.
func (r *room) look() {
	if r.reserve < 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.since.Store(0)
	var st unix.Statfs_t
	if unix.Fstatfs(r.fd, &st) != nil {
		return // an append will tell
	}
	was, free := r.full.Load(), int64(st.Bavail)*st.Bsize
	least := r.reserve
	if was {
		least += least / 8
	}
	if time.Since(r.last) < doubt {
		return
	}
	r.set(was, free < least, free)
}

func (r *room) set(was, full bool, free int64) {
	if was == full {
		return
	}
	r.full.Store(full)
	if r.tell != nil {
		r.tell(full, free)
	}
}

// ran is called when an append found no room, whatever the file system says of
// itself.
func (r *room) ran() {
	if r.reserve < 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = time.Now()
	r.set(r.full.Load(), true, 0)
}

// appended notes n bytes.
func (r *room) appended(n int) {
	if r.since.Add(int64(n)) >= lookEvery {
		r.look()
	}
}

// noRoom reports whether an error of the file system's says that it is full.
func noRoom(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
