package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/outguard/outguard/vmtests/image"
)

// Choice is one thing that was picked, and why.
type Choice struct {
	What, Name, Why string
}

func (c Choice) String() string { return fmt.Sprintf("%s: %s (%s)", c.What, c.Name, c.Why) }

// Options say where things are. nil and zero mean the defaults.
type Options struct {
	Dir   string // guests' disks, consoles and sockets; default /var/lib/outguard-lab
	Cache string // downloads and what was proven; default /var/cache/outguard
	URI   string // libvirt; default qemu:///system
}

func (o *Options) withDefaults() Options {
	var v Options
	if o != nil {
		v = *o
	}
	set := func(s *string, def string) {
		if *s == "" {
			*s = def
		}
	}
	set(&v.Dir, "/var/lib/outguard-lab")
	set(&v.Cache, "/var/cache/outguard")
	set(&v.URI, "qemu:///system")
	return v
}

// Lab is a machine on which guests can be run.
type Lab struct {
	Accelerator Choice // Name is kvm or tcg
	Vsock       Choice // Name is vhost-vsock or vhost-device-vsock
	Libvirt     Choice // Name is running or started

	o    Options
	qemu userIDs // whom QEMU runs as
	aa   bool    // libvirt confines guests by AppArmor
}

// Open finds out what this machine offers and makes the lab's directories.
// The image lends its kernel to the proof of the accelerator.
func Open(ctx context.Context, img *image.Image, o *Options) (*Lab, error) {
	l := &Lab{o: o.withDefaults()}
	var err error
	if l.qemu, err = lookUp("libvirt-qemu"); err != nil {
		return nil, fmt.Errorf("QEMU's user: %w", err)
	}
	if l.Libvirt, err = EnsureLibvirt(ctx, l.o.URI); err != nil {
		return nil, err
	}
	if l.Accelerator, err = proveAccelerator(ctx, l.o.Cache, img); err != nil {
		return nil, err
	}
	if l.Vsock, err = pickVsock(l.o.Cache); err != nil {
		return nil, err
	}
	caps, err := l.virsh(ctx, "capabilities")
	if err != nil {
		return nil, err
	}
	l.aa = strings.Contains(caps, "<model>apparmor</model>")
	return l, l.makeDirs()
}

// makeDirs makes directories that QEMU's user can pass through.
func (l *Lab) makeDirs() error {
	for _, d := range []string{l.o.Dir, filepath.Join(l.o.Dir, "guests")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// Choices are what was picked, for a person to read.
func (l *Lab) Choices() []Choice { return []Choice{l.Libvirt, l.Accelerator, l.Vsock} }

func (l *Lab) virsh(ctx context.Context, args ...string) (string, error) {
	return virsh(ctx, l.o.URI, args...)
}

func virsh(ctx context.Context, uri string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"-q", "-c", uri}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("virsh %s: %w: %s", args[0], errors.Join(err, ctx.Err()), strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(out.String()), nil
}
