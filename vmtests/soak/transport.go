package soak

import (
	"context"
	"fmt"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/outguard/outguard/vmtests/product"
)

// Transports of a soak.
const (
	Serial = "serial" // a virtio-serial port
	Vsock  = "vsock"  // the kernel's, or vhost-device-vsock
)

// channel is what of a soak depends on the transport.
type channel struct {
	enrol   string   // `outguard enroll --transport`; "": the default
	cmdline []string // of the guest's kernel
	without []string // faults that it does not have
	faults  []fault  // and that it alone has
}

var channels = map[string]channel{
	Serial: {
		enrol: "serial", cmdline: []string{"outguard.channel=serial:org.outguard.agent.0"},
		// QEMU serves the port, and stands still only with its guest; nobody but root opens it.
		without: []string{"channel stalled", "noise"},
		faults:  []fault{{"port taken", "", silence, takePort}},
	},
	Vsock: {},
}

func channelOf(transport string) (channel, error) {
	c, ok := channels[transport]
	if !ok {
		return channel{}, fmt.Errorf("transport %q is none of %s, %s", transport, Serial, Vsock)
	}
	return c, nil
}

// all are the faults of a soak over the channel.
func (c *channel) all() []fault {
	return append(slices.DeleteFunc(slices.Clone(faults), func(f fault) bool { return slices.Contains(c.without, f.name) }), c.faults...)
}

// everyFault is of any channel.
func everyFault() []fault {
	return slices.Concat(faults, channels[Serial].faults, channels[Vsock].faults)
}

// takePort has somebody else at the port's socket, who writes what is not the
// protocol's, when a monitor comes that was killed before.
func takePort(r *run, ctx context.Context) error {
	pid, err := r.install.MonitorPID()
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	c, err := dialPort(ctx, r.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("login: root\n")); err != nil {
		return err
	}
	if err := r.restartMonitor(ctx); err != nil {
		return err
	}
	r.sleep(ctx, 2*time.Second)
	return nil
}

func dialPort(ctx context.Context, path string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", path)
}

// enrol enrols the guest, and has its channel served where something has to.
func (r *run) enrol(ctx context.Context) (product.Channel, error) {
	c, err := r.install.Enroll(ctx, r.guest.Name, r.channel.enrol)
	r.socket = c.Socket
	return c, err
}
