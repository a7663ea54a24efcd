// SPDX-License-Identifier: Apache-2.0

package kerneltypes

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// write makes BTF of what is kept, up to the last type that is.
func (t *trimmer) write() ([]byte, error) {
	names, table, err := t.names()
	if err != nil {
		return nil, fmt.Errorf("kernel types: names: %w", err)
	}
	last := len(t.keep) - 1
	for last > 0 && t.keep[last] == empty {
		last--
	}
	b := make([]byte, headerSize, headerSize+(last+1)*typeSize*5/4+len(table))
	for id := 1; id <= last; id++ {
		if t.keep[id] == empty {
			b = appendEntry(b, entry{info: kindForward << 24})
			continue
		}
		if b, err = t.appendType(b, uint32(id), names); err != nil {
			return nil, fmt.Errorf("kernel types: type %d: %w", id, err)
		}
	}
	size := uint32(len(b) - headerSize)
	binary.LittleEndian.PutUint16(b, magic)
	b[2] = 1
	for i, v := range [...]uint32{headerSize, 0, size, size, uint32(len(table))} {
		binary.LittleEndian.PutUint32(b[4+4*i:], v)
	}
	return append(b, table...), nil
}

func appendEntry(b []byte, e entry) []byte {
	b = binary.LittleEndian.AppendUint32(b, e.name)
	b = binary.LittleEndian.AppendUint32(b, e.info)
	return binary.LittleEndian.AppendUint32(b, e.size)
}

func (t *trimmer) appendType(b []byte, id uint32, names *names) ([]byte, error) {
	e, err := t.entry(id)
	if err != nil {
		return nil, err
	}
	n := t.left(id, e)
	if e.kind() == kindFuncProto && t.keep[id] < whole {
		e.size = 0 // what it returns
	}
	kept := entry{names.moved(e.name), e.info&^0xffff | uint32(n), e.size}
	b = appendEntry(b, kept)
	if n == 0 {
		more, err := t.part(id, 0, shapes[e.kind()].fixed)
		return append(b, more...), err
	}
	each := shapes[e.kind()].each
	for i := range n {
		m, err := t.part(id, i*each, each)
		if err != nil {
			return nil, err
		}
		name := names.moved(binary.LittleEndian.Uint32(m))
		b = append(binary.LittleEndian.AppendUint32(b, name), m[4:]...)
	}
	return b, nil
}

// names tell where a string went.
type names struct{ from, to []uint32 }

// moved is where a name is now; 0, which is no name, if it was left out.
func (n *names) moved(name uint32) uint32 {
	i, ok := slices.BinarySearch(n.from, name)
	if !ok {
		return 0
	}
	return n.to[i]
}

// names reads the strings that are used, in their order, into a new table.
func (t *trimmer) names() (*names, []byte, error) {
	slices.Sort(t.used)
	n := &names{from: slices.Compact(t.used)}
	n.to = make([]uint32, len(n.from))
	table := append(make([]byte, 0, 16*len(n.from)), 0)
	for i, at := range n.from {
		if int64(at) >= t.strings.size {
			return nil, nil, fmt.Errorf("one at %d of %d: %w", at, t.strings.size, errFormat)
		}
		n.to[i] = uint32(len(table))
		var err error
		if table, err = t.appendString(table, int64(at)); err != nil {
			return nil, nil, err
		}
	}
	return n, table, nil
}

// appendString appends the string at an offset, with the zero that ends it.
func (t *trimmer) appendString(b []byte, at int64) ([]byte, error) {
	for end := min(at+maxName, t.strings.size); at < end; {
		n := min(64, end-at) // most are shorter
		s, err := t.here.at(t.strings.from+at, int(n))
		if err != nil {
			return nil, err
		}
		if i := bytes.IndexByte(s, 0); i >= 0 {
			return append(b, s[:i+1]...), nil
		}
		b = append(b, s...)
		at += n
	}
	return nil, fmt.Errorf("one without an end: %w", errFormat)
}
