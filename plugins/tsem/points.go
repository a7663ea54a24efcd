package tsem

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
)

// Point is one security state point of a model.
type Point struct {
	Value ID
	Count uint64 // times seen; 0: loaded and not seen yet
	note  uint32 // 1 more than where its note begins; 0: it has none
	Valid bool   // false: it came when the model was sealed
}

// points are points in the order in which they came, and a table of their
// places: 4 bytes a place and half of them free, where a map would keep each
// value once more.
type points struct {
	all   []Point
	table []uint32 // place+1 in all; 0: free
	odd   uint64   // random, so that a guest cannot aim
	shift uint     // 64 less the bits of the table's size
}

const smallestTable = 64

// slot is where the search for v begins: multiplicative hashing.
func (p *points) slot(v *ID) uint64 {
	return (binary.LittleEndian.Uint64(v[:]) * p.odd) >> p.shift
}

// find returns the place of v.
func (p *points) find(v *ID) (place int, has bool) {
	if len(p.table) == 0 {
		return 0, false
	}
	mask := uint64(len(p.table) - 1)
	for i := p.slot(v); ; i = (i + 1) & mask {
		n := p.table[i]
		if n == 0 {
			return 0, false
		}
		if p.all[n-1].Value == *v {
			return int(n - 1), true
		}
	}
}

// add appends a point that is not there.
func (p *points) add(v Point) {
	p.all = append(p.all, v)
	if 2*len(p.all) > len(p.table) {
		p.grow()
		return
	}
	p.enter(len(p.all) - 1)
}

func (p *points) enter(place int) {
	mask := uint64(len(p.table) - 1)
	i := p.slot(&p.all[place].Value)
	for p.table[i] != 0 {
		i = (i + 1) & mask
	}
	p.table[i] = uint32(place + 1)
}

func (p *points) grow() {
	p.odd = rand.Uint64() | 1
	p.table = make([]uint32, max(2*len(p.table), smallestTable))
	p.shift = uint(64 - bits.TrailingZeros(uint(len(p.table))))
	for place := range p.all {
		p.enter(place)
	}
}
