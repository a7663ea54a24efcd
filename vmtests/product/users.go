package product

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
)

// The users of DESIGN: the monitor's and the engines'. A machine has one set of
// them, however many installations stand on it.
var users = []struct{ name, home string }{
	{"outguard", "/var/lib/outguard"},
	{"outguard-engine", "/"},
}

// usersDir is there while an installation of ours is:
//
//	made          the users that we made, one a line
//	for-<name>    the record of an installation that uses them
const usersDir = "/var/lib/outguard-vmtests"

// lockUsers makes usersDir, and lets nobody else change it until unlock.
func lockUsers() (unlock func() error, err error) {
	for {
		if err := os.MkdirAll(usersDir, 0o755); err != nil {
			return nil, err
		}
		d, err := os.Open(usersDir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", usersDir, err), d.Close())
		}
		held, err := d.Stat()
		now, err2 := os.Stat(usersDir)
		if err == nil && err2 == nil && os.SameFile(held, now) {
			return d.Close, nil
		}
		d.Close() // whoever had it locked has removed it
	}
}

func (l Layout) lease() string {
	return filepath.Join(usersDir, "for-"+strings.ReplaceAll(strings.Trim(l.Config, "/"), "/", "-"))
}

// takeUsers makes the users that are missing, for this installation.
func (p *Install) takeUsers(ctx context.Context) (err error) {
	unlock, err := lockUsers()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := os.WriteFile(p.lease(), []byte(p.record()), 0o644); err != nil {
		return err
	}
	for _, u := range users {
		if _, err := user.Lookup(u.name); err == nil {
			continue
		}
		if err := appendLine(filepath.Join(usersDir, "made"), u.name); err != nil {
			return err
		}
		if err := run(ctx, "useradd", "--system", "--user-group", "--no-create-home", "--home-dir", u.home, "--shell", "/usr/sbin/nologin", u.name); err != nil {
			return err
		}
	}
	return nil
}

// releaseUsers removes what takeUsers made, unless another installation uses
// it.
func (l Layout) releaseUsers(ctx context.Context) (err error) {
	unlock, err := lockUsers()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := os.Remove(l.lease()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if used, err := usersInUse(); used || err != nil {
		return err
	}
	made, err := os.ReadFile(filepath.Join(usersDir, "made"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for name := range strings.Lines(string(made)) {
		name = strings.TrimSpace(name)
		if _, err := user.Lookup(name); err != nil {
			continue
		}
		if err := run(ctx, "userdel", "--force", name); err != nil {
			return err
		}
	}
	return os.RemoveAll(usersDir)
}

// usersInUse looks for an installation that is still there.
func usersInUse() (bool, error) {
	leases, err := filepath.Glob(filepath.Join(usersDir, "for-*"))
	if err != nil {
		return false, err
	}
	for _, path := range leases {
		record, err := os.ReadFile(path)
		if err != nil {
			return false, err
		}
		if _, err := os.Stat(string(record)); err == nil {
			return true, nil
		}
	}
	return false, nil
}

func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, line)
	return errors.Join(err, f.Close())
}
