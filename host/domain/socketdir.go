package domain

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// socketDirMode lets QEMU's group and the monitor make sockets, which take the
// group, and neither remove the other's.
const socketDirMode = 0o770 | fs.ModeSetgid | fs.ModeSticky

// socketDir makes sure that QEMU's side can make its sockets in dir. One that
// is there stays as it is, unless it is the monitor's own and its group's: so
// it is where the monitor came first, which cannot give it to QEMU's group.
func (p *plan) socketDir(dir string) error {
	err := directoryOf(filepath.Dir(dir), 0o755, p.owner, nil)
	if err == nil {
		err = directoryOf(dir, socketDirMode, ids{p.owner.uid, p.qemu.gid}, &p.owner)
	}
	if err != nil {
		return fmt.Errorf("the sockets' directory %s: %w", dir, err)
	}
	return nil
}

// directoryOf makes a directory with these rights, and gives them to one that
// is there and is mend's. It goes by the directory itself, not by its path,
// which the monitor's user could point elsewhere meanwhile.
func directoryOf(dir string, mode fs.FileMode, owner ids, mend *ids) error {
	err := os.Mkdir(dir, 0o700)
	made := err == nil
	switch {
	case err != nil && !errors.Is(err, fs.ErrExist):
		return err
	case !made && mend == nil:
		return nil
	}
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if !made && (ids{int(st.Uid), int(st.Gid)}) != *mend {
		return nil
	}
	return errors.Join(f.Chown(owner.uid, owner.gid), f.Chmod(mode))
}
