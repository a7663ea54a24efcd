package tsem

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
)

// Model is one security model: the points that were seen, in order, and what
// follows from them. Sealed, it knows a violation when it sees one. No event
// can break it: where Quixote's model is poisoned for good, here one event has
// no point.
// Source: Quixote SecurityModel/TSEM.c, see SPEC section 5.
type Model struct {
	mapping           Mapping
	base, measurement ID
	platform          ID // as it was set
	aggregate         ID // and as the measurement begins with it
	hasPlatform       bool
	hasAggregate      bool
	sealed            bool

	points     points
	notes      notes
	version    uint64 // counts what people did to it
	pseudonyms map[ID]struct{}
	limit      int
	valid      uint64 // points

	trajectory uint64 // points that came while it was not sealed
	forensics  uint64 // and while it was
	overflow   uint64 // points for which there was no room

	state      ID // valid while stateKnown
	stateKnown bool
}

// DefaultMaxPoints bounds the points of one model.
const DefaultMaxPoints = 1 << 20

// Errors to branch on.
var (
	ErrSealed = errors.New("model is sealed")
	ErrFull   = errors.New("model is full")
)

// NewModel makes an empty model of the quixote mapping that learns; limit bounds
// its points, 0 means DefaultMaxPoints.
func NewModel(limit int) *Model {
	if limit <= 0 {
		limit = DefaultMaxPoints
	}
	return &Model{mapping: Quixote, limit: limit}
}

// NewModelOf makes an empty model of another mapping.
func NewModelOf(mapping Mapping, limit int) *Model {
	m := NewModel(limit)
	m.mapping = mapping
	return m
}

// Mapping is how events become the model's points.
func (m *Model) Mapping() Mapping { return m.mapping }

// extend is SHA256(m || SHA256(base || v)).
func (m *Model) extend(to, v ID) ID { return extend(&m.base, to, v) }

func extend(base *ID, to, v ID) ID {
	var b [64]byte
	copy(b[:], base[:])
	copy(b[32:], v[:])
	inner := sha256.Sum256(b[:])
	copy(b[:], to[:])
	copy(b[32:], inner[:])
	return sha256.Sum256(b[:])
}

// SetBase sets the base point, a verifier's nonce that all later extensions
// hold. It changes nothing that was extended before.
func (m *Model) SetBase(base ID) { m.base, m.stateKnown = base, false }

// Base is the base point, zero unless it was set.
func (m *Model) Base() ID { return m.base }

// Aggregate is the platform's aggregate as the measurement begins with it.
func (m *Model) Aggregate() (aggregate ID, has bool) { return m.aggregate, m.hasAggregate }

// Platform is the aggregate as it would have to be set for the measurement to
// begin as it does: zero where none was. There is none where points came first.
func (m *Model) Platform() (platform ID, has bool) {
	has = m.hasPlatform || m.hasAggregate && m.aggregate == m.extend(ID{}, ID{})
	return m.platform, has
}

// SetAggregate sets the platform's aggregate. In a sealed model it does
// nothing; another one than before starts the measurement anew.
func (m *Model) SetAggregate(a ID) {
	if m.sealed {
		return
	}
	v := m.extend(ID{}, a)
	m.platform, m.hasPlatform = a, true
	if m.hasAggregate && m.aggregate == v {
		return
	}
	m.measurement, m.aggregate, m.hasAggregate, m.stateKnown = v, v, true, false
}

// Outcome is what an event was to a model.
type Outcome struct {
	Added     bool // the point was new
	Violation bool
}

// Update takes the point of the next event. A point for which there is no room
// is ErrFull in a model that learns, and a violation in a sealed one.
func (m *Model) Update(point ID) (Outcome, error) {
	if !m.hasAggregate {
		m.measurement = m.extend(m.measurement, ID{})
		m.aggregate, m.hasAggregate, m.stateKnown = m.measurement, true, false
	}
	if i, has := m.points.find(&point); has {
		p := &m.points.all[i]
		p.Count++
		return Outcome{Violation: !p.Valid}, nil
	}
	if len(m.points.all) >= m.limit {
		m.overflow++
		if m.sealed {
			return Outcome{Violation: true}, nil
		}
		return Outcome{}, ErrFull
	}
	m.measurement = m.extend(m.measurement, point)
	m.add(Point{Value: point, Valid: !m.sealed, Count: 1})
	if m.sealed {
		m.forensics++
	} else {
		m.trajectory++
	}
	return Outcome{Added: true, Violation: m.sealed}, nil
}

