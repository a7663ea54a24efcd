// SPDX-License-Identifier: Apache-2.0

// Package sensor puts the programs of guest/bpf into the kernel, keeps them
// there, and reads what they write.
//
// Links, rings and counters are pinned under a directory of the BPF file
// system. While no agent runs the programs go on and the rings fill; the next
// agent with the same programs takes over, and the numbers go on. An agent with
// other programs replaces them all, keeps the numbers, and takes a new snapshot
// of what runs.
//
// A record stays in its ring until the host has it. Journal, pinned as well,
// tells which frame ends where in the rings, so that the next agent goes on
// exactly behind what the host has, however the last one ended.
package sensor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

// DefaultPins is where links, maps and counters are pinned.
const DefaultPins = "/sys/fs/bpf/outguard"

// StateSize is how much a caller may store with Save, in bytes.
const StateSize = 56

// The map behind Save has room for what the journal adds.
const savedSize = StateSize + 8

// Options are a sensor's; nil and zero mean the defaults.
type Options struct {
	Pins string       // directory on a BPF file system; default DefaultPins
	Log  *slog.Logger // default: nothing is logged
}

// Sensor is the set of programs in the kernel and the reading end of their
// rings. Batch, Mark, Settled, Counters and Wait belong to one goroutine, Snapshot to
// another; the rest may be called from any.
type Sensor struct {
	lock    *os.File
	loader  *loader
	objects objects
	cpus    int
	resumed bool

	rings   [2]*ring
	frames  []bpf.ProbeFrameMark
	batcher *batcher
	journal *Journal
	account *account
	bell    *bell

	stat [16 << 10]byte // room for /proc/stat; belongs to Mark

	steer   sync.Mutex           // guards what follows, and objects.programs, while policies change; taken before mu
	links   map[string]link.Link // by program
	looking bool                 // running programs are being digested: mmap_file stays
	lent    bool                 // and was attached for that
	steered bool                 // a policy has come meanwhile

	patience patience // Snapshot's

	mu    sync.Mutex // guards the configuration's read-modify-write, and hooks
	hooks []vsockproto.Hook
}

// Open takes over what an earlier agent of the same build left in the kernel,
// or loads, attaches, pins, and writes a snapshot of the running tasks. It needs
// root; an error says what the machine lacks.
func Open(o *Options) (*Sensor, error) {
	if o == nil {
		o = &Options{}
	}
	pins, log := o.Pins, o.Log
	if pins == "" {
		pins = DefaultPins
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Sensor{links: make(map[string]link.Link)}
	if err := s.open(pins, log); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Sensor) open(pins string, log *slog.Logger) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("the agent loads programs into the kernel: %w: run it as root", os.ErrPermission)
	}
	var err error
	if s.lock, err = claim(pins); err != nil {
		return err
	}
	adoptEarly(pins, log)
	l := &loader{pins: pins, log: log}
	spec, err := bpf.LoadProbe()
	if err != nil {
		return err
	}
	forget, err := l.learn(spec)
	if err != nil {
		return err
	}
	defer forget()
	if s.cpus, err = ebpf.PossibleCPU(); err != nil {
		return fmt.Errorf("count cpus: %w", err)
	}
	l.cpus, s.loader = s.cpus, l
	l.look()
	want := l.inForce()
	if err := l.load(&s.objects, spec); err != nil {
		return err
	}
	if s.resumed, err = l.resume(s, want); err != nil {
		return err
	}
	if !s.resumed {
		if err := l.begin(s); err != nil {
			return err
		}
	}
	if err := s.SetCanary(0); err != nil { // an agent that was killed may have left one
		return err
	}
	if err := s.tell(); err != nil {
		return err
	}
	return s.listen()
}

func (s *Sensor) listen() error {
	maps := [2]*ebpf.Map{s.objects.Critical, s.objects.Bulk}
	var err error
	for i, m := range maps {
		if s.rings[i], err = openRing(m.FD(), uint64(m.MaxEntries())); err != nil {
			return fmt.Errorf("open ring: %w", err)
		}
	}
	if s.frames, err = mapFrames(s.objects.Frames); err != nil {
		return err
	}
	if s.bell, err = newBell(maps[0].FD(), maps[1].FD()); err != nil {
		return err
	}
	s.batcher = newBatcher(s.rings[0], s.rings[1])
	s.journal = newJournal(s.batcher, s.frames)
	s.account = newAccount(kernelCounters{s.objects.Counters}, s.cpus)
	v, err := s.saved()
	if err != nil {
		return err
	}
	s.journal.origin = binary.LittleEndian.Uint64(v[StateSize:])
	return nil
}

