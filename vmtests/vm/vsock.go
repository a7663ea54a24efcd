package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// pickVsock takes the kernel's vhost-vsock where there is one, else the
// vhost-user device that .ci/install fetched.
func pickVsock(cache string) (Choice, error) {
	c := Choice{What: "vsock", Name: "vhost-vsock", Why: "the kernel has /dev/vhost-vsock"}
	if _, err := os.Stat("/dev/vhost-vsock"); err == nil {
		return c, nil
	}
	c.Name = "vhost-device-vsock"
	version, err := os.Readlink(filepath.Join(cache, "vhost-device-vsock", "current"))
	if err != nil {
		return c, fmt.Errorf("no /dev/vhost-vsock, and no vhost-device-vsock (.ci/install vm fetches it): %w", err)
	}
	c.Why = fmt.Sprintf("there is no /dev/vhost-vsock; version %s out of forky", version)
	return c, nil
}

// deviceFile records the process of a guest's vhost-device-vsock.
func (g *Guest) deviceFile() string { return filepath.Join(g.dir, "vsock.pid") }

// startVsock starts the device as QEMU's user, who is to reach its sockets. It
// outlives this process, as the guest does.
func (g *Guest) startVsock(ctx context.Context) error {
	if pid, err := RecordedRuns(g.deviceFile()); err != nil || pid != 0 {
		return err
	}
	if err := removeAll(g.channel.Control, g.channel.Socket); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(g.dir, "vsock.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("/bin/sh", "-c", `umask 007 && exec "$0" "$@"`, // the monitor is to reach its sockets
		filepath.Join(g.lab.o.Cache, "vhost-device-vsock", "current"), "--guest-cid", fmt.Sprint(g.channel.CID), "--socket", g.channel.Control, "--uds-path", g.channel.Socket)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uint32(g.lab.qemu.uid), Gid: uint32(g.lab.qemu.gid), Groups: g.lab.qemu.groups},
		Setsid:     true,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start vhost-device-vsock: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := RecordProcess(g.deviceFile(), cmd.Process.Pid); err != nil {
		return err
	}
	var early error
	err = poll(ctx, time.Minute, "vhost-device-vsock's socket", func() bool {
		select {
		case e := <-ended:
			early = fmt.Errorf("vhost-device-vsock ended at once (%v), see %s", e, log.Name())
		default:
		}
		_, err := os.Stat(g.channel.Control)
		return err == nil || early != nil
	})
	return errors.Join(err, early)
}

func (g *Guest) stopVsock(ctx context.Context) error {
	err := StopRecorded(ctx, g.deviceFile())
	if g.channel != nil {
		err = errors.Join(err, removeAll(g.channel.Control, g.channel.Socket))
	}
	return err
}

// removeAll removes files that may be missing.
func removeAll(paths ...string) error {
	var errs []error
	for _, p := range paths {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Stall makes the guest's channel stand still, as a host does that has no time
// for it, and go on.
func (g *Guest) Stall(still bool) error {
	pid, err := RecordedRuns(g.deviceFile())
	if err != nil {
		return err
	}
	if pid == 0 {
		return fmt.Errorf("stall %s: no vhost-device-vsock of its own runs: %w", g.Name, errors.ErrUnsupported)
	}
	if still {
		return syscall.Kill(pid, syscall.SIGSTOP)
	}
	return syscall.Kill(pid, syscall.SIGCONT)
}
