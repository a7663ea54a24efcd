// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

// The kinds of guest/bpf/filter.h; 0 is the path.
const (
	ofPath = iota
	ofUID
	ofCgroup
	ofProgram
	kinds
)

// policy is the bit of one, and whether it has filters; see guest/bpf/maps.h.
type policy uint8

const (
	policies           = 6
	firstPolicy policy = 1
	hasFilters  policy = 0x80
)

func (p policy) bit() policy { return p &^ hasFilters }

// next is the bit of the policy that comes after p.
func (p policy) next() policy {
	if p.bit() == 0 || p.bit() == 1<<(policies-1) {
		return firstPolicy
	}
	return p.bit() << 1
}

// place is where the programs look for its filters.
func (p policy) place() uint32 { return uint32(bits.TrailingZeros8(uint8(p.bit()))) & 1 }

// wants is what the programs are to report by p.
func wants(c *bpf.ProbeAgentConfig, p policy) (s hookSet) {
	for t, by := range c.Hooks {
		if policy(by)&p.bit() != 0 {
			s.add(vsockproto.EventType(t))
		}
	}
	return s
}

// want makes s what the programs are to report once p is in force.
func want(c *bpf.ProbeAgentConfig, p policy, s hookSet) {
	for t := range c.Hooks {
		c.Hooks[t] &^= uint8(p.bit())
		if s.has(vsockproto.EventType(t)) {
			c.Hooks[t] |= uint8(p.bit())
		}
	}
}

// filterSet is what the programs are told of a policy's filters: a bit for each.
type filterSet struct {
	bpf.ProbeFilterSet
	keys     map[bpf.ProbeFilterKey]uint64
	prefixes map[string]uint64
}

// compile turns filters into the sets that the programs look bits up in.
func compile(p vsockproto.Policy, place uint32) *filterSet {
	s := &filterSet{keys: map[bpf.ProbeFilterKey]uint64{}, prefixes: map[string]uint64{}}
	if len(p.Filters) > 0 {
		s.Number = p.Number
	}
	for i, f := range p.Filters {
		bit := uint64(1) << i
		for _, t := range p.Hooks {
			if f.Type == t || f.Type == 0 && t.Class() == f.Class && (f.Path == "" || t.TakesPrefix()) {
				s.Types[t] |= bit
			}
		}
		var value [32]byte
		binary.LittleEndian.PutUint32(value[:], f.UID)
		s.on(place, ofUID, f.Conditions&vsockproto.FilterUID != 0, value, bit)
		binary.LittleEndian.PutUint64(value[:], f.Cgroup)
		s.on(place, ofCgroup, f.Conditions&vsockproto.FilterCgroup != 0, value, bit)
		s.on(place, ofProgram, f.Conditions&vsockproto.FilterProgram != 0, f.Program, bit)
		if f.Path == "" {
			s.Any[ofPath] |= bit
			continue
		}
		s.prefixes[f.Path] |= bit
	}
	s.Programs = (1<<len(p.Filters) - 1) &^ s.Any[ofProgram]
	s.spread()
	return s
}

// on notes what a filter says of one kind of condition.
func (s *filterSet) on(place, kind uint32, named bool, value [32]byte, bit uint64) {
	if !named {
		s.Any[kind] |= bit
		return
	}
	s.keys[bpf.ProbeFilterKey{Place: place, Kind: kind, Value: value}] |= bit
}

// spread gives each prefix the bits of those that it begins with: the longest one
// alone is found.
func (s *filterSet) spread() {
	var all []string
	for p := range s.prefixes {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b string) int { return cmp.Compare(len(a), len(b)) })
	for i, long := range all {
		for _, short := range all[:i] {
			if strings.HasPrefix(long, short) {
				s.prefixes[long] |= s.prefixes[short]
			}
		}
	}
}

