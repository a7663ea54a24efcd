package link

import (
	"io"
	"net"
	"testing"

	"github.com/outguard/outguard/vsockproto"
)

// bottomless is a connection whose reads repeat one frame with the next number,
// and whose writes go nowhere.
type bottomless struct {
	net.Conn
	frame []byte
	off   int
}

func (c *bottomless) Read(b []byte) (int, error) {
	if c.off == 0 {
		le.PutUint64(c.frame[8:], le.Uint64(c.frame[8:])+1)
	}
	n := copy(b, c.frame[c.off:])
	c.off = (c.off + n) % len(c.frame)
	return n, nil
}

func TestReadAllocatesNothing(t *testing.T) {
	payload := make([]byte, 100_000)
	c := &bottomless{frame: append(vsockproto.AppendFrame(nil, vsockproto.FrameEvents, 0, len(payload)), payload...)}
	taps := 0
	h := &Host{r: frameReader{src: c, tap: func([]byte, bool) error { taps++; return nil }}, next: 1, credit: 1 << 62}
	read := func() {
		f, err := h.Read()
		if err != nil || len(f.Payload) != len(payload) || f.Sequence != h.Next()-1 {
			t.Fatal(f.FrameHeader, err)
		}
		h.Waiting()
	}
	read()
	if n := testing.AllocsPerRun(100, read); n != 0 || taps < 100 {
		t.Fatalf("%v allocations, %d taps", n, taps)
	}
}

func TestSendAllocatesNothing(t *testing.T) {
	a := NewAgent([32]byte{}, nil)
	a.connected, a.limit = true, 1<<62
	records := make([]byte, 1000)
	beat := &vsockproto.Heartbeat{Counters: make([]vsockproto.Counter, 16)}
	send := func() {
		if err := a.SendEvents(3, records); err != nil {
			t.Fatal(err)
		}
		if err := a.SendHeartbeat(beat); err != nil {
			t.Fatal(err)
		}
		a.hold.release(a.hold.next(), a.hold.last)
	}
	send()
	if n := testing.AllocsPerRun(100, send); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

// TestHoldWraps fills the ring over and over with frames of every size.
func TestHoldWraps(t *testing.T) {
	h := newHold(1 << 12)
	sent, got := uint64(1), uint64(1)
	off := uint64(0)
	for n := 0; sent < 5000; n = (n + 8) % 600 {
		for h.room() < vsockproto.FrameHeaderSize+n {
			b := io.Reader(&chunks{h: &h, off: off, end: h.within(off, off+uint64(h.frameLen(off)))})
			raw, _ := io.ReadAll(b)
			head, err := vsockproto.ParseFrameHeader(raw, vsockproto.MaxFrame)
			if err != nil || head.Sequence != got || int(head.Length) != len(raw) {
				t.Fatalf("frame %d: %+v, %v", got, head, err)
			}
			for _, c := range raw[vsockproto.FrameHeaderSize:] {
				if c != byte(got) {
					t.Fatalf("frame %d holds another's bytes", got)
				}
			}
			off += uint64(len(raw))
			h.release(got+1, off)
			got++
		}
		payload := make([]byte, n)
		for i := range payload {
			payload[i] = byte(sent)
		}
		h.put(vsockproto.FrameEvents, n, payload[:n/3], payload[n/3:])
		sent++
	}
	if h.next() != sent {
		t.Fatalf("next %d, want %d", h.next(), sent)
	}
}

type chunks struct {
	h        *hold
	off, end uint64
}

func (c *chunks) Read(b []byte) (int, error) {
	if c.off == c.end {
		return 0, io.EOF
	}
	n := copy(b, c.h.chunk(c.off, c.end))
	c.off += uint64(n)
	return n, nil
}

// meter is a connection that notes the longest write.
type meter struct {
	net.Conn
	total, longest int
	end            func()
}

func (m *meter) Write(b []byte) (int, error) {
	m.total += len(b)
	m.longest = max(m.longest, len(b))
	if m.total == 100_000+vsockproto.FrameHeaderSize+vsockproto.EventsHeader {
		m.end()
	}
	return len(b), nil
}

func TestWritesAreShort(t *testing.T) {
	a := NewAgent([32]byte{}, nil)
	a.connected, a.limit = true, 1<<62
	if err := a.SendEvents(1, make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	m := &meter{end: a.disconnect}
	if err := a.pump(m); err != nil {
		t.Fatal(err)
	}
	if m.longest > maxWrite {
		t.Errorf("a write of %d bytes", m.longest)
	}
}
