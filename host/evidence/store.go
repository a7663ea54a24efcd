package evidence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/host/failpoint"
)

// Options are what may differ between installations. Zero values mean the
// defaults.
type Options struct {
	SegmentSize  int64         // bytes of a plain segment; default 64 MiB
	Quota        int64         // bytes on disk per stream before bulk is refused; default 8 GiB
	HardQuota    int64         // and before critical frames are, too; default twice Quota, at least Quota
	Reserve      int64         // bytes of the file system that frames leave free; default 64 MiB, negative: none
	SyncInterval time.Duration // how often Run syncs; default 1 s
	HeadInterval time.Duration // how often Run signs heads; default 10 s
	KeepPlain    bool          // do not seal (compress) full segments
	Log          *slog.Logger  // default: discards

	// Keys, if set, has sealed segments indexed by them, for Select. What a crash
	// or another version left without an index gets one.
	Keys *Keys

	// Retain, if set, has what is old or too much given up. KeepPlain rules it out.
	Retain *Retaining

	// Room, if set, is told when frames are refused with ErrFull and when they are
	// taken again, and how many bytes are free. It must not block nor append.
	Room func(full bool, free int64)

	// SetAside, if set, has a corrupt stream set aside and a new one begun, so
	// that the VM's record goes on, and is told of it: err wraps ErrCorrupt, dir
	// is where the corrupt one is now. Otherwise Stream returns the error.
	SetAside func(vm uuid.UUID, err error, dir string)

	Now func() time.Time // default time.Now
}

func (o *Options) withDefaults() Options {
	var d Options
	if o != nil {
		d = *o
	}
	d.SegmentSize = orDefault(d.SegmentSize, 64<<20)
	d.Quota = orDefault(d.Quota, 8<<30)
	d.Reserve = orDefault(d.Reserve, 64<<20)
	d.HardQuota = max(orDefault(d.HardQuota, 2*d.Quota), d.Quota)
	d.SyncInterval = orDefault(d.SyncInterval, time.Second)
	d.HeadInterval = orDefault(d.HeadInterval, 10*time.Second)
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	return d
}

func orDefault[T ~int64](v, d T) T {
	if v == 0 {
		return d
	}
	return v
}

// Store is the host's record, open for appending by this process alone.
type Store struct {
	dir    string
	keys   *keyring
	opts   Options
	lock   *os.File
	full   chan struct{} // wakes the sealer
	room   *room
	syncfs func(fd int) error

	alone  int           // flushes until streams are synced together again; these two are flush's own
	single time.Duration // that it took for each of them, when they were synced one by one

	mu      sync.Mutex // guards what follows
	streams map[uuid.UUID]*Stream
	closed  bool
}

// ErrInUse: another process has the store open for appending.
var ErrInUse = errors.New("evidence is in use by another process")

// Open opens the store in dir, which is made if it does not exist. It starts
// nothing; Run syncs, signs and seals.
func Open(dir string, key *Key, opts *Options) (*Store, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("open evidence: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open evidence: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("open %s: %w", dir, ErrInUse)
	}
	s := &Store{dir: dir, keys: newKeyring(key), opts: opts.withDefaults(), lock: lock,
		full: make(chan struct{}, 1), syncfs: unix.Syncfs, streams: map[uuid.UUID]*Stream{}}
	s.room = &room{fd: int(lock.Fd()), reserve: s.opts.Reserve, tell: s.roomChanged}
	return s, nil
}

// roomChanged has what could not be sealed for want of room sealed when there is
// some again.
func (s *Store) roomChanged(full bool, free int64) {
	if !full {
		s.wakeSealer()
	}
	if s.opts.Room != nil {
		s.opts.Room(full, free)
	}
}

// Full reports whether frames are refused with ErrFull.
func (s *Store) Full() bool { return s.room.full.Load() }

// Dir is the store's directory.
func (s *Store) Dir() string { return s.dir }

