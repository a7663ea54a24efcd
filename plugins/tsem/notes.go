package tsem

import (
	"encoding/binary"
	"time"
)

// Note says what made a point: the first event that had it. Program and What
// are the guest's text: escape them before showing.
type Note struct {
	Received time.Time // on the host
	BootNs   uint64    // in the guest, ns since boot
	PID      uint32
	Program  string // that did it
	What     string // it did, see Event.Words
}

// Bounds of notes, bytes: of one text and of all of a model's. A point that
// comes when there is no more room has none.
const (
	maxNoteText = 255
	maxNotes    = 16 << 20
)

// notes are notes one behind the other:
//
//	received i64, ns since 1970 | boot_ns u64 | pid u32 | program u8, bytes | what u8, bytes
type notes []byte

const noteHead = 8 + 8 + 4

func (n *notes) add(v *Note, limit int) (at uint32, ok bool) {
	program, what := v.Program[:min(len(v.Program), maxNoteText)], v.What[:min(len(v.What), maxNoteText)]
	if len(*n)+noteHead+2+len(program)+len(what) > limit {
		return 0, false
	}
	at = uint32(len(*n))
	b := le.AppendUint64(*n, uint64(v.Received.UnixNano()))
	b = le.AppendUint64(b, v.BootNs)
	b = le.AppendUint32(b, v.PID)
	b = append(append(b, byte(len(program))), program...)
	*n = append(append(b, byte(len(what))), what...)
	return at, true
}

// get reads the note that begins at at; next is behind it. It is false where
// none can.
func (n notes) get(at uint32) (v Note, next uint32, ok bool) {
	if uint64(at) > uint64(len(n)) {
		return Note{}, 0, false
	}
	b := n[at:]
	if len(b) < noteHead+1 {
		return Note{}, 0, false
	}
	v.Received = time.Unix(0, int64(binary.LittleEndian.Uint64(b)))
	v.BootNs, v.PID = le.Uint64(b[8:]), le.Uint32(b[16:])
	b = b[noteHead:]
	for _, text := range [...]*string{&v.Program, &v.What} {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return Note{}, 0, false
		}
		end := 1 + int(b[0])
		*text, b = string(b[1:end]), b[end:]
	}
	return v, uint32(len(n) - len(b)), true
}

// maxNotes is the share of a model that may have fewer points, and enough for a
// small one.
func (m *Model) maxNotes() int {
	return min(maxNotes, max(maxNotes/DefaultMaxPoints*m.limit, maxNotes/16))
}

// Annotate says what made the point that was added last.
func (m *Model) Annotate(v *Note) {
	all := m.points.all
	if len(all) == 0 || all[len(all)-1].note != 0 {
		return
	}
	if at, ok := m.notes.add(v, m.maxNotes()); ok {
		all[len(all)-1].note = at + 1
	}
}

// Note returns what made a point, false where that is not known: it came with
// a file that does not say, or there was no more room.
func (m *Model) Note(p *Point) (Note, bool) {
	if p.note == 0 {
		return Note{}, false
	}
	v, _, ok := m.notes.get(p.note - 1)
	return v, ok
}
