package session

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// FuzzHostileAgent is a guest that sends what it likes: from the first byte on,
// after an honest handshake, or in well-formed frames in order. The host must
// not panic, must end with the connection, and must have every byte that it
// took on record, in order. The first byte of the input picks the manner.
func FuzzHostileAgent(f *testing.F) {
	hello := vsockproto.AppendHello(nil, prototest.NewAgent(nil).Hello())
	f.Add(append([]byte{0}, frameOf(vsockproto.FrameHello, 0, hello)...))
	f.Add([]byte("\x00GET / HTTP/1.1\r\n\r\n"))
	for _, t := range vsockproto.EventTypes() {
		e := prototest.Sample(t)
		e.Sequence = 1
		b, err := e.Append(vsockproto.AppendEventsHeader(nil, 1))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append([]byte{1}, frameOf(vsockproto.FrameEvents, 1, b)...))
		f.Add(chunk([]byte{2}, vsockproto.FrameEvents, b))
	}
	beat := vsockproto.AppendHeartbeat(nil, &vsockproto.Heartbeat{Counters: []vsockproto.Counter{{Class: 2, Watermark: 9, Lost: 3}}})
	bye := vsockproto.AppendBye(nil, &vsockproto.Bye{Reason: "x"})
	f.Add(chunk(chunk([]byte{2}, vsockproto.FrameHeartbeat, beat), vsockproto.FrameBye, bye))
	f.Add(chunk([]byte{2}, vsockproto.FramePolicyAck, vsockproto.AppendPolicyAck(nil, &vsockproto.PolicyAck{Number: 1, Reason: "no"})))

	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 {
			return
		}
		w := newWorld()
		m := w.manager(nil)
		ac, hc := prototest.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = m.Serve(t.Context(), hc, vmID, "hybrid")
		}()
		sent, ok := attack(ac, in[0]%3, in[1:])
		if !ok {
			t.Fatal("an honest handshake was refused")
		}
		ac.Close()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatal("the connection has ended, and Serve has not")
		}
		var got []byte
		for _, e := range w.record {
			got = append(got, e.raw...)
		}
		if !bytes.HasPrefix(sent, got) {
			t.Fatalf("recorded % x\nof what was sent: % x", got, sent)
		}
		if strings.Contains(w.delivered(), "not as recorded") {
			t.Fatal(w.delivered())
		}
	})
}

// attack returns what it tried to send.
func attack(c net.Conn, manner byte, in []byte) (sent []byte, ok bool) {
	out := &bytes.Buffer{}
	to := io.MultiWriter(out, c)
	if manner != 0 && !shakeHands(c, to) {
		return nil, false
	}
	go io.Copy(io.Discard, c)
	if manner != 2 {
		to.Write(in)
		return out.Bytes(), true
	}
	for seq := uint64(1); len(in) >= 3; seq++ {
		n := min(8*int(binary.LittleEndian.Uint16(in[1:])), (len(in)-3)&^7, vsockproto.MaxFrame-vsockproto.FrameHeaderSize)
		if _, err := to.Write(frameOf(vsockproto.FrameType(in[0]), seq, in[3:3+n])); err != nil {
			break
		}
		in = in[3+n:]
	}
	return out.Bytes(), true
}

// shakeHands does an honest handshake, writing to to and reading from c.
func shakeHands(c net.Conn, to io.Writer) bool {
	hello := vsockproto.AppendHello(nil, prototest.NewAgent(nil).Hello())
	to.Write(frameOf(vsockproto.FrameHello, 0, hello))
	challenge := make([]byte, vsockproto.FrameHeaderSize+56)
	if _, err := io.ReadFull(c, challenge); err != nil {
		return false
	}
	p := vsockproto.Proof{MAC: vsockproto.AgentProof(&prototest.Key, hello, challenge[vsockproto.FrameHeaderSize:])}
	to.Write(frameOf(vsockproto.FrameProof, 0, vsockproto.AppendProof(nil, &p)))
	_, err := io.ReadFull(c, make([]byte, vsockproto.FrameHeaderSize+64))
	return err == nil
}

func frameOf(t vsockproto.FrameType, seq uint64, payload []byte) []byte {
	return append(vsockproto.AppendFrame(nil, t, seq, len(payload)), payload...)
}