// Stream opens the stream of a VM, or makes it; the zero UUID is the host's
// own. One that a disk error has stopped is opened anew. After a crash it opens to the last complete record, sets aside what
// follows and records that. A stream that is corrupt otherwise is refused with
// ErrCorrupt: see SetAside.
func (s *Store) Stream(vm uuid.UUID) (*Stream, error) {
	st, corrupt, aside, err := s.stream(vm)
	if noRoom(err) {
		err = errors.Join(ErrFull, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open stream %s: %w", vm, err)
	}
	if corrupt != nil {
		s.opts.SetAside(vm, corrupt, aside)
	}
	return st, nil
}

func (s *Store) stream(vm uuid.UUID) (st *Stream, corrupt error, aside string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, "", os.ErrClosed
	}
	if st := s.streams[vm]; st != nil {
		if !st.stopped() {
			return st, nil, "", nil
		}
		st.abandon()
		delete(s.streams, vm)
	}
	st, err = openStream(StreamDir(s.dir, vm), vm, s.keys, s.opts, s.room, s.wakeSealer)
	if errors.Is(err, ErrCorrupt) && s.opts.SetAside != nil {
		corrupt = err
		if aside, err = s.setAside(vm); err == nil {
			st, err = s.restart(vm, corrupt, aside)
		}
	}
	if err != nil {
		return nil, nil, "", err
	}
	s.streams[vm] = st
	s.wakeSealer()
	return st, corrupt, aside, nil
}

// restart begins a new stream, whose first record says what became of the old.
func (s *Store) restart(vm uuid.UUID, corrupt error, aside string) (*Stream, error) {
	st, err := openStream(StreamDir(s.dir, vm), vm, s.keys, s.opts, s.room, s.wakeSealer)
	if err != nil {
		return nil, err
	}
	return st, st.recovered(Recovery{File: filepath.Base(aside), Reason: corrupt.Error()})
}

// Check puts the check behind the last record of a stream, where it is open and
// owes one, so that a reader sees all that was appended.
func (s *Store) Check(vm uuid.UUID) error {
	s.mu.Lock()
	st := s.streams[vm]
	s.mu.Unlock()
	if st == nil {
		return nil
	}
	return st.Check()
}

// SetAside renames the directory of a stream that cannot be opened, so that a
// new one can begin, and returns its new path. Nothing of it is lost.
func (s *Store) SetAside(vm uuid.UUID) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[vm] != nil {
		return "", fmt.Errorf("set aside %s: it is open", vm)
	}
	return s.setAside(vm)
}

func (s *Store) setAside(vm uuid.UUID) (string, error) {
	for n := 1; ; n++ {
		path := fmt.Sprintf("%s%s%d", StreamDir(s.dir, vm), asideInfix, n)
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		if err := os.Rename(StreamDir(s.dir, vm), path); err != nil {
			return "", fmt.Errorf("set aside: %w", err)
		}
		return path, syncDir(s.dir)
	}
}

// Run syncs, signs heads and seals full segments until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.sealLoop(ctx) })
	defer wg.Wait()
	tick := time.NewTicker(s.opts.SyncInterval)
	defer tick.Stop()
	s.room.look()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.flush()
			s.room.look()
		}
	}
}

// Close signs, syncs and closes every stream. Nothing can be appended after it.
func (s *Store) Close() error {
	failpoint.At(failpoint.Shutdown)
	s.mu.Lock()
	streams := s.streams
	closed := s.closed
	s.streams, s.closed = nil, true
	s.mu.Unlock()
	if closed {
		return nil
	}
	errs := make([]error, len(streams))
	var g errgroup.Group
	g.SetLimit(flushers)
	i := 0
	for _, st := range streams {
		err := &errs[i]
		i++
		g.Go(func() error {
			*err = st.close()
			return nil
		})
	}
	g.Wait() // each has its own error
	return errors.Join(append(errs, s.lock.Close())...)
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("evidence: " + err.Error()) // only this package's own types
	}
	return b
}

var _ note.Signer = (*Key)(nil)
