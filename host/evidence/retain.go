package evidence

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/failpoint"
)

// Retention says what of a stream is given up, and when. Whole segments are,
// oldest first: their bulk at first, which leaves a remainder, and what is left
// when there is nothing else to give up. The zero value keeps everything.
type Retention struct {
	BulkAge time.Duration // bulk frames older than that, unless a finding cites them; 0: never
	Age     time.Duration // everything older than that; 0: never
	Size    int64         // bytes on disk beyond which the oldest goes; 0: none
}

func (r Retention) never() bool { return r == Retention{} }

// Retaining is what a store needs to give anything up.
type Retaining struct {
	// Of is a stream's retention.
	Of func(vm uuid.UUID) Retention

	// Cites calls cite with the index of each record that r, of a kind other than
	// frame, is about. Records that May says no of are not asked, as in Selection.
	Cites func(r *Record, cite func(index uint64))
	May   func(has func(key uint64) bool) bool

	// Needed is the index from which on nothing of a stream is given up, because it
	// may have to be read again.
	Needed func(vm uuid.UUID) uint64

	// Done, if set, is told of what was given up.
	Done func(vm uuid.UUID, g GivenUp)

	Every time.Duration // between two looks, beside that when a segment is full; default 1 min
}

// Why something is given up.
const (
	ReasonAge  = "age"
	ReasonSize = "size"
)

// GivenUp is what the record of kind tombstone says of records that are about
// to be given up. It is on disk and signed before they are.
type GivenUp struct {
	Reason  string `json:"reason"`
	First   uint64 `json:"first"`
	Next    uint64 `json:"next"`
	Records uint64 `json:"records"`          // of those between, that are given up now
	Bytes   uint64 `json:"bytes"`            // of them; where all is, on disk
	All     bool   `json:"all,omitempty"`    // nothing of them is left
	Chain   Hash   `json:"chain"`            // h of the record before Next
	OnDisk  int64  `json:"on_disk,omitzero"` // of the stream afterwards; not on record
}

// retain gives up what is due in every stream, whether or not it is open.
func (s *Store) retain(ctx context.Context) {
	if s.opts.Retain == nil {
		return
	}
	ids, err := Streams(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.opts.Log.Error("retention", "err", err)
	}
	for _, id := range ids {
		if ctx.Err() != nil {
			return
		}
		p := s.opts.Retain.Of(id)
		if p.never() {
			continue
		}
		if err := s.retainOne(ctx, id, p); err != nil && ctx.Err() == nil {
			s.opts.Log.Error("retention", "vm", id, "err", err)
		}
	}
}

func (s *Store) retainOne(ctx context.Context, id uuid.UUID, p Retention) error {
	due := &retention{Retention: p, dir: StreamDir(s.dir, id), now: s.opts.Now(), needed: s.opts.Retain.Needed(id)}
	seg, _, err := due.next()
	if err != nil || seg == nil {
		return err // most have nothing to give up, and are not opened for it
	}
	st, err := s.Stream(id)
	if err != nil {
		return err
	}
	cited, err := st.cited(due.dir)
	if err != nil {
		return fmt.Errorf("what findings cite: %w", err)
	}
	keep := func(r *Record) bool { return r.Kind != KindFrame || r.Critical || cited[r.Index] }
	for ctx.Err() == nil {
		seg, reason, err := due.next()
		if err != nil || seg == nil {
			return err
		}
		var g GivenUp
		if seg.rest {
			g, err = st.bury(*seg, reason)
		} else {
			g, err = st.thin(ctx, *seg, reason, keep)
		}
		if err != nil {
			return fmt.Errorf("give up segment %s: %w", seg.name, err)
		}
		g.OnDisk = st.Stats().Used
		if s.opts.Retain.Done != nil {
			s.opts.Retain.Done(id, g)
		}
	}
	return ctx.Err()
}

// retention finds what of a stream is due.
type retention struct {
	Retention
	dir    string
	now    time.Time
	needed uint64
}

// next is the segment that is given up next, or a part of it, and why; nil where
// nothing is due.
func (r *retention) next() (*segmentFile, string, error) {
	l, err := list(r.dir)
	if err != nil {
		return nil, "", err
	}
	var whole, rest *segmentFile // the oldest of each
	due := len(l.segments)
	for i := range l.segments {
		seg := &l.segments[i]
		if !seg.sealed || i+1 == len(l.segments) || l.segments[i+1].first > r.needed {
			due = i
			break
		}
		if seg.rest && i == 0 {
			rest = seg
		} else if !seg.rest && whole == nil {
			whole = seg
		}
	}
	if whole != nil {
		if old, err := r.old(*whole, r.bulkAge()); old || err != nil {
			return whole, ReasonAge, err
		}
	}
	if rest != nil {
		if old, err := r.old(*rest, r.Age); old || err != nil {
			return rest, ReasonAge, err
		}
	}
	if r.Size == 0 || whole == nil && rest == nil {
		return nil, "", nil
	}
	used, err := sizeOf(r.dir)
	if err == nil && whole == nil { // the bulk that cannot go yet is not paid for with findings
		used -= r.sizeOf(l.segments[due:])
	}
	switch {
	case err != nil || used <= r.Size:
		return nil, "", err
	case whole != nil:
		return whole, ReasonSize, nil
	}
	return rest, ReasonSize, nil
}

