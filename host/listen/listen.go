// Package listen is where guests connect: AF_VSOCK, where the peer's CID says
// which domain speaks, hybrid vsock, where the unix socket does, and virtio-serial,
// where the socket does at which QEMU serves the domain's port. What it hands on is
// a connection and the domain that it belongs to.
//
//	kernel vhost-vsock                    one listener at port 6820; peer CID -> Domains
//	vhost-device-vsock, Firecracker, …    <dir>/<domain name>.sock_6820, one per domain
//	virtio-serial                         a socket per domain, which QEMU listens at and we connect to
//
// A connection that belongs to no known domain is closed and reported. It does
// not read from a connection: who speaks for the domain is host/session's matter.
package listen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// Transports, as they are called everywhere.
const (
	Vsock  = "vsock"  // AF_VSOCK through the host's kernel
	Hybrid = "hybrid" // a unix socket per domain
	Serial = "serial" // a virtio-serial port per domain
)

// Serve takes a connection of a domain and returns when it has ended. When the
// agent has proven itself, Serve calls Proven on the connection (an
// interface{ Proven() }): from then on it no longer counts against the bounds,
// and the handshake's time limit is off. Its Unread (an interface{ Unread() int })
// is how many bytes wait in the host's kernel.
type Serve func(ctx context.Context, conn net.Conn, vm uuid.UUID, transport string)

// Refusal is a connection that was not taken, or had to go. It is a finding.
type Refusal struct {
	Rule      string    // RuleStranger, RuleCrowd or RuleNoise
	VM        uuid.UUID // uuid.Nil for a stranger
	Transport string
	Peer      string // the CID, or the socket's name
	Reason    string // one sentence for people
	Before    int    // of the same peer and rule, not reported since the last
}

// Rules of refusals.
const (
	RuleStranger = "listen/stranger" // nobody knows whose connection it is
	RuleNoise    = "listen/noise"    // a port sends what is not the protocol's, without end
	RuleCrowd    = "listen/crowd"    // too many connections that have proven nothing: this one, or an older one, was closed
)

// Options are a listener's; nil and zero mean the defaults.
type Options struct {
	PerDomain int           // connections of a domain that have proven nothing; the oldest makes room; default 8
	Total     int           // and of all domains; default 256
	Handshake time.Duration // for a connection to prove itself; default 15 s
	Refused   func(Refusal) // default: logged only
	Log       *slog.Logger  // default slog.Default()
}

// door counts who waits inside without having proven anything.
type door struct {
	o     Options
	serve Serve

	mu      sync.Mutex
	waiting map[uuid.UUID][]*guest // oldest first
	asking  map[string]int         // connections of a peer whose domain is not known yet
	total   int                    // of both
	told    map[string]*told
}

type told struct {
	next   time.Time
	before int
}

func newDoor(serve Serve, o *Options) *door {
	d := &door{serve: serve, waiting: map[uuid.UUID][]*guest{}, asking: map[string]int{}, told: map[string]*told{}}
	if o != nil {
		d.o = *o
	}
	if d.o.PerDomain == 0 {
		d.o.PerDomain = 8
	}
	if d.o.Total == 0 {
		d.o.Total = 256
	}
	if d.o.Handshake == 0 {
		d.o.Handshake = 15 * time.Second
	}
	if d.o.Log == nil {
		d.o.Log = slog.Default()
	}
	return d
}

// caller is who is at the other end: of what domain, or how to find that out,
// which may take a while.
type caller struct {
	vm   uuid.UUID
	peer string
	ask  func() (uuid.UUID, error) // nil: vm is known
}

