package domain

import (
	"context"
	"errors"
	"fmt"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/failpoint"
)

// resetWithin is how long libvirt may take to say that a reset has come about.
const resetWithin = 5 * time.Second

// Active reports whether QEMU holds the domain. One that libvirt does not know
// any more is not.
func (c *Client) Active(ctx context.Context, vm uuid.UUID) (bool, error) {
	s, err := c.State(ctx, vm)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return s.Active(), err
}

// Destroy ends the domain's QEMU, as pulling its plug would, and returns when
// libvirt says that it is off; one that is off already is no error. It does not wait for
// an earlier call about the domain: it is what ends one on which QEMU hangs.
func (c *Client) Destroy(ctx context.Context, vm uuid.UUID) error {
	err := c.call(ctx, c.of(vm), func(l *libvirt.Libvirt) error {
		failpoint.At(failpoint.Asking)
		err := l.DomainDestroyFlags(c.handle(vm), 0)
		failpoint.At(failpoint.Asked)
		return err
	})
	if errors.Is(err, ErrUnreachable) {
		return fmt.Errorf("destroy %s: %w", vm, err)
	}
	switch active, checked := c.Active(ctx, vm); {
	case checked == nil && !active:
		return nil // whatever was answered: the effect is there
	case err == nil && checked == nil:
		err = errors.New("libvirt reported success, but the domain is active")
	case err == nil:
		err = checked
	}
	return fmt.Errorf("destroy %s: %w", vm, err)
}

// Reset begins the machine anew, as its reset button would, and returns when
// libvirt's own event says that it has. Its vCPUs stand afterwards if they stood.
func (c *Client) Reset(ctx context.Context, vm uuid.UUID) error {
	if err := c.reset(ctx, vm); err != nil {
		return fmt.Errorf("reset %s: %w", vm, err)
	}
	return nil
}

func (c *Client) reset(ctx context.Context, vm uuid.UUID) error {
	ctx, cancel := context.WithTimeout(ctx, resetWithin)
	defer cancel()
	ready, begun, done := make(chan struct{}), make(chan struct{}, 1), make(chan struct{})
	watch, stop := context.WithCancel(ctx)
	go func() {
		defer close(done)
		first := true
		_ = c.Watch(watch, func(e Event) {
			switch {
			case e.Kind == Resync && first:
				first = false
				close(ready)
			case e.Kind == Rebooted && e.VM == vm:
				select {
				case begun <- struct{}{}:
				default:
				}
			}
		})
	}()
	defer func() { stop(); <-done }()
	if err := arrived(ctx, ready, "watch for it"); err != nil {
		return c.unless(ctx, vm, err)
	}
	err := c.inTurn(ctx, vm, func(l *libvirt.Libvirt) error {
		failpoint.At(failpoint.Asking)
		err := l.DomainReset(c.handle(vm), 0)
		failpoint.At(failpoint.Asked)
		return err
	})
	if err != nil {
		return err
	}
	return arrived(ctx, begun, "libvirt reported success, but no reboot")
}

// unless says why nothing can be watched: libvirtd may be away.
func (c *Client) unless(ctx context.Context, vm uuid.UUID, err error) error {
	if _, state := c.State(context.WithoutCancel(ctx), vm); state != nil {
		return state
	}
	return err
}

func arrived(ctx context.Context, c <-chan struct{}, what string) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
}