// AddState adds a point of a model file: it extends the measurement, and was
// not seen yet. One that is there already is counted.
func (m *Model) AddState(point ID) error {
	if m.sealed {
		return fmt.Errorf("state: %w", ErrSealed)
	}
	if i, has := m.points.find(&point); has {
		m.points.all[i].Count++
		return nil
	}
	if len(m.points.all) >= m.limit {
		return fmt.Errorf("state: %w", ErrFull)
	}
	m.measurement = m.extend(m.measurement, point)
	m.add(Point{Value: point, Valid: true})
	return nil
}

// Validate makes a point that came while the model was sealed one of its own:
// it was reviewed, or the model learns again.
func (m *Model) Validate(point ID) bool {
	i, has := m.points.find(&point)
	if !has || m.points.all[i].Valid {
		return false
	}
	m.points.all[i].Valid = true
	m.valid++
	return true
}

func (m *Model) add(p Point) {
	m.points.add(p)
	m.stateKnown = false
	if p.Valid {
		m.valid++
	}
}

// Find returns a point by its value.
func (m *Model) Find(point ID) (Point, bool) {
	i, has := m.points.find(&point)
	if !has {
		return Point{}, false
	}
	return m.points.all[i], true
}

// Seal ends learning. Unseal begins it again.
func (m *Model) Seal()   { m.sealed = true }
func (m *Model) Unseal() { m.sealed = false }

// Version counts what people did to the model.
func (m *Model) Version() uint64 { return m.version }

// Touch begins another version.
func (m *Model) Touch() { m.version++ }

// Sealed reports whether the model is sealed.
func (m *Model) Sealed() bool { return m.sealed }

// Measurement is the hash chain over the points in their order.
func (m *Model) Measurement() ID { return m.measurement }

// Points are the points in the order in which they came; not to be changed.
func (m *Model) Points() []Point { return m.points.all }

// Valid counts the points that are no violations.
func (m *Model) Valid() uint64 { return m.valid }

// Trajectory, Forensics and Overflow count points that came while the model
// learned, while it was sealed, and when it was full.
func (m *Model) Trajectory() uint64 { return m.trajectory }
func (m *Model) Forensics() uint64  { return m.forensics }
func (m *Model) Overflow() uint64   { return m.overflow }

// Pseudonym is the name under which a file may change its content.
func Pseudonym(path []byte) ID {
	return sha256.Sum256(appendString(nil, path))
}

// maxPseudonyms bounds those of one model.
const maxPseudonyms = 1 << 16

// AddPseudonym registers one.
func (m *Model) AddPseudonym(p ID) error {
	if len(m.pseudonyms) >= maxPseudonyms {
		return fmt.Errorf("pseudonym: %w", ErrFull)
	}
	if m.pseudonyms == nil {
		m.pseudonyms = map[ID]struct{}{}
	}
	m.pseudonyms[p] = struct{}{}
	return nil
}

// Pseudonyms lists them, ascending.
func (m *Model) Pseudonyms() []ID {
	all := make([]ID, 0, len(m.pseudonyms))
	for p := range m.pseudonyms {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b ID) int { return bytes.Compare(a[:], b[:]) })
	return all
}

// Level replaces the digest of a file that has a pseudonym here.
func (m *Model) Level(e *Event) {
	if len(m.pseudonyms) == 0 || (e.Name != "file_open" && (e.Name != "mmap_file" || !e.HasFile)) {
		return
	}
	if m.pseudonym(e.File.Path) {
		e.File.Digest = zero
	}
}

// pseudonym reports whether a person said that the content of that file may
// change.
func (m *Model) pseudonym(path []byte) bool {
	if len(m.pseudonyms) == 0 {
		return false
	}
	_, has := m.pseudonyms[Pseudonym(path)]
	return has
}
