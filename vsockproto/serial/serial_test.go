package serial

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/outguard/outguard/vsockproto/prototest"
)

// line is a virtio-serial port in memory: what is written at one end waits in a
// queue until whoever has the other end reads it.
type line struct {
	guest, host end
}

func newLine(room int) *line {
	a, b := newQueue(room), newQueue(room)
	return &line{guest: end{in: a, out: b}, host: end{in: b, out: a}}
}

// end is one end, as a process has it open. Closing it leaves the queues.
type end struct{ in, out *queue }

func (e end) open() *open { return &open{end: e, closed: make(chan struct{})} }

type open struct {
	end
	mu     sync.Mutex
	rd, wd time.Time
	closed chan struct{}
	once   sync.Once
}

func (o *open) SetReadDeadline(t time.Time) error  { return o.set(&o.rd, t, o.in) }
func (o *open) SetWriteDeadline(t time.Time) error { return o.set(&o.wd, t, o.out) }

func (o *open) set(at *time.Time, t time.Time, q *queue) error {
	o.mu.Lock()
	*at = t
	o.mu.Unlock()
	q.wake()
	if d := time.Until(t); !t.IsZero() && d > 0 {
		time.AfterFunc(d, q.wake)
	}
	return nil
}

func (o *open) Close() error {
	o.once.Do(func() { close(o.closed); o.in.wake(); o.out.wake() })
	return nil
}

func (o *open) Read(b []byte) (int, error) {
	return o.in.move(o, &o.rd, func(q *queue) int { return q.get(b) })
}
func (o *open) Write(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = o.out.move(o, &o.wd, func(q *queue) int { return q.put(b[n:]) })
		n += m
	}
	return n, err
}

// queue is one direction.
type queue struct {
	mu   sync.Mutex
	cond sync.Cond
	b    []byte
	room int
}

func newQueue(room int) *queue {
	q := &queue{room: room}
	q.cond.L = &q.mu
	return q
}

func (q *queue) wake() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.cond.Broadcast()
}

func (q *queue) get(b []byte) int {
	n := copy(b, q.b)
	q.b = q.b[n:]
	return n
}

func (q *queue) put(b []byte) int {
	n := min(len(b), q.room-len(q.b))
	q.b = append(q.b, b[:n]...)
	return n
}

func (q *queue) move(o *open, deadline *time.Time, do func(*queue) int) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		o.mu.Lock()
		late := !deadline.IsZero() && !time.Now().Before(*deadline)
		o.mu.Unlock()
		select {
		case <-o.closed:
			return 0, os.ErrClosed
		default:
		}
		if late {
			return 0, os.ErrDeadlineExceeded
		}
		if n := do(q); n > 0 {
			q.cond.Broadcast()
			return n, nil
		}
		q.cond.Wait()
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// pair dials over the line, and accepts.
func pair(t *testing.T, l *line, h *Host) (guest, host net.Conn) {
	t.Helper()
	dialled := make(chan net.Conn, 1)
	go func() {
		c, err := Dial(t.Context(), l.guest.open())
		if err != nil {
			t.Error(err)
		}
		dialled <- c
	}()
	host = must[net.Conn](t)(h.Accept(t.Context()))
	if guest = <-dialled; guest == nil {
		t.FailNow()
	}
	return guest, host
}

// carries holds that what one end writes the other reads.
func carries(t *testing.T, from, to net.Conn, n int) {
	t.Helper()
	sent := make([]byte, n)
	for i := range sent {
		sent[i] = byte(i * 7)
	}
	go func() {
		if _, err := from.Write(sent); err != nil {
			t.Errorf("write: %v", err)
		}
	}()
	got := make([]byte, n)
	if _, err := io.ReadFull(to, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("read: %v, equal: %v", err, bytes.Equal(got, sent))
	}
}

func TestConnectionsOneAfterAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(20 << 10)
		h := NewHost(l.host.open())
		for _, closer := range []string{"guest", "host"} {
			g, c := pair(t, l, h)
			carries(t, g, c, 100_000)
			carries(t, c, g, 50_000)
			other := g
			if closer == "guest" {
				other = c
				g.Close()
			} else {
				c.Close()
				go h.Accept(t.Context()) // tells the guest
			}
			if n, err := other.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("after the %s's close: %d, %v", closer, n, err)
			}
			if closer == "guest" {
				c.Close()
			}
		}
		h.Close()
	})
}

// TestGuestThatComesAnew: a process was killed, and the next opens the port: the
// connection of the first ends.
func TestGuestThatComesAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(20 << 10)
		h := NewHost(l.host.open())
		first, c := pair(t, l, h)
		carries(t, first, c, 10)
		dialled := make(chan net.Conn)
		go func() { c, _ := Dial(t.Context(), l.guest.open()); dialled <- c }()
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the first one's: %v", err)
		}
		c.Close()
		c2 := must[net.Conn](t)(h.Accept(t.Context()))
		carries(t, <-dialled, c2, 1000)
	})
}