// prepare writes what a policy wants, and its filters, where the programs do not look
// yet, and returns what makes them look there. Called with steer held.
func (s *Sensor) prepare(p vsockproto.Policy) (policy, error) {
	c, err := s.config()
	if err != nil {
		return 0, err
	}
	next := policy(c.Policy).next()
	if len(p.Filters) > 0 {
		next |= hasFilters
	}
	if err := s.writeFilters(p, next); err != nil {
		return 0, fmt.Errorf("filters: %w", err)
	}
	return next, s.configure(func(c *bpf.ProbeAgentConfig) { want(c, next, setOf(p.Hooks...)) })
}

// writeFilters writes the filters of a policy that the programs are to know as next.
// Where they go are those of the last but one, which some record may still be held to:
// first of all these are nobody's any more.
func (s *Sensor) writeFilters(p vsockproto.Policy, next policy) error {
	place := next.place()
	if err := s.objects.FilterSets.Put(place, &bpf.ProbeFilterSet{}); err != nil {
		return err
	}
	set := compile(p, place)
	if err := s.writeKeys(place, set); err != nil {
		return err
	}
	if err := s.writePrefixes(place, set); err != nil {
		return fmt.Errorf("paths: %w", err)
	}
	set.Policy = uint64(next)
	return s.objects.FilterSets.Put(place, &set.ProbeFilterSet)
}

// writeKeys makes the keys at a place those of set.
func (s *Sensor) writeKeys(place uint32, set *filterSet) error {
	var old []bpf.ProbeFilterKey
	var key bpf.ProbeFilterKey
	var bits uint64
	it := s.objects.FilterKeys.Iterate()
	for it.Next(&key, &bits) {
		if key.Place == place {
			old = append(old, key)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	for _, key := range old {
		if err := s.objects.FilterKeys.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete: %w", err)
		}
	}
	for key, bits := range set.keys {
		if err := s.objects.FilterKeys.Put(&key, bits); err != nil {
			return err
		}
	}
	return nil
}

// writePrefixes puts a new map of prefixes where a place's is looked for.
// Without any there is none to look into.
func (s *Sensor) writePrefixes(place uint32, set *filterSet) error {
	if len(set.prefixes) == 0 {
		if err := s.objects.FilterPaths.Delete(place); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		return nil
	}
	m, err := ebpf.NewMap(prefixMap())
	if err != nil {
		return err
	}
	defer m.Close() // the outer map keeps it
	for prefix, bits := range set.prefixes {
		var key [4 + vsockproto.MaxPrefix]byte
		binary.LittleEndian.PutUint32(key[:], uint32(8*len(prefix)))
		copy(key[4:], prefix)
		if err := m.Put(key[:], bits); err != nil {
			return err
		}
	}
	return s.objects.FilterPaths.Put(place, uint32(m.FD()))
}

// prefixMap is struct prefix_trie of guest/bpf/filter.h.
func prefixMap() *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: "prefixes", Type: ebpf.LPMTrie, KeySize: 4 + vsockproto.MaxPrefix, ValueSize: 8,
		MaxEntries: vsockproto.MaxFilters, Flags: noPrealloc,
	}
}

const noPrealloc = 1 // BPF_F_NO_PREALLOC

// Filtering tells of the filters in force: of which policy they are, and how many
// records were left out since the boot.
func (s *Sensor) Filtering() (f vsockproto.Filtering, err error) {
	set, err := s.filters()
	if err != nil {
		return f, err
	}
	f.Number = set.Number
	for cpu := range uint32(s.cpus) {
		var n uint64
		if err := s.objects.Filtered.Lookup(cpu, &n); err != nil {
			return f, fmt.Errorf("count what is filtered: %w", err)
		}
		f.Filtered += n
	}
	return f, nil
}

// filters returns those in force.
func (s *Sensor) filters() (set bpf.ProbeFilterSet, err error) {
	s.mu.Lock()
	c, err := s.config()
	s.mu.Unlock()
	if err != nil {
		return set, err
	}
	if err := s.objects.FilterSets.Lookup(policy(c.Policy).place(), &set); err != nil {
		return set, fmt.Errorf("read filters: %w", err)
	}
	if set.Policy != uint64(c.Policy) { // no policy of the host's has been in force
		return bpf.ProbeFilterSet{}, nil
	}
	return set, nil
}
