package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// pins is where the agent keeps what is read here.
const pins = "/sys/fs/bpf/outguard"

// books are what the kernel counts of the agent and of its programs. Without an
// agent they are empty.
type books struct {
	pid      int
	counters *ebpf.Map
	rings    []*ring
}

type ring struct{ consumer, producer *atomic.Uint64 }

// page is what the books say at a moment.
type page struct{ agent, emitted, lost, bytes uint64 }

func (p page) since(q page) page {
	return page{p.agent - q.agent, p.emitted - q.emitted, p.lost - q.lost, p.bytes - q.bytes}
}

func openBooks() (*books, error) {
	b := &books{}
	if b.pid = find("outguard-agent"); b.pid == 0 {
		return b, nil
	}
	var err error
	if b.counters, err = ebpf.LoadPinnedMap(filepath.Join(pins, "counters"), nil); err != nil {
		return nil, fmt.Errorf("the programs' counters: %w", err)
	}
	for _, name := range []string{"critical", "bulk"} {
		r, err := openRing(filepath.Join(pins, name))
		if err != nil {
			return nil, fmt.Errorf("ring %s: %w", name, err)
		}
		b.rings = append(b.rings, r)
	}
	return b, nil
}

// find returns the process whose program has that name, 0 if there is none.
func find(name string) int {
	all, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, path := range all {
		if text, err := os.ReadFile(path); err == nil && string(bytes.TrimSpace(text)) == name {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return pid
		}
	}
	return 0
}

func openRing(path string) (*ring, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, err
	}
	size := os.Getpagesize()
	consumer, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	producer, err := unix.Mmap(m.FD(), int64(size), size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return &ring{(*atomic.Uint64)(unsafe.Pointer(&consumer[0])), (*atomic.Uint64)(unsafe.Pointer(&producer[0]))}, nil
}

// time reads how long the agent has run.
func (b *books) time(p *page) (err error) {
	if b.pid != 0 {
		p.agent, err = ran(b.pid)
	}
	return err
}

// count reads what the programs have written. It opens nothing.
func (b *books) count(p *page) error {
	if b.pid == 0 {
		return nil
	}
	var value [5]uint64 // emitted, submitted, lost, and what is not asked for here
	for slot := range b.counters.MaxEntries() {
		if err := b.counters.Lookup(slot, &value); err != nil {
			return fmt.Errorf("counter %d: %w", slot, err)
		}
		p.emitted += value[0]
		p.lost += value[2]
	}
	for _, r := range b.rings {
		p.bytes += r.producer.Load()
	}
	return nil
}

// delivered reports whether the host has all that was written: then the agent
// has given the rings back to the kernel.
func (b *books) delivered() bool {
	for _, r := range b.rings {
		if r.consumer.Load() != r.producer.Load() {
			return false
		}
	}
	return true
}

// ran is how long a process's threads have run, ns.
func ran(pid int) (ns uint64, err error) {
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	for _, path := range all {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		first, _, _ := strings.Cut(string(text), " ")
		n, err := strconv.ParseUint(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		ns += n
	}
	return ns, nil
}
