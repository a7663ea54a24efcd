// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

// everything is the set of hooks until the host has said otherwise.
func everything() (bits uint64) {
	for _, t := range vsockproto.EventTypes() {
		bits |= 1 << t
	}
	return bits
}

// resume takes over the links of an earlier agent if every one of them is
// there, holds the very program that we would attach, and writes to our maps.
func (l *loader) resume(s *Sensor) (bool, error) {
	if old, err := filepath.Glob(l.link("*")); err != nil || len(old) == 0 {
		return false, err
	}
	all := programs(&s.objects)
	for _, h := range l.hooks() {
		got, err := l.same(h.program, all[h.program])
		if err != nil {
			l.log.Info("replacing the programs of an earlier agent", "hook", h.program, "reason", err)
			return false, s.dropLinks()
		}
		if got != nil {
			s.links[h.program] = got
		}
	}
	return true, nil
}

// same opens the link of a hook if it is what we would make ourselves.
func (l *loader) same(name string, ours *ebpf.Program) (link.Link, error) {
	got, err := link.LoadPinnedLink(l.link(name), nil)
	if err != nil {
		return nil, fmt.Errorf("open link: %w", err)
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

// begin attaches every program, writes down what runs already, and then pins:
// an agent that dies on the way leaves no half of it behind. The programs of an
// earlier agent go when ours are there: for a moment both report, since an
// event that comes twice is better than one that nobody misses.
func (l *loader) begin(s *Sensor) error {
	err := s.configure(func(c *bpf.ProbeAgentConfig) {
		if c.Hooks == 0 {
			c.Hooks = everything()
		}
	})
	if err != nil {
		return err
	}
	if err := l.attach(s); err != nil {
		return err
	}
	if err := l.unlink(); err != nil {
		return err
	}
	if err := s.alive(); err != nil {
		return err
	}
	if err := s.Snapshot(); err != nil {
		return err
	}
	for name, k := range s.links {
		if err := k.Pin(l.link(name)); err != nil {
			return fmt.Errorf("pin %s: %w", name, err)
		}
	}
	if err := s.objects.Adopt.Pin(adoptPin(l.pins)); err != nil {
		return fmt.Errorf("pin adopt: %w", err)
	}
	return nil
}

// unlink detaches the programs of an earlier agent.
func (l *loader) unlink() error {
	old, err := filepath.Glob(l.link("*"))
	if err != nil {
		return fmt.Errorf("find links: %w", err)
	}
	if _, err := os.Lstat(adoptPin(l.pins)); err == nil {
		old = append(old, adoptPin(l.pins))
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove link: %w", err)
		}
	}
	return nil
}

func (l *loader) attach(s *Sensor) error {
	all := programs(&s.objects)
	for _, h := range l.hooks() {
		k, err := attach(all[h.program])
		if err != nil && h.needed {
			return fmt.Errorf("attach %s: %w", h.program, err)
		}
		if err != nil {
			l.log.Warn("hook not attached", "hook", h.program, "error", err)
			continue
		}
		s.links[h.program] = k
	}
	return nil
}

// alive proves that the hooks run: attaching succeeds even where BPF is not
// among the kernel's security modules.
func (s *Sensor) alive() error {
	before, err := s.config()
	if err != nil {
		return err
	}
	if err := look("/proc/self/exe"); err != nil {
		return err
	}
	after, err := s.config()
	if err != nil {
		return err
	}
	if after.AgentOpens == before.AgentOpens {
		return fmt.Errorf("the attached programs do not run: %w: %s, and check that /proc/sys/kernel/ftrace_enabled is 1",
			errors.ErrUnsupported, bootWithBPF)
	}
	return nil
}

// Snapshot writes a record for every task that runs. The program of each is
// mapped first, so that its digest is known: an iterator cannot compute one.
func (s *Sensor) Snapshot() error {
	if err := s.digestRunning(); err != nil {
		return err
	}
	it, err := link.AttachIter(link.IterOptions{Program: s.objects.TaskSnapshot})
	if err != nil {
		return fmt.Errorf("iterate tasks: %w", err)
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return fmt.Errorf("iterate tasks: %w", err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); err != nil {
		return fmt.Errorf("iterate tasks: %w", err)
	}
	return nil
}

// digestRunning fills the map of running programs' digests anew.
func (s *Sensor) digestRunning() (err error) {
	if err := empty(s.objects.Running); err != nil {
		return err
	}
	if err := s.configure(func(c *bpf.ProbeAgentConfig) { c.Snapshotting = 1 }); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, s.configure(func(c *bpf.ProbeAgentConfig) { c.Snapshotting = 0 }))
	}()
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for _, exe := range exes {
		// A kernel thread has no program, a task may be gone, a program may lie
		// where nothing can be mapped: those go without a digest.
		_ = look(exe)
	}
	return nil
}

// empty deletes what is in m: an address can be another inode's by now.
func empty(m *ebpf.Map) error {
	var keys []uint64
	var key uint64
	var value [32]byte
	it := m.Iterate()
	for it.Next(&key, &value) {
		keys = append(keys, key)
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("list digests: %w", err)
	}
	for _, key := range keys {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete digest: %w", err)
		}
	}
	return nil
}

// look opens and maps a running program.
func look(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open a running program: %w", err)
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, 1, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("map a running program: %w", err)
	}
	return unix.Munmap(b)
}

func ascending(list []vsockproto.Hook) []vsockproto.Hook {
	slices.SortFunc(list, func(a, b vsockproto.Hook) int { return cmp.Compare(a.Type, b.Type) })
	return list
}
