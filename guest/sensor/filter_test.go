// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

// matches is what the programs do with a set: guest/bpf/filter.h, is_filtered.
func (s *filterSet) matches(t vsockproto.EventType, uid uint32, cgroup uint64, program [32]byte, path string) bool {
	var id, group [32]byte
	binary.LittleEndian.PutUint32(id[:], uid)
	binary.LittleEndian.PutUint64(group[:], cgroup)
	bits := s.Types[t]
	for kind, value := range map[uint32][32]byte{ofUID: id, ofCgroup: group, ofProgram: program} {
		bits &= s.Any[kind] | s.keys[bpf.ProbeFilterKey{Place: 1, Kind: kind, Value: value}]
	}
	longest := ""
	for prefix := range s.prefixes {
		if len(prefix) > len(longest) && len(path) >= len(prefix) && path[:len(prefix)] == prefix {
			longest = prefix
		}
	}
	return bits&(s.Any[ofPath]|s.prefixes[longest]) != 0
}

func TestCompile(t *testing.T) {
	const bulk = vsockproto.Bulk
	program := [32]byte{1, 2, 3}
	s := compile(vsockproto.Policy{
		Number: 9,
		Hooks:  []vsockproto.EventType{vsockproto.BprmCommittedCreds, vsockproto.FileOpen, vsockproto.MmapFile, vsockproto.SocketCreate},
		Filters: []vsockproto.Filter{
			{Type: vsockproto.FileOpen, Class: bulk, Path: "/var/"},
			{Type: vsockproto.FileOpen, Class: bulk, Path: "/var/log/", Conditions: vsockproto.FilterUID, UID: 33},
			{Class: bulk, Conditions: vsockproto.FilterUID | vsockproto.FilterProgram, UID: 44, Program: program},
			{Class: bulk, Path: "/srv/", Conditions: vsockproto.FilterCgroup, Cgroup: 7},
		},
	}, 1)
	if s.Number != 9 || s.Programs != 1<<2 {
		t.Errorf("number %d, programs %b", s.Number, s.Programs)
	}
	for _, tc := range []struct {
		t       vsockproto.EventType
		uid     uint32
		cgroup  uint64
		program [32]byte
		path    string
		want    bool
	}{
		{vsockproto.FileOpen, 0, 0, [32]byte{}, "/var/lib/x", true},
		{vsockproto.FileOpen, 0, 0, [32]byte{}, "/var/log/x", true}, // the longer prefix has the shorter one's filters
		{vsockproto.FileOpen, 0, 0, [32]byte{}, "/var", false},
		{vsockproto.FileOpen, 0, 0, [32]byte{}, "/srv/x", false},
		{vsockproto.FileOpen, 0, 7, [32]byte{}, "/srv/x", true},
		{vsockproto.MmapFile, 0, 7, [32]byte{}, "/srv/x", true},
		{vsockproto.MmapFile, 0, 0, [32]byte{}, "/var/lib/x", false},
		{vsockproto.SocketCreate, 0, 7, [32]byte{}, "", false}, // has no path
		{vsockproto.SocketCreate, 44, 0, program, "", true},
		{vsockproto.SocketCreate, 44, 0, [32]byte{}, "", false},
		{vsockproto.SocketCreate, 0, 0, program, "", false},
		{vsockproto.BprmCommittedCreds, 44, 7, program, "/srv/x", false},
		{vsockproto.SocketBind, 44, 0, program, "", false}, // not of the policy
	} {
		if got := s.matches(tc.t, tc.uid, tc.cgroup, tc.program, tc.path); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

// TestPolicies: policies that follow each other differ in their bits and take turns with
// the two places, and what one wants leaves the others as they are.
func TestPolicies(t *testing.T) {
	var c bpf.ProbeAgentConfig
	var seen []policy
	p := firstPolicy
	for i := range 3 * policies {
		if p.place() != uint32(i%2) || (p|hasFilters).place() != p.place() || (p|hasFilters).next() != p.next() {
			t.Errorf("policy %d, %#x: place %d", i, p, p.place())
		}
		if slices.Contains(seen, p) != (i >= policies) || p.bit() != p {
			t.Errorf("policy %d has %#x, after %#x", i, p, seen)
		}
		seen = append(seen, p)
		before, now := wants(&c, p.next()), setOf(vsockproto.EventType(1+i), vsockproto.FileOpen, 255)
		want(&c, p, now)
		if wants(&c, p|hasFilters) != now || wants(&c, p.next()) != before {
			t.Errorf("policy %d: wants %v, the next one %v", i, wants(&c, p), wants(&c, p.next()))
		}
		p = p.next()
	}
}

func TestCompileNothing(t *testing.T) {
	s := compile(vsockproto.Policy{Number: 3, Hooks: vsockproto.PolicyTypes()}, 0)
	if s.Number != 0 || s.Types != [256]uint64{} || s.Programs != 0 || len(s.keys)+len(s.prefixes) != 0 {
		t.Errorf("%+v", s.ProbeFilterSet)
	}
}

// TestPrefixMapFits: what is put into the outer map is what the programs expect.
func TestPrefixMapFits(t *testing.T) {
	spec, err := bpf.LoadProbe()
	if err != nil {
		t.Fatal(err)
	}
	inner, ours := spec.Maps["filter_paths"].InnerMap, prefixMap()
	if inner.Type != ebpf.LPMTrie || inner.KeySize != ours.KeySize || inner.ValueSize != ours.ValueSize ||
		inner.MaxEntries != ours.MaxEntries || inner.Flags != ours.Flags {
		t.Errorf("the programs expect %+v, it is %+v", inner, ours)
	}
	for _, name := range []string{"filter_sets", "filter_keys", "filter_paths", "filtered"} {
		if !slices.Contains(pinned, name) {
			t.Errorf("%s is not pinned: an agent that took over would not see it", name)
		}
	}
}
