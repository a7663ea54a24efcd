// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

// Snapshot writes a record for every task that runs. The program of each is
// mapped first, so that its digest is known: an iterator cannot compute one.
func (s *Sensor) Snapshot() error {
	if err := s.digestRunning(); err != nil {
		return err
	}
	if err := empty(s.objects.Named, make([]byte, 8)); err != nil { // each cgroup is named again
		return fmt.Errorf("snapshot: %w", err)
	}
	it, err := link.AttachIter(link.IterOptions{Program: s.objects.programs[snapshot]})
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

// digestRunning fills the map of running programs' digests anew. That is
// mmap_file's doing, which is attached for it where the policy does not ask for it.
func (s *Sensor) digestRunning() (err error) {
	s.steer.Lock()
	defer s.steer.Unlock()
	if s.links[mmapFile] == nil {
		if err := s.loader.loadMore(s, []hook{lsm(vsockproto.MmapFile)}); err != nil {
			return err
		}
		k, err := attach(s.objects.programs[mmapFile])
		if err != nil {
			return fmt.Errorf("attach %s: %w", mmapFile, err)
		}
		defer k.Close()
	}
	if err := empty(s.objects.Running, make([]byte, 32)); err != nil {
		return fmt.Errorf("digests of running programs: %w", err)
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

// empty deletes what is in m, by a number: an address can be another inode's by
// now. value is room for one.
func empty(m *ebpf.Map, value []byte) error {
	var keys []uint64
	var key uint64
	it := m.Iterate()
	for it.Next(&key, &value) {
		keys = append(keys, key)
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	for _, key := range keys {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete: %w", err)
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
