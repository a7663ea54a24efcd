package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/google/uuid"
	"github.com/mdlayher/vsock"
)

// ErrStranger is what Domains wraps for a CID that no running domain has.
var ErrStranger = errors.New("no such domain")

// Domains finds the domain that has a CID now, as libvirt knows it.
type Domains interface {
	DomainByCID(ctx context.Context, cid uint32) (uuid.UUID, error)
}

// VsockListener listens at AF_VSOCK.
type VsockListener struct {
	port    uint32
	domains Domains
	door    *door
}

// NewVsock makes a listener at a vsock port. It starts nothing.
func NewVsock(port uint32, domains Domains, serve Serve, o *Options) *VsockListener {
	return &VsockListener{port: port, domains: domains, door: newDoor(serve, o)}
}

// Run listens until ctx ends, and returns when every connection has ended. An
// error at once means that this host's kernel offers no vsock.
func (l *VsockListener) Run(ctx context.Context) error {
	ln, err := vsock.ListenContextID(anyCID, l.port, nil)
	if err != nil {
		return fmt.Errorf("listen at vsock port %d: %w", l.port, err)
	}
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	return l.door.accept(ctx, &wg, ln, Vsock, func(c net.Conn) caller { return l.who(ctx, c) })
}

const anyCID = 0xffffffff // VMADDR_CID_ANY

func (l *VsockListener) who(ctx context.Context, c net.Conn) caller {
	a, ok := c.RemoteAddr().(*vsock.Addr)
	if !ok {
		return caller{peer: c.RemoteAddr().String(), ask: func() (uuid.UUID, error) {
			return uuid.Nil, fmt.Errorf("address %T: %w", c.RemoteAddr(), ErrStranger)
		}}
	}
	return caller{peer: fmt.Sprintf("CID %d", a.ContextID), ask: func() (uuid.UUID, error) {
		return l.domains.DomainByCID(ctx, a.ContextID)
	}}
}
