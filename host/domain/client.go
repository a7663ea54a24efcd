package domain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
)

// DefaultSocket is libvirtd's socket for the system's domains.
const DefaultSocket = "/run/libvirt/libvirt-sock"

// Options of a Client; zero values mean the documented defaults.
type Options struct {
	Socket      string        // default DefaultSocket
	DialTimeout time.Duration // default 5 s
	Log         *slog.Logger  // default: discards
}

// Client talks to the local libvirtd. It connects at its first call and anew
// whenever a connection was lost. Its methods may be called concurrently.
//
// libvirtd lets one connection have five calls under way, so that five hung
// domains would hold up all others: the calls about single domains go over a
// few connections, by UUID, and each capture and each Watch has one of its own.
type Client struct {
	opts  Options
	log   *slog.Logger
	lines [1 + perVM]line // [0]: lists
	life  context.Context // until Close
	end   context.CancelFunc

	mu      sync.Mutex // guards names and turns, and that nothing begins after Close
	names   map[uuid.UUID]string
	turns   map[uuid.UUID]chan struct{} // held while a domain is being changed
	pending sync.WaitGroup              // calls and watches under way
}

const perVM = 4

// line is one connection, and those that it had before on which a call hangs.
type line struct {
	mu   sync.Mutex // guards what follows; held while dialling, for DialTimeout at most
	conn *connection
	hung []*connection
}

// connection is one to libvirtd.
type connection struct {
	*libvirt.Libvirt
	raw   net.Conn // beneath it: the library does not close what broke
	calls int      // under way; line.mu
}

// drop forgets a connection that no longer answers.
func (n *line) drop(c *connection) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn == c {
		n.conn = nil
		_ = c.raw.Close()
	}
}

// leaveToIt has a connection to the calls that are under way on it: the next ones are
// made over another.
func (n *line) leaveToIt(c *connection) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn == c && c.calls > 0 { // else it has come back meanwhile
		n.conn, n.hung = nil, append(n.hung, c)
	}
}

// done counts a call that has come back. The last on a connection that was left to them
// takes leave of it.
func (n *line) done(c *connection) {
	n.mu.Lock()
	c.calls--
	i := slices.Index(n.hung, c)
	last := c.calls == 0 && i >= 0
	if last {
		n.hung = slices.Delete(n.hung, i, i+1)
	}
	n.mu.Unlock()
	if last {
		c.hangUp()
	}
}

// hangUp ends the line's connections.
func (n *line) hangUp() {
	n.mu.Lock()
	c, hung := n.conn, n.hung
	n.conn, n.hung = nil, nil
	n.mu.Unlock()
	for _, c := range hung {
		_ = c.raw.Close()
	}
	if c != nil {
		c.hangUp()
	}
}

// leaveWithin is how long libvirtd has to answer a farewell.
const leaveWithin = time.Second

// hangUp takes leave of libvirtd.
func (c *connection) hangUp() {
	late := time.AfterFunc(leaveWithin, func() { _ = c.raw.Close() })
	_ = c.Disconnect() // says only that it was gone already
	late.Stop()
	_ = c.raw.Close()
}

// New returns a client; it connects at its first call.
func New(opts *Options) *Client {
	c := &Client{names: map[uuid.UUID]string{}, turns: map[uuid.UUID]chan struct{}{}}
	c.life, c.end = context.WithCancel(context.Background())
	if opts != nil {
		c.opts = *opts
	}
	if c.opts.Socket == "" {
		c.opts.Socket = DefaultSocket
	}
	if c.opts.DialTimeout == 0 {
		c.opts.DialTimeout = 5 * time.Second
	}
	if c.log = c.opts.Log; c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Close ends the connections; calls and watches under way return with an error,
// and it with the last of them. A closed client does not connect again.
func (c *Client) Close() error {
	c.mu.Lock()
	c.end()
	c.mu.Unlock()
	for i := range c.lines {
		c.lines[i].hangUp()
	}
	c.pending.Wait()
	return nil
}

// begin counts one more that Close waits for.
func (c *Client) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life.Err() != nil {
		return ErrClosed
	}
	c.pending.Add(1)
	return nil
}

// connect returns the line's live connection, for one call, and makes one where
// there is none.
func (c *Client) connect(n *line) (*connection, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.life.Err() != nil { // Close takes away what is connected from here on
		return nil, ErrClosed
	}
	if n.conn != nil && n.conn.IsConnected() {
		n.conn.calls++
		return n.conn, nil
	}
	if n.conn != nil {
		_ = n.conn.raw.Close()
		n.conn = nil
	}
	d := &dialer{path: c.opts.Socket, timeout: c.opts.DialTimeout}
	l := libvirt.NewWithDialer(d)
	err := l.Connect()
	if d.done() && err != nil {
		err = fmt.Errorf("no answer within %s: %w", c.opts.DialTimeout, err)
	}
	if err != nil {
		if d.conn != nil {
			_ = d.conn.Close()
		}
		return nil, unreachable(c.opts.Socket, err)
	}
	c.log.Debug("connected to libvirtd", "socket", c.opts.Socket)
	n.conn = &connection{Libvirt: l, raw: d.conn, calls: 1}
	return n.conn, nil
}

