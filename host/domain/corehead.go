package domain

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// coreHead is what an ELF core begins with.
type coreHead struct {
	header []byte // the ELF header
	loads  []load // in the file's order
	notes  []byte // the registers, and what the guest's kernel left of itself
	read   uint64 // bytes of the stream
}

// load is a range of guest-physical memory that a core has.
type load struct {
	header []byte // the program header
	start  uint64 // guest-physical
	size   uint64
	off    uint64 // in the file
	first  []byte // its content, as far as it lies below firstEnd
}

func (l *load) end() uint64 { return l.start + l.size }

const (
	elfHeader    = 64
	elfProgram   = 56
	maxLoads     = 512
	maxCoreNotes = 15 << 20
	firstEnd     = 2 << 20 // guest-physical
	maxBefore    = 1 << 20 // of section headers, between what is read

	ptLoad = 1
	ptNote = 4
)

var errCore = errors.New("not a core as QEMU writes it")

// readHead reads the head of a core from a stream, and nothing beyond it. QEMU
// writes ELF header, section headers, program headers, notes and memory, in this
// order.
// Source: QEMU, dump/dump.c (dump_begin).
func readHead(r io.Reader) (*coreHead, error) {
	h := &coreHead{header: make([]byte, elfHeader)}
	if _, err := io.ReadFull(r, h.header); err != nil {
		return nil, fmt.Errorf("ELF header: %w", err)
	}
	le := binary.LittleEndian
	const class64, little, core = 2, 1, 4
	if string(h.header[:4]) != "\x7fELF" || h.header[4] != class64 || h.header[5] != little || le.Uint16(h.header[16:]) != core {
		return nil, fmt.Errorf("%w: ELF header % x", errCore, h.header[:18])
	}
	at, size, n := le.Uint64(h.header[32:]), le.Uint16(h.header[54:]), int(le.Uint16(h.header[56:]))
	if size != elfProgram || n < 2 || n > maxLoads+1 {
		return nil, fmt.Errorf("%w: %d program headers of %d bytes", errCore, n, size)
	}
	read := uint64(elfHeader)
	table, err := readPart(r, &read, at, uint64(n)*elfProgram)
	if err != nil {
		return nil, fmt.Errorf("program headers: %w", err)
	}
	var note []byte
	for p := range slices.Chunk(table, elfProgram) {
		switch kind := le.Uint32(p); {
		case kind == ptNote && note == nil:
			note = p
		case kind == ptLoad:
			h.loads = append(h.loads, load{header: p, start: le.Uint64(p[24:]), size: le.Uint64(p[32:]), off: le.Uint64(p[8:])})
		default:
			return nil, fmt.Errorf("%w: a program header of type %d", errCore, kind)
		}
	}
	if note == nil || le.Uint64(note[32:]) > maxCoreNotes {
		return nil, fmt.Errorf("%w: no notes, or more than %d bytes of them", errCore, maxCoreNotes)
	}
	if h.notes, err = readPart(r, &read, le.Uint64(note[8:]), le.Uint64(note[32:])); err != nil {
		return nil, fmt.Errorf("notes: %w", err)
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	h.read = read
	return h, nil
}

// readFirst reads the first 2 MiB of the memory from the head's stream, and
// nothing beyond them.
func (h *coreHead) readFirst(r io.Reader) (err error) {
	for i := range h.loads {
		l := &h.loads[i]
		if l.start >= firstEnd {
			return nil
		}
		if l.first, err = readPart(r, &h.read, l.off, min(l.end(), firstEnd)-l.start); err != nil {
			return fmt.Errorf("memory at %#x: %w", l.start, err)
		}
	}
	return nil
}

// readPart reads size bytes at an offset of which the stream is at read.
func readPart(r io.Reader, read *uint64, at, size uint64) ([]byte, error) {
	if at < *read || at-*read > maxBefore {
		return nil, fmt.Errorf("%w: at %d, after %d", errCore, at, *read)
	}
	if _, err := io.CopyN(io.Discard, r, int64(at-*read)); err != nil {
		return nil, err
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	*read = at + size
	return b, nil
}

// check holds the ranges to be in their order, one behind the other.
func (h *coreHead) check() error {
	var end uint64
	for _, l := range h.loads {
		if l.size == 0 || l.start < end || l.end() < l.start || l.end() > 1<<52 {
			return fmt.Errorf("%w: memory of %d bytes at %#x", errCore, l.size, l.start)
		}
		end = l.end()
	}
	return nil
}

// layout returns the head of a core that has the same notes and ranges, each
// range's content at its offset.
func (h *coreHead) layout(at []int64) []byte {
	le := binary.LittleEndian
	head := slices.Clone(h.header)
	le.PutUint64(head[32:], elfHeader)
	clear(head[40:48]) // no section headers: they say nothing that the program headers do not
	clear(head[58:64])
	note := make([]byte, elfProgram)
	le.PutUint32(note, ptNote)
	le.PutUint64(note[8:], uint64(elfHeader+elfProgram*(1+len(h.loads))))
	le.PutUint64(note[32:], uint64(len(h.notes)))
	le.PutUint64(note[40:], uint64(len(h.notes)))
	head = append(head, note...)
	for i, l := range h.loads {
		p := slices.Clone(l.header)
		le.PutUint64(p[8:], uint64(at[i]))
		head = append(head, p...)
	}
	return append(head, h.notes...)
}
