// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// DialFunc makes a connection to the host.
type DialFunc func(context.Context) (net.Conn, error)

// Dialer reads a channel: vsock:CID:PORT, serial:NAME (a virtio-serial port's;
// DefaultPort without one) or unix:PATH.
func Dialer(channel string) (DialFunc, error) {
	kind, rest, _ := strings.Cut(channel, ":")
	switch kind {
	case "unix":
		if rest == "" {
			return nil, fmt.Errorf("channel %q: no path: want unix:PATH", channel)
		}
		return func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", rest)
		}, nil
	case "vsock":
		return vsockDialer(channel, rest)
	case "serial":
		return serialDialer(channel, rest)
	}
	return nil, fmt.Errorf("channel %q: want vsock:CID:PORT, serial:NAME or unix:PATH", channel)
}

func vsockDialer(channel, rest string) (DialFunc, error) {
	c, p, _ := strings.Cut(rest, ":")
	cid, err := strconv.ParseUint(c, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("channel %q: CID: %w", channel, err)
	}
	port, err := strconv.ParseUint(p, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("channel %q: port: %w", channel, err)
	}
	return func(context.Context) (net.Conn, error) {
		conn, err := vsock.Dial(uint32(cid), uint32(port), nil)
		switch {
		case errors.Is(err, unix.EAFNOSUPPORT):
			return nil, fmt.Errorf("%w: load the module vmw_vsock_virtio_transport", err)
		case errors.Is(err, unix.ENODEV):
			return nil, fmt.Errorf("%w: this machine has no vsock device: run outguard enroll on the host", err)
		case err != nil:
			return nil, err
		}
		d, err := newDirect(conn)
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return socket{conn, d}, nil
	}, nil
}
