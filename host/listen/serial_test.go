package listen

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/outguard/outguard/vsockproto/serial"
)

// qemu serves a port's socket, one client at a time, as QEMU does.
type qemu struct {
	t  *testing.T
	ln net.Listener
}

func newQEMU(t *testing.T, path string) *qemu {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return &qemu{t, ln}
}

// client is the next that connects.
func (q *qemu) client() net.Conn {
	q.t.Helper()
	c, err := q.ln.Accept()
	if err != nil {
		q.t.Fatal(err)
	}
	return c
}

// dial is the guest's, over what one client of the socket brings.
func dial(t *testing.T, over net.Conn) net.Conn {
	t.Helper()
	c, err := serial.Dial(t.Context(), over)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func runSerial(t *testing.T, serve Serve, refused func(Refusal)) (l *SerialListener, stop func()) {
	o := quiet(refused)
	l = NewSerial(serve, &o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	return l, sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// TestThePortSaysWhoSpeaks, before its domain runs, through restarts of it and
// of what runs in it.
func TestThePortSaysWhoSpeaks(t *testing.T) {
	dir := t.TempDir()
	l, stop := runSerial(t, echo, nil)
	defer stop()
	path := filepath.Join(dir, "alpha.serial")
	if err := l.Add(alpha, "alpha", path); err != nil {
		t.Fatal(err)
	}
	for run := range 2 {
		q := newQEMU(t, path)
		over := q.client()
		for range 2 {
			c := dial(t, keep{over})
			if got, err := io.ReadAll(c); string(got) != "serial "+alpha.String() || err != nil {
				t.Errorf("run %d: %q, %v", run, got, err)
			}
			c.Close()
		}
		if !l.Connected(alpha) || l.Connected(beta) {
			t.Errorf("connected: %v, %v", l.Connected(alpha), l.Connected(beta))
		}
		q.ln.Close()
		over.Close()
	}
}

// keep is a port that its opener cannot close.
type keep struct{ net.Conn }

func (keep) Close() error { return nil }

func TestPortsOfDomains(t *testing.T) {
	dir := t.TempDir()
	began, ended := make(chan uuid.UUID), make(chan uuid.UUID)
	l, stop := runSerial(t, func(ctx context.Context, c net.Conn, vm uuid.UUID, _ string) {
		began <- vm
		<-ctx.Done()
		c.Close()
		ended <- vm
	}, nil)
	wait := func(at chan uuid.UUID, vm uuid.UUID) {
		t.Helper()
		if got := <-at; got != vm {
			t.Errorf("%s, want %s", got, vm)
		}
	}
	q := newQEMU(t, filepath.Join(dir, "a"))
	if err := l.Add(alpha, "alpha", filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if err := l.Add(beta, "beta", filepath.Join(dir, "a")); !errors.Is(err, os.ErrExist) {
		t.Errorf("another's socket: %v", err)
	}
	if err := l.Add(beta, "beta", "a"); err == nil {
		t.Error("a relative path")
	}
	dial(t, q.client())
	wait(began, alpha)
	l.Remove(alpha)
	wait(ended, alpha)
	q2 := newQEMU(t, filepath.Join(dir, "b"))
	if err := l.Add(beta, "beta", filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	dial(t, q2.client())
	wait(began, beta)
	go stop()
	wait(ended, beta)
	stop()
	if err := l.Add(alpha, "alpha", filepath.Join(dir, "a")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// TestPortFullOfNoise is let go of, and a finding.
func TestPortFullOfNoise(t *testing.T) {
	refused := make(chan Refusal, 1)
	l, stop := runSerial(t, echo, func(r Refusal) { refused <- r })
	defer stop()
	path := filepath.Join(t.TempDir(), "a")
	q := newQEMU(t, path)
	if err := l.Add(alpha, "alpha", path); err != nil {
		t.Fatal(err)
	}
	c := q.client()
	go io.Copy(io.Discard, c)
	go io.Copy(c, noise{})
	if r := <-refused; r.Rule != RuleNoise || r.VM != alpha || r.Transport != Serial || r.Peer != "alpha" {
		t.Errorf("%+v", r)
	}
}

type noise struct{}

func (noise) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}
