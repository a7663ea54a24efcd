// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
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

// hasFilters, in a generation's number, says that there is something to look up;
// see guest/bpf/filter.h.
const hasFilters = 1 << 31

// filterSet is what the programs are told of a policy's filters: a bit for each.
type filterSet struct {
	bpf.ProbeFilterSet
	keys     map[bpf.ProbeFilterKey]uint64
	prefixes map[string]uint64
}

// compile turns filters into the sets that the programs look bits up in.
func compile(p vsockproto.Policy, generation uint32) *filterSet {
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
		s.on(generation, ofUID, f.Conditions&vsockproto.FilterUID != 0, value, bit)
		binary.LittleEndian.PutUint64(value[:], f.Cgroup)
		s.on(generation, ofCgroup, f.Conditions&vsockproto.FilterCgroup != 0, value, bit)
		s.on(generation, ofProgram, f.Conditions&vsockproto.FilterProgram != 0, f.Program, bit)
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
func (s *filterSet) on(generation, kind uint32, named bool, value [32]byte, bit uint64) {
	if !named {
		s.Any[kind] |= bit
		return
	}
	s.keys[bpf.ProbeFilterKey{Generation: generation, Kind: kind, Value: value}] |= bit
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

// prepare writes the filters of a policy where none are in force, and returns
// which generation that is. Called with steer held.
func (s *Sensor) prepare(p vsockproto.Policy) (generation uint32, err error) {
	c, err := s.config()
	if err != nil {
		return 0, err
	}
	generation = (c.Generation + 1) &^ hasFilters
	slot := generation & 1
	if len(p.Filters) > 0 {
		generation |= hasFilters
	}
	set := compile(p, slot)
	if err := s.writeKeys(slot, set); err != nil {
		return 0, fmt.Errorf("filters: %w", err)
	}
	if err := s.writePrefixes(slot, set); err != nil {
		return 0, fmt.Errorf("filters' paths: %w", err)
	}
	if err := s.objects.FilterSets.Put(slot, &set.ProbeFilterSet); err != nil {
		return 0, fmt.Errorf("filters: %w", err)
	}
	return generation, nil
}

// writeKeys makes the keys of a generation those of set.
func (s *Sensor) writeKeys(slot uint32, set *filterSet) error {
	var old []bpf.ProbeFilterKey
	var key bpf.ProbeFilterKey
	var bits uint64
	it := s.objects.FilterKeys.Iterate()
	for it.Next(&key, &bits) {
		if key.Generation == slot {
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

// writePrefixes puts a new map of prefixes where a generation's is looked for.
// Without any there is none to look into.
func (s *Sensor) writePrefixes(slot uint32, set *filterSet) error {
	if len(set.prefixes) == 0 {
		if err := s.objects.FilterPaths.Delete(slot); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
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
	return s.objects.FilterPaths.Put(slot, uint32(m.FD()))
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
	if err != nil || set == nil {
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

// filters returns those in force, nil: there was never a policy.
func (s *Sensor) filters() (*bpf.ProbeFilterSet, error) {
	s.mu.Lock()
	c, err := s.config()
	s.mu.Unlock()
	if err != nil || c.Generation == 0 {
		return nil, err
	}
	set := &bpf.ProbeFilterSet{}
	if err := s.objects.FilterSets.Lookup(c.Generation&1, set); err != nil {
		return nil, fmt.Errorf("read filters: %w", err)
	}
	return set, nil
}
