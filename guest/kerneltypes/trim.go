// SPDX-License-Identifier: Apache-2.0

package kerneltypes

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// The kinds of types.
const (
	kindInt = 1 + iota
	kindPointer
	kindArray
	kindStruct
	kindUnion
	kindEnum
	kindForward
	kindTypedef
	kindVolatile
	kindConst
	kindRestrict
	kindFunc
	kindFuncProto
	kindVar
	kindDatasec
	kindFloat
	kindDeclTag
	kindTypeTag
	kindEnum64
	kinds
)

const (
	magic      = 0xeb9f
	headerSize = 24
	typeSize   = 12
	maxTypes   = 1 << 20 // as many as the kernel takes itself
	maxSection = 64 << 20
	maxName    = 1 << 10 // twice what the kernel's symbols have
)

// shapes say what follows the 12 bytes of a type of each kind: so many bytes, and
// so many for each of its count.
var shapes = [kinds]struct{ fixed, each int }{
	kindInt: {fixed: 4}, kindArray: {fixed: 12}, kindStruct: {each: 12}, kindUnion: {each: 12}, kindEnum: {each: 8},
	kindFuncProto: {each: 8}, kindVar: {fixed: 4}, kindDatasec: {each: 12}, kindDeclTag: {fixed: 4}, kindEnum64: {each: 12},
}

// How much of a type is kept. More is a larger number.
const (
	empty = iota // a forward declaration without a name
	shape        // what it is called and how large it is: something points to it
	whole        // what it holds as well
	named        // it was asked for
)

// entry is the beginning of a type.
type entry struct{ name, info, size uint32 }

func (e entry) kind() int  { return int(e.info >> 24 & 0x1f) }
func (e entry) count() int { return int(e.info & 0xffff) }
func (e entry) bytes() int { return shapes[e.kind()].fixed + e.count()*shapes[e.kind()].each }

// trimmer goes over a kernel's types twice: all of them in order, to find those
// that were asked for, and then those that these consist of.
type trimmer struct {
	order          window // for what is read from beginning to end
	here           window // for what is read here and there
	types, strings section
	offsets        []uint32 // of each type in its section, by number; none has number 0
	keep           []uint8  // how much of it
	todo           []uint32 // numbers whose parts are still to be kept
	used           []uint32 // names of what is kept, as offsets
}

type section struct{ from, size int64 }

// Trim returns of a kernel's types, in BTF, those of the names, with what they
// consist of. Numbers stay the same.
func Trim(r io.ReaderAt, names map[string]bool) ([]byte, error) {
	t := &trimmer{
		order: window{r: r, room: make([]byte, 64<<10)},
		here:  window{r: r, room: make([]byte, 4<<10)},
	}
	if err := t.header(); err != nil {
		return nil, fmt.Errorf("kernel types: header: %w", err)
	}
	wanted, err := t.find(names)
	if err != nil {
		return nil, fmt.Errorf("kernel types: strings: %w", err)
	}
	if err := t.scan(wanted); err != nil {
		return nil, fmt.Errorf("kernel types: type %d: %w", len(t.offsets), err)
	}
	for len(t.todo) > 0 {
		id := t.todo[len(t.todo)-1]
		t.todo = t.todo[:len(t.todo)-1]
		if err := t.visit(id); err != nil {
			return nil, fmt.Errorf("kernel types: type %d: %w", id, err)
		}
	}
	return t.write()
}

func (t *trimmer) header() error {
	b, err := t.order.at(0, headerSize)
	if err != nil {
		return err
	}
	size := int64(binary.LittleEndian.Uint32(b[4:]))
	if binary.LittleEndian.Uint16(b) != magic || b[2] != 1 || size < headerSize {
		return fmt.Errorf("no BTF of version 1: %w", errFormat)
	}
	part := func(at int) section {
		return section{size + int64(binary.LittleEndian.Uint32(b[at:])), int64(binary.LittleEndian.Uint32(b[at+4:]))}
	}
	t.types, t.strings = part(8), part(16)
	if t.strings.size > maxSection || t.types.size > maxSection {
		return fmt.Errorf("%d bytes of types and %d of strings: %w", t.types.size, t.strings.size, errFormat)
	}
	return nil
}

// find returns where names stand among the strings: each is there once.
func (t *trimmer) find(names map[string]bool) (*offsets, error) {
	s, found := newSieve(names), &offsets{}
	for at := int64(0); at < t.strings.size; {
		n := min(int64(len(t.order.room)), t.strings.size-at)
		b, err := t.order.at(t.strings.from+at, int(n))
		if err != nil {
			return nil, err
		}
		done := 0
		for {
			i := bytes.IndexByte(b[done:], 0)
			if i < 0 {
				break
			}
			if s.has(b[done : done+i]) {
				found.add(uint32(at) + uint32(done))
			}
			done += i + 1
		}
		if done == 0 {
			return nil, fmt.Errorf("one of more than %d bytes: %w", n, errFormat)
		}
		at += int64(done)
	}
	return found, nil
}

