package listen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/vsockproto/serial"
)

// SerialListener connects to the unix sockets at which QEMU serves its guests'
// virtio-serial ports, and yields the connections that the guests open over
// them. The socket of a domain says that it is that domain which speaks.
//
// QEMU serves one client. That another one is served cannot be seen from here:
// the connection waits, and the domain is silent.
type SerialListener struct {
	door *door

	mu    sync.Mutex // guards what follows
	at    map[uuid.UUID]*port
	run   context.Context // nil unless Run runs
	wg    *sync.WaitGroup
	ended bool
}

// port is one domain's.
type port struct {
	name, path string
	stop       context.CancelFunc // nil while it is not attended to
	there      bool               // SerialListener.mu: its socket is connected
}

// NewSerial makes a listener without any domain. It starts nothing.
func NewSerial(serve Serve, o *Options) *SerialListener {
	return &SerialListener{door: newDoor(serve, o), at: map[uuid.UUID]*port{}}
}

// Add makes the socket at path that of a domain: it is connected to, and again,
// while Run runs. A domain that has another loses that.
func (l *SerialListener) Add(vm uuid.UUID, name, path string) error {
	if !filepath.IsAbs(path) || len(path) > maxPath {
		return fmt.Errorf("port of domain %q: socket %q: an absolute path of at most %d bytes is needed", name, path, maxPath)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return fmt.Errorf("port of domain %q: %w", name, os.ErrClosed)
	}
	if p := l.at[vm]; p != nil && p.path == path {
		p.name = name
		return nil
	}
	for other, p := range l.at {
		if p.path == path && other != vm {
			return fmt.Errorf("port of domain %q: socket %s is that of %q: %w", name, path, p.name, os.ErrExist)
		}
	}
	l.remove(vm)
	l.at[vm] = &port{name: name, path: path}
	if l.run != nil {
		l.start(vm, l.at[vm])
	}
	return nil
}

// Remove lets go of a domain's port, and ends its connection.
func (l *SerialListener) Remove(vm uuid.UUID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remove(vm)
}

func (l *SerialListener) remove(vm uuid.UUID) {
	if p := l.at[vm]; p != nil && p.stop != nil {
		p.stop()
	}
	delete(l.at, vm)
}

// Connected reports whether the socket of a domain's port is: whether QEMU is at
// its other end.
func (l *SerialListener) Connected(vm uuid.UUID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.at[vm]
	return p != nil && p.there
}

// Run takes connections until ctx ends, and returns when every one has ended. It
// may be called once.
func (l *SerialListener) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	l.mu.Lock()
	l.run, l.wg = ctx, &wg
	for vm, p := range l.at {
		l.start(vm, p)
	}
	l.mu.Unlock()
	<-ctx.Done()
	l.mu.Lock()
	l.run, l.ended = nil, true
	l.mu.Unlock()
	wg.Wait()
	return ctx.Err()
}

// start is called with mu held, while Run runs.
func (l *SerialListener) start(vm uuid.UUID, p *port) {
	ctx, stop := context.WithCancel(l.run)
	p.stop = stop
	l.wg.Go(func() { defer stop(); l.attend(ctx, vm, p) })
}

// How soon a socket is connected to again: nobody is there while the domain is
// off, and one that sends noise is given time.
const (
	redialMin = 100 * time.Millisecond
	redialMax = 2 * time.Second
	redialBad = 10 * time.Second
)

// attend keeps p connected until ctx ends.
func (l *SerialListener) attend(ctx context.Context, vm uuid.UUID, p *port) {
	delay, said := redialMin, ""
	for ctx.Err() == nil {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", p.path)
		if err == nil {
			delay, said = redialMin, ""
			err = l.serve(ctx, conn, vm, p)
		}
		if errors.Is(err, serial.ErrNoise) {
			l.noise(vm, p, err)
			delay = redialBad
		}
		if text := fmt.Sprint(err); ctx.Err() == nil && text != said && !errors.Is(err, os.ErrNotExist) {
			l.door.o.Log.Log(ctx, level(err), "serial port", "peer", p.name, "err", err)
			said = text
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
		delay = min(2*delay, redialMax)
	}
}

// level is an error's where it does not pass by itself.
func level(err error) slog.Level {
	if errors.Is(err, os.ErrPermission) {
		return slog.LevelError
	}
	return slog.LevelInfo
}

// serve hands on what the guest opens over one connection to its port.
func (l *SerialListener) serve(ctx context.Context, conn net.Conn, vm uuid.UUID, p *port) error {
	h := serial.NewHost(conn)
	defer h.Close()
	l.connected(p, true)
	defer l.connected(p, false)
	for {
		c, err := h.Accept(ctx)
		if err != nil {
			return err
		}
		l.door.enter(ctx, c, Serial, caller{vm: vm, peer: p.name})
		if n := h.Counts(); n != (serial.Counts{}) {
			l.door.o.Log.Debug("serial port", "peer", p.name, "stale_packets", n.Stale, "noise_bytes", n.Noise)
		}
	}
}

func (l *SerialListener) connected(p *port, there bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.there = there
}

func (l *SerialListener) noise(vm uuid.UUID, p *port, err error) {
	l.door.refuse(Refusal{
		Rule: RuleNoise, VM: vm, Transport: Serial, Peer: p.name,
		Reason: fmt.Sprintf("What comes through the virtio-serial port of %s is not the protocol's: %v.", p.name, err),
	})
}
