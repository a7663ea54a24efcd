package domain

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/outguard/outguard/host/domain/domaintest"
)

// Of libvirt's remote protocol: procedures, and types of a message.
const (
	procConnectClose = 2
	procRegister     = 316 // CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY
	procDeregister   = 317

	typeCall, typeReply = 0, 1
)

// wire is what was asked over one connection.
type wire struct {
	mu    sync.Mutex
	asked []uint32
	open  map[uint32]uint32 // procedures by serial
	early []uint32          // those under way when the connection was closed
}

// half takes one direction's bytes apart into messages.
type half struct {
	w    *wire
	rest []byte
}

func (h *half) Write(b []byte) (int, error) {
	h.rest = append(h.rest, b...)
	for len(h.rest) >= 4 {
		n := int(binary.BigEndian.Uint32(h.rest))
		if len(h.rest) < n {
			break
		}
		h.w.message(h.rest[4:n]) // program, version, procedure, type, serial, status
		h.rest = h.rest[n:]
	}
	return len(b), nil
}

func (w *wire) message(m []byte) {
	word := func(i int) uint32 { return binary.BigEndian.Uint32(m[4*i:]) }
	proc, kind, serial := word(2), word(3), word(4)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch kind {
	case typeCall:
		if w.asked = append(w.asked, proc); proc == procConnectClose {
			for _, under := range w.open {
				w.early = append(w.early, under)
			}
		}
		w.open[serial] = proc
	case typeReply:
		delete(w.open, serial)
	}
}

// TestWatchHangsUp: a watch's end is its connection's, which says goodbye when
// nothing is under way on it, and takes no subscription back. libvirtd 9.0.0 does
// not survive it otherwise, one time in a hundred.
func TestWatchHangsUp(t *testing.T) {
	libvirtd := domaintest.NewPrivate(t)
	var mu sync.Mutex
	var wires []*wire
	p := newProxy(t, libvirtd.Socket, func() (calls, replies io.Writer) {
		w := &wire{open: map[uint32]uint32{}}
		mu.Lock()
		defer mu.Unlock()
		wires = append(wires, w)
		return &half{w: w}, &half{w: w}
	})
	for _, where := range []struct {
		socket string
		rounds int
	}{{p.path, 50}, {libvirtd.Socket, 250}} {
		for i := range where.rounds {
			c := New(&Options{Socket: where.socket})
			ctx, cancel := context.WithCancel(t.Context())
			begun, ended := make(chan struct{}, 1), make(chan error, 1)
			go func() { ended <- c.Watch(ctx, func(Event) { begun <- struct{}{} }) }()
			want := ErrClosed
			if i%2 == 0 { // the watch ends, and at once the client
				want = context.Canceled
				<-begun
				cancel()
			} else { // the client ends, wherever the watch is
				time.Sleep(rand.N(4 * time.Millisecond))
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; !errors.Is(err, want) {
				t.Fatalf("a watch ended with %v, want %v", err, want)
			}
			cancel()
		}
		after := New(&Options{Socket: where.socket})
		if _, err := after.List(t.Context()); err != nil {
			t.Errorf("after %d watches: %v", where.rounds, err)
		}
		_ = after.Close()
	}
	subscribed := 0
	for _, w := range wires {
		w.mu.Lock()
		if slices.Contains(w.asked, procRegister) {
			subscribed++
		}
		if slices.Contains(w.asked, procDeregister) || len(w.early) > 0 || !slices.Contains(w.asked, procConnectClose) {
			t.Errorf("a connection had calls %v, and at its close %v under way", w.asked, w.early)
		}
		w.mu.Unlock()
	}
	if subscribed < 25 {
		t.Errorf("of 50 watches %d subscribed", subscribed)
	}
}
