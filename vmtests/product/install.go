package product

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/outguard/outguard/vmtests/vm"
)

// Layout says where an installation stands. All are directories.
type Layout struct {
	Config string
	State  string
	Run    string
	Lib    string
}

// Default is where the product looks when nobody says anything else.
func Default() Layout {
	return Layout{Config: "/etc/outguard", State: "/var/lib/outguard", Run: "/run/outguard", Lib: "/usr/local/lib/outguard"}
}

// Under is a layout below one directory.
func Under(dir string) Layout {
	return Layout{Config: filepath.Join(dir, "etc"), State: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run"), Lib: filepath.Join(dir, "lib")}
}

func (l Layout) dirs() []string { return []string{l.Config, l.Lib, l.State, l.Run} }

// Vsock holds the hybrid sockets.
func (l Layout) Vsock() string { return filepath.Join(l.Run, "vsock") }

// ConfigFile is the monitor's configuration.
func (l Layout) ConfigFile() string { return filepath.Join(l.Config, "outguard.yaml") }

// record is the file that says that an installation is ours to remove.
func (l Layout) record() string { return filepath.Join(l.Config, "made-by-vmtests") }

// ErrForeign means that something is installed that this package did not
// install.
var ErrForeign = errors.New("an installation of somebody else's")

// Install is one installation.
type Install struct {
	Layout
	Bin string // where the binaries were built

	Manager *Manager // of the service; nil: it has none
}

// Files of an installation, beside the binaries.
type Files struct {
	Config   string // text of outguard.yaml; "" for none: the defaults
	Playbook string // text of playbook.yaml; "" for none: the built-in one
}

// New installs: users, directories, copies of the binaries, configuration. It
// refuses to touch what it did not make.
func New(ctx context.Context, l Layout, bin string, f Files) (*Install, error) {
	if err := l.checkOurs(); err != nil {
		return nil, err
	}
	p := &Install{Layout: l, Bin: bin}
	if err := p.install(ctx, f); err != nil {
		return nil, fmt.Errorf("install: %w", err)
	}
	return p, nil
}

// checkOurs reports ErrForeign where a directory holds something and no
// record.
func (l Layout) checkOurs() error {
	if _, err := os.Stat(l.record()); err == nil {
		return nil
	}
	for _, d := range l.dirs() {
		entries, err := os.ReadDir(d)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if len(entries) > 0 {
			return fmt.Errorf("%s is not empty and %s is missing: %w, which is left alone", d, l.record(), ErrForeign)
		}
	}
	return nil
}

func (p *Install) install(ctx context.Context, f Files) error {
	if err := os.MkdirAll(p.Config, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(p.record(), []byte("installation\n"), 0o644); err != nil {
		return err
	}
	if err := p.takeUsers(ctx); err != nil {
		return err
	}
	if err := p.makeDirs(); err != nil {
		return err
	}
	if err := p.copyBinaries(); err != nil {
		return err
	}
	for name, text := range map[string]string{"outguard.yaml": f.Config, "playbook.yaml": f.Playbook} {
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(p.Config, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// makeDirs makes the directories with the rights that README names.
func (p *Install) makeDirs() error {
	monitor, err := ids("outguard")
	if err != nil {
		return err
	}
	qemu, err := user.LookupGroup("libvirt-qemu")
	if err != nil {
		return err
	}
	qemuGroup, err := strconv.Atoi(qemu.Gid)
	if err != nil {
		return err
	}
	for _, d := range []struct {
		path     string
		uid, gid int
		mode     fs.FileMode
	}{
		{filepath.Dir(p.Config), -1, -1, 0},
		{p.Lib, 0, 0, 0o755},
		{p.State, monitor.uid, monitor.gid, 0o711}, // QEMU's user passes through to its key and captures
		{p.Run, monitor.uid, monitor.gid, 0o755},
		{p.Vsock(), monitor.uid, qemuGroup, 0o770 | fs.ModeSetgid | fs.ModeSticky}, // both make sockets here, which take the group; neither touches the other's
	} {
		if err := os.MkdirAll(d.path, 0o755); err != nil {
			return err
		}
		if d.mode == 0 {
			continue
		}
		if err := os.Chown(d.path, d.uid, d.gid); err != nil {
			return err
		}
		if err := os.Chmod(d.path, d.mode); err != nil {
			return err
		}
	}
	return nil
}

// copyBinaries copies them out of the clone, where the monitor's user may not
// be able to enter. A running one is replaced, not written to.
func (p *Install) copyBinaries() error {
	for _, name := range []string{"outguard", "outguardd", "outguard-engine-tsem"} {
		b, err := os.ReadFile(filepath.Join(p.Bin, name))
		if err != nil {
			return fmt.Errorf("%w (make build makes it)", err)
		}
		path := filepath.Join(p.Lib, name)
		if err := os.WriteFile(path+".new", b, 0o755); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
	}
	return nil
}

// Remove ends the monitor and takes away everything that New made. Without a
// record of ours it does nothing.
func Remove(ctx context.Context, l Layout) error {
	if _, err := os.Stat(l.record()); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	p := &Install{Layout: l}
	if err := p.StopMonitor(ctx); err != nil {
		return err
	}
	if err := vm.StopPrograms(ctx, p.Lib); err != nil { // an engine whose monitor was killed
		return err
	}
	if err := l.releaseUsers(ctx); err != nil {
		return err
	}
	// The record goes last: what was interrupted can be gone on with.
	for _, d := range []string{l.Run, l.State, l.Lib, l.Config} {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	return nil
}

type userIDs struct{ uid, gid int }

func ids(name string) (userIDs, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return userIDs{}, err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return userIDs{}, err
	}
	gid, err := strconv.Atoi(u.Gid)
	return userIDs{uid, gid}, err
}

func run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
