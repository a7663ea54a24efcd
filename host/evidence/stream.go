package evidence

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/host/failpoint"
)

// ErrQuota: the stream's budget for bulk, or the one for critical frames, is used
// up. The frame was not kept; that and how many were refused is itself recorded.
var ErrQuota = errors.New("evidence quota used up")

// Stream is the record of one VM, open for appending. Its methods may be
// called from several goroutines.
type Stream struct {
	dir    string
	id     uuid.UUID
	keys   *keyring
	opts   Options
	room   *room
	full   func() // called when a segment is full; does not block
	device uint64 // that dir is on

	looked bool // whether the indexes that were there are this version's; the sealer's own

	syncMu sync.Mutex // one Sync at a time; taken before mu

	mu       sync.Mutex // guards what follows
	f        *os.File
	seg      segmentFile
	size     int64 // of f
	chain    *chain
	next     uint64
	durable  uint64     // records known to be on disk
	heads    uint64     // records up to and with the last head
	headTime time.Time  // when the last head was signed
	used     int64      // bytes on disk in all segments
	retired  []*os.File // full segments that are not yet synced
	newFile  bool       // the directory has an entry that is not yet synced
	refused  tombstone  // refused since the last record
	refusing bool       // the last record is the tombstone of a run of refusals
	total    Stats
	err      error // why nothing can be appended any more

	owed bool   // the last record has no check yet
	rest []byte // what that has still to cover: the caller's of AppendUnchecked

	header [recordHeaderSize]byte
	iov    [8][]byte
}

// Stats counts what a stream has taken since it was opened.
type Stats struct {
	Records, Bytes              uint64 // appended
	RefusedFrames, RefusedBytes uint64 // ErrQuota
	Used, Quota                 int64  // bytes on disk, and the budget for bulk
	Next, Durable               uint64 // the next index; the records that are on disk
}

type tombstone struct {
	Reason string `json:"reason"`
	Frames uint64 `json:"frames"`
	Bytes  uint64 `json:"bytes"`
}

// VM is whose stream it is; the zero UUID is the host's own.
func (s *Stream) VM() uuid.UUID { return s.id }

// Dir is the stream's directory, for NewReader.
func (s *Stream) Dir() string { return s.dir }

// Stats says how far the stream is.
func (s *Stream) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.total
	t.Used, t.Quota, t.Next, t.Durable = s.used, s.opts.Quota, s.next, s.durable
	return t
}

// Append adds one record, whose payload is the parts put together, and returns
// its index. When it returns, the kernel has the bytes. Frames beyond the quota
// are refused with ErrQuota, and those that the disk has no room for with
// ErrFull; everything else is taken while there is any room at all. The index of a refused
// frame is that of the tombstone which stands for its run of refusals: it never
// goes back, and what is kept later is above it. Append does not allocate;
// through an interface the parts themselves do, unless they are passed as a
// slice that is used again.
func (s *Stream) Append(kind Kind, at time.Time, parts ...[]byte) (uint64, error) {
	return s.append(kind, 0, at, parts, false)
}

// AppendCritical is Append for a frame that carries critical events: only
// Options.HardQuota refuses it.
func (s *Stream) AppendCritical(kind Kind, at time.Time, parts ...[]byte) (uint64, error) {
	return s.append(kind, flagCritical, at, parts, false)
}

// AppendUnchecked is Append, or AppendCritical, without the record's check: that
// is put behind it by Check, or by whatever is done to the stream before that. So
// whoever waits for what was appended need not wait for the hash of it. The
// kernel has the bytes; until the check is there a reader does not see them, and
// a recovery cuts them off. The last part must stay as it is until Check returns.
func (s *Stream) AppendUnchecked(kind Kind, critical bool, at time.Time, parts ...[]byte) (uint64, error) {
	flags := uint16(0)
	if critical {
		flags = flagCritical
	}
	return s.append(kind, flags, at, parts, true)
}

// Check puts the check behind the last record, where it is owed. If that cannot be
// the stream has stopped; the error wraps ErrFull where the disk has no room.
func (s *Stream) Check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.check()
}

