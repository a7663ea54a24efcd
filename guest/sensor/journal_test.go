// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

// desk is what outlives an agent: rings, and the pinned map of frames.
type desk struct {
	*kernel
	pinned []bpf.ProbeFrameMark
	origin uint64 // as saved beside the session
}

func newDesk() *desk {
	return &desk{kernel: newKernel(), pinned: make([]bpf.ProbeFrameMark, 2+MaxFrames)}
}

// open is an agent that starts.
func (d *desk) open() (*batcher, *Journal) {
	b := d.batcher()
	j := newJournal(b, d.pinned)
	j.origin = d.origin
	return b, j
}

// send makes the next frame: of what is in the rings, or of another type.
func send(t *testing.T, b *batcher, j *Journal, seq uint64, typ vsockproto.FrameType) {
	t.Helper()
	if at, ok := j.place(); ok {
		b.place(at)
	}
	if typ == vsockproto.FrameEvents {
		if _, n, err := b.next(make([]byte, 0, 64<<10)); n == 0 || err != nil {
			t.Fatalf("%d records, %v", n, err)
		}
	}
	j.Sent(seq, typ)
}

// first tells the record that an agent which starts now would send first.
func first(t *testing.T, b *batcher, j *Journal) string {
	t.Helper()
	if at, ok := j.place(); ok {
		b.place(at)
	}
	for _, s := range take(t, b, make([]byte, 0, 64<<10)) {
		return s
	}
	return ""
}

// TestRestart ends an agent at every point of its frames' lives: the next one
// sends what the host does not have, and nothing else.
func TestRestart(t *testing.T) {
	const events, beat = vsockproto.FrameEvents, vsockproto.FrameHeartbeat
	tests := map[string]struct {
		until func(t *testing.T, d *desk, b *batcher, j *Journal)
		next  uint64 // as the host says
		first string
	}{
		"before a frame": {
			func(*testing.T, *desk, *batcher, *Journal) {}, 1, "critical@1",
		},
		"read, not sent": {
			func(t *testing.T, d *desk, b *batcher, j *Journal) { b.next(make([]byte, 0, 64<<10)) }, 1, "critical@1",
		},
		"written down, not sent": {
			func(t *testing.T, d *desk, b *batcher, j *Journal) { send(t, b, j, 1, events) }, 1, "critical@1",
		},
		"sent, not confirmed": {
			func(t *testing.T, d *desk, b *batcher, j *Journal) { send(t, b, j, 1, events) }, 2, "bulk@3",
		},
		"confirmed": {
			func(t *testing.T, d *desk, b *batcher, j *Journal) { send(t, b, j, 1, events); j.Acked(1) }, 2, "bulk@3",
		},
		"a frame without records in between": {
			func(t *testing.T, d *desk, b *batcher, j *Journal) { send(t, b, j, 1, events); send(t, b, j, 2, beat) }, 3, "bulk@3",
		},
		"only that one is there": {
			func(t *testing.T, d *desk, b *batcher, j *Journal) { send(t, b, j, 1, beat); send(t, b, j, 2, events) }, 2, "critical@1",
		},
		"a frame without records overtakes a batch": {
			func(t *testing.T, d *desk, b *batcher, j *Journal) {
				b.next(make([]byte, 0, 64<<10))
				send(t, b, j, 1, beat)
			}, 2, "critical@1",
		},
		"in the middle of writing down": {
			func(t *testing.T, d *desk, b *batcher, j *Journal) {
				send(t, b, j, 1, events)
				send(t, b, j, 2, beat)
				j.mark(2).Stamp = 0
			}, 2, "bulk@3",
		},
		"in the middle of a release": {
			func(t *testing.T, d *desk, b *batcher, j *Journal) {
				send(t, b, j, 1, events)
				j.Acked(1)
				d.critical.consumer.Store(0)
				d.bulk.consumer.Store(0)
			}, 2, "bulk@3",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			d := newDesk()
			b, j := d.open()
			j.Begin()
			j.place()
			d.origin = j.base()
			d.write(t, vsockproto.Critical, 10)
			d.write(t, vsockproto.Bulk, 10)
			tc.until(t, d, b, j)
			d.write(t, vsockproto.Bulk, 10)

			b, j = d.open()
			if !j.Resume(tc.next) {
				t.Fatal("cannot go on")
			}
			if got := first(t, b, j); got != tc.first {
				t.Errorf("goes on with %s, want %s", got, tc.first)
			}
		})
	}
}

// TestResumeRefuses: a host that was set back, or ahead, is not followed.
func TestResumeRefuses(t *testing.T) {
	for name, next := range map[string]uint64{"back": 2, "ahead": 5, "nothing": 0} {
		t.Run(name, func(t *testing.T) {
			d := newDesk()
			b, j := d.open()
			j.Begin()
			for seq := range uint64(3) {
				d.write(t, vsockproto.Bulk, 10)
				send(t, b, j, seq+1, vsockproto.FrameEvents)
			}
			j.Acked(2)
			b, j = d.open()
			if j.Resume(next) {
				t.Fatal("it went on")
			}
			j.Begin()
			if got := first(t, b, j); got != "bulk@3" {
				t.Errorf("a new session begins with %s", got)
			}
		})
	}
}