// TestHostThatComesAnew, having died within a packet: the guest takes nothing of
// what it left, and hears that the host is another.
func TestHostThatComesAnew(t *testing.T) {
	for cut := range 2 * (HeaderSize + 40) {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(64 << 10)
			g, c := pair(t, l, NewHost(l.host.open()))
			hc := c.(*conn)
			two := AppendPacket(nil, Data, hc.guest, hc.host, bytes.Repeat([]byte("a"), 40))
			two = AppendPacket(two, Data, hc.guest, hc.host, bytes.Repeat([]byte("b"), 40))
			if cut > 0 {
				must[int](t)(l.host.open().Write(two[:cut]))
			}
			again := NewHost(l.host.open())
			ctx, cancel := context.WithCancel(t.Context())
			accepted := make(chan error)
			go func() { _, err := again.Accept(ctx); accepted <- err }()
			got, err := io.ReadAll(g)
			want := bytes.Repeat([]byte("a"), 40)[:40*(cut/(HeaderSize+40))]
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("cut at %d: read %q, %v", cut, got, err)
			}
			g.Close()
			cancel()
			<-accepted
		})
	}
}

// TestStaleBytes: what earlier processes and strangers left is passed over, and
// counted.
func TestStaleBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(256 << 10)
		stale := AppendPacket(nil, Open, 5, 6, nil)
		stale = AppendPacket(stale, Data, 5, 6, []byte("a record that was never acknowledged"))
		stale = AppendPacket(stale, Close, 5, 6, nil)
		stale = append(stale, "garbage \xf5OG\x01 of somebody"...)
		stale = append(stale, AppendPacket(nil, Data, 5, 6, make([]byte, 900))[:500]...)
		must[int](t)(l.guest.open().Write(stale))
		toGuest := AppendPacket(nil, Hello, 0, 6, nil)
		toGuest = AppendPacket(toGuest, Accept, 5, 6, nil)
		toGuest = append(toGuest, AppendPacket(nil, Data, 5, 6, make([]byte, 100))[:70]...)
		must[int](t)(l.host.open().Write(toGuest))
		h := NewHost(l.host.open())
		g, c := pair(t, l, h)
		carries(t, g, c, 5000)
		carries(t, c, g, 5000)
		c.Close()
		if n := h.Counts(); n.Stale != 3 || n.Noise == 0 { // the open is answered, and no more
			t.Errorf("%+v", n)
		}
	})
}

// TestBrokenOffWriteIsFinished: what a deadline cut comes to its end before the
// next connection's first packet, and is nobody's data.
func TestBrokenOffWriteIsFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(20 << 10)
		h := NewHost(l.host.open())
		g, c := pair(t, l, h)
		c.SetWriteDeadline(time.Now().Add(time.Second))
		if n, err := c.Write(make([]byte, 40_000)); n != MaxPayload || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d, %v", n, err)
		}
		c.Close()
		accepted := make(chan net.Conn)
		go func() { c, _ := h.Accept(t.Context()); accepted <- c }()
		got, err := io.ReadAll(g) // the packet that was begun is whole, and the end behind it
		if len(got) != 2*MaxPayload || err != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		g.Close()
		g2 := must[net.Conn](t)(Dial(t.Context(), l.guest.open()))
		carries(t, g2, <-accepted, 20_000)
	})
}

func TestDeadlinesAndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(20 << 10)
		h := NewHost(l.host.open())
		g, c := pair(t, l, h)
		for name, conn := range map[string]net.Conn{"guest": g, "host": c} {
			began := time.Now()
			conn.SetReadDeadline(began.Add(3 * time.Second))
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != 3*time.Second {
				t.Errorf("%s: %v after %s", name, err, time.Since(began))
			}
			conn.SetDeadline(time.Time{})
		}
		carries(t, g, c, 100) // a deadline is not the end
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Read: %v", err)
			}
		})
		wg.Go(func() {
			if _, err := c.Write(make([]byte, 1<<20)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Write: %v", err)
			}
		})
		synctest.Wait()
		c.Close()
		g.Close()
		wg.Wait()
		for _, conn := range []net.Conn{g, c} {
			if _, err := conn.Write([]byte{1}); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Write to a closed one: %v", err)
			}
			if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the second Close: %v", err)
			}
		}
	})
}

// TestNobody: a guest without a host, and a host without a guest, wait as long
// as they were told to.
func TestNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if _, err := Dial(t.Context(), newLine(1<<20).guest.open()); err == nil || time.Since(began) != dialTime {
			t.Errorf("no answer: %v after %s", err, time.Since(began))
		}
		if _, err := Dial(t.Context(), newLine(0).guest.open()); !errors.Is(err, ErrNobody) {
			t.Errorf("no room: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		for name, wait := range map[string]func() error{
			"dial":   func() error { _, err := Dial(ctx, newLine(1<<20).guest.open()); return err },
			"accept": func() error { _, err := NewHost(newLine(1 << 20).host.open()).Accept(ctx); return err },
		} {
			if err := wait(); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// TestNoiseIsBounded: a guest's root that sends what is no packet costs the host
// no more than it can have left.
func TestNoiseIsBounded(t *testing.T) {
	old := AppendPacket(nil, Data, 1, 2, []byte{1})
	for name, noise := range map[string][]byte{"zeros": make([]byte, 1<<10), "stale": old, "magic": magic[:]} {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(1 << 16)
			ctx, stop := context.WithCancel(t.Context())
			g := l.guest.open()
			sent := 0
			done := make(chan struct{})
			go func() {
				defer close(done)
				for ctx.Err() == nil {
					n, err := g.Write(bytes.Repeat(noise, 64))
					if sent += n; err != nil {
						return
					}
				}
			}()
			if _, err := NewHost(l.host.open()).Accept(t.Context()); !errors.Is(err, ErrNoise) {
				t.Errorf("%s: %v", name, err)
			}
			stop()
			g.Close()
			<-done
			if sent > maxNoise+1<<18 {
				t.Errorf("%s: %d bytes were taken", name, sent)
			}
		})
	}
}

