// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// direct reads and writes what does not block, and what Go's poller waits for,
// without telling Go's runtime of the system calls. They do not wait, so it need
// not know; and where it does, an agent that has slept pays for the waking of the
// thread that watches over system calls, which is more than the write itself. One
// goroutine may read at a time, and one write.
type direct struct {
	raw     syscall.RawConn
	in, out transfer
}

// socket is a connection that is read and written directly.
type socket struct {
	net.Conn
	direct *direct
}

func (s socket) Read(b []byte) (int, error)  { return s.direct.Read(b) }
func (s socket) Write(b []byte) (int, error) { return s.direct.Write(b) }

// port is a virtio-serial port that is.
type port struct {
	*os.File
	direct *direct
}

func (p port) Read(b []byte) (int, error)  { return p.direct.Read(b) }
func (p port) Write(b []byte) (int, error) { return p.direct.Write(b) }

func newDirect(c syscall.Conn) (*direct, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	d := &direct{
		raw: raw,
		in:  transfer{name: "read", number: unix.SYS_READ},
		out: transfer{name: "write", number: unix.SYS_WRITE, whole: true},
	}
	d.in.step, d.out.step = d.in.once, d.out.once
	return d, nil
}

// transfer is the read or the write that is under way.
type transfer struct {
	name   string
	number uintptr
	whole  bool // all of b, not what there is
	b      []byte
	n      int
	errno  syscall.Errno
	step   func(fd uintptr) (done bool)
}

func (t *transfer) once(fd uintptr) (done bool) {
	for {
		n, _, errno := unix.RawSyscall(t.number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(t.b[t.n:]))), uintptr(len(t.b)-t.n))
		switch errno {
		case unix.EAGAIN:
			return false
		case unix.EINTR:
			continue
		case 0:
			t.n += int(n)
		}
		t.errno = errno
		if errno != 0 || n == 0 || !t.whole || t.n == len(t.b) {
			return true
		}
	}
}

// do has the poller run it until it is done.
func (t *transfer) do(b []byte, poll func(func(uintptr) bool) error) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	t.b, t.n, t.errno = b, 0, 0
	err := poll(t.step)
	t.b = nil
	if err == nil && t.errno != 0 {
		err = os.NewSyscallError(t.name, t.errno)
	}
	return t.n, err
}

func (d *direct) Read(b []byte) (int, error) {
	n, err := d.in.do(b, d.raw.Read)
	if n == 0 && err == nil && len(b) > 0 {
		err = io.EOF
	}
	return n, err
}

func (d *direct) Write(b []byte) (int, error) {
	n, err := d.out.do(b, d.raw.Write)
	if n < len(b) && err == nil {
		err = io.ErrShortWrite
	}
	return n, err
}
