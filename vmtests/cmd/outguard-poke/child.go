package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/vmtests/tiny"
)

// becomes is what a child does before it becomes another program; it returns
// only if it could not.
func becomes(args []string) error {
	kind, dir := args[0], args[1]
	switch kind {
	case "raced":
		return runRaced(args[1], args[2])
	case "memfd":
		fd, err := memfd("acted", program(0, "descriptor"), 0)
		if err != nil {
			return err
		}
		return runFD(fd, kind)
	case "script":
		fd, err := memfd("script", []byte(args[1]), 0)
		if err != nil {
			return err
		}
		return runFD(fd, kind)
	case "chroot":
		return runJailed(dir, args[2], args[3])
	case "userns":
		return runInUserns(dir)
	case "deep":
		return runDeep(dir)
	}
	return runMoved(kind, filepath.Join(dir, kind))
}

func memfd(name string, data []byte, flags int) (int, error) {
	fd, err := unix.MemfdCreate(name, flags)
	if err == nil {
		_, err = unix.Write(fd, data)
	}
	return fd, err
}

// runFD becomes what fd is open for.
func runFD(fd int, name string) error { return execveat(fd, "", name, unix.AT_EMPTY_PATH) }

func execveat(fd int, path, name string, flags uintptr) error {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	argv, err := syscall.SlicePtrFromStrings([]string{name, "a"})
	if err != nil {
		return err
	}
	env := [1]*byte{}
	_, _, e := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&env)), flags, 0)
	return fmt.Errorf("execveat: %w", e)
}

// runMoved makes a program, opens it, has something happen to its name, and
// becomes it.
func runMoved(kind, path string) error {
	if err := os.WriteFile(path, program(0, "descriptor"), 0o755); err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	switch kind {
	case "deleted":
		err = os.Remove(path)
	case "replaced":
		if err = os.WriteFile(path+".new", program(0, "another"), 0o755); err == nil {
			err = os.Rename(path+".new", path)
		}
	case "renamed":
		err = os.Rename(path, path+".new")
	case "linked":
		if err = os.Link(path, path+".new"); err == nil {
			err = os.Remove(path)
		}
		if err == nil {
			fd, err = unix.Open(path+".new", unix.O_RDONLY, 0)
		}
	case "procfd":
		return unix.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), []string{kind, "a"}, nil)
	default:
		err = fmt.Errorf("exec %s: no such thing to do", kind)
	}
	if err != nil {
		return err
	}
	return runFD(fd, kind)
}

// runRaced becomes one of two programs with one of two arguments, whichever the
// kernel reads.
func runRaced(way, dir string) error {
	path, err := twoNames(dir + "/")
	if err != nil {
		return err
	}
	arg, err := newWord(nil, [2]uint32{'a', 'b'}, nil)
	if err != nil {
		return err
	}
	name, err := newWord([]byte("raced\x00"), [2]uint32{}, nil)
	if err != nil {
		return err
	}
	race(path, arg)
	for began := time.Now(); time.Since(began) < rand.N(time.Millisecond); { // not always at the same moment
	}
	if way == compat.name {
		argv, err := newWord(nil, [2]uint32{uint32(name.addr)}, le32(uint32(arg.addr), 0))
		if err != nil {
			return err
		}
		return errno32(tiny.Int80(execve32, uint32(path.addr), uint32(argv.addr), uint32(argv.addr)+8))
	}
	argv := [3]uintptr{name.addr, arg.addr, 0}
	_, _, e := unix.RawSyscall(unix.SYS_EXECVE, path.addr, uintptr(unsafe.Pointer(&argv)), uintptr(unsafe.Pointer(&argv[2])))
	return e
}

func le32(words ...uint32) (b []byte) {
	for _, w := range words {
		b = append(b, byte(w), byte(w>>8), byte(w>>16), byte(w>>24))
	}
	return b
}

// pivot makes root the namespace's, as runtimes do, and takes the old one away.
func pivot(root string) error {
	old, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(old)
	return errors.Join(unix.Chdir(root), unix.PivotRoot(".", "."), unix.Fchdir(old), unix.Unmount(".", unix.MNT_DETACH), unix.Chdir("/"))
}

// runJailed changes its root, keeps a descriptor of what is outside, and becomes a
// program inside. What it does but chroot it does in a mount namespace of its own.
func runJailed(dir, jail, how string) error {
	out, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	root := filepath.Join(dir, jail)
	if how == "mount" || how == "namespace" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount(root, root, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(root, "program-"+how), program(0, "inside"), 0o755),
		os.WriteFile(filepath.Join(root, "file-"+how), []byte(how), 0o644),
	)
	switch how {
	case "namespace":
		err = errors.Join(err, pivot(root))
	case "machine":
		err = errors.Join(err, unix.Chroot(fmt.Sprintf("/proc/%d/root%s", os.Getppid(), root)), unix.Chdir("/"))
	default:
		err = errors.Join(err, unix.Chroot(root), unix.Chdir("/"))
	}
	if err != nil {
		return err
	}
	for dirfd, name := range map[int]string{unix.AT_FDCWD: "/file-" + how, out: "outside-" + how} {
		fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		unix.Close(fd)
	}
	return unix.Exec("/program-"+how, []string{how, "a"}, nil)
}

// runInUserns mounts a tmpfs and becomes a program in it. Who it is in the
// machine is nobody, whatever it is called here.
func runInUserns(dir string) error {
	if err := unix.Mount("acted", dir, "tmpfs", 0, ""); err != nil {
		return err
	}
	f := seen{path: filepath.Join(dir, "program"), kind: "namespace", data: program(0, "in a user namespace")}
	if err := os.WriteFile(f.path, f.data, 0o755); err != nil {
		return err
	}
	ns, err := inode("/proc/self/ns/user")
	if err != nil {
		return err
	}
	if uid := os.Getuid(); uid != 0 {
		return fmt.Errorf("uid %d in its own namespace", uid)
	}
	recorded(1, execed, f.String(), fmt.Sprintf(`"uid":%d,"euid":%d`, nobody, nobody), fmt.Sprintf(`"user_ns":%d`, ns),
		fmt.Sprintf(`"magic":%d`, unix.TMPFS_MAGIC))
	return unix.Exec(f.path, []string{"program", "a"}, nil)
}

// runDeep goes down until no path reaches, and becomes a program there. Its
// name cannot be told whole; what it is can.
func runDeep(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	for range 4096/255 + 2 {
		name := strings.Repeat("d", 255)
		if err := errors.Join(unix.Mkdir(name, 0o755), unix.Chdir(name)); err != nil {
			return err
		}
	}
	s := &stage{postOpen: hasPostOpen()}
	f := seen{flags: []string{"truncated"}, data: program(0, "deep")}
	fd, err := unix.Open("program", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o755)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, f.data)
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return err
	}
	if fd, err = unix.Open("program", unix.O_RDONLY, 0); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if _, err := unix.Mmap(fd, 0, 100, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE); err != nil {
		return err
	}
	n := inodePart(st.Ino)
	s.opened(2, f, n) // once by the exec
	recorded(1, mapped, f.String(), n, `"reqprot":5,"prot":5,"flags":2}`)
	recorded(1, execed, f.String(), n)
	return unix.Exec("./program", []string{"deep", "a"}, nil)
}
