// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

// Snapshot writes a record for every task that runs. The digests of the programs are
// computed first: an iterator cannot.
func (s *Sensor) Snapshot() (err error) {
	programs, err := s.digestRunning()
	defer func() { go unmap(programs) }() // a file's server may be told, and is not waited for
	if err != nil {
		return err
	}
	if err := empty(s.objects.Named, make([]byte, 8)); err != nil { // each cgroup is named again
		return fmt.Errorf("snapshot: %w", err)
	}
	s.steer.Lock()
	program := s.objects.programs[snapshot]
	s.steer.Unlock()
	it, err := link.AttachIter(link.IterOptions{Program: program})
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

// digestRunning fills the map of running programs' digests anew. It is the agent that
// computes them, not the kernel: that does so in C, several times more slowly, whenever
// its faster SHA-256 is a module. A program that runs cannot be written to meanwhile, as
// far as its file system knows of it.
//
// What is returned are mappings of the programs: as long as they are there, no other
// file takes the place of one.
func (s *Sensor) digestRunning() (mapped [][]byte, err error) {
	if err := s.beginLooking(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.endLooking()) }()
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	s.patience.stall, s.patience.most, s.patience.until = snapshotStall, snapshotStalls, time.Now().Add(snapshotWithin)
	l := looker{s: s, patience: &s.patience, known: make(map[uint64]bool), left: snapshotBudget}
	for _, exe := range exes {
		if len(l.known) == int(s.objects.Running.MaxEntries()) {
			break
		}
		// A kernel thread has no program, a task may be gone, a program may lie
		// where nothing can be mapped or where nobody answers: those go without a
		// digest.
		_ = l.look(exe)
	}
	return l.mapped, nil
}

// beginLooking has mmap_file tell which inode the agent maps. It is attached for that
// where the policy does not ask for it, and stays so whatever policies come meanwhile:
// they do not wait for file systems.
func (s *Sensor) beginLooking() (err error) {
	s.steer.Lock()
	defer s.steer.Unlock()
	s.looking = true
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stopLooking())
		}
	}()
	if s.links[mmapFile] == nil {
		if err := s.loader.loadMore(s, []hook{lsm(vsockproto.MmapFile)}); err != nil {
			return err
		}
		k, err := attach(s.objects.programs[mmapFile])
		if err != nil {
			return fmt.Errorf("attach %s: %w", mmapFile, err)
		}
		s.links[mmapFile], s.lent = k, true
	}
	if err := empty(s.objects.Running, make([]byte, 32)); err != nil {
		return fmt.Errorf("digests of running programs: %w", err)
	}
	return s.configure(func(c *bpf.ProbeAgentConfig) { c.Snapshotting = 1 })
}

func (s *Sensor) endLooking() error {
	s.steer.Lock()
	defer s.steer.Unlock()
	return s.stopLooking()
}

// stopLooking leaves mmap_file as the policy in force has it. Called with steer held.
func (s *Sensor) stopLooking() error {
	h, wanted := lsm(vsockproto.MmapFile), false
	err := s.configure(func(c *bpf.ProbeAgentConfig) {
		c.Snapshotting = 0
		wanted = h.wanted(wants(c, policy(c.Policy)))
	})
	k, lent, steered := s.links[mmapFile], s.lent, s.steered
	s.looking, s.lent, s.steered = false, false, false
	switch {
	case err != nil || k == nil || !lent && !steered:
	case !wanted:
		err = s.drop([]string{mmapFile})
	case lent:
		err = k.Pin(s.loader.link(mmapFile))
	}
	if steered {
		err = errors.Join(err, s.tell())
	}
	return err
}

// snapshotBudget is how many bytes of programs, all in all, the snapshot has the digests
// of. Who runs more of them would have the agent read those and not its rings: a file with
// a hole in it is as large as anybody likes, and each container's copy is another file.
const snapshotBudget = 1 << 30

// A file system's server may be away, and its programs run: the agent is not silent for
// it. snapshotStall is how long nothing of a program may come, snapshotStalls how many of
// them are waited for, and snapshotWithin how long for all that come, however slowly.
const (
	snapshotStall  = 5 * time.Second
	snapshotStalls = 3
	snapshotWithin = time.Minute
)

