package link

import (
	"encoding/binary"

	"github.com/outguard/outguard/vsockproto"
)

var le = binary.LittleEndian

// hold keeps frames until the host has recorded them: a ring of whole frames,
// one after another. Offsets count bytes since the beginning and never shrink.
// Its size and every frame's are multiples of 8, so that no 8-byte field is
// ever cut in two by the ring's end.
type hold struct {
	ring        []byte
	first, last uint64 // offsets: oldest byte held, and behind the newest
	seq         uint64 // sequence of the frame at first
	count       uint64 // frames held
}

func newHold(size int) hold { return hold{ring: make([]byte, (size+7)&^7), seq: 1} }

func (h *hold) room() int    { return len(h.ring) - int(h.last-h.first) }
func (h *hold) next() uint64 { return h.seq + h.count }

func (h *hold) at(off uint64) []byte { return h.ring[off%uint64(len(h.ring)):] }

func (h *hold) frameLen(off uint64) uint64 { return uint64(le.Uint32(h.at(off))) }

// put appends a frame; the caller has asked for room.
func (h *hold) put(t vsockproto.FrameType, n int, parts ...[]byte) {
	var head [vsockproto.FrameHeaderSize]byte
	h.write(vsockproto.AppendFrame(head[:0], t, h.next(), n))
	for _, p := range parts {
		h.write(p)
	}
	h.count++
}

func (h *hold) write(b []byte) {
	n := copy(h.at(h.last), b)
	copy(h.ring, b[n:])
	h.last += uint64(len(b))
}

// chunk returns the held bytes from off to end that lie in one piece.
func (h *hold) chunk(off, end uint64) []byte {
	b := h.at(off)
	return b[:min(uint64(len(b)), end-off)]
}

// release forgets the frames before seq that end at or before the offset until.
func (h *hold) release(seq, until uint64) {
	for h.count > 0 && h.seq < seq {
		n := h.frameLen(h.first)
		if h.first+n > until {
			return
		}
		h.first += n
		h.seq++
		h.count--
	}
}

// offset returns where the frame of a number begins, or the last one ends.
func (h *hold) offset(seq uint64) uint64 {
	off := h.first
	for n := h.seq; n < seq && off < h.last; n++ {
		off += h.frameLen(off)
	}
	return off
}

// within returns the offset behind the last whole frame from off on that ends
// at or before limit.
func (h *hold) within(off, limit uint64) uint64 {
	for off < h.last {
		n := h.frameLen(off)
		if off+n > limit {
			break
		}
		off += n
	}
	return off
}

// renumber gives the frames held the numbers from seq on.
func (h *hold) renumber(seq uint64) {
	h.seq = seq
	for off := h.first; off < h.last; off += h.frameLen(off) {
		le.PutUint64(h.at(off+8), seq)
		seq++
	}
}