func chunk(b []byte, t vsockproto.FrameType, payload []byte) []byte {
	b = append(b, byte(t))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(payload)/8))
	return append(b, payload...)
}

// TestHostileLengthsCostNothing claims large frames and sends nothing of them.
func TestHostileLengthsCostNothing(t *testing.T) {
	w := newWorld()
	m := w.manager(nil)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 50 {
		ac, hc := prototest.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); _ = m.Serve(t.Context(), hc, vmID, "hybrid") }()
		h := vsockproto.AppendFrame(nil, vsockproto.FrameHello, 0, 1<<31-16)
		ac.Write(h)
		io.Copy(io.Discard, ac)
		<-done
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 50*(64<<10) {
		t.Fatalf("%d bytes for 50 connections", grown)
	}
}

// TestOverUnixSockets runs a session over real sockets: the Reject that ends it
// must reach the agent.
func TestOverUnixSockets(t *testing.T) {
	w := newWorld()
	m := w.manager(nil)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go m.Serve(t.Context(), c, vmID, "hybrid")
		}
	}()
	dialUnix := func() net.Conn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a := prototest.NewAgent(&prototest.AgentOptions{Silent: true}) // a heartbeat that meets the host's end would hide the Reject
	end := make(chan error, 1)
	go func() { end <- a.Run(t.Context(), dialUnix()) }()
	for range 1000 {
		send(t, a, vsockproto.FileOpen, vsockproto.SocketConnect, vsockproto.TaskNewtask)
	}
	settle(t, a)
	b := prototest.NewAgent(nil)
	var rejected *link.RejectError
	if err := b.Run(t.Context(), dialUnix()); !asReject(err, &rejected) || rejected.Code != vsockproto.RejectBusy {
		t.Errorf("the second agent sees %v", err)
	}
	if s, _ := m.StatusOf(vmID); s.Received != (ByClass{1000, 2000}) || s.Unsettled != 0 {
		t.Errorf("status %+v", s)
	}
	if err := a.Link().SendEvents(7, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-end; !asReject(err, &rejected) || rejected.Code != vsockproto.RejectProtocol {
		t.Errorf("the agent sees %v", err)
	}
	want(t, "findings", w.rules(), "impostor malformed!")
}

func asReject(err error, to **link.RejectError) bool { return errors.As(err, to) }

// TestManySessions has 200 VMs speak at once, each with two connections' worth
// of events and declared losses, and every one accounted for.
func TestManySessions(t *testing.T) {
	const vms, rounds = 200, 20
	w := newWorld()
	for i := range vms {
		w.key[uuid.UUID{0: 1, 15: byte(i)}] = prototest.Key
	}
	m := w.manager(nil)
	m.p.Recorder, m.p.Sink = null{w}, discard{}
	var all sync.WaitGroup
	for i := range vms {
		all.Go(func() {
			a := prototest.NewAgent(&prototest.AgentOptions{Silent: true})
			for range 2 {
				ac, hc, err := prototest.SocketPair()
				if err != nil {
					t.Error(err)
					return
				}
				var ends sync.WaitGroup
				ends.Go(func() { _ = m.Serve(t.Context(), hc, uuid.UUID{0: 1, 15: byte(i)}, "hybrid") })
				ends.Go(func() { _ = a.Run(t.Context(), ac) })
				for range rounds {
					send(t, a, vsockproto.TaskNewtask, vsockproto.FileOpen, vsockproto.SocketConnect)
					a.Lose(1, vsockproto.Bulk, 3)
				}
				settle(t, a)
				ac.Close()
				ends.Wait()
			}
		})
	}
	all.Wait()
	status := m.Status()
	if len(status) != vms {
		t.Fatalf("%d VMs", len(status))
	}
	for _, s := range status {
		if s.Received != (ByClass{2 * rounds, 4 * rounds}) || s.Lost != (ByClass{0, 6 * rounds}) || s.Missing != (ByClass{}) || s.Unsettled != 0 {
			t.Errorf("%+v", s)
		}
	}
	for _, f := range w.findings {
		if f.Rule != RuleLoss || f.Severity != engine.Low || f.Detail["bulk"] == "0" {
			t.Errorf("%+v", f)
		}
	}
}