func (r *retention) sizeOf(segments []segmentFile) (n int64) {
	for _, seg := range segments {
		if fi, err := os.Stat(filepath.Join(r.dir, seg.name)); err == nil { // else it is being sealed
			n += fi.Size()
		}
	}
	return n
}

// bulkAge is at which age bulk is due: not later than everything else.
func (r *retention) bulkAge() time.Duration {
	if r.BulkAge == 0 || r.Age != 0 && r.Age < r.BulkAge {
		return r.Age
	}
	return r.BulkAge
}

// old says whether every record of a sealed segment is older than that.
func (r *retention) old(seg segmentFile, age time.Duration) (bool, error) {
	if age == 0 {
		return false, nil
	}
	src, err := openSealed(filepath.Join(r.dir, seg.name), seg.first)
	if err != nil {
		return false, err
	}
	defer src.Close()
	return src.t.latest().Before(r.now.Add(-age)), nil
}

// latest is the latest time of a segment's records.
func (t *trailer) latest() time.Time {
	latest := t.blocks[0].latest
	for _, b := range t.blocks {
		latest = max(latest, b.latest)
	}
	return time.Unix(0, latest)
}

// sizeOf is what a stream's segments and indexes take of the disk.
func sizeOf(dir string) (n int64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		n += fi.Size()
	}
	return n, nil
}

// cited are the records that findings and their like are about.
func (s *Stream) cited(dir string) (map[uint64]bool, error) {
	cited, r := map[uint64]bool{}, s.opts.Retain
	sel := Selection{}
	if s.opts.Keys != nil && r.May != nil {
		sel.May, sel.Index = r.May, &IndexReader{Scheme: s.opts.Keys.Scheme, Verifier: s.keys.key().Verifier()}
	}
	_, err := NewReader(dir).Select(&sel, func(rec *Record) error {
		if rec.Kind != KindFrame {
			r.Cites(rec, func(index uint64) { cited[index] = true })
		}
		return nil
	})
	return cited, err
}

// tell puts on record what is about to be given up, on disk and signed.
func (s *Stream) tell(g GivenUp) error {
	b := mustJSON(g)
	s.mu.Lock()
	_, err := s.write(KindTombstone, flagCritical, s.opts.Now(), [][]byte{b}, len(b))
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if _, err := s.SignHead(); err != nil {
		return err
	}
	failpoint.At(failpoint.Tombstoned)
	return nil
}

// putRemainder gives a remainder its name and takes its segment away. At any
// moment one of them is whole; readers prefer the segment.
func (s *Stream) putRemainder(seg segmentFile, temp, final string, x *indexer) error {
	was, err := os.Stat(filepath.Join(s.dir, seg.name))
	if err != nil {
		return err
	}
	is, err := os.Stat(temp)
	if err != nil {
		return err
	}
	if err := errors.Join(os.Rename(temp, final), syncDir(s.dir)); err != nil {
		return err
	}
	failpoint.At(failpoint.Thinned)
	if err := errors.Join(os.Remove(filepath.Join(s.dir, seg.name)), syncDir(s.dir)); err != nil {
		return err
	}
	s.mu.Lock()
	s.used += is.Size() - was.Size()
	s.mu.Unlock()
	return s.indexed(x, final)
}

// bury gives up the first segment of the stream, of which a remainder was left.
// A tombstone takes its place, and that of what was before it.
func (s *Stream) bury(seg segmentFile, reason string) (GivenUp, error) {
	src, err := openSealed(filepath.Join(s.dir, seg.name), seg.first)
	if err != nil {
		return GivenUp{}, err
	}
	defer src.Close()
	fi, err := src.f.Stat()
	if err != nil {
		return GivenUp{}, err
	}
	t := src.t.seal
	stone := Tombstone{
		Stream: s.id, Next: t.next, Chain: t.chain, Bytes: uint64(fi.Size()), Latest: src.t.latest().UTC(),
		Reason: reason, Time: s.opts.Now().UTC().Round(0),
	}
	if seg.first > 0 {
		before, err := readTombstone(s.dir, seg.first, s.keys.key().Verifier())
		if err != nil {
			return GivenUp{}, err
		}
		stone.Bytes += before.Bytes
		if before.Latest.After(stone.Latest) {
			stone.Latest = before.Latest
		}
	}
	g := GivenUp{Reason: reason, First: t.first, Next: t.next, Records: t.next - t.first, Bytes: uint64(fi.Size()), All: true, Chain: t.chain}
	if t.gone != nil {
		g.Records -= t.gone.records
	}
	if err := s.tell(g); err != nil {
		return GivenUp{}, err
	}
	return g, s.putTombstone(stone, seg, fi.Size())
}

func (s *Stream) putTombstone(stone Tombstone, seg segmentFile, size int64) error {
	b, err := SignNote(stone.text(), s.keys.key())
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, goneName(stone.Next))
	if err := writeSynced(path+tempSuffix, b); err != nil {
		return err
	}
	if err := errors.Join(os.Rename(path+tempSuffix, path), syncDir(s.dir)); err != nil {
		return err
	}
	failpoint.At(failpoint.Buried)
	err = errors.Join(s.dropIndex(seg.first), os.Remove(filepath.Join(s.dir, seg.name)))
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.used -= size
	s.mu.Unlock()
	if seg.first == 0 {
		return syncDir(s.dir)
	}
	failpoint.At(failpoint.Forgotten)
	return errors.Join(os.Remove(filepath.Join(s.dir, goneName(seg.first))), syncDir(s.dir))
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}
