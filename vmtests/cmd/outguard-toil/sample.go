package main

import (
	"bytes"
	"cmp"
	"debug/elf"
	"debug/gosym"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// How often is looked, in ns, which are instructions: primes, to fall into step
	// with nothing.
	sampleOften  = 7919
	sampleSeldom = 79193

	sampleRoom = 16 << 20 // bytes of samples, a power of two
)

// sampled is one place where the CPU was.
type sampled struct {
	task  string // the thread's name
	under string // what the kernel was asked for, or what interrupted
	at    string // the function
}

// sampler looks where the only CPU is. Code that keeps interrupts out is seen
// where it lets them in again.
type sampler struct {
	fd   int
	ring []byte
}

func newSampler(period uint64) (*sampler, error) {
	attr := &unix.PerfEventAttr{
		Type:        unix.PERF_TYPE_SOFTWARE,
		Config:      unix.PERF_COUNT_SW_CPU_CLOCK,
		Sample:      period,
		Sample_type: unix.PERF_SAMPLE_IP | unix.PERF_SAMPLE_TID | unix.PERF_SAMPLE_CALLCHAIN,
		Bits:        unix.PerfBitDisabled,
	}
	attr.Size = uint32(unsafe.Sizeof(*attr))
	fd, err := unix.PerfEventOpen(attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("perf_event_open", err)
	}
	ring, err := unix.Mmap(fd, 0, os.Getpagesize()+sampleRoom, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("mmap", err), unix.Close(fd))
	}
	return &sampler{fd, ring}, nil
}

// while looks while do is done.
func (s *sampler) while(do func() error) error {
	if err := unix.IoctlSetInt(s.fd, unix.PERF_EVENT_IOC_ENABLE, 0); err != nil {
		return os.NewSyscallError("perf_event_enable", err)
	}
	return errors.Join(do(), unix.IoctlSetInt(s.fd, unix.PERF_EVENT_IOC_DISABLE, 0))
}

// tell prints what was seen, the most frequent first.
func (s *sampler) tell() error {
	n, err := readNames()
	if err != nil {
		return err
	}
	at, within, lost := n.count(s.ring)
	for _, k := range slices.SortedFunc(maps.Keys(at), func(a, b sampled) int { return cmp.Compare(at[b], at[a]) }) {
		fmt.Println("sample", at[k], k.task, k.under, k.at)
	}
	for _, k := range slices.SortedFunc(maps.Keys(within), func(a, b string) int { return cmp.Compare(within[b], within[a]) }) {
		fmt.Println("within", within[k], k)
	}
	if lost > 0 {
		return fmt.Errorf("%d samples found no room", lost)
	}
	return nil
}

// sample tells where the CPU is while an operation is done count times.
func sample(do func() error, count int) error {
	s, err := newSampler(sampleOften)
	if err != nil {
		return err
	}
	if err := times(do, 3); err != nil {
		return err
	}
	if err := s.while(func() error { return times(do, count) }); err != nil {
		return err
	}
	return s.tell()
}

// names knows the kernel's functions, and those of a Go program.
type names struct {
	addresses []uint64
	functions []string
	tasks     map[uint32]string
	program   *gosym.Table
	pid       uint32
}

func readNames() (*names, error) {
	n := &names{tasks: map[uint32]string{}, pid: uint32(find("outguard-agent"))}
	text, err := os.ReadFile("/proc/kallsyms")
	if err != nil {
		return nil, err
	}
	type symbol struct {
		at   uint64
		name string
	}
	var all []symbol
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if at, err := strconv.ParseUint(f[0], 16, 64); err == nil && strings.ContainsAny(f[1], "tTwW") {
			all = append(all, symbol{at, f[2]})
		}
	}
	slices.SortStableFunc(all, func(a, b symbol) int { return cmp.Compare(a.at, b.at) })
	for _, s := range all {
		n.addresses, n.functions = append(n.addresses, s.at), append(n.functions, s.name)
	}
	if n.pid != 0 {
		n.program, err = functionsOf(fmt.Sprintf("/proc/%d/exe", n.pid))
	}
	return n, err
}

