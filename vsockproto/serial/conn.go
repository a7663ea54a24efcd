package serial

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Stream is either end of a port: an *os.File in the guest, a unix connection on
// the host. Read returns io.EOF when nobody has the other end open.
type Stream interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// past is a deadline that ends what waits.
var past = time.Unix(1, 0)

// port is one end of a stream, and what its connections share.
type port struct {
	s Stream

	rmu sync.Mutex // held while reading
	r   reader

	wmu  sync.Mutex // held while writing
	out  []byte
	owed []byte // of a packet that was written in part: what follows it comes first

	mu    sync.Mutex // guards what follows; never held while reading or writing
	owner *conn      // whose the stream is
}

// put writes one packet. Called with wmu held.
func (p *port) put(t Type, guest, host uint64, payload []byte) error {
	if err := p.flush(); err != nil {
		return err
	}
	p.out = AppendPacket(p.out[:0], t, guest, host, payload)
	return p.begin(p.out)
}

// begin writes what has to come to its end once a part of it is written.
func (p *port) begin(b []byte) error {
	n, err := p.s.Write(b)
	if n > 0 && n < len(b) {
		p.owed = b[n:]
	}
	return err
}

// flush writes the rest of what was begun. Called with wmu held.
func (p *port) flush() error {
	if len(p.owed) == 0 {
		return nil
	}
	n, err := p.s.Write(p.owed)
	if p.owed = p.owed[n:]; len(p.owed) == 0 {
		p.owed = nil
	}
	return err
}

// controlTime is how long the other end may leave a control packet untaken.
const controlTime = 2 * time.Second

// control writes a packet that is no connection's, or zeros and then it.
func (p *port) control(t Type, guest, host uint64, zeros bool) error {
	p.wmu.Lock()
	defer p.wmu.Unlock()
	if err := p.s.SetWriteDeadline(time.Now().Add(controlTime)); err != nil {
		return fmt.Errorf("write %s: %w", t, err)
	}
	if zeros {
		if err := p.zeros(); err != nil {
			return fmt.Errorf("write %s: %w", t, err)
		}
	}
	if err := p.put(t, guest, host, nil); err != nil {
		return fmt.Errorf("write %s: %w", t, err)
	}
	return nil
}

var nothing [maxPacket]byte

// zeros end what an earlier process left unfinished. Called with wmu held.
func (p *port) zeros() error {
	if err := p.flush(); err != nil {
		return err
	}
	return p.begin(nothing[:])
}

// conn is one connection of a port. It implements net.Conn.
type conn struct {
	p           *port
	guest, host uint64
	// other takes a packet that is no data, and reports whether it ends the
	// connection. Called with p.rmu held.
	other func(Header) (ended bool)
	// end is called by Close, once.
	end func() error

	rest  []byte // p.rmu: of a payload, not read yet
	ended bool   // p.rmu: the other end has gone

	closed bool      // p.mu
	write  time.Time // p.mu: deadline
}

// Read reads what the other end wrote. It is io.EOF when that end has closed
// the connection, has gone, or is another by now.
func (c *conn) Read(b []byte) (int, error) {
	c.p.rmu.Lock()
	defer c.p.rmu.Unlock()
	if c.isClosed() {
		return 0, net.ErrClosed
	}
	for len(c.rest) == 0 && len(b) > 0 {
		if c.ended {
			return 0, io.EOF
		}
		h, payload, err := c.p.r.next(c.guest, c.host)
		if err != nil {
			return 0, c.failed(err)
		}
		if c.rest = payload; h.Type != Data {
			c.ended = c.other(h)
		}
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// failed says what a stream's error means for the connection. A deadline leaves
// it as it is.
func (c *conn) failed(err error) error {
	if c.isClosed() {
		return net.ErrClosed
	}
	c.ended = c.ended || !errors.Is(err, os.ErrDeadlineExceeded)
	return err
}

func (c *conn) isClosed() bool {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	return c.closed || c.p.owner != c
}

// Write returns when all of b is the stream's. After an error nothing of the
// packet that it interrupted is taken for data by the other end.
func (c *conn) Write(b []byte) (n int, err error) {
	c.p.wmu.Lock()
	defer c.p.wmu.Unlock()
	for len(b) > 0 {
		part := b[:min(len(b), MaxPayload)]
		if err := c.arm(); err != nil {
			return n, err
		}
		if err := c.p.put(Data, c.guest, c.host, part); err != nil {
			if c.isClosed() {
				err = net.ErrClosed
			}
			return n, err
		}
		n, b = n+len(part), b[len(part):]
	}
	return n, nil
}

// arm sets the stream's deadline to that of the connection.
func (c *conn) arm() error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.closed || c.p.owner != c {
		return net.ErrClosed
	}
	return c.p.s.SetWriteDeadline(c.write)
}

// Close ends the connection, and what waits in Read or Write.
func (c *conn) Close() error {
	c.p.mu.Lock()
	if c.closed || c.p.owner != c {
		c.p.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	err := errors.Join(c.p.s.SetReadDeadline(past), c.p.s.SetWriteDeadline(past))
	c.p.mu.Unlock()
	return errors.Join(err, c.end())
}

// SetDeadline sets both.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline bounds Read, one that waits already as well.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.closed || c.p.owner != c {
		return net.ErrClosed
	}
	return c.p.s.SetReadDeadline(t)
}

// SetWriteDeadline bounds Write, one that waits already as well.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.closed || c.p.owner != c {
		return net.ErrClosed
	}
	c.write = t
	return c.p.s.SetWriteDeadline(t)
}

// SyscallConn is the stream's, for who asks how much waits in the kernel.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	s, ok := c.p.s.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return s.SyscallConn()
}

type addr struct{}

func (addr) Network() string { return "serial" }
func (addr) String() string  { return "serial" }

func (c *conn) LocalAddr() net.Addr  { return addr{} }
func (c *conn) RemoteAddr() net.Addr { return addr{} }