// TestFramesCostNoAllocation sends frames as bytes and waits for their acks.
func TestFramesCostNoAllocation(t *testing.T) {
	w := newWorld()
	m := w.manager(nil)
	m.p.Recorder, m.p.Sink = null{w}, discard{}
	ac, hc, err := prototest.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = m.Serve(context.Background(), hc, vmID, "hybrid") }()
	if !shakeHands(ac, ac) {
		t.Fatal("no handshake")
	}
	policy := make([]byte, vsockproto.FrameHeaderSize+16+8*len(vsockproto.StartTypes()))
	if _, err := io.ReadFull(ac, policy); err != nil {
		t.Fatal(err)
	}
	payload := vsockproto.AppendEventsHeader(nil, len(vsockproto.EventTypes()))
	var at []int // of the records
	for _, k := range vsockproto.EventTypes() {
		at = append(at, vsockproto.FrameHeaderSize+len(payload))
		e := prototest.Sample(k)
		e.Sequence = 1
		if payload, err = e.Append(payload); err != nil {
			t.Fatal(err)
		}
	}
	frame, ack := frameOf(vsockproto.FrameEvents, 0, payload), make([]byte, vsockproto.FrameHeaderSize+16)
	seq, numbers := uint64(0), [3]uint64{}
	n := testing.AllocsPerRun(200, func() {
		seq++
		binary.LittleEndian.PutUint64(frame[8:], seq)
		for _, off := range at {
			class := frame[off+7]
			numbers[class]++
			binary.LittleEndian.PutUint64(frame[off+16:], numbers[class])
		}
		if _, err := ac.Write(frame); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(ac, ack); err != nil {
			t.Fatal(err)
		}
	})
	ac.Close()
	<-done
	if n != 0 {
		t.Fatalf("%v allocations for a frame of 12 records", n)
	}
}

// BenchmarkArrival is how long it takes from writing a frame of one record to
// its delivery, and to its ack, over a unix socket with nothing else to do.
func BenchmarkArrival(b *testing.B) {
	w := newWorld()
	m := w.manager(nil)
	in := make(arrivals, 1)
	m.p.Recorder, m.p.Sink, m.p.Store = null{w}, in, nil
	ac, hc, err := prototest.SocketPair()
	if err != nil {
		b.Fatal(err)
	}
	go m.Serve(b.Context(), hc, vmID, "hybrid")
	a := prototest.NewAgent(nil)
	go a.Run(b.Context(), ac)
	e := prototest.Sample(vsockproto.FileOpen)
	for b.Loop() {
		if err := a.Send(b.Context(), e); err != nil {
			b.Fatal(err)
		}
		<-in
	}
}

type arrivals chan struct{}

func (a arrivals) Deliver(context.Context, *engine.Batch) error {
	a <- struct{}{}
	return nil
}

// null is a world that keeps nothing, for benchmarks.
type null struct{ *world }

func (null) Room(uuid.UUID, int) bool         { return true }
func (null) Record(*Received) (uint64, error) { return 1, nil }
func (null) Recorded(uuid.UUID) error         { return nil }

type discard struct{}

func (discard) Deliver(context.Context, *engine.Batch) error { return nil }

func BenchmarkSession(b *testing.B) {
	for _, batch := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) { benchSession(b, batch) })
	}
}

func benchSession(b *testing.B, batch int) {
	w := newWorld()
	m := w.manager(nil)
	m.p.Recorder, m.p.Sink, m.p.Store = null{w}, discard{}, nil
	ac, hc, err := prototest.SocketPair()
	if err != nil {
		b.Fatal(err)
	}
	go m.Serve(b.Context(), hc, vmID, "hybrid")
	a := prototest.NewAgent(nil)
	go a.Run(b.Context(), ac)
	var events []*vsockproto.Event
	for range batch {
		events = append(events, prototest.Sample(vsockproto.FileOpen))
	}
	b.ReportAllocs()
	start := time.Now()
	n := 0
	for b.Loop() {
		if err := a.Send(b.Context(), events...); err != nil {
			b.Fatal(err)
		}
		n += batch
	}
	if err := a.Drained(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(n)/time.Since(start).Seconds(), "events/s")
	if s, _ := m.StatusOf(vmID); s.Received.Bulk != uint64(n) {
		b.Fatalf("%d of %d arrived", s.Received.Bulk, n)
	}
}