// Close stops reading. Programs, rings and numbers stay in the kernel.
func (s *Sensor) Close() error {
	var errs []error
	for _, r := range s.rings {
		if r != nil {
			errs = append(errs, r.close())
		}
	}
	errs = append(errs, unmapFrames(s.frames))
	if s.bell != nil {
		errs = append(errs, s.bell.close())
	}
	s.steer.Lock() // a snapshot may still be at it
	defer s.steer.Unlock()
	for _, l := range s.links {
		errs = append(errs, l.Close())
	}
	clear(s.links)
	errs = append(errs, s.objects.Close())
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// Resumed reports whether the programs of an earlier agent were taken over.
func (s *Sensor) Resumed() bool { return s.resumed }

// CPUs is how many CPUs the machine can have.
func (s *Sensor) CPUs() int { return s.cpus }

// Hooks tells for every event type what has become of it here, as of the last
// policy. It does not wait for one that is being put into force.
func (s *Sensor) Hooks() []vsockproto.Hook {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hooks
}

// tell renews what Hooks says. Called with steer held, or before anybody can.
func (s *Sensor) tell() error {
	hooks, err := s.loader.describe(s)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hooks = hooks
	return nil
}

// Journal is to be told of every frame that is sent, and of what the host has.
func (s *Sensor) Journal() *Journal { return s.journal }

// Batch appends whole records to b, never beyond its capacity, and counts them;
// none: there were none. They stand in an order in which no record comes before
// the start of its task. It does not block and does not allocate. A b with room
// for less than 64 KiB can come back empty although there are records. What it
// returns belongs into one frame, the next one with events.
func (s *Sensor) Batch(b []byte) (records []byte, count int, err error) {
	if at, ok := s.journal.place(); ok {
		s.batcher.place(at)
	}
	return s.batcher.next(b)
}

// Withhold makes Batch leave bulk where it is, or hand it over again.
func (s *Sensor) Withhold(withheld bool) { s.batcher.withheld = withheld }

// Wait returns when there are records, after Wake, or after d.
func (s *Sensor) Wait(d time.Duration) error {
	if s.batcher.stalled {
		return s.bell.pause(d)
	}
	return s.bell.wait(d, s.batcher.pending)
}

// Wake ends a Wait that is under way, or else the next one.
func (s *Sensor) Wake() error { return s.bell.ring() }

// Mark takes the counters as they are, and the kernel's own before them, for
// Settled, Counters and Totals.
func (s *Sensor) Mark() error {
	t, err := s.kernelTotals()
	if err != nil {
		return err
	}
	return s.account.mark(s.batcher, t)
}

// Totals returns the kernel's own counts at the last mark that was settled.
func (s *Sensor) Totals() vsockproto.Totals { return s.account.totals }

// Settled reports whether Batch has returned everything from before the mark.
func (s *Sensor) Settled() bool { return s.account.settle(s.batcher) }

// Counters appends the account up to the last mark that was settled.
func (s *Sensor) Counters(to []vsockproto.Counter) []vsockproto.Counter { return s.account.append(to) }

// SetCanary makes the programs report what the agent's thread of that id does,
// as far as a canary asks for it. 0 ends that.
func (s *Sensor) SetCanary(tid uint32) error {
	return s.configure(func(c *bpf.ProbeAgentConfig) { c.CanaryPid = tid })
}

func (s *Sensor) configure(change func(*bpf.ProbeAgentConfig)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.change(change)
}

// change is configure with mu held.
func (s *Sensor) change(change func(*bpf.ProbeAgentConfig)) error {
	c, err := s.config()
	if err != nil {
		return err
	}
	change(&c)
	if err := s.objects.Config.Put(uint32(0), &c); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

func (s *Sensor) config() (c bpf.ProbeAgentConfig, err error) {
	if err := s.objects.Config.Lookup(uint32(0), &c); err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	return c, nil
}

// Save keeps b, at most StateSize bytes, in the kernel for the next agent of
// this boot, and with it which frames of the journal are the session's. Only
// root can read it.
func (s *Sensor) Save(b []byte) error {
	if len(b) > StateSize {
		return fmt.Errorf("save %d bytes: %w", len(b), vsockproto.ErrTooLong)
	}
	var v [savedSize]byte
	copy(v[:], b)
	binary.LittleEndian.PutUint64(v[StateSize:], s.journal.base())
	if err := s.objects.State.Put(uint32(0), v[:]); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	return nil
}

// Saved returns what was saved, filled up with zeros to StateSize bytes.
func (s *Sensor) Saved() ([]byte, error) {
	v, err := s.saved()
	if err != nil {
		return nil, err
	}
	return v[:StateSize], nil
}

func (s *Sensor) saved() ([]byte, error) {
	v := make([]byte, savedSize)
	if err := s.objects.State.Lookup(uint32(0), v); err != nil {
		return nil, fmt.Errorf("read what was saved: %w", err)
	}
	return v, nil
}

// kernelCounters reads the counters where the programs keep them.
type kernelCounters struct{ m *ebpf.Map }

func (k kernelCounters) counter(slot uint32, into *bpf.ProbeCounter) error {
	if err := k.m.Lookup(slot, into); err != nil {
		return fmt.Errorf("read counter %d: %w", slot, err)
	}
	return nil
}
