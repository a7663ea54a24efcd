package domain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
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
// whenever the connection was lost. Its methods may be called concurrently.
type Client struct {
	socket      string
	dialTimeout time.Duration
	log         *slog.Logger

	mu      sync.Mutex // guards conn, names and closed; held while dialling
	conn    *libvirt.Libvirt
	names   map[uuid.UUID]string
	closed  bool
	pending sync.WaitGroup // calls under way
}

// New returns a client; it connects at its first call.
func New(opts *Options) *Client {
	if opts == nil {
		opts = &Options{}
	}
	c := &Client{socket: opts.Socket, dialTimeout: opts.DialTimeout, log: opts.Log, names: map[uuid.UUID]string{}}
	if c.socket == "" {
		c.socket = DefaultSocket
	}
	if c.dialTimeout == 0 {
		c.dialTimeout = 5 * time.Second
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Close ends the connection; calls under way return with an error. A closed
// client does not connect again.
func (c *Client) Close() error {
	c.mu.Lock()
	conn := c.conn
	c.conn, c.closed = nil, true
	c.mu.Unlock()
	if conn != nil {
		_ = conn.Disconnect() // says only that it was gone already
	}
	c.pending.Wait()
	return nil
}

// connect returns the live connection, and makes one where there is none.
func (c *Client) connect() (*libvirt.Libvirt, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	if c.conn != nil && c.conn.IsConnected() {
		return c.conn, nil
	}
	l := libvirt.NewWithDialer(dialers.NewLocal(dialers.WithSocket(c.socket), dialers.WithLocalTimeout(c.dialTimeout)))
	if err := l.Connect(); err != nil {
		return nil, unreachable(c.socket, err)
	}
	c.log.Debug("connected to libvirtd", "socket", c.socket)
	c.conn = l
	return l, nil
}

// drop forgets a connection that no longer answers.
func (c *Client) drop(l *libvirt.Libvirt) {
	c.mu.Lock()
	if c.conn == l {
		c.conn = nil
	}
	c.mu.Unlock()
}

// lost tells a broken connection from an answer of libvirt's.
func lost(err error) bool {
	return errors.Is(err, libvirt.ErrInterrupted) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// call runs fn with a connection and returns when fn has, or when ctx ends;
// libvirt's calls cannot be withdrawn, so fn may then still be under way.
func (c *Client) call(ctx context.Context, fn func(*libvirt.Libvirt) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan error, 1)
	c.pending.Add(1)
	go func() {
		defer c.pending.Done()
		l, err := c.connect()
		if err == nil {
			if err = fn(l); lost(err) {
				c.drop(l)
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
func (c *Client) read(ctx context.Context, fn func(*libvirt.Libvirt) error) error {
	err := c.call(ctx, fn)
	if lost(err) {
		err = c.call(ctx, fn)
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
	err := c.read(ctx, func(l *libvirt.Libvirt) (err error) {
		v, err = l.ConnectGetLibVersion()
		return err
	})
	if err != nil {
		return "", fmt.Errorf("libvirt version: %w", err)
	}
	return fmt.Sprintf("%d.%d.%d", v/1000000, v/1000%1000, v%1000), nil
}
