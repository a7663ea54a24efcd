package evidence

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// indexMissing makes the indexes that are not there.
func (s *Stream) indexMissing(ctx context.Context, l listing) error {
	if s.opts.Keys == nil {
		return nil
	}
	for _, seg := range l.segments {
		has := slices.ContainsFunc(l.indexes, func(x segmentFile) bool { return x.first == seg.first })
		if !seg.sealed || has && (s.looked || indexStands(s.dir, seg, s.opts.Keys.Scheme)) {
			continue
		}
		if err := s.index(ctx, seg); err != nil {
			return fmt.Errorf("index of segment %s: %w", seg.name, err)
		}
	}
	s.looked = true
	return nil
}

// indexOthers makes the indexes that are missing in streams which nobody has
// opened: of VMs that are off, or no more.
func (s *Store) indexOthers(ctx context.Context) {
	ids, err := Streams(s.dir)
	if err != nil || s.opts.Keys == nil {
		return // without them everything is read
	}
	for _, id := range ids {
		s.mu.Lock()
		open := s.streams[id] != nil
		s.mu.Unlock()
		if open || ctx.Err() != nil {
			continue
		}
		st := s.unopened(id)
		l, err := list(st.dir)
		if err == nil {
			err = st.indexMissing(ctx, l)
		}
		if err != nil && ctx.Err() == nil {
			s.opts.Log.Error("index evidence", "vm", id, "err", err)
		}
	}
}

// unopened is a stream of which nothing but its sealed segments is looked at.
func (s *Store) unopened(vm uuid.UUID) *Stream {
	return &Stream{dir: StreamDir(s.dir, vm), id: vm, keys: s.keys, opts: s.opts}
}

// index makes the index of a sealed segment out of it. One that is corrupt has
// none: who reads it is told so.
func (s *Stream) index(ctx context.Context, seg segmentFile) error {
	src, err := openSealed(filepath.Join(s.dir, seg.name), seg.first)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer src.Close()
	x, c := newIndexer(s.opts.Keys), &cursor{dir: s.dir}
	for i := range src.t.blocks {
		if err := c.enter(seg, src, i); err != nil {
			return err
		}
		for c.next < src.t.next(i) {
			r, err := c.step()
			if err = errors.Join(err, ctx.Err()); err != nil {
				return err
			}
			x.record(r)
		}
		if err := c.left(src.t, i); err != nil {
			return err
		}
		x.end()
	}
	return s.putIndex(x, src.t)
}

// putIndex puts an index beside its segment.
func (s *Stream) putIndex(x *indexer, t *trailer) error {
	var was int64
	if fi, err := os.Lstat(filepath.Join(s.dir, indexName(t.seal.first))); err == nil {
		was = fi.Size()
	}
	b, err := x.bytes(t, s.keys.key())
	if err == nil {
		err = writeIndex(s.dir, t.seal.first, b)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.used += int64(len(b)) - was
	s.mu.Unlock()
	return nil
}

// indexed writes the index of what was just sealed.
func (s *Stream) indexed(x *indexer, path string) error {
	if x == nil {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	t, err := readTrailer(f)
	if err != nil {
		return err
	}
	return s.putIndex(x, t)
}

// Reindex has the index of a segment, which cannot be used, made anew.
func (s *Store) Reindex(vm uuid.UUID, segment string) error {
	first, _, _ := strings.Cut(segment, ".")
	s.mu.Lock()
	st := s.streams[vm]
	s.mu.Unlock()
	if st == nil { // then it is made anew at the next start
		st = s.unopened(vm)
	}
	if n, err := strconv.ParseUint(first, 10, 64); err == nil {
		if err := st.dropIndex(n); err != nil {
			return err
		}
	}
	s.wakeSealer()
	return nil
}

func (s *Stream) dropIndex(first uint64) error {
	path := filepath.Join(s.dir, indexName(first))
	fi, err := os.Lstat(path)
	if err == nil {
		err = os.Remove(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	s.mu.Lock()
	s.used -= fi.Size()
	s.mu.Unlock()
	return nil
}

// indexStands looks whether an index is one of this segment and scheme and has
// its length: a start does not read all of them. Who reads one knows.
func indexStands(dir string, seg segmentFile, scheme uint32) bool {
	src, err := openSealed(filepath.Join(dir, seg.name), seg.first)
	if err != nil {
		return true // it is not the index that is broken
	}
	defer src.Close()
	f, err := os.Open(filepath.Join(dir, indexName(seg.first)))
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, indexHead+4*len(src.t.blocks))
	if _, err := f.ReadAt(head, 0); err != nil || le.Uint32(head[8:]) != scheme || le.Uint32(head[12:]) != uint32(len(src.t.blocks)) {
		return false
	}
	body := int64(len(head)) + 8*int64(le.Uint32(head[len(head)-4:])&^anyKey)
	rest, err := io.ReadAll(io.LimitReader(io.NewSectionReader(f, body, 1<<62), maxNote+indexFoot))
	if err != nil || len(rest) < indexFoot || int(le.Uint32(rest[len(rest)-indexFoot:])) != len(rest)-indexFoot {
		return false
	}
	return strings.Contains(string(rest), "\nsegment "+src.t.seal.sum.String()+"\n")
}
