// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/vsockproto/serial"
)

// DefaultPort is the virtio-serial port that outguard enroll gives a domain.
const DefaultPort = "org.outguard.agent.0"

// ports is where the kernel tells the ports' names; /dev has their nodes, with
// udev and without.
const ports = "/sys/class/virtio-ports"

func serialDialer(channel, name string) (DialFunc, error) {
	if name == "" {
		name = DefaultPort
	}
	if strings.ContainsAny(name, "/\x00") {
		return nil, fmt.Errorf("channel %q: %q is no port's name", channel, name)
	}
	return func(ctx context.Context) (net.Conn, error) {
		node, err := portOf(ports, name)
		if err != nil {
			return nil, err
		}
		f, err := openPort(filepath.Join("/dev", node))
		if err != nil {
			return nil, err
		}
		d, err := newDirect(f)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return serial.Dial(ctx, port{f, d})
	}, nil
}

// portOf finds the node of the port with that name.
func portOf(dir, name string) (node string, err error) {
	all, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: load the module virtio_console", err)
	}
	if err != nil {
		return "", err
	}
	for _, e := range all {
		text, err := os.ReadFile(filepath.Join(dir, e.Name(), "name"))
		if err == nil && string(bytes.TrimSpace(text)) == name {
			return e.Name(), nil
		}
	}
	return "", fmt.Errorf("virtio-serial port %s: %w: run outguard enroll --transport serial on the host", name, fs.ErrNotExist)
}

// openPort opens a port so that reads, writes and deadlines are the poller's. A
// port is open once at a time.
func openPort(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%w: another process has the port, such as another agent", err)
	}
	return f, err
}