// scan finds where each type is, and those that were asked for.
func (t *trimmer) scan(wanted *offsets) error {
	room := min(t.types.size/28, 128<<10) // they have about 30 bytes each
	t.offsets, t.keep = append(make([]uint32, 0, room), 0), append(make([]uint8, 0, room), empty)
	for at := int64(0); at < t.types.size; {
		b, err := t.order.at(t.types.from+at, typeSize)
		if err != nil {
			return err
		}
		e := entryOf(b)
		if e.kind() == 0 || e.kind() >= kinds || len(t.offsets) >= maxTypes {
			return fmt.Errorf("kind %d: %w", e.kind(), errFormat)
		}
		keep := uint8(empty)
		if e.name != 0 && wanted.has(e.name) && asked(e.kind()) {
			keep = named
			t.todo = append(t.todo, uint32(len(t.offsets)))
		}
		t.offsets, t.keep = append(t.offsets, uint32(at)), append(t.keep, keep)
		at += int64(typeSize + e.bytes())
	}
	return nil
}

// asked reports whether types of a kind can be asked for. Variables are not
// what programs are fitted to, and tags are about types whose rest may be gone.
func asked(kind int) bool {
	return kind != kindVar && kind != kindDatasec && kind != kindDeclTag && kind != kindTypeTag
}

func entryOf(b []byte) entry {
	return entry{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:])}
}

// entry reads a type's beginning.
func (t *trimmer) entry(id uint32) (entry, error) {
	b, err := t.here.at(t.types.from+int64(t.offsets[id]), typeSize)
	if err != nil {
		return entry{}, err
	}
	return entryOf(b), nil
}

// need has a type kept, at least so much of it.
func (t *trimmer) need(id uint32, keep uint8) error {
	if int64(id) >= int64(len(t.keep)) {
		return fmt.Errorf("refers to type %d of %d: %w", id, len(t.keep), errFormat)
	}
	if id != 0 && t.keep[id] < keep {
		t.keep[id] = keep
		t.todo = append(t.todo, id)
	}
	return nil
}

// visit has what a type consists of kept, as much as is kept of itself.
func (t *trimmer) visit(id uint32) error {
	e, err := t.entry(id)
	if err != nil {
		return err
	}
	keep := min(t.keep[id], whole)
	t.use(e.name)
	switch e.kind() {
	case kindPointer:
		return t.need(e.size, shape)
	case kindTypedef, kindVolatile, kindConst, kindRestrict, kindTypeTag, kindFunc, kindVar:
		return t.need(e.size, keep)
	case kindArray:
		b, err := t.part(id, 0, 12)
		if err != nil {
			return err
		}
		element, index := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
		if err := t.need(element, keep); err != nil {
			return err
		}
		return t.need(index, shape)
	case kindFuncProto:
		if keep < whole {
			return nil
		}
		if err := t.need(e.size, shape); err != nil {
			return err
		}
	}
	for i := range t.left(id, e) {
		if err := t.member(id, e, i); err != nil {
			return err
		}
	}
	return nil
}

// member has one of what a type holds kept.
func (t *trimmer) member(id uint32, e entry, i int) error {
	each := shapes[e.kind()].each
	b, err := t.part(id, i*each, each)
	if err != nil {
		return err
	}
	name, of := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	switch e.kind() {
	case kindStruct, kindUnion:
		t.use(name)
		return t.need(of, whole)
	case kindFuncProto: // what its arguments are called nobody asks
		return t.need(of, whole)
	}
	t.use(name)
	return nil
}

// left is how many of its members, values or arguments a type keeps.
func (t *trimmer) left(id uint32, e entry) int {
	switch e.kind() {
	case kindStruct, kindUnion, kindFuncProto:
		if t.keep[id] >= whole {
			return e.count()
		}
	case kindEnum, kindEnum64:
		if t.keep[id] == named {
			return e.count()
		}
	}
	return 0
}

// part reads of what follows a type's beginning.
func (t *trimmer) part(id uint32, from, size int) ([]byte, error) {
	return t.here.at(t.types.from+int64(t.offsets[id])+typeSize+int64(from), size)
}

func (t *trimmer) use(name uint32) {
	if name != 0 {
		t.used = append(t.used, name)
	}
}