// append refuses the kinds whose payloads are this package's own: a head that
// it did not sign would make the stream unverifiable.
func (s *Stream) append(kind Kind, flags uint16, at time.Time, parts [][]byte, unchecked bool) (uint64, error) {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if n > MaxPayload || kind == 0 || kind == KindHead || kind == KindRecovery || kind == KindGap {
		return 0, fmt.Errorf("append %s of %d bytes: %w", kind, n, os.ErrInvalid)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if kind == KindFrame && s.room.full.Load() {
		return 0, ErrFull
	}
	if kind == KindFrame && s.used+int64(n+recordOverhead) > s.budget(flags) {
		return s.refuse(n)
	}
	if err := s.settle(); err != nil {
		return 0, err
	}
	return s.record(kind, flags, at, parts, n, unchecked)
}

// budget is how many bytes the stream may hold for a frame to be taken.
func (s *Stream) budget(flags uint16) int64 {
	if flags&flagCritical != 0 {
		return s.opts.HardQuota
	}
	return s.opts.Quota
}

// refuse counts a frame that is not kept. The first of a run is put on record at
// once, because its index is handed out; the others share that index, and how
// many they were is recorded before anything else is. So a flood that is refused
// costs no more than what is kept in between.
func (s *Stream) refuse(n int) (uint64, error) {
	if s.err != nil {
		return 0, s.err
	}
	s.count(n)
	if !s.refusing {
		if err := s.settle(); err != nil {
			return 0, err
		}
		s.refusing = true
	}
	return s.next - 1, ErrQuota
}

func (s *Stream) count(n int) {
	s.refused.Frames++
	s.refused.Bytes += uint64(n)
	s.total.RefusedFrames++
	s.total.RefusedBytes += uint64(n)
}

// settle records what was refused before anything else is.
func (s *Stream) settle() error {
	if s.refused.Frames == 0 || s.err != nil {
		return s.err
	}
	t := s.refused
	t.Reason = "quota"
	b := mustJSON(t)
	if _, err := s.write(KindTombstone, flagCritical, s.opts.Now(), [][]byte{b}, len(b)); err != nil {
		return err
	}
	s.refused = tombstone{}
	return nil
}

// write appends a record, with its check.
func (s *Stream) write(kind Kind, flags uint16, at time.Time, parts [][]byte, n int) (uint64, error) {
	return s.record(kind, flags, at, parts, n, false)
}

// record appends a record to the open segment, or to the next where it is full.
func (s *Stream) record(kind Kind, flags uint16, at time.Time, parts [][]byte, n int, unchecked bool) (uint64, error) {
	if err := s.check(); err != nil {
		return 0, err
	}
	length := n + recordOverhead
	if s.size+int64(length) > s.opts.SegmentSize && s.size > segmentHeaderSize && kind != KindHead {
		if err := s.rotate(); err != nil {
			return 0, err
		}
	}
	before := s.chain.last
	s.start(recordHeader{uint32(length), kind, flags, s.next, at.UnixNano()}, parts)
	if !unchecked {
		s.link()
	}
	if err := s.put(parts, length); err != nil {
		s.chain.last, s.owed, s.rest = before, false, nil
		if noRoom(err) {
			s.room.ran()
			err = errors.Join(ErrFull, err)
		}
		return 0, fmt.Errorf("append %s to %s: %w", kind, s.seg.name, err)
	}
	s.room.appended(length)
	index := s.next
	s.next++
	s.refusing = false
	s.size += int64(length)
	s.used += int64(length)
	s.total.Records++
	s.total.Bytes += uint64(length)
	return index, nil
}

// start begins a link of the chain with all but the last part.
func (s *Stream) start(h recordHeader, parts [][]byte) {
	h.put(s.header[:])
	s.chain.begin()
	s.chain.h.Write(s.header[:])
	s.owed, s.rest = true, nil
	for i, p := range parts {
		if i == len(parts)-1 {
			s.rest = p
			break
		}
		s.chain.h.Write(p)
	}
}

// link ends it.
func (s *Stream) link() {
	s.chain.h.Write(s.rest)
	s.chain.end()
	s.owed, s.rest = false, nil
}

// check puts the check behind the last record, where it is owed, and says why
// nothing can be appended any more.
func (s *Stream) check() error {
	if !s.owed || s.err != nil {
		s.owed, s.rest = false, nil
		return s.err
	}
	s.link()
	iov := append(s.iov[:0], s.chain.last[:checkSize])
	n, err := writev(int(s.f.Fd()), iov)
	clear(iov)
	if err == nil && n != checkSize {
		err = unix.ENOSPC
	}
	if noRoom(err) {
		s.room.ran()
		err = errors.Join(ErrFull, err)
	}
	if err != nil {
		s.err = fmt.Errorf("stream %s stopped: check of record %d: %w", s.id, s.next-1, err)
	}
	return s.err
}

// put hands the record to the kernel in one write, without its check where that is
// owed. What was written only in part, as on a full disk, is taken back.
func (s *Stream) put(parts [][]byte, length int) error {
	iov := append(s.iov[:0], s.header[:])
	iov = append(iov, parts...)
	if s.owed {
		length -= checkSize
	} else {
		iov = append(iov, s.chain.last[:checkSize])
	}
	n, err := writev(int(s.f.Fd()), iov)
	clear(iov)
	if n == length && err == nil {
		return nil
	}
	if err == nil {
		err = unix.ENOSPC // a short write to a file is a full disk or a limit
	}
	if n > 0 {
		if terr := s.f.Truncate(s.size); terr != nil {
			s.err = fmt.Errorf("stream %s stopped: %w", s.id, errors.Join(err, terr))
			return s.err
		}
	}
	return err
}

func writev(fd int, iov [][]byte) (int, error) {
	for {
		n, err := unix.Writev(fd, iov)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// rotate ends the segment with a signed head and starts the next.
func (s *Stream) rotate() error {
	if s.heads != s.next { // else the next segment could not be begun before
		if _, err := s.sign(); err != nil {
			return err
		}
	}
	failpoint.At(failpoint.Closing)
	f, seg, err := s.create()
	if noRoom(err) {
		s.room.ran()
		err = errors.Join(ErrFull, err)
	}
	if err != nil {
		return fmt.Errorf("start segment: %w", err)
	}
	s.retired = append(s.retired, s.f)
	s.use(f, seg, segmentHeaderSize)
	s.full()
	return nil
}

func (s *Stream) use(f *os.File, seg segmentFile, size int64) { s.f, s.seg, s.size = f, seg, size }

func (s *Stream) create() (*os.File, segmentFile, error) {
	seg := segmentFile{first: s.next, name: segmentName(s.next, false)}
	f, err := os.OpenFile(filepath.Join(s.dir, seg.name), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o640)
	if err != nil {
		return nil, seg, err
	}
	s.newFile = true
	failpoint.At(failpoint.Begun)
	if _, err := f.Write(segmentHeader{s.id, s.next, s.chain.last}.append(nil)); err != nil {
		return nil, seg, errors.Join(err, os.Remove(f.Name()), f.Close())
	}
	s.used += segmentHeaderSize
	return f, seg, nil
}

// Signed is a head as it stands in the stream, at index Head.Records.
type Signed struct {
	Head
	Note string `json:"note"` // the exact text that OpenHead verifies
}

// sign appends a head over everything before it.
func (s *Stream) sign() (Signed, error) {
	if err := s.check(); err != nil {
		return Signed{}, err
	}
	h, note, err := s.keys.head(s.opts.Now, func(at time.Time) Head {
		return Head{Stream: s.id, Records: s.next, Durable: s.durable, Chain: s.chain.last, Time: at}
	})
	if err != nil {
		return Signed{}, fmt.Errorf("head: %w", err)
	}
	if _, err := s.write(KindHead, flagCritical, h.Time, [][]byte{note}, len(note)); err != nil {
		return Signed{}, err
	}
	s.heads, s.headTime = s.next, h.Time
	return Signed{h, string(note)}, nil
}

// SignHead makes everything appended so far durable and signs it. The head is
// itself a record; the stream's bytes up to and with it verify alone.
func (s *Stream) SignHead() (Signed, error) {
	if err := s.Sync(); err != nil {
		return Signed{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.settle(); err != nil {
		return Signed{}, err
	}
	return s.sign()
}

// Sync makes durable what was appended before the call. After an error nothing
// can be appended any more: what the disk holds is then unknown.
func (s *Stream) Sync() error {
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	s.mu.Lock()
	if err := s.check(); err != nil || s.durable == s.next {
		defer s.mu.Unlock()
		return err
	}
	upTo, files, newFile := s.next, append(s.retired, s.f), s.newFile
	s.retired, s.newFile = nil, false
	s.mu.Unlock()

	err := syncFiles(s.dir, files, newFile)

	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.err = fmt.Errorf("stream %s stopped: sync: %w", s.id, err)
		return s.err
	}
	s.durable = max(s.durable, upTo)
	return nil
}

// syncFiles syncs the files and closes all but the last, which may be in use.
func syncFiles(dir string, files []*os.File, newFile bool) error {
	var errs []error
	last := len(files) - 1
	for i, f := range files {
		errs = append(errs, f.Sync())
		if i < last {
			errs = append(errs, f.Close())
		}
	}
	if newFile {
		errs = append(errs, syncDir(dir))
	}
	return errors.Join(errs...)
}

// close signs what has no head yet, syncs and closes.
func (s *Stream) close() error {
	s.mu.Lock()
	due := s.err == nil && (s.next > s.heads || s.refused.Frames > 0)
	s.mu.Unlock()
	var errs []error
	if due {
		_, err := s.SignHead()
		errs = append(errs, err)
	}
	errs = append(errs, s.Sync())
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range append(s.retired, s.f) {
		errs = append(errs, f.Close())
	}
	s.retired = nil
	if s.err == nil {
		s.err = fmt.Errorf("stream %s: %w", s.id, os.ErrClosed)
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, s.err)...)
}

// stopped says whether an error has ended the stream.
func (s *Stream) stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil
}

// abandon closes the files of a stopped stream.
func (s *Stream) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range append(s.retired, s.f) {
		f.Close() // what it held was lost when the stream stopped
	}
	s.retired = nil
}
