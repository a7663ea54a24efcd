// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

// MaxFrames bounds the frames that may be sent and not confirmed.
const MaxFrames = 1023

// Journal remembers, for each frame that the host has not confirmed, how far
// the rings stand in the frames up to it. What is in frames that may have to be
// made again stays in the rings: they give up a record when the host has it.
//
// It lives in a pinned map. Wherever an agent ends, the next one learns from it
// where to go on, once the host has said which frames it has.
//
// Frames are counted by an index over all sessions: a new session gives its
// frames other numbers, and only its origin, the index of its frame 0, changes.
type Journal struct {
	rings  *batcher
	pinned []bpf.ProbeFrameMark // the first is the head
	fresh  bool                 // an earlier agent kept none

	mu            sync.Mutex // guards what follows
	begun         bool       // this process has a session
	origin        uint64
	acked, newest uint64   // indexes
	sent          position // of the newest
	moved         bool     // sent is where to go on reading
}

// newJournal goes on with what an earlier agent left in pinned, if that agrees
// with the rings.
func newJournal(b *batcher, pinned []bpf.ProbeFrameMark) *Journal {
	j := &Journal{rings: b, pinned: pinned, acked: pinned[0].Stamp}
	j.newest = j.acked
	at, ok := j.at(j.acked)
	if !ok || !j.held(at) {
		j.fresh = true
		at = position{b.critical.consumer.Load(), b.bulk.consumer.Load()}
		j.forget()
		j.write(j.acked, at, false)
	}
	j.release(j.acked, at)
	j.sent = at
	b.place(at)
	return j
}

// mapFrames maps the pinned map that a journal lives in.
func mapFrames(m *ebpf.Map) ([]bpf.ProbeFrameMark, error) {
	n := int(m.MaxEntries())
	size := n * int(unsafe.Sizeof(bpf.ProbeFrameMark{}))
	page := os.Getpagesize()
	b, err := unix.Mmap(m.FD(), 0, (size+page-1)&^(page-1), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map frames: %w", err)
	}
	return unsafe.Slice((*bpf.ProbeFrameMark)(unsafe.Pointer(&b[0])), n), nil
}

func unmapFrames(f []bpf.ProbeFrameMark) error {
	if f == nil {
		return nil
	}
	page := os.Getpagesize()
	size := len(f) * int(unsafe.Sizeof(f[0]))
	return unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(&f[0])), (size+page-1)&^(page-1)))
}

func (j *Journal) mark(index uint64) *bpf.ProbeFrameMark {
	return &j.pinned[1+index%uint64(len(j.pinned)-1)]
}

// at is what was written down for a frame.
func (j *Journal) at(index uint64) (position, bool) {
	m := j.mark(index)
	return position{m.Critical, m.Bulk}, m.Stamp == index+1
}

// write writes a frame down. A process that ends in the middle of it leaves
// either the whole or nothing.
func (j *Journal) write(index uint64, at position, last bool) {
	m := j.mark(index)
	atomic.StoreUint64(&m.Stamp, 0)
	m.Critical, m.Bulk, m.Last = at.critical, at.bulk, 0
	if last {
		m.Last = 1
	}
	atomic.StoreUint64(&m.Stamp, index+1)
}

// release gives up what is in the frames up to index.
func (j *Journal) release(index uint64, at position) {
	j.acked = index
	atomic.StoreUint64(&j.pinned[0].Stamp, index)
	j.rings.critical.release(at.critical)
	j.rings.bulk.release(at.bulk)
}

func (j *Journal) held(at position) bool {
	return j.rings.critical.holds(at.critical) && j.rings.bulk.holds(at.bulk)
}

// forget drops what is written down of frames behind the newest one.
func (j *Journal) forget() {
	for i := 1; i < len(j.pinned); i++ {
		if m := &j.pinned[i]; m.Stamp > j.newest+1 {
			atomic.StoreUint64(&m.Stamp, 0)
		}
	}
}

// Sent writes a frame down before it leaves. One with events holds everything
// that Batch has handed over and no earlier frame does.
func (j *Journal) Sent(seq uint64, t vsockproto.FrameType) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if t == vsockproto.FrameEvents {
		j.sent = j.rings.handed()
	}
	j.newest = j.origin + seq
	j.write(j.newest, j.sent, t == vsockproto.FrameBye)
}

// Acked lets go of the frames up to seq.
func (j *Journal) Acked(seq uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	index := j.origin + seq
	if at, ok := j.at(index); ok && index > j.acked {
		j.release(index, at)
	}
}

// Begin makes the frames behind the last confirmed one those of a new session,
// from 1 on. If the agent has only just started it goes on reading there.
func (j *Journal) Begin() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.begun {
		j.goOn(j.ended())
	}
	j.origin = j.acked
}

// ended is the frame up to which nothing is to be sent again in a new session.
// A host that has recorded the last frame of a session does not go on with it,
// also if the earlier agent did not live to see that confirmed.
func (j *Journal) ended() uint64 {
	for i := j.acked + 1; ; i++ {
		if _, ok := j.at(i); !ok {
			return j.acked
		}
		if j.mark(i).Last != 0 {
			return i
		}
	}
}

// Resume goes on with the session of an earlier agent, whose next frame is next.
// False: what is in the frames before it is not known.
func (j *Journal) Resume(next uint64) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.fresh {
		j.origin = j.acked - (next - 1)
	}
	index := j.origin + next - 1
	at, ok := j.at(index)
	if !ok || index < j.acked || !j.held(at) {
		return false
	}
	j.goOn(index)
	return true
}

// goOn goes on behind a frame that the host has.
func (j *Journal) goOn(index uint64) {
	at, _ := j.at(index)
	j.newest, j.sent, j.moved, j.begun = index, at, true, true
	j.forget()
	j.release(index, at)
}

// place tells once where to go on reading.
func (j *Journal) place() (position, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	moved := j.moved
	j.moved = false
	return j.sent, moved
}

// base is the session's origin, which is kept beside the session.
func (j *Journal) base() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.origin
}