// TestNewSession: what is not confirmed is sent in it, by the same process with
// other numbers and by the next one anew, but for what a session ended with.
func TestNewSession(t *testing.T) {
	for _, last := range []vsockproto.FrameType{vsockproto.FrameHeartbeat, vsockproto.FrameBye} {
		t.Run(last.String(), func(t *testing.T) {
			d := newDesk()
			b, j := d.open()
			j.Begin()
			d.write(t, vsockproto.Bulk, 10)
			send(t, b, j, 1, vsockproto.FrameEvents)
			j.Acked(1)
			d.write(t, vsockproto.Bulk, 10)
			send(t, b, j, 2, vsockproto.FrameEvents)
			j.Begin() // frame 2 is frame 1 now
			d.origin = j.base()
			d.write(t, vsockproto.Bulk, 10)
			send(t, b, j, 2, vsockproto.FrameEvents)
			j.Acked(1)
			send(t, b, j, 3, last)
			d.write(t, vsockproto.Bulk, 10)

			b, j = d.open()
			j.Begin()
			want := map[vsockproto.FrameType]string{vsockproto.FrameHeartbeat: "bulk@3", vsockproto.FrameBye: "bulk@4"}
			if got := first(t, b, j); got != want[last] {
				t.Errorf("begins with %s, want %s", got, want[last])
			}
		})
	}
}

// TestUnheardBye: a session that went on after a Bye did not end with it.
func TestUnheardBye(t *testing.T) {
	d := newDesk()
	b, j := d.open()
	j.Begin()
	d.write(t, vsockproto.Bulk, 10)
	send(t, b, j, 1, vsockproto.FrameEvents)
	send(t, b, j, 2, vsockproto.FrameBye)
	_, j = d.open()
	if !j.Resume(1) {
		t.Fatal("cannot go on")
	}
	b, j = d.open()
	j.Begin()
	if got := first(t, b, j); got != "bulk@1" {
		t.Errorf("begins with %s", got)
	}
}

// TestJournalOfAnotherBuild: an agent that kept none let go of what it had read.
func TestJournalOfAnotherBuild(t *testing.T) {
	d := newDesk()
	d.write(t, vsockproto.Bulk, 10)
	d.bulk.consumer.Store(d.bulk.producer.Load())
	d.write(t, vsockproto.Bulk, 10)
	b, j := d.open()
	if !j.Resume(500) {
		t.Fatal("cannot go on")
	}
	send(t, b, j, 500, vsockproto.FrameEvents)
	d.origin = j.base()
	d.write(t, vsockproto.Bulk, 10)
	b, j = d.open()
	if !j.Resume(501) {
		t.Fatal("cannot go on a second time")
	}
	if got := first(t, b, j); got != "bulk@3" {
		t.Errorf("goes on with %s", got)
	}
}

// TestJournalDisagrees: one that does not belong to these rings is not believed.
func TestJournalDisagrees(t *testing.T) {
	d := newDesk()
	d.write(t, vsockproto.Bulk, 1000)
	b, j := d.open()
	j.Begin()
	send(t, b, j, 1, vsockproto.FrameEvents)
	j.Acked(1)
	d.kernel = newKernel()
	d.write(t, vsockproto.Bulk, 10)
	b, j = d.open()
	if !j.Resume(2) {
		t.Fatal("cannot go on")
	}
	if got := first(t, b, j); got != "bulk@1" {
		t.Errorf("goes on with %s", got)
	}
}

// TestJournalHoldsAllFrames: as many as may be sent fit, over and over.
func TestJournalHoldsAllFrames(t *testing.T) {
	d := newDesk()
	_, j := d.open()
	j.Begin()
	for seq := uint64(1); seq <= 5*MaxFrames; seq++ {
		j.Sent(seq, vsockproto.FrameHeartbeat)
		if seq <= MaxFrames {
			continue
		}
		j.Acked(seq - MaxFrames)
	}
	for next := uint64(4*MaxFrames) + 1; next <= 5*MaxFrames+1; next++ {
		copied := desk{kernel: d.kernel, pinned: slices.Clone(d.pinned)}
		_, again := copied.open()
		if !again.Resume(next) {
			t.Fatalf("frame %d is not on record", next-1)
		}
	}
}

func TestJournalDoesNotAllocate(t *testing.T) {
	d := newDesk()
	_, j := d.open()
	j.Begin()
	seq := uint64(0)
	if n := testing.AllocsPerRun(100, func() {
		seq++
		j.Sent(seq, vsockproto.FrameEvents)
		j.Acked(seq)
	}); n != 0 {
		t.Errorf("%v allocations for a frame", n)
	}
}

// TestMapsFit: what the programs' object declares is what is used here.
func TestMapsFit(t *testing.T) {
	spec, err := bpf.LoadProbe()
	if err != nil {
		t.Fatal(err)
	}
	frames, state := spec.Maps["frames"], spec.Maps["state"]
	if frames.MaxEntries != MaxFrames+2 || uintptr(frames.ValueSize) != unsafe.Sizeof(bpf.ProbeFrameMark{}) {
		t.Errorf("frames: %d entries of %d bytes", frames.MaxEntries, frames.ValueSize)
	}
	if frames.Flags&unix.BPF_F_MMAPABLE == 0 {
		t.Error("frames cannot be mapped")
	}
	if state.ValueSize != savedSize {
		t.Errorf("state: %d bytes", state.ValueSize)
	}
}
