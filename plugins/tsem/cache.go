package tsem

import (
	"bytes"
	"hash/maphash"
)

// cache remembers the coefficients of preimages: a repeat costs one fast hash
// and one comparison instead of three SHA-256. Each place holds the last
// preimage that fell there. The seed is random, so that a guest cannot aim.
type cache struct {
	seed  maphash.Seed
	slots []slot
}

const (
	cacheSlots   = 1 << 12
	cacheLargest = 512 // longer preimages are computed each time
)

type slot struct {
	key   []byte
	value Coefficients
}

func newCache() cache { return cache{seed: maphash.MakeSeed(), slots: make([]slot, cacheSlots)} }

func (c *cache) slot(key []byte) *slot {
	return &c.slots[maphash.Bytes(c.seed, key)%cacheSlots]
}

func (s *slot) holds(key []byte) bool { return len(key) <= cacheLargest && bytes.Equal(s.key, key) }

func (s *slot) keep(key []byte, c Coefficients) {
	if len(key) <= cacheLargest {
		s.key, s.value = append(s.key[:0], key...), c
	} else {
		s.key = s.key[:0]
	}
}
