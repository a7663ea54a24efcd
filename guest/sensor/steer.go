// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"runtime/debug"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

// SetPolicy makes the types of a policy reported and no others, but what its
// filters leave out, and attaches their hooks and no others, but for what the books
// need. Those that both the old and the new policy ask for stay attached throughout,
// so that nothing is lost. The new types and filters come into force at once, for
// records that are begun from then on. A hook that the kernel does not have is left
// out; Hooks says so. On an error all is as it was.
func (s *Sensor) SetPolicy(p vsockproto.Policy) error {
	for _, t := range p.Hooks {
		if !t.Known() {
			return fmt.Errorf("report %s: %w", t, vsockproto.ErrInvalid)
		}
	}
	wanted := setOf(p.Hooks...)
	s.steer.Lock()
	defer s.steer.Unlock()
	fresh, err := s.add(wanted)
	var next policy
	if err == nil {
		next, err = s.prepare(p)
	}
	if err == nil {
		err = s.configure(func(c *bpf.ProbeAgentConfig) {
			c.Further, c.Policy = bpf.FurtherBuild(), uint8(next)
		})
	}
	if err != nil {
		return errors.Join(err, s.drop(fresh))
	}
	lent := lsm(vsockproto.MmapFile)
	var gone []string
	for _, h := range hooks {
		if s.links[h.program] != nil && !h.wanted(wanted) && (!s.looking || h.program != mmapFile) {
			gone = append(gone, h.program)
		}
	}
	s.steered = s.looking
	if s.lent && lent.wanted(wanted) { // it is the policy's from here on
		s.lent, err = false, s.links[mmapFile].Pin(s.loader.link(mmapFile))
	}
	return errors.Join(err, s.drop(gone), s.tell())
}

// add attaches what want asks for and is not attached, and names it. Called with
// steer held.
func (s *Sensor) add(want hookSet) (fresh []string, err error) {
	var missing []hook
	for _, h := range s.loader.hooks() {
		if s.links[h.program] == nil && h.wanted(want) {
			missing = append(missing, h)
		}
	}
	if err := s.loader.loadMore(s, missing); err != nil {
		return nil, err
	}
	if err := s.forgetMakers(missing); err != nil {
		return nil, err
	}
	for _, h := range missing {
		k, err := attach(s.objects.programs[h.program])
		if err != nil {
			return fresh, fmt.Errorf("attach %s: %w", h.program, err)
		}
		s.links[h.program] = k
		fresh = append(fresh, h.program)
		if err := k.Pin(s.loader.link(h.program)); err != nil {
			return fresh, fmt.Errorf("pin %s: %w", h.program, err)
		}
	}
	return fresh, nil
}

// forgetMakers empties the labels of System V objects where a program that keeps
// them is about to be attached: one that was freed meanwhile still has its label, and
// another may have its address by now.
func (s *Sensor) forgetMakers(missing []hook) error {
	if !slices.ContainsFunc(missing, func(h hook) bool { return slices.Contains(ipcBooks, h.program) }) {
		return nil
	}
	var object uint64
	var label bpf.ProbeSocketLabel
	var stale []uint64
	all := s.objects.IpcLabels.Iterate()
	for all.Next(&object, &label) {
		stale = append(stale, object)
	}
	if err := all.Err(); err != nil {
		return fmt.Errorf("forget who made System V objects: %w", err)
	}
	for _, object := range stale {
		if err := s.objects.IpcLabels.Delete(object); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget who made a System V object: %w", err)
		}
	}
	return nil
}

// drop detaches programs and, but for the first twelve, gives them up. Called
// with steer held.
func (s *Sensor) drop(names []string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, unpin(s.loader.link(name)), s.links[name].Close())
		delete(s.links, name)
		if isFurther(name) {
			errs = append(errs, s.objects.programs[name].Close())
			delete(s.objects.programs, name)
		}
	}
	return errors.Join(errs...)
}

func isFurther(program string) bool {
	for _, h := range hooks {
		if h.program == program {
			return h.event > vsockproto.TaskSnapshot && h.event < vsockproto.CgroupMkdir || slices.Contains(ipcBooks, program)
		}
	}
	return false
}

