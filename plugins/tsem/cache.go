package tsem

import (
	"bytes"
	"hash/maphash"
)

// cache remembers the coefficients of preimages: a repeat costs one fast hash
// and one comparison instead of three SHA-256. A preimage takes its place when
// it comes there twice with no other in between, so that a model of more events
// than there are places does not spend its time on copying. The seed is random,
// so that a guest cannot aim.
type cache struct {
	seed  maphash.Seed
	slots []slot
}

const (
	cacheSlots   = 1 << 12
	cacheLargest = 512 // longer preimages are computed each time
)

type slot struct {
	hash  uint64 // of key
	came  uint64 // the hash of the last one that was not key
	key   []byte
	value Coefficients
}

func newCache() cache { return cache{seed: maphash.MakeSeed(), slots: make([]slot, cacheSlots)} }

func (c *cache) slot(key []byte) (s *slot, hash uint64) {
	hash = maphash.Bytes(c.seed, key)
	return &c.slots[hash%cacheSlots], hash
}

func (s *slot) holds(key []byte, hash uint64) bool { return s.hash == hash && bytes.Equal(s.key, key) }

func (s *slot) keep(key []byte, hash uint64, c *Coefficients) {
	if s.came != hash || len(key) > cacheLargest {
		s.came = hash
		return
	}
	s.hash, s.key, s.value = hash, append(s.key[:0], key...), *c
}
