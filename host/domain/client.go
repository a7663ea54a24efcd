package domain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
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

	mu      sync.Mutex // guards names, and that nothing begins after Close
	names   map[uuid.UUID]string
	pending sync.WaitGroup // calls and watches under way
}

const perVM = 4

// line is one connection.
type line struct {
	mu   sync.Mutex // guards what follows; held while dialling, for DialTimeout at most
	conn *libvirt.Libvirt
	raw  net.Conn // beneath it: the library does not close what broke
}

// take empties the line.
func (n *line) take() (*libvirt.Libvirt, net.Conn) {
	conn, raw := n.conn, n.raw
	n.conn, n.raw = nil, nil
	return conn, raw
}

// drop forgets a connection that no longer answers.
func (n *line) drop(l *libvirt.Libvirt) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn != l {
		return
	}
	if _, raw := n.take(); raw != nil {
		_ = raw.Close()
	}
}

// leaveWithin is how long libvirtd has to answer a farewell.
const leaveWithin = time.Second

// hangUp takes leave of libvirtd.
func (n *line) hangUp() {
	n.mu.Lock()
	conn, raw := n.take()
	n.mu.Unlock()
	if conn == nil {
		return
	}
	late := time.AfterFunc(leaveWithin, func() { _ = raw.Close() })
	_ = conn.Disconnect() // says only that it was gone already
	late.Stop()
	_ = raw.Close()
}

// New returns a client; it connects at its first call.
func New(opts *Options) *Client {
	c := &Client{names: map[uuid.UUID]string{}}
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

// connect returns the line's live connection, and makes one where there is
// none.
func (c *Client) connect(n *line) (*libvirt.Libvirt, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.life.Err() != nil { // Close takes away what is connected from here on
		return nil, ErrClosed
	}
	if n.conn != nil && n.conn.IsConnected() {
		return n.conn, nil
	}
	if _, raw := n.take(); raw != nil {
		_ = raw.Close()
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
	n.conn, n.raw = l, d.conn
	return l, nil
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

// call runs fn with a connection and returns when fn has, or when ctx ends;
// libvirt's calls cannot be withdrawn, so fn may then still be under way.
func (c *Client) call(ctx context.Context, n *line, fn func(*libvirt.Libvirt) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.begin(); err != nil {
		return explain(err)
	}
	done := make(chan error, 1)
	go func() {
		defer c.pending.Done()
		l, err := c.connect(n)
		if err == nil {
			if err = fn(l); lost(err) {
				n.drop(l)
			}
		}
		done <- err
	}()
	select {
	case err := <-done:
		return explain(err)
	case <-ctx.Done():
		return ctx.Err()
	}
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
