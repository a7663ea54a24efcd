package lineage

import (
	"bytes"
	"crypto/sha256"

	"github.com/outguard/outguard/vsockproto"
)

// Made says of a file which program made it in this session, and which of the
// files it is that this program made in that directory, from 1 on: TSEM's owner
// and instance of a temporary file.
type Made struct {
	Owner    ID
	Instance uint64
}

// maxMade bounds the files of which that is kept, and the pairs of program and
// directory. Of more the oldest are forgotten.
const maxMade = 4096

type fileKey struct {
	inode           uint64
	dev, generation uint32
}

func keyOfFile(f *vsockproto.File) fileKey { return fileKey{f.Inode, f.Dev, f.Generation} }

// makers are the files that were made, and how many by whom and where.
type makers struct {
	files  recent[fileKey, Made]
	counts recent[ID, uint64] // by the digest of program and directory
}

// recent keeps the values of the keys that were set first last.
type recent[K comparable, V any] struct {
	values map[K]V
	order  []K // in which they came; a ring from oldest on once it is full
	oldest int
}

func (r *recent[K, V]) set(k K, v V) {
	if r.values == nil {
		r.values = map[K]V{}
	}
	if _, has := r.values[k]; !has {
		r.enter(k)
	}
	r.values[k] = v
}

func (r *recent[K, V]) enter(k K) {
	if len(r.order) < maxMade {
		r.order = append(r.order, k)
		return
	}
	delete(r.values, r.order[r.oldest])
	r.order[r.oldest] = k
	r.oldest = (r.oldest + 1) % maxMade
}

func (r *recent[K, V]) each(do func(K, V)) {
	for i := range r.order {
		k := r.order[(r.oldest+i)%len(r.order)]
		do(k, r.values[k])
	}
}

// KeepMade has the tree keep who made which file, or forget it: nobody who does
// not ask pays for it, and a VM makes files without end.
func (t *Tree) KeepMade(keep bool) {
	if t.keepsMade = keep; !keep {
		t.makers = makers{}
	}
}

// made takes a record of a file that its open made.
func (t *Tree) made(e *vsockproto.Event, owner ID) {
	const kind, regular = 0o170000, 0o100000
	if !t.keepsMade || e.Path.Flags&vsockproto.TailMade == 0 || e.File.Mode&kind != regular {
		return
	}
	slash := bytes.LastIndexByte(e.Path.Data, '/')
	if slash < 0 {
		return // of a path that was cut nobody knows the directory
	}
	where := sha256.Sum256(append(append(make([]byte, 0, 256), owner[:]...), e.Path.Data[:slash+1]...))
	n := t.makers.counts.values[where] + 1
	t.makers.counts.set(where, n)
	t.makers.files.set(keyOfFile(&e.File), Made{owner, n})
}

// Made says who made a file, false of one that was not made in this session and
// since KeepMade, or so long ago that it is forgotten.
func (t *Tree) Made(f *vsockproto.File) (Made, bool) {
	m, is := t.makers.files.values[keyOfFile(f)]
	return m, is
}

func (m *makers) append(b []byte) []byte {
	b = le.AppendUint32(b, uint32(len(m.files.order)))
	b = le.AppendUint32(b, uint32(len(m.counts.order)))
	m.files.each(func(k fileKey, v Made) {
		b = le.AppendUint64(b, k.inode)
		b = le.AppendUint32(le.AppendUint32(b, k.dev), k.generation)
		b = le.AppendUint64(append(b, v.Owner[:]...), v.Instance)
	})
	m.counts.each(func(k ID, n uint64) { b = le.AppendUint64(append(b, k[:]...), n) })
	return b
}

func (r *reader) makers() (m makers) {
	files, counts := r.u32(), r.u32()
	if r.bad || files > maxMade || counts > maxMade {
		r.bad = true
		return m
	}
	for range files {
		m.files.set(fileKey{r.u64(), r.u32(), r.u32()}, Made{ID(r.take(32)), r.u64()})
	}
	for range counts {
		m.counts.set(ID(r.take(32)), r.u64())
	}
	r.bad = r.bad || len(m.files.order) != int(files) || len(m.counts.order) != int(counts) // one said twice
	return m
}
