package tsem

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Model is one security model: the points that were seen, in order, and what
// follows from them. Sealed, it knows a violation when it sees one.
// Source: Quixote SecurityModel/TSEM.c, see SPEC section 5.
type Model struct {
	base, measurement, aggregate ID
	hasAggregate                 bool
	sealed                       bool
	loading                      bool
	poisoned                     bool

	points     []Point
	index      map[ID]uint32 // place in points
	pseudonyms map[ID]struct{}
	limit      int

	trajectory uint64 // points that came while it was not sealed
	forensics  uint64 // and while it was
	overflow   uint64 // points for which there was no room

	state      ID // valid while stateKnown
	stateKnown bool
}

// Point is one security state point of a model.
type Point struct {
	Value ID
	Valid bool   // false: it came when the model was sealed
	Count uint64 // 0: loaded and not seen yet
}

// DefaultMaxPoints bounds the points of one model.
const DefaultMaxPoints = 1 << 18

// Errors to branch on.
var (
	ErrPoisoned = errors.New("model is poisoned by an earlier error")
	ErrLoading  = errors.New("model is being loaded")
	ErrSealed   = errors.New("model is sealed")
	ErrFull     = errors.New("model is full")
)

// NewModel makes an empty model that learns; limit bounds its points, 0 means
// DefaultMaxPoints.
func NewModel(limit int) *Model {
	if limit <= 0 {
		limit = DefaultMaxPoints
	}
	return &Model{index: map[ID]uint32{}, limit: limit}
}

// extend is SHA256(m || SHA256(base || v)).
func (m *Model) extend(to, v ID) ID {
	var b [64]byte
	copy(b[:], m.base[:])
	copy(b[32:], v[:])
	inner := sha256.Sum256(b[:])
	copy(b[:], to[:])
	copy(b[32:], inner[:])
	return sha256.Sum256(b[:])
}

// SetAggregate sets the platform's aggregate. In a sealed model it does
// nothing; another one than before starts the measurement anew.
func (m *Model) SetAggregate(a ID) {
	if m.sealed {
		return
	}
	v := m.extend(ID{}, a)
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
	if m.poisoned {
		return Outcome{}, ErrPoisoned
	}
	if m.loading {
		m.poisoned = true
		return Outcome{}, ErrLoading
	}
	if !m.hasAggregate {
		m.measurement = m.extend(m.measurement, ID{})
		m.aggregate, m.hasAggregate, m.stateKnown = m.measurement, true, false
	}
	if i, has := m.index[point]; has {
		p := &m.points[i]
		p.Count++
		return Outcome{Violation: !p.Valid}, nil
	}
	if len(m.points) >= m.limit {
		m.overflow++
		if m.sealed {
			return Outcome{Violation: true}, nil
		}
		return Outcome{}, ErrFull
	}
	m.measurement = m.extend(m.measurement, point)
	m.append(point, !m.sealed, 1)
	if m.sealed {
		m.forensics++
	} else {
		m.trajectory++
	}
	return Outcome{Added: true, Violation: m.sealed}, nil
}

// Validate makes a point that came while the model was sealed one of its own,
// when the model learns again.
func (m *Model) Validate(point ID) bool {
	i, has := m.index[point]
	if !has || m.sealed || m.points[i].Valid {
		return false
	}
	m.points[i].Valid = true
	return true
}

func (m *Model) append(point ID, valid bool, count uint64) {
	m.index[point] = uint32(len(m.points))
	m.points = append(m.points, Point{point, valid, count})
	m.stateKnown = false
}

// Seal ends learning. Unseal begins it again.
func (m *Model) Seal()   { m.sealed = true }
func (m *Model) Unseal() { m.sealed = false }

// Sealed reports whether the model is sealed.
func (m *Model) Sealed() bool { return m.sealed }

// Measurement is the hash chain over the points in their order.
func (m *Model) Measurement() ID { return m.measurement }

// Points are the points in the order in which they came; not to be changed.
func (m *Model) Points() []Point { return m.points }

// Valid counts the points that are no violations.
func (m *Model) Valid() (n uint64) {
	for i := range m.points {
		if m.points[i].Valid {
			n++
		}
	}
	return n
}

// Trajectory, Forensics and Overflow count points that came while the model
// learned, while it was sealed, and when it was full.
func (m *Model) Trajectory() uint64 { return m.trajectory }
func (m *Model) Forensics() uint64  { return m.forensics }
func (m *Model) Overflow() uint64   { return m.overflow }

// State is the hash chain over the aggregate and all points in the order of
// their bytes: the same for every order in which they came.
func (m *Model) State() ID {
	if m.stateKnown {
		return m.state
	}
	values := make([]ID, len(m.points))
	for i := range m.points {
		values[i] = m.points[i].Value
	}
	slices.SortFunc(values, func(a, b ID) int { return bytes.Compare(a[:], b[:]) })
	s := m.aggregate
	for _, v := range values {
		s = m.extend(s, v)
	}
	m.state, m.stateKnown = s, true
	return s
}

// Pseudonym is the name under which a file may change its content.
func Pseudonym(path []byte) ID {
	return sha256.Sum256(appendString(nil, path))
}

// maxPseudonyms bounds those of one model.
const maxPseudonyms = 1 << 12

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

// apply replaces the digest of a file that has a pseudonym here.
func (m *Model) apply(e *Event) {
	if len(m.pseudonyms) == 0 || (e.Name != "file_open" && (e.Name != "mmap_file" || !e.HasFile)) {
		return
	}
	if _, has := m.pseudonyms[Pseudonym(e.File.Path)]; has {
		e.File.Digest = zero
	}
}

// Load takes one line of a model file.
// Source: Quixote SecurityModel/TSEM.c, see SPEC section 6.4.
func (m *Model) Load(line string) error {
	word, arg, _ := strings.Cut(line, " ")
	if word != "signature" && word != "end" {
		m.loading = true
	}
	switch {
	case line == "":
		return fmt.Errorf("model line: empty")
	case line[0] == '#', word == "key", word == "signature":
		return nil
	case word == "seal":
		m.sealed = true
		return nil
	case word == "end":
		m.loading = false
		return nil
	}
	v, err := parseID(arg)
	if err != nil {
		return fmt.Errorf("model line %.20q: %w", line, err)
	}
	switch word {
	case "base":
		m.base = v
	case "aggregate":
		m.SetAggregate(v)
	case "pseudonym":
		return m.AddPseudonym(v)
	case "state":
		return m.loadState(v)
	default:
		return fmt.Errorf("model line %.20q: unknown", line)
	}
	return nil
}

func (m *Model) loadState(v ID) error {
	if m.sealed {
		return fmt.Errorf("state: %w", ErrSealed)
	}
	if i, has := m.index[v]; has {
		m.points[i].Count++
		return nil
	}
	if len(m.points) >= m.limit {
		return fmt.Errorf("state: %w", ErrFull)
	}
	m.measurement = m.extend(m.measurement, v)
	m.append(v, true, 0)
	return nil
}
