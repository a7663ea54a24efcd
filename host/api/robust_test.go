package api_test

import (
	"bufio"
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/apitest"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

// hanging has engines that do not answer: what asks them waits for its caller.
type hanging struct{ *apitest.Backend }

func (hanging) VMs(ctx context.Context) ([]*apipb.VM, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestAPauseDoesNotWaitForEngines(t *testing.T) {
	c, _ := serve(t, hanging{newBackend()}, nil)
	r, err := c.Pause(t.Context(), &apipb.PauseRequest{Vm: "web"})
	if err != nil || r.Order.Vm != "web" || r.Order.State != "done" {
		t.Errorf("%v, %v", r, err)
	}
}

// slowCapture tells its context, and ends when it is let.
type slowCapture struct {
	*apitest.Backend
	begun  chan context.Context
	let    chan struct{}
	result chan error
}

func (s slowCapture) Capture(ctx context.Context, vm uuid.UUID, revertible bool, by api.Caller, progress func(*apipb.Progress)) (*apipb.Order, error) {
	s.begun <- ctx
	<-s.let
	o, err := s.Backend.Capture(ctx, vm, revertible, by, progress)
	s.result <- ctx.Err()
	return o, err
}

func TestACaptureGoesOnWithoutItsCaller(t *testing.T) {
	b := slowCapture{newBackend(), make(chan context.Context, 1), make(chan struct{}), make(chan error, 1)}
	c, _ := serve(t, b, nil)
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		s, err := c.Capture(ctx, &apipb.CaptureRequest{Vm: "web"})
		if err != nil {
			return
		}
		for s.Receive() {
			t.Error(s.Msg())
		}
		_ = s.Close()
	}()
	if (<-b.begun).Done() != nil {
		t.Error("the capture's context can end with its caller")
	}
	cancel()
	<-gone
	close(b.let)
	if err := <-b.result; err != nil {
		t.Errorf("the capture's context ended with its caller: %v", err)
	}
}

// Connections past the limit wait for one to end, and are then served.
func TestConnectionsAreBounded(t *testing.T) {
	_, socket := serve(t, newBackend(), &api.Options{MaxConns: 1})
	first, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	answered(t, first) // it is the one that was accepted
	second, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Close() }()
	_ = second.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	ask(t, second)
	if n, err := second.Read(make([]byte, 1)); err == nil {
		t.Fatalf("a second connection was answered with %d bytes", n)
	}
	_ = first.Close()
	_ = second.SetReadDeadline(time.Now().Add(10 * time.Second))
	if line, err := bufio.NewReader(second).ReadString('\n'); err != nil || !strings.Contains(line, "404") {
		t.Errorf("%q, %v", line, err)
	}
}

func ask(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
}

func answered(t *testing.T, c net.Conn) {
	t.Helper()
	ask(t, c)
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, "404") {
		t.Fatalf("%q, %v", line, err)
	}
}

// BenchmarkEvents is the whole way of an event from a batch in the record to a
// caller: decoded, filtered, sent over a unix socket and read.
func BenchmarkEvents(b *testing.B) {
	const perBatch = 64
	events := make([]vsockproto.Event, perBatch)
	for i := range events {
		events[i] = exec(uint32(i+1), "/usr/bin/something", "something", "--with", "arguments")
	}
	back := &endless{Backend: newBackend(), left: b.N/perBatch + 1}
	back.batch = &engine.Batch{VM: web, Received: at, Count: perBatch}
	for i := range events {
		var err error
		events[i].Class, events[i].Sequence = vsockproto.Bulk, uint64(i+1)
		if back.batch.Records, err = events[i].Append(back.batch.Records); err != nil {
			b.Fatal(err)
		}
	}
	c, stop := serveFor(b, back)
	defer stop()
	b.ReportAllocs()
	b.ResetTimer()
	s, err := c.Events(b.Context(), &apipb.EventsRequest{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	got := 0
	for s.Receive() {
		got += len(s.Msg().Events)
	}
	if s.Err() != nil || got < b.N {
		b.Fatal(got, s.Err())
	}
}

// endless gives the same batch again and again.
type endless struct {
	*apitest.Backend
	batch *engine.Batch
	left  int
}

func (e *endless) Batches(_ context.Context, _ api.Query, yield func(*engine.Batch) error) error {
	for ; e.left > 0; e.left-- {
		if err := yield(e.batch); err != nil {
			return err
		}
	}
	return nil
}
