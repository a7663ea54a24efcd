// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/vsockproto"
)

// memRing is the kernel's end of a ring, in memory of our own.
type memRing struct {
	consumer, producer atomic.Uint64
	data               []byte
}

func newMemRing(size int) *memRing { return &memRing{data: make([]byte, size)} }

// reader reads it through windows of an eighth.
func (m *memRing) reader() *ring {
	span := m.size() / 8
	return newRing(&m.consumer, &m.producer, m.size(), func(from uint64) ([]byte, error) {
		from &^= span - 1
		return m.data[from:][:span:span], nil
	})
}

func (m *memRing) size() uint64 { return uint64(len(m.data)) }

func (m *memRing) head(pos uint64) *uint32 {
	return (*uint32)(unsafe.Pointer(&m.data[pos%m.size()]))
}

// reserve begins a record of n bytes; false: there is no room.
func (m *memRing) reserve(n int) (pos uint64, ok bool) {
	pos = m.producer.Load()
	span := uint64(ringHeader + (n+7)&^7)
	if pos+span-m.consumer.Load() > m.size()-1 {
		return 0, false
	}
	atomic.StoreUint32(m.head(pos), uint32(n)|ringBusy)
	m.producer.Store(pos + span)
	return pos, true
}

// commit ends it with b, or with nothing.
func (m *memRing) commit(pos uint64, b []byte) {
	for i, c := range b {
		m.data[(pos+ringHeader+uint64(i))%m.size()] = c
	}
	n := atomic.LoadUint32(m.head(pos)) &^ ringBusy
	if b == nil {
		n |= ringDiscard
	}
	atomic.StoreUint32(m.head(pos), n)
}

func (m *memRing) put(b []byte) bool {
	pos, ok := m.reserve(len(b))
	if ok {
		m.commit(pos, b)
	}
	return ok
}

// read takes the next record, which must be there or not, as want says.
func read(t *testing.T, r *ring, want []byte) {
	t.Helper()
	got, ok, err := r.next(make([]byte, 0, vsockproto.MaxRecord))
	if err != nil || ok != (want != nil) || !bytes.Equal(got, want) {
		t.Fatalf("next = %d bytes, %v, %v, want %d bytes", len(got), ok, err, len(want))
	}
}

func TestRingReadsOverItsEnd(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	m := newMemRing(4096)
	r := m.reader()
	var queue [][]byte
	for total := 0; total < 100*4096; {
		b := make([]byte, 8*rng.IntN(100))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		if m.put(b) {
			queue = append(queue, b)
			total += len(b)
			continue
		}
		for range 1 + rng.IntN(len(queue)) {
			read(t, r, queue[0])
			queue = queue[1:]
		}
		r.release(r.read)
	}
	for _, b := range queue {
		read(t, r, b)
	}
	read(t, r, nil)
}

