package image

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The file system's identity is the same in every build: two builds of the
// same inputs are to be equal, and guests never see each other's disks.
const fsUUID = "6f757467-7561-7264-2d67-756573740001"

// readBusybox takes in the binary and the list of what it can be called.
func (b *build) readBusybox(path string) error {
	var err error
	if b.busybox, err = os.ReadFile(path); err != nil {
		return err
	}
	out, err := exec.Command(path, "--list").Output()
	if err != nil {
		return fmt.Errorf("%s --list: %w", path, err)
	}
	b.applets = strings.Fields(string(out))
	return nil
}

// writeRoot makes the root's file system out of a directory, with no loop
// device and no mount, and turns it into a qcow2 disk.
func (b *build) writeRoot(ctx context.Context, path string) error {
	tree, raw := path+".tree", path+".raw"
	defer os.RemoveAll(tree)
	defer os.Remove(raw)
	if err := b.stage(tree); err != nil {
		return err
	}
	err := run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-U", fsUUID,
		"-E", "hash_seed="+fsUUID+",root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0",
		"-d", tree, raw, fmt.Sprintf("%dM", b.sizeMiB))
	if err != nil {
		return err
	}
	if err := setTimes(ctx, tree, raw, path+".times"); err != nil {
		return err
	}
	return run(ctx, "qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", raw, path)
}

// stage lays the root out as a directory, owned by root, every time the same.
func (b *build) stage(tree string) error {
	dirs := []string{"bin", "dev", "etc", "home", "proc", "root", "run", "sbin", "srv", "sys", "usr/bin", "usr/sbin", "var/tmp", "tmp"}
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"tmp", "var/tmp"} {
		if err := os.Chmod(filepath.Join(tree, d), 0o777|fs.ModeSticky); err != nil {
			return err
		}
	}
	if err := b.stageBusybox(tree); err != nil {
		return err
	}
	for _, f := range b.files {
		if err := stageFile(tree, f); err != nil {
			return err
		}
	}
	return nil
}

// stageBusybox puts links where programs look for its applets.
func (b *build) stageBusybox(tree string) error {
	if err := stageFile(tree, File{Path: "/bin/busybox", Mode: 0o755, Data: b.busybox}); err != nil {
		return err
	}
	for _, a := range b.applets {
		if a == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(tree, "bin", a)); err != nil {
			return err
		}
	}
	for _, a := range []string{"init", "reboot", "poweroff"} {
		if err := os.Symlink("../bin/busybox", filepath.Join(tree, "sbin", a)); err != nil {
			return err
		}
	}
	return nil
}

func stageFile(tree string, f File) error {
	path := filepath.Join(tree, f.Path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, f.Data, 0o600); err != nil {
		return err
	}
	return os.Chmod(path, f.Mode.Perm())
}

// setTimes gives every inode the same times. mke2fs takes them from the
// directory, where nobody can set the time of the last change.
func setTimes(ctx context.Context, tree, raw, script string) error {
	var b strings.Builder
	err := filepath.WalkDir(tree, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(path, tree), "/")
		for _, field := range []string{"atime", "ctime", "mtime", "crtime"} {
			fmt.Fprintf(&b, "sif \"%s\" %s @%d\n", name, field, epoch)
		}
		return nil
	})
	if err != nil {
		return err
	}
	defer os.Remove(script)
	if err := os.WriteFile(script, []byte(b.String()), 0o600); err != nil {
		return err
	}
	return run(ctx, "debugfs", "-w", "-f", script, raw)
}

// run runs a tool with a clock that stands still where the tool allows it.
func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", epoch), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