// looker digests programs, each once.
type looker struct {
	s        *Sensor
	patience *patience
	mapping  sync.Mutex      // from where Mapped is cleared to where it is read
	known    map[uint64]bool // by the address of the inode
	mapped   [][]byte
	left     int64 // of the budget
	digest   hash.Hash
	room     []byte
}

// running is a program that was found.
type running struct {
	f      *os.File
	mapped []byte
	inode  uint64
	size   int64
}

// look opens, maps and digests a running program.
func (l *looker) look(path string) error {
	var r running
	var err error
	if gone := l.patience.ask(func(a *asking) { r, err = l.find(a, path) }, func() { _ = r.free() }); gone != nil {
		return fmt.Errorf("open a running program: %w", gone)
	}
	if err != nil {
		return err
	}
	if l.known[r.inode] {
		return l.patience.ask(func(*asking) { _ = r.free() }, func() {})
	}
	defer l.patience.ask(func(*asking) { _ = r.f.Close() }, func() {}) // its server is told, too
	l.known[r.inode], l.mapped = true, append(l.mapped, r.mapped)
	sum, err := l.sum(r.f, r.size)
	if err != nil {
		return fmt.Errorf("read a running program: %w", err)
	}
	if err := l.s.objects.Running.Put(r.inode, sum); err != nil {
		return fmt.Errorf("digest of a running program: %w", err)
	}
	return nil
}

// find opens and maps a running program. What it returns with an error is empty.
func (l *looker) find(a *asking, path string) (r running, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open a running program: %w", errors.Join(err, r.free()))
			r = running{}
		}
	}()
	if r.f, err = os.Open(path); err != nil {
		return r, err
	}
	info, err := r.f.Stat()
	if err != nil {
		return r, err
	}
	r.size = info.Size()
	l.mapping.Lock()
	defer l.mapping.Unlock()
	if !a.wanted() { // another's mapping may be on the way
		return r, errNoAnswer
	}
	if err := l.s.objects.Mapped.Put(uint32(0), uint64(0)); err != nil {
		return r, err
	}
	if r.mapped, err = unix.Mmap(int(r.f.Fd()), 0, 1, unix.PROT_READ, unix.MAP_PRIVATE); err != nil {
		return r, err
	}
	if err := l.s.objects.Mapped.Lookup(uint32(0), &r.inode); err != nil {
		return r, err
	}
	if r.inode == 0 {
		return r, errors.New("its mapping was not seen")
	}
	return r, nil
}

// free closes the program, and unmaps it.
func (r *running) free() (err error) {
	if r.mapped != nil {
		err = unix.Munmap(r.mapped)
	}
	if r.f != nil {
		err = errors.Join(err, r.f.Close())
	}
	return err
}

// sum is the digest of a program of so many bytes, if the budget has them.
func (l *looker) sum(from io.Reader, size int64) ([]byte, error) {
	if size > l.left {
		return nil, fmt.Errorf("%d bytes, and %d left of what is read for a snapshot: %w", size, l.left, vsockproto.ErrTooLong)
	}
	if l.digest == nil {
		l.digest, l.room = sha256.New(), make([]byte, 128<<10)
	}
	digest, room := l.digest, l.room
	digest.Reset()
	var n int64
	var err error
	gone := l.patience.ask(func(a *asking) {
		n, err = io.CopyBuffer(moving{digest, a}, io.LimitReader(from, size+1), room)
	}, func() {})
	if gone != nil {
		l.left -= size // it may read on
		l.digest = nil // and write there
		return nil, gone
	}
	l.left -= n
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes where there were %d: it runs no more, and changes: %w", n, size, vsockproto.ErrInvalid)
	}
	if err != nil {
		return nil, err
	}
	return digest.Sum(nil), nil
}

// moving is a digest of what comes, which it tells of, as long as that is wanted.
type moving struct {
	hash.Hash
	a *asking
}

func (m moving) Write(b []byte) (int, error) {
	if !m.a.wanted() {
		return 0, errNoAnswer
	}
	m.a.moved()
	return m.Hash.Write(b)
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