// inForce is what an earlier agent was asked to report, if there was one.
func (l *loader) inForce() hookSet {
	m, err := ebpf.LoadPinnedMap(filepath.Join(l.pins, "config"), nil)
	if err != nil {
		return byDefault
	}
	defer m.Close()
	var c bpf.ProbeAgentConfig
	if err := m.Lookup(uint32(0), &c); err != nil || c.Policy == 0 { // of another build, or never set
		return byDefault
	}
	return wants(&c, policy(c.Policy))
}

// loadMore loads the programs of hooks that are not loaded yet.
func (l *loader) loadMore(s *Sensor, missing []hook) error {
	first, further := make(map[string]bool), make(map[string]bool)
	for _, h := range missing {
		switch {
		case s.objects.programs[h.program] != nil:
		case isFurther(h.program):
			further[h.program] = true
		default: // an earlier agent had given it up
			first[h.program] = true
		}
	}
	if len(first)+len(further) == 0 {
		return nil
	}
	defer debug.FreeOSMemory() // of what it took to load them
	return errors.Join(
		l.loadOf(s, first, bpf.LoadProbe, l.fit),
		l.loadOf(s, further, bpf.LoadFurther, l.fitFurther),
	)
}

func (l *loader) fitFurther(spec *ebpf.CollectionSpec) error {
	if err := l.fitMaps(spec); err != nil {
		return err
	}
	ofSetattr, err := arguments(l.kernel, setattr)
	if err != nil {
		return err
	}
	values := map[string]bool{"setattr_takes_idmap": ofSetattr == 3, "perf_takes_attr": false}
	if l.has("bpf_lsm_" + perfEventOpen) {
		n, err := arguments(l.kernel, perfEventOpen)
		if err != nil {
			return err
		}
		values["perf_takes_attr"] = n == 2
	}
	return l.fitReads(spec, values)
}

// loadOf loads some programs of an object, with the maps of what is attached.
func (l *loader) loadOf(s *Sensor, wanted map[string]bool, load func() (*ebpf.CollectionSpec, error), fit func(*ebpf.CollectionSpec) error) error {
	if len(wanted) == 0 {
		return nil
	}
	spec, err := load()
	if err != nil {
		return err
	}
	forget, err := l.learn(spec)
	if err != nil {
		return err
	}
	defer forget()
	if err := fit(spec); err != nil {
		return err
	}
	maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return !wanted[name] })
	shared, err := s.sharedMaps()
	defer func() {
		for _, m := range shared {
			m.Close()
		}
	}()
	if err != nil {
		return err
	}
	all, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		Maps:            ebpf.MapOptions{PinPath: l.pins},
		Programs:        ebpf.ProgramOptions{KernelTypes: l.kernel},
		Cache:           l.cache,
		MapReplacements: shared,
	})
	if err != nil {
		return fmt.Errorf("load programs: %w", err)
	}
	defer all.Close()
	maps.Copy(s.objects.programs, all.Programs)
	all.Programs = nil
	return nil
}

// sharedMaps opens the maps that the attached programs use and that are not
// pinned: what is loaded later has to know the same digests and the same tasks
// that are busy, also where an earlier agent attached what is there.
func (s *Sensor) sharedMaps() (map[string]*ebpf.Map, error) {
	shared := make(map[string]*ebpf.Map)
	for _, of := range []string{fileOpen, postOpen, "bprm_committed_creds", mmapFile} {
		k := s.links[of]
		if k == nil {
			continue
		}
		if err := gather(k, shared); err != nil {
			return shared, fmt.Errorf("maps of %s: %w", of, err)
		}
	}
	return shared, nil
}

// privateMaps are those that the programs share, are not pinned, and hold what
// must not be there twice.
var privateMaps = []string{"scratches", "committed", "digests"}

// gather opens those of the maps of a link's program that are not in into.
func gather(k link.Link, into map[string]*ebpf.Map) error {
	p, err := linked(k)
	if err != nil {
		return err
	}
	defer p.Close()
	ids, err := mapsOf(p)
	if err != nil {
		return err
	}
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return fmt.Errorf("open map %d: %w", id, err)
		}
		info, err := m.Info()
		if err != nil || into[info.Name] != nil || !slices.Contains(privateMaps, info.Name) {
			m.Close()
			continue
		}
		into[info.Name] = m
	}
	return nil
}