// dialer bounds not only the dialling but all of the first exchange, which
// the library does not: a libvirtd that accepts and says nothing is let go.
type dialer struct {
	path    string
	timeout time.Duration
	conn    net.Conn
	timer   *time.Timer
}

func (d *dialer) Dial() (net.Conn, error) {
	c, err := net.DialTimeout("unix", d.path, d.timeout)
	if err != nil {
		return nil, err
	}
	d.conn, d.timer = c, time.AfterFunc(d.timeout, func() { _ = c.Close() })
	return c, nil
}

// done ends the bound; it reports whether it was reached.
func (d *dialer) done() bool { return d.timer != nil && !d.timer.Stop() }

// of returns the line for calls about one domain.
func (c *Client) of(vm uuid.UUID) *line { return &c.lines[1+vm[15]%perVM] }

// lost tells a broken connection from an answer of libvirt's.
func lost(err error) bool {
	return errors.Is(err, libvirt.ErrInterrupted) || errors.Is(err, syscall.EINVAL) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// hangsAfter is how long a call has to have taken that nobody waits for any more, for
// others not to be made over its connection.
const hangsAfter = time.Second

// call runs fn with a connection and returns when fn has, or when ctx ends;
// libvirt's calls cannot be withdrawn, so fn may then still be under way.
func (c *Client) call(ctx context.Context, n *line, fn func(*libvirt.Libvirt) error) error {
	return c.callThen(ctx, n, fn, func() {})
}

// callThen calls ended when fn is over, or will not be run.
func (c *Client) callThen(ctx context.Context, n *line, fn func(*libvirt.Libvirt) error, ended func()) error {
	err := ctx.Err()
	if err == nil {
		err = c.begin()
	}
	if err != nil {
		ended()
		return explain(err)
	}
	began := time.Now()
	on := make(chan *connection, 1)
	done := make(chan error, 1)
	go func() {
		defer c.pending.Done()
		l, err := c.connect(n)
		if err == nil {
			on <- l
			if err = fn(l.Libvirt); lost(err) {
				n.drop(l)
			}
			n.done(l)
		}
		ended()
		done <- err
	}()
	select {
	case err := <-done:
		return explain(err)
	case <-ctx.Done():
	}
	if time.Since(began) > hangsAfter {
		select {
		case l := <-on:
			n.leaveToIt(l)
		default: // it is not connected yet
		}
	}
	return ctx.Err()
}

// inTurn is call for what changes a domain: one call after the other. What libvirt has
// not come back from takes effect when it does, and is not to undo what was asked later;
// nor is a domain whose QEMU hangs to have many calls under way.
func (c *Client) inTurn(ctx context.Context, vm uuid.UUID, fn func(*libvirt.Libvirt) error) error {
	c.mu.Lock()
	turn := c.turns[vm]
	if turn == nil {
		turn = make(chan struct{}, 1)
		c.turns[vm] = turn
	}
	c.mu.Unlock()
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("libvirt has not come back from an earlier call about the domain: %w", ctx.Err())
	}
	return c.callThen(ctx, c.of(vm), fn, func() { <-turn })
}

// read is call for what changes nothing: it is tried once more where the
// connection broke under it.
func (c *Client) read(ctx context.Context, n *line, fn func(*libvirt.Libvirt) error) error {
	err := c.call(ctx, n, fn)
	if lost(err) {
		err = c.call(ctx, n, fn)
	}
	return err
}

// handle names a domain to libvirt. The driver goes by the UUID alone; the
// name serves its messages.
func (c *Client) handle(vm uuid.UUID) libvirt.Domain {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := c.names[vm]
	if name == "" {
		name = vm.String()
	}
	return libvirt.Domain{Name: name, UUID: libvirt.UUID(vm), ID: -1}
}

func (c *Client) remember(d libvirt.Domain) {
	c.mu.Lock()
	c.names[uuid.UUID(d.UUID)] = d.Name
	c.mu.Unlock()
}

// Version returns libvirtd's version, for example "9.0.0".
func (c *Client) Version(ctx context.Context) (string, error) {
	var v uint64
	err := c.read(ctx, &c.lines[0], func(l *libvirt.Libvirt) (err error) {
		v, err = l.ConnectGetLibVersion()
		return err
	})
	if err != nil {
		return "", fmt.Errorf("libvirt version: %w", err)
	}
	return dotted(v), nil
}