// TestRingIsMappedInParts: a file that is laid out as the kernel's rings are is
// read as often over its end as it takes, and no more of it mapped than a window.
func TestRingIsMappedInParts(t *testing.T) {
	const size = 4 * windowSize
	page := os.Getpagesize()
	fd, err := unix.MemfdCreate("ring", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(2*page+size)); err != nil {
		t.Fatal(err)
	}
	all, err := unix.Mmap(fd, 0, 2*page+size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(all)
	producer := (*atomic.Uint64)(unsafe.Pointer(&all[page]))
	r, err := openRing(fd, size)
	if err != nil {
		t.Fatal(err)
	}
	m := &memRing{data: all[2*page:]}
	for n := 0; m.producer.Load() < 3*size; n++ {
		want := bytes.Repeat([]byte{byte(n)}, 7_000+8*(n%100))
		if !m.put(want) {
			t.Fatal("no room")
		}
		producer.Store(m.producer.Load())
		read(t, r, want)
		r.release(r.read)
		m.consumer.Store((*atomic.Uint64)(unsafe.Pointer(&all[0])).Load())
	}
	if n := len(r.window); n != windowSize || len(r.maps[2]) != windowSize {
		t.Errorf("%d bytes of the ring are mapped, want %d", n, windowSize)
	}
	if err := r.close(); err != nil {
		t.Error(err)
	}
}

// TestRingWithoutAWindow: where another part cannot be mapped nothing is read
// of the last one, and nothing is lost.
func TestRingWithoutAWindow(t *testing.T) {
	m := newMemRing(64)
	r := m.reader()
	view := r.view
	r.view = func(uint64) ([]byte, error) { return nil, unix.ENOMEM }
	m.put([]byte("eightlet"))
	for range 2 {
		b, ok, err := r.next(make([]byte, 0, vsockproto.MaxRecord))
		if !errors.Is(err, unix.ENOMEM) || ok || len(b) != 0 || r.read != 0 {
			t.Fatalf("next = %d bytes, %v, %v, want ENOMEM", len(b), ok, err)
		}
	}
	r.view = view
	read(t, r, []byte("eightlet"))
}

// TestRingWaitsForARecordUnderWay: what comes after it does not overtake it.
func TestRingWaitsForARecordUnderWay(t *testing.T) {
	m := newMemRing(4096)
	r := m.reader()
	pos, _ := m.reserve(16)
	m.put([]byte("behind!!"))
	read(t, r, nil)
	if r.read != 0 {
		t.Fatalf("read up to %d", r.read)
	}
	m.commit(pos, []byte("before it at all"))
	read(t, r, []byte("before it at all"))
	read(t, r, []byte("behind!!"))
	read(t, r, nil)
}

func TestRingSkipsWhatWasDiscarded(t *testing.T) {
	m := newMemRing(4096)
	r := m.reader()
	for _, b := range []string{"", "one.....", "", "", "two.....", ""} {
		pos, _ := m.reserve(len(b))
		if b == "" {
			m.commit(pos, nil)
			continue
		}
		m.commit(pos, []byte(b))
	}
	read(t, r, []byte("one....."))
	read(t, r, []byte("two....."))
	read(t, r, nil)
	if r.read != r.end() {
		t.Errorf("read up to %d of %d", r.read, r.end())
	}
}

// TestRingKeepsWhatIsNotReleased: reading gives the kernel no room.
func TestRingKeepsWhatIsNotReleased(t *testing.T) {
	m := newMemRing(64)
	r := m.reader()
	for m.put([]byte("eightlet")) {
	}
	for n := r.end(); r.read < n; {
		read(t, r, []byte("eightlet"))
	}
	if m.put([]byte("eightlet")) {
		t.Fatal("room in a ring of which nothing was released")
	}
	if r.holds(r.end()+1) || !r.holds(0) || !r.holds(r.end()) {
		t.Error("holds is wrong before the release")
	}
	r.release(16)
	if !m.put([]byte("eightlet")) {
		t.Error("no room after a release")
	}
	if r.holds(0) || !r.holds(16) {
		t.Error("holds is wrong after the release")
	}
	// Another reader begins where the release stopped.
	if again := m.reader(); again.read != 16 {
		t.Errorf("begins at %d", again.read)
	}
}

func TestRingRefuses(t *testing.T) {
	tests := map[string]func(m *memRing){
		"more than was given room": func(m *memRing) {
			pos, _ := m.reserve(8)
			m.commit(pos, []byte("eightlet"))
			atomic.StoreUint32(m.head(pos), 16)
		},
		"half a header":          func(m *memRing) { m.producer.Add(4) },
		"no multiple of 8":       func(m *memRing) { m.put([]byte("nine byte")) },
		"longer than any record": func(m *memRing) { m.put(make([]byte, vsockproto.MaxRecord+8)) },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMemRing(16 << 10)
			spoil(m)
			r := m.reader()
			b, ok, err := r.next(make([]byte, 0, vsockproto.MaxRecord))
			if !errors.Is(err, vsockproto.ErrInvalid) || ok || len(b) != 0 || r.read != 0 {
				t.Errorf("next = %d bytes, %v, %v", len(b), ok, err)
			}
		})
	}
}

// FuzzRing reads a ring that holds anything: it never leaves it, and gets to
// its end or to a record that is not there.
func FuzzRing(f *testing.F) {
	f.Add([]byte{8, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}, uint16(0), uint16(16))
	f.Add([]byte{0, 0, 0, 0x40}, uint16(4088), uint16(8))
	f.Add([]byte{255, 255, 255, 0x7f}, uint16(0), uint16(4096))
	f.Fuzz(func(t *testing.T, b []byte, from, n uint16) {
		m := newMemRing(4096)
		from &^= 7
		for i, c := range b[:min(len(b), 4096)] {
			m.data[(uint64(from)+uint64(i))%4096] = c
		}
		m.consumer.Store(uint64(from))
		m.producer.Store(uint64(from) + uint64(n%4097&^7))
		r := m.reader()
		out := make([]byte, 0, vsockproto.MaxRecord)
		for {
			before := r.read
			_, ok, err := r.next(out)
			if r.read > r.end() {
				t.Fatalf("read up to %d of %d", r.read, r.end())
			}
			if !ok || err != nil {
				return
			}
			if r.read <= before {
				t.Fatal("a record that takes no room")
			}
		}
	})
}
