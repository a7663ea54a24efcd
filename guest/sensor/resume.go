// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/outguard/outguard/guest/bpf"
)

// resume takes over the links of an earlier agent if every one of the first
// twelve that want asks for is there, holds the very program that we would
// attach, and writes to our maps. A link that is not asked for was left by an
// agent that ended while it put a policy into force; it goes.
func (l *loader) resume(s *Sensor, want hookSet) (bool, error) {
	if old, err := filepath.Glob(l.link("*")); err != nil || len(old) == 0 {
		return false, err
	}
	c, err := s.config()
	if err != nil {
		return false, err
	}
	for _, h := range l.hooks() {
		further := isFurther(h.program)
		if !h.wanted(want) || further && c.Further != bpf.FurtherBuild() {
			if err := unpin(l.link(h.program)); err != nil {
				return false, err
			}
			continue
		}
		got, err := l.same(h.program, s.objects.programs[h.program])
		switch {
		case err == nil:
			s.links[h.program] = got
		case further: // the host asks for it again
			l.log.Info("not taken over", "hook", h.program, "reason", err)
		default:
			l.log.Info("replacing the programs of an earlier agent", "hook", h.program, "reason", err)
			return false, s.dropLinks()
		}
	}
	return true, s.takeOver()
}

// takeOver puts the programs that are attached in the place of ours, and gives
// up ours that are not: what is attached later has to be loaded with the maps of
// what is there.
func (s *Sensor) takeOver() error {
	var errs []error
	for name, p := range s.objects.programs {
		if name == snapshot || name == adopter {
			continue
		}
		errs = append(errs, p.Close())
		delete(s.objects.programs, name)
	}
	for name, k := range s.links {
		p, err := linked(k)
		if err == nil {
			s.objects.programs[name] = p
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func unpin(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove link: %w", err)
	}
	return nil
}

// same opens the link of a hook if it is what we would make ourselves. Of a
// further hook ours is not loaded; that the object is the same is known.
func (l *loader) same(name string, ours *ebpf.Program) (link.Link, error) {
	got, err := link.LoadPinnedLink(l.link(name), nil)
	if err != nil {
		return nil, fmt.Errorf("open link: %w", err)
	}
	if ours == nil {
		return got, nil
	}
	if err := l.sameProgram(got, ours); err != nil {
		return nil, errors.Join(err, got.Close())
	}
	return got, nil
}

var errOther = errors.New("of another build")

func (l *loader) sameProgram(got link.Link, ours *ebpf.Program) error {
	theirs, err := linked(got)
	if err != nil {
		return err
	}
	defer theirs.Close()
	a, err := tagOf(ours)
	if err != nil {
		return err
	}
	b, err := tagOf(theirs)
	if err != nil {
		return err
	}
	if a != b {
		return fmt.Errorf("program: %w", errOther)
	}
	return l.sameMaps(ours, theirs)
}

// sameMaps checks that theirs uses every pinned map that ours uses.
func (l *loader) sameMaps(ours, theirs *ebpf.Program) error {
	a, err := mapsOf(ours)
	if err != nil {
		return err
	}
	b, err := mapsOf(theirs)
	if err != nil {
		return err
	}
	for _, name := range pinned {
		id, err := pinnedID(filepath.Join(l.pins, name))
		if err != nil {
			return err
		}
		if slices.Contains(a, id) && !slices.Contains(b, id) {
			return fmt.Errorf("map %s: %w", name, errOther)
		}
	}
	return nil
}

func mapsOf(p *ebpf.Program) ([]ebpf.MapID, error) {
	info, err := p.Info()
	if err != nil {
		return nil, fmt.Errorf("program info: %w", err)
	}
	ids, _ := info.MapIDs()
	return ids, nil
}

func pinnedID(path string) (ebpf.MapID, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return 0, fmt.Errorf("open pinned map: %w", err)
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("map info: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

func (s *Sensor) dropLinks() error {
	var errs []error
	for name, l := range s.links {
		errs = append(errs, l.Close())
		delete(s.links, name)
	}
	return errors.Join(errs...)
}