// TestRandomCuts: processes come and go at both ends, in the middle of
// everything. What one connection reads is what its other end wrote, from the
// first byte on, and after the last cut a connection comes about.
func TestRandomCuts(t *testing.T) {
	var lines atomic.Int64
	for seed := range uint64(12) {
		synctest.Test(t, func(t *testing.T) {
			c := &chaos{t: t, rand: rand.New(rand.NewPCG(seed, 1)), line: newLine(20 << 10), lines: &lines}
			c.play(10)
			if t.Failed() {
				t.Logf("seed %d", seed)
			}
		})
	}
	if lines.Load() < 1000 {
		t.Errorf("%d lines were read: too few to tell", lines.Load())
	}
}

type chaos struct {
	t    *testing.T
	rand *rand.Rand
	line *line

	lines *atomic.Int64
}

// play lets processes of both ends live for random times.
func (c *chaos) play(lives int) {
	ctx, stop := context.WithCancel(c.t.Context())
	var wg sync.WaitGroup
	run := func(one func(context.Context)) {
		seed := c.rand.Uint64()
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 2))
			for range lives {
				ctx, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(3000))*time.Millisecond)
				one(ctx)
				cancel()
			}
		})
	}
	run(func(ctx context.Context) {
		s := c.line.guest.open()
		die := context.AfterFunc(ctx, func() { s.Close() }) // as a process is killed: no word to anybody
		defer die()
		if conn, err := Dial(ctx, s); err == nil {
			c.talk(ctx, conn, "guest")
		}
	})
	run(func(ctx context.Context) {
		s := c.line.host.open()
		die := context.AfterFunc(ctx, func() { s.Close() })
		defer die()
		h := NewHost(s)
		for ctx.Err() == nil {
			conn, err := h.Accept(ctx)
			if err != nil {
				return
			}
			c.talk(ctx, conn, "host")
			conn.Close()
		}
	})
	wg.Wait()
	stop()
	g, h := pair(c.t, c.line, NewHost(c.line.host.open()))
	carries(c.t, g, h, 30_000)
	carries(c.t, h, g, 30_000)
}

// talk writes numbers of this connection and checks that those read are of it.
func (c *chaos) talk(ctx context.Context, conn net.Conn, who string) {
	pair := conn.(interface{ pair() string }).pair()
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(conn, "%s %6d\n%s", pair, i, bytes.Repeat([]byte("x"), i%3000)); err != nil {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	wg.Go(func() {
		want, at := []byte(nil), 0
		b := make([]byte, 5000)
		for i := 0; ; {
			n, err := conn.Read(b)
			for _, got := range b[:n] {
				if at == len(want) {
					want, at = fmt.Appendf(nil, "%s %6d\n%s", pair, i, bytes.Repeat([]byte("x"), i%3000)), 0
					i++
					c.lines.Add(1)
				}
				if got != want[at] {
					c.t.Errorf("%s of %s: another byte than was written, in line %d", who, pair, i-1)
					conn.Close()
					return
				}
				at++
			}
			if err != nil {
				conn.Close()
				return
			}
		}
	})
	wg.Wait()
}

func (c *conn) pair() string { return fmt.Sprintf("%016x %016x", c.guest, c.host) }

// TestNoAllocation: a packet costs no memory on its way.
func TestNoAllocation(t *testing.T) {
	l := newLine(1 << 20)
	g, c := pair(t, l, NewHost(l.host.open()))
	b := make([]byte, 3000)
	n := testing.AllocsPerRun(100, func() {
		if _, err := g.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
	})
	if n > 1 { // the line's own
		t.Errorf("%v allocations for a packet", n)
	}
}

// TestSyscallConn is the stream's, where it has one.
func TestSyscallConn(t *testing.T) {
	l := newLine(1 << 20)
	g, _ := pair(t, l, NewHost(l.host.open()))
	if _, err := g.(syscall.Conn).SyscallConn(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("in memory: %v", err)
	}
	gs, hs, err := prototest.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	go Dial(t.Context(), gs)
	c := must[net.Conn](t)(NewHost(hs).Accept(t.Context()))
	defer hs.Close()
	if raw, err := c.(syscall.Conn).SyscallConn(); raw == nil || err != nil {
		t.Errorf("a socket: %v, %v", raw, err)
	}
}