// functionsOf reads what Go's runtime knows of a program's functions, which
// nothing strips.
func functionsOf(path string) (*gosym.Table, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines, text := f.Section(".gopclntab"), f.Section(".text")
	if lines == nil || text == nil {
		return nil, fmt.Errorf("%s: no Go program", path)
	}
	b, err := lines.Data()
	if err != nil {
		return nil, err
	}
	return gosym.NewTable(nil, gosym.NewLineTable(b, text.Addr))
}

// count reads the ring, which nothing writes any more: how often each place was
// seen, and how often each function of the agent's was among the callers.
func (n *names) count(ring []byte) (at map[sampled]int, within map[string]int, lost int) {
	at, within = map[sampled]int{}, map[string]int{}
	meta := (*unix.PerfEventMmapPage)(unsafe.Pointer(&ring[0]))
	data := ring[os.Getpagesize():]
	for pos, end := meta.Data_tail, atomic.LoadUint64(&meta.Data_head); pos < end; {
		head := around(data, pos, 8)
		size := uint64(binary.LittleEndian.Uint16(head[6:]))
		body := around(data, pos+8, size-8)
		switch binary.LittleEndian.Uint32(head) {
		case unix.PERF_RECORD_SAMPLE:
			place, callers := n.place(body)
			at[place]++
			for f := range callers {
				within[f]++
			}
		case unix.PERF_RECORD_LOST:
			lost += int(binary.LittleEndian.Uint64(body[8:]))
		}
		pos += size
	}
	return at, within, lost
}

func around(data []byte, at, size uint64) []byte {
	b := make([]byte, size)
	at %= uint64(len(data))
	copy(b[copy(b, data[at:]):], data)
	return b
}

// userspace is the first address that is the kernel's.
const userspace = 1 << 63

// place reads a sample: address, process, thread, and the callers. Of those it
// returns the agent's own functions.
func (n *names) place(b []byte) (s sampled, callers map[string]bool) {
	le := binary.LittleEndian
	ip, pid, tid := le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:])
	s = sampled{task: n.task(tid), under: "-", at: n.at(ip, pid)}
	callers = map[string]bool{}
	for i := range le.Uint64(b[16:]) {
		caller := le.Uint64(b[24+8*i:])
		if caller >= ^uint64(4095) { // a mark, not an address
			continue
		}
		f := n.at(caller, pid)
		if caller >= userspace && s.under == "-" && enters(f) {
			s.under = f
		}
		if caller < userspace && pid == n.pid {
			callers[f] = true
		}
	}
	return s, callers
}

// enters reports whether a function is where something else begins: a system
// call, an interrupt, a work item.
func enters(f string) bool {
	for _, p := range []string{"__x64_sys_", "sysvec_", "common_interrupt", "exc_", "asm_exc_", "process_one_work", "__do_softirq", "handle_softirqs", "irq_exit_rcu", "do_exit"} {
		if strings.HasPrefix(f, p) {
			return true
		}
	}
	return false
}

func (n *names) at(ip uint64, pid uint32) string {
	if ip >= userspace {
		i, found := slices.BinarySearch(n.addresses, ip)
		if !found && i > 0 {
			i--
		}
		return n.functions[i]
	}
	if pid == n.pid && n.program != nil {
		if f := n.program.PCToFunc(ip); f != nil {
			return f.Name
		}
	}
	return "user"
}

func (n *names) task(tid uint32) string {
	if name, ok := n.tasks[tid]; ok {
		return name
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", tid))
	name := strings.ReplaceAll(string(bytes.TrimSpace(text)), " ", "_")
	if err != nil {
		name = "gone"
	}
	if tid == 0 {
		name = "idle"
	}
	n.tasks[tid] = name
	return name
}
