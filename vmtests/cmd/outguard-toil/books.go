package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
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
	threads  []*os.File // schedstat of each of the agent's
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
	pid := find("outguard-agent")
	if pid == 0 {
		return b, nil
	}
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return nil, err
	}
	for _, path := range all {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		b.threads = append(b.threads, f)
	}
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

// time reads how long the agent has run, ns. It opens nothing either.
func (b *books) time(p *page) error {
	var text [64]byte
	for _, f := range b.threads {
		n, err := f.ReadAt(text[:], 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		first, _, _ := strings.Cut(string(text[:n]), " ")
		ns, err := strconv.ParseUint(first, 10, 64)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name(), err)
		}
		p.agent += ns
	}
	return nil
}

// count reads what the programs have written. It opens nothing.
func (b *books) count(p *page) error {
	if b.counters == nil {
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

// counted is a program in the kernel, and what it had run before.
type counted struct {
	*ebpf.Program
	name   string
	before *ebpf.ProgramStats
}

// programs says how long each program in the kernel ran, and how often, while do
// was done so many times.
func programs(do func() error, count int) error {
	stop, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return fmt.Errorf("count what programs take: %w", err)
	}
	defer stop.Close()
	all, err := allPrograms() // to learn names opens files, which is not to be counted
	if err != nil {
		return err
	}
	if err := times(do, 3); err != nil {
		return err
	}
	for i := range all {
		if all[i].before, err = all[i].Stats(); err != nil {
			return err
		}
	}
	if err := times(do, count); err != nil {
		return err
	}
	for _, p := range all {
		after, err := p.Stats()
		if err != nil {
			return err
		}
		if runs := after.RunCount - p.before.RunCount; runs > 0 {
			fmt.Println("program", p.name, runs, (after.Runtime - p.before.Runtime).Nanoseconds())
		}
	}
	return nil
}

func allPrograms() (all []counted, err error) {
	for id := ebpf.ProgramID(0); ; {
		if id, err = ebpf.ProgramGetNextID(id); errors.Is(err, fs.ErrNotExist) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			return nil, err
		}
		info, err := p.Info()
		if err != nil {
			return nil, err
		}
		all = append(all, counted{Program: p, name: info.Name})
	}
}
