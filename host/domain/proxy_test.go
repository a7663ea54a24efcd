package domain

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/outguard/outguard/host/domain/domaintest"
)

// proxy stands between a client and the libvirtd of a socket and can be cut.
type proxy struct {
	t    *testing.T
	path string
	to   string
	hear func() (calls, replies io.Writer) // if set: of each connection, what goes through
	ln   net.Listener
	mu   sync.Mutex
	all  []net.Conn
}

func newProxy(t *testing.T, to string, hear func() (calls, replies io.Writer)) *proxy {
	t.Helper()
	p := &proxy{t: t, path: filepath.Join(t.TempDir(), "sock"), to: to, hear: hear}
	p.up()
	t.Cleanup(p.down)
	return p
}

func (p *proxy) up() {
	p.t.Helper()
	_ = os.Remove(p.path)
	ln, err := net.Listen("unix", p.path)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	p.ln = ln
	p.mu.Unlock()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			d, err := net.Dial("unix", p.to)
			if err != nil {
				_ = c.Close()
				continue
			}
			p.mu.Lock()
			p.all = append(p.all, c, d)
			p.mu.Unlock()
			calls, replies := io.Discard, io.Discard
			if p.hear != nil {
				calls, replies = p.hear()
			}
			go func() { _, _ = io.Copy(c, io.TeeReader(d, replies)); _ = c.Close() }()
			go func() { _, _ = io.Copy(d, io.TeeReader(c, calls)); _ = d.Close() }()
		}
	}()
}

// down ends every connection at once and takes no more.
func (p *proxy) down() {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.ln.Close()
	for _, c := range p.all {
		_ = c.Close()
	}
	p.all = nil
}

// TestLibvirtdRestarts: calls fail clearly while libvirtd is away and work
// when it is back; the watcher is told to look again, and sees what follows.
func TestLibvirtdRestarts(t *testing.T) {
	g := domaintest.Start(t, domaintest.Config{Off: true})
	p := newProxy(t, DefaultSocket, nil)
	c := New(&Options{Socket: p.path})
	t.Cleanup(func() { _ = c.Close() })
	s := watch(t, c)
	for range 3 {
		if _, err := c.State(t.Context(), g.UUID); err != nil {
			t.Fatal(err)
		}
		p.down()
		if _, err := c.State(t.Context(), g.UUID); !errors.Is(err, ErrUnreachable) {
			t.Errorf("while it is away: %v", err)
		}
		before := s.resyncs()
		p.up()
		if _, err := c.State(t.Context(), g.UUID); err != nil {
			t.Errorf("when it is back: %v", err)
		}
		await(t, "the watcher to be told to look again", func() bool { return s.resyncs() > before })
	}
	g.Virsh(t, "start")
	s.want(t, g.UUID, "started booted")
}

// TestDeafLibvirtd: one that accepts and says nothing holds nobody for ever.
func TestDeafLibvirtd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c := New(&Options{Socket: path, DialTimeout: 50 * time.Millisecond})
	if _, err := c.List(t.Context()); !errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
