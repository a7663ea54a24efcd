package listen

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/vsockproto"
)

// ErrInUse: somebody else listens at the socket.
var ErrInUse = errors.New("in use by another process")

// HybridOptions are a HybridListener's; nil and zero mean the defaults.
type HybridOptions struct {
	Options
	Group   int         // gid of the sockets and their directory; default: the process's own
	Mode    os.FileMode // of the sockets; default 0660
	DirMode os.FileMode // of the directory, if it is made; default 01770: QEMU's side may make its own socket there, and touch no other
}

// HybridListener listens at one unix socket per domain. The socket of a domain
// says that it is that domain which speaks.
type HybridListener struct {
	dir   string
	o     HybridOptions
	door  *door
	probe time.Duration // for an answer to Probe

	mu    sync.Mutex // guards what follows
	at    map[uuid.UUID]*socket
	run   context.Context // nil unless Run runs
	wg    *sync.WaitGroup
	ended bool
}

type socket struct {
	name, path string
	ln         net.Listener
	asking     chan struct{} // holds one token while no request to the guest is under way; see Probe
}

func newSocket(name, path string, ln net.Listener) *socket {
	s := &socket{name: name, path: path, ln: ln, asking: make(chan struct{}, 1)}
	s.asking <- struct{}{}
	return s
}

// NewHybrid makes a listener whose sockets are in dir. It starts nothing.
func NewHybrid(dir string, serve Serve, o *HybridOptions) *HybridListener {
	h := &HybridListener{dir: dir, probe: probeTime, at: map[uuid.UUID]*socket{}}
	if o != nil {
		h.o = *o
	}
	if h.o.Mode == 0 {
		h.o.Mode = 0o660
	}
	if h.o.DirMode == 0 {
		h.o.DirMode = 0o770 | os.ModeSticky
	}
	h.door = newDoor(serve, &h.o.Options)
	return h
}

// Path is where the socket of a domain of that name is.
func (h *HybridListener) Path(name string) string {
	return filepath.Join(h.dir, fmt.Sprintf("%s.sock_%d", name, vsockproto.Port))
}

// Add makes the socket of a domain. Connections to it are taken while Run
// runs. A domain that has one under another name loses that.
func (h *HybridListener) Add(vm uuid.UUID, name string) error {
	if name == "" || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("socket for domain %q: %w", name, fs.ErrInvalid)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return fmt.Errorf("socket for domain %q: %w", name, os.ErrClosed)
	}
	if s := h.at[vm]; s != nil {
		if s.name == name {
			return nil
		}
		h.remove(vm)
	}
	for _, s := range h.at {
		if s.name == name {
			return fmt.Errorf("socket for domain %q: %w", name, fs.ErrExist)
		}
	}
	ln, err := h.listen(h.Path(name))
	if err != nil {
		return fmt.Errorf("socket for domain %q: %w", name, err)
	}
	h.at[vm] = newSocket(name, h.Path(name), ln)
	if h.run != nil {
		h.start(vm, h.at[vm])
	}
	return nil
}

// Remove closes and removes a domain's socket. Connections that it took stay.
func (h *HybridListener) Remove(vm uuid.UUID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.remove(vm)
}

func (h *HybridListener) remove(vm uuid.UUID) {
	s := h.at[vm]
	if s == nil {
		return
	}
	delete(h.at, vm)
	s.ln.Close()
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.door.o.Log.Error("remove socket", "path", s.path, "err", err)
	}
}

// Run takes connections until ctx ends; then it removes the sockets and returns
// when every connection has ended. It may be called once.
func (h *HybridListener) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	h.mu.Lock()
	h.open()
	h.run, h.wg = ctx, &wg
	for vm, s := range h.at {
		h.start(vm, s)
	}
	h.mu.Unlock()
	<-ctx.Done()
	h.mu.Lock()
	h.run, h.ended = nil, true
	for vm := range h.at {
		h.remove(vm)
	}
	h.mu.Unlock()
	wg.Wait()
	return ctx.Err()
}

// start is called with h.mu held, while Run runs.
func (h *HybridListener) start(vm uuid.UUID, s *socket) {
	ctx, wg := h.run, h.wg
	wg.Go(func() {
		_ = h.door.accept(ctx, wg, s.ln, Hybrid, func(net.Conn) caller { return caller{vm: vm, peer: s.name} })
	})
}

// listen makes the socket under another name, so that it is never there with
// other permissions than its own.
func (h *HybridListener) listen(path string) (net.Listener, error) {
	if err := h.makeDir(); err != nil {
		return nil, err
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, ErrInUse
	}
	tmp := filepath.Join(h.dir, "."+rand.Text()[:8])
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	if err := h.dress(tmp, path); err != nil {
		ln.Close()
		os.Remove(tmp)
		return nil, err
	}
	return ln, nil
}

func (h *HybridListener) dress(tmp, path string) error {
	if len(path) > maxPath {
		return fmt.Errorf("%s is longer than %d bytes", path, maxPath)
	}
	if h.o.Group != 0 {
		if err := os.Chown(tmp, -1, h.o.Group); err != nil {
			return err
		}
	}
	if err := os.Chmod(tmp, h.o.Mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

const maxPath = 107 // sun_path, less its NUL

// open makes the directory, before others make sockets in it. What goes wrong
// with it the first Add will say.
func (h *HybridListener) open() {
	err := h.makeDir()
	if err == nil {
		err = welcomeUs(h.dir)
	}
	if err != nil {
		h.door.o.Log.Warn("the kernels of guests that fall silent cannot be asked", "err", err)
	}
}

func (h *HybridListener) makeDir() error {
	if _, err := os.Stat(h.dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(h.dir, 0o711); err != nil {
		return err
	}
	if h.o.Group != 0 {
		if err := os.Chown(h.dir, -1, h.o.Group); err != nil {
			return err
		}
	}
	return os.Chmod(h.dir, h.o.DirMode)
}
