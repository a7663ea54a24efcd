package tsem

import (
	"bytes"
	"slices"
)

// State is the hash chain over the aggregate and all points in the order of
// their bytes: the same for every order in which they came.
func (m *Model) State() ID {
	if !m.stateKnown {
		s := m.chain()
		m.state, m.stateKnown = s.state(), true
	}
	return m.state
}

// chain is what a state is computed from. It holds for as long as one likes,
// while the model goes on: points are added behind it, and a value never
// changes. So the state of a large model, which takes seconds, is computed
// while the model judges.
type chain struct {
	base, aggregate ID
	points          []Point // of which the values alone may be read
}

func (m *Model) chain() chain { return chain{m.base, m.aggregate, m.points.all} }

// is reports whether c is still what the model's state is of.
func (c *chain) is(m *Model) bool {
	return c.base == m.base && c.aggregate == m.aggregate && len(c.points) == len(m.points.all)
}

func (c *chain) state() ID {
	order := make([]uint32, len(c.points))
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(a, b uint32) int { return bytes.Compare(c.points[a].Value[:], c.points[b].Value[:]) })
	s := c.aggregate
	for _, i := range order {
		s = extend(&c.base, s, c.points[i].Value)
	}
	return s
}
