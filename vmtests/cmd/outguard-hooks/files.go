package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/vmtests/tiny"
)

const fionread = 0x541b

func here(name string) string {
	dir, _ := os.Getwd()
	return dir + "/" + name
}

const content = "outguard\n"

func files() error {
	f, err := os.Create("file")
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	if _, err := f.WriteString(content); err != nil {
		return err
	}
	if err := readOnly(fd); err != nil {
		return err
	}
	const ioctl32, enosys = 54, 38
	if got := tiny.Int80(ioctl32, uint32(fd), fionread, 0); int32(got) == -enosys {
		skip("file_ioctl_compat", "no system calls of 32 bits")
	} else {
		ran("file_ioctl_compat", path(here("file")), arg("cmd", fionread))
	}
	err = fcntl(fd)
	ran("file_fcntl", path(here("file")), arg("cmd", unix.F_GETFL))
	b, e := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if e != nil {
		return errors.Join(err, e)
	}
	err = errors.Join(err, unix.Mprotect(b, unix.PROT_READ|unix.PROT_EXEC), unix.Munmap(b))
	ran("file_mprotect", path(here("file")), arg("prot", 5), arg("old_prot", 3))
	return err
}

// digestOfFile is what an event of the file says that is open to be read.
var digestOfFile = fmt.Sprintf(`"digest":"%x","digest_state":"sha256"`, sha256.Sum256([]byte(content)))

// readOnly asks the same of fd, which can be written through, and of one that can only
// be read from.
func readOnly(fd int) error {
	f, err := os.Open("file")
	if err != nil {
		return err
	}
	defer f.Close()
	for state, fd := range map[string]int{digestOfFile: int(f.Fd()), `"digest_state":"absent"`: fd} {
		_, e := unix.IoctlGetInt(fd, fionread)
		err = errors.Join(err, e, unix.Flock(fd, unix.LOCK_SH))
		ran("file_ioctl", path(here("file")), arg("cmd", fionread), state)
		ran("file_lock", path(here("file")), arg("cmd", unix.F_RDLCK), state)
	}
	return err
}

func fcntl(fd int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err
}

func names() error {
	f, err := os.OpenFile("made", os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return err
	}
	f.Close()
	ran("inode_create", `/made"`, `"path_kind":"volume"`, arg("mode", unix.S_IFREG|0o640), arg("dir_uid", 0))
	err = errors.Join(
		os.Link("made", "linked"),
		os.Symlink("/srv/nowhere", "symlink"),
		os.Mkdir("below", 0o750),
		unix.Mknod("null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))),
		os.Rename("linked", "below/renamed"),
		os.Chmod("made", 0o600),
	)
	ran("inode_link", `/made"`, `/linked"`)
	ran("inode_symlink", `/symlink"`, named("/srv/nowhere"))
	ran("inode_mkdir", `/below"`, arg("mode", 0o750))
	ran("inode_mknod", `/null"`, arg("dev", 1<<20|3))
	ran("inode_rename", `/linked"`, `/below/renamed"`)
	ran("inode_setattr", `/made"`, arg("mode", unix.S_IFREG|0o600))
	_, e := os.Stat("made")
	var st unix.Statfs_t
	err = errors.Join(err, e, unix.Statfs(".", &st))
	ran("inode_getattr", path(here("made")))
	ran("sb_statfs", `"path_kind":"volume"`)
	err = errors.Join(err, os.Remove("below/renamed"), os.Remove("below"))
	ran("inode_unlink", `/below/renamed"`, arg("dir_mode", unix.S_IFDIR|0o750))
	ran("inode_rmdir", `/below"`)
	return err
}

// capability is security.capability with cap_net_raw, revision 2.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func attributes() error {
	err := unix.Setxattr("made", "trusted.origin", []byte("elsewhere"), 0)
	if errors.Is(err, unix.ENOTSUP) {
		for _, h := range []string{"inode_setxattr", "inode_getxattr", "inode_listxattr", "inode_removexattr", "inode_killpriv"} {
			skip(h, err)
		}
		return nil
	}
	ran("inode_setxattr", `/made"`, named("trusted.origin"), valued("elsewhere"), arg("size", 9))
	var b [256]byte
	_, e := unix.Getxattr("made", "trusted.origin", b[:])
	_, e2 := unix.Listxattr("made", b[:])
	err = errors.Join(err, e, e2, unix.Removexattr("made", "trusted.origin"))
	ran("inode_getxattr", `/made"`, named("trusted.origin"))
	ran("inode_listxattr", `/made"`)
	ran("inode_removexattr", `/made"`, named("trusted.origin"))
	if e := unix.Setxattr("made", "security.capability", []byte(capability), 0); e != nil {
		return errors.Join(err, fmt.Errorf("capability: %w", e))
	}
	err = errors.Join(err, os.WriteFile("made", []byte("changed"), 0))
	ran("inode_killpriv", `/made"`)
	return err
}

func mounts() error {
	err := errors.Join(os.Mkdir("mnt", 0o755), os.Mkdir("other", 0o755))
	_ = unix.PivotRoot("other", "mnt") // neither is a mount: refused behind the hook
	ran("sb_pivotroot", path(here("other")), path(here("mnt")))
	if e := unix.Mount("poked", "mnt", "tmpfs", unix.MS_NODEV, ""); e != nil {
		return errors.Join(err, e)
	}
	ran("sb_mount", path(here("mnt")), named("poked"), valued("tmpfs"), arg("flags", unix.MS_NODEV))
	ran("sb_kern_mount", path("/"), valued("tmpfs"), arg("has_device", 0))
	err = errors.Join(err, unix.Mount("", "mnt", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	ran("sb_remount", path("/"), valued("tmpfs"))
	var from, to = append([]byte("mnt"), 0), append([]byte("other"), 0)
	at := unix.AT_FDCWD
	err = errors.Join(err, call(unix.SYS_MOVE_MOUNT, uintptr(at), uintptr(unsafe.Pointer(&from[0])), uintptr(at), uintptr(unsafe.Pointer(&to[0])), 0))
	ran("move_mount", path(here("mnt")), path(here("other")))
	if e := unix.Unmount("other", 0); e != nil {
		err = errors.Join(err, e)
	}
	ran("sb_umount", path(here("other")))
	return err
}
