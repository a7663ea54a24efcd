// SPDX-License-Identifier: Apache-2.0

package kerneltypes

import (
	"errors"
	"fmt"
	"io"
)

var errFormat = errors.New("not what the kernel's types look like")

// window has a part of a file in memory.
type window struct {
	r    io.ReaderAt
	room []byte
	from int64
	size int // of room is filled
}

// at returns n bytes at an offset, up to the next call. n is at most the room.
func (w *window) at(offset int64, n int) ([]byte, error) {
	if i := offset - w.from; i >= 0 && i+int64(n) <= int64(w.size) {
		return w.room[i : i+int64(n)], nil
	}
	got, err := w.r.ReadAt(w.room, offset)
	w.from, w.size = offset, got
	if got >= n {
		return w.room[:n], nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return nil, fmt.Errorf("read %d bytes at %d: %w", n, offset, err)
}

// sieve tells names from others, most of them without hashing them: by their
// first byte and length.
type sieve struct {
	names   map[string]bool
	lengths [256]uint64
}

func newSieve(names map[string]bool) *sieve {
	s := &sieve{names: names}
	for n := range names {
		if n != "" {
			s.lengths[n[0]] |= 1 << (len(n) & 63)
		}
	}
	return s
}

func (s *sieve) has(name []byte) bool {
	return len(name) > 0 && s.lengths[name[0]]>>(len(name)&63)&1 != 0 && s.names[string(name)]
}

// offsets is a set of numbers, most of which it has not.
type offsets struct {
	some  [1 << 10]uint64 // a bit for the low 16 of each
	exact map[uint32]bool
}

func (o *offsets) add(v uint32) {
	if o.exact == nil {
		o.exact = make(map[uint32]bool)
	}
	o.some[v>>6&1023] |= 1 << (v & 63)
	o.exact[v] = true
}

func (o *offsets) has(v uint32) bool { return o.some[v>>6&1023]>>(v&63)&1 != 0 && o.exact[v] }