// accept takes connections from l until it is closed, or ctx ends. Each is served
// in a goroutine of wg; who says where it comes from, at once.
func (d *door) accept(ctx context.Context, wg *sync.WaitGroup, l net.Listener, transport string, who func(net.Conn) caller) error {
	for {
		c, err := l.Accept()
		switch {
		case err == nil && ctx.Err() != nil: // those that are served are on their way out, and come back
			c.Close()
			return nil
		case err == nil:
			wg.Go(func() { d.enter(ctx, c, transport, who(c)) })
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return nil
		default: // out of descriptors, most likely: it passes
			d.o.Log.Error("accept", "transport", transport, "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// enter takes a place before it asks whose connection it is: strangers are
// bounded as well.
func (d *door) enter(ctx context.Context, c net.Conn, transport string, from caller) {
	defer c.Close()
	if ctx.Err() != nil {
		return
	}
	vm, peer := from.vm, from.peer
	g := &guest{Conn: c, door: d, vm: vm}
	old, why := d.admit(g, from)
	if why != "" {
		d.crowd(vm, transport, peer, why)
		return
	}
	g.late = time.AfterFunc(d.o.Handshake, func() { c.Close() })
	defer g.Proven()
	if from.ask != nil {
		var err error
		vm, err = from.ask()
		old = d.answered(g, peer, vm, err)
		if err != nil {
			d.refuse(Refusal{
				Rule: RuleStranger, Transport: transport, Peer: peer,
				Reason: fmt.Sprintf("A connection by %s from %s belongs to no known domain: %v.", transport, peer, err),
			})
			return
		}
	}
	if old != nil {
		old.Close()
		d.crowd(vm, transport, peer, "took the place of an older one that had proven nothing")
	}
	d.serve(ctx, g, vm, transport)
}

func (d *door) crowd(vm uuid.UUID, transport, peer, what string) {
	d.refuse(Refusal{
		Rule: RuleCrowd, VM: vm, Transport: transport, Peer: peer,
		Reason: fmt.Sprintf("A connection by %s from %s %s.", transport, peer, what),
	})
}

// guest is a connection that has a place at the door until it is proven.
type guest struct {
	net.Conn
	door *door
	vm   uuid.UUID
	late *time.Timer
}

// Proven gives the place free.
func (g *guest) Proven() {
	g.late.Stop()
	g.door.release(g)
}

// File is a copy of the connection's descriptor, nil where it has none.
func (g *guest) File() (*os.File, error) {
	if c, ok := g.Conn.(interface{ File() (*os.File, error) }); ok {
		return c.File()
	}
	return nil, nil
}

// Unread is how many bytes of the guest's wait in the host's kernel; 0 where
// that cannot be told.
func (g *guest) Unread() (n int) {
	c, ok := g.Conn.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	err = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	if err != nil {
		return 0
	}
	return n
}

// admit gives g a place, or says why not. It may be that of an older one, which
// has to go then: one domain never has more places than it may, however many
// come at once, and one peer whose domain is not known yet may not take the
// places of all.
func (d *door) admit(g *guest, from caller) (old *guest, refused string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := from.ask == nil
	if known {
		old = d.oldest(g.vm)
	}
	switch {
	case old == nil && d.total >= d.o.Total:
		return nil, "was refused: too many are open, of all domains, that have proven nothing"
	case known:
		d.waiting[g.vm] = append(d.waiting[g.vm], g)
	case d.asking[from.peer] >= d.o.PerDomain:
		return nil, "was refused: too many of its are open whose domain is not known yet"
	default:
		d.asking[from.peer]++
	}
	d.total++
	return old, ""
}

// answered moves g to the domain that it turned out to be of, where an older
// one may have to go, or, with an error, gives its place free.
func (d *door) answered(g *guest, peer string, vm uuid.UUID, err error) (old *guest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.asking[peer]--; d.asking[peer] == 0 {
		delete(d.asking, peer)
	}
	if err != nil {
		d.total--
		return nil
	}
	g.vm = vm
	old = d.oldest(vm)
	d.waiting[vm] = append(d.waiting[vm], g)
	return old
}

// oldest gives the place of a domain's oldest connection free, if it has as
// many as it may. Nobody in a guest can keep its agent out by connecting and
// saying nothing. Called with d.mu held.
func (d *door) oldest(vm uuid.UUID) *guest {
	if len(d.waiting[vm]) < d.o.PerDomain {
		return nil
	}
	g := d.waiting[vm][0]
	d.drop(g, 0)
	return g
}

func (d *door) release(g *guest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.waiting[g.vm], g); i >= 0 {
		d.drop(g, i)
	}
}

// drop is called with d.mu held.
func (d *door) drop(g *guest, i int) {
	d.total--
	if d.waiting[g.vm] = slices.Delete(d.waiting[g.vm], i, i+1); len(d.waiting[g.vm]) == 0 {
		delete(d.waiting, g.vm)
	}
}

// Refusals of one peer are told at most this often, and of so many peers.
const (
	tellAgain = 10 * time.Second
	tellPeers = 1024
)

func (d *door) refuse(r Refusal) {
	key := r.Rule + " " + r.Peer
	now := time.Now()
	d.mu.Lock()
	t := d.told[key]
	if t == nil {
		if len(d.told) >= tellPeers {
			clear(d.told)
		}
		t = &told{}
		d.told[key] = t
	}
	if now.Before(t.next) {
		t.before++
		d.mu.Unlock()
		return
	}
	r.Before = t.before
	*t = told{next: now.Add(tellAgain)}
	d.mu.Unlock()
	d.o.Log.Warn("connection refused", "rule", r.Rule, "transport", r.Transport, "peer", r.Peer, "reason", r.Reason)
	if d.o.Refused != nil {
		d.o.Refused(r)
	}
}
