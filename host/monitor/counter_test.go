package monitor_test

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/google/uuid"
)

// counter stands between the monitor and libvirtd, and counts the calls that
// stop a domain.
type counter struct {
	mu       sync.Mutex
	suspends map[uuid.UUID]int
}

// domainSuspend is the number of that call in libvirt's remote protocol.
const domainSuspend = 34

func (c *counter) of(vm uuid.UUID) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.suspends[vm]
}

// between takes connections at path and hands them on to socket.
func (c *counter) between(t testing.TB, path, socket string) {
	t.Helper()
	c.suspends = map[uuid.UUID]int{}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("unix", socket)
			if err != nil {
				conn.Close() // libvirtd is away
				continue
			}
			go func() { _, _ = io.Copy(conn, to); conn.Close() }()
			go func() { c.calls(to, conn); to.Close() }()
		}
	}()
}

// calls hands on one packet after another: a length, then program, version,
// procedure, type, serial and status, then the arguments: a domain is its name
// and its UUID.
func (c *counter) calls(to io.Writer, from io.Reader) {
	for {
		var size [4]byte
		if _, err := io.ReadFull(from, size[:]); err != nil {
			return
		}
		packet := make([]byte, binary.BigEndian.Uint32(size[:]))
		copy(packet, size[:])
		if _, err := io.ReadFull(from, packet[4:]); err != nil {
			return
		}
		if err := c.handOn(to, packet); err != nil {
			return
		}
	}
}

// handOn counts what libvirtd has got: one that was killed gets nothing. The
// count is right before the answer is.
func (c *counter) handOn(to io.Writer, packet []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := to.Write(packet)
	if err == nil && binary.BigEndian.Uint32(packet[12:]) == domainSuspend {
		name := (int(binary.BigEndian.Uint32(packet[28:])) + 3) &^ 3
		c.suspends[uuid.UUID(packet[32+name:][:16])]++
	}
	return err
}
