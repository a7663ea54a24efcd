package domain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// pidDir is where libvirt has the process id of a domain's QEMU, as NAME.pid.
const pidDir = "/run/libvirt/qemu"

var (
	errPrivate = errors.New("its memory is not shared (memoryBacking: source memfd or file, access shared)")
	errSeveral = errors.New("its memory is of several pieces (NUMA nodes, or modules that were plugged in)")
	errHuge    = errors.New("its memory is of huge pages")
)

// memoryBackend is one of QEMU's memory backends, as it stands on the command line.
type memoryBackend struct {
	Kind    string `json:"qom-type"`
	ID      string `json:"id"`
	Share   bool   `json:"share"`
	HugeTLB bool   `json:"hugetlb"`
	Path    string `json:"mem-path"`
	Size    uint64 `json:"size"`
}

// openRAM opens, for reading, the file that is all of a domain's RAM, where QEMU
// shares its memory by one. It needs what ptrace needs: CAP_SYS_PTRACE, where
// QEMU is another user's.
func openRAM(dir, name string, vm uuid.UUID) (_ *os.File, size uint64, err error) {
	pid, err := readPID(dir, name)
	if err != nil {
		return nil, 0, fmt.Errorf("find its QEMU: %w", err)
	}
	// A process that ends takes its directory with it, whoever has its number then.
	proc, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("find its QEMU: process %d: %w", pid, err)
	}
	defer unix.Close(proc)
	line, err := readAt(proc, "cmdline", maxCommandLine)
	if err != nil {
		return nil, 0, fmt.Errorf("read QEMU's command line: %w", err)
	}
	b, err := parseBackend(line, vm)
	if err != nil {
		return nil, 0, err
	}
	f, err := openBackend(proc, b)
	if err != nil {
		return nil, 0, fmt.Errorf("open QEMU's memory: %w", err)
	}
	return f, b.Size, nil
}

const maxCommandLine = 1 << 20

func readPID(dir, name string) (int, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") {
		return 0, fmt.Errorf("name %q: unusable", name)
	}
	f, err := os.Open(dir + "/" + name + ".pid")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 32)
	if err != nil || pid < 1 {
		return 0, fmt.Errorf("%s: no process id: %q", f.Name(), b)
	}
	return int(pid), nil
}

func readAt(dir int, name string, most int64) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("more than %d bytes", most)
	}
	return b, err
}

// parseBackend reads a QEMU's command line: it must be vm's, and have one memory
// backend that is shared as a file.
// Source: libvirt, qemu_command.c (JSON since libvirt 7.9 with QEMU 6.0).
func parseBackend(line []byte, vm uuid.UUID) (memoryBackend, error) {
	args := strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")
	var ours bool
	var all []memoryBackend
	for i := 1; i < len(args); i++ {
		switch value := args[i]; args[i-1] {
		case "-uuid":
			ours = ours || value == vm.String()
		case "-object":
			b := memoryBackend{Kind: value}
			if strings.HasPrefix(value, "{") {
				b = memoryBackend{}
				if err := json.Unmarshal([]byte(value), &b); err != nil {
					return memoryBackend{}, fmt.Errorf("read QEMU's command line: %w", err)
				}
			}
			if strings.HasPrefix(b.Kind, "memory-backend-") {
				all = append(all, b)
			}
		}
	}
	switch {
	case !ours:
		return memoryBackend{}, fmt.Errorf("the process that libvirt names is not the QEMU of %s", vm)
	case len(all) == 0:
		return memoryBackend{}, errPrivate
	case len(all) > 1:
		return memoryBackend{}, errSeveral
	case all[0].HugeTLB:
		return memoryBackend{}, errHuge
	case !all[0].Share || (all[0].Kind != "memory-backend-memfd" && all[0].Kind != "memory-backend-file"):
		return memoryBackend{}, errPrivate
	case all[0].Size == 0:
		return memoryBackend{}, errors.New("QEMU's command line does not say how much memory it has")
	}
	return all[0], nil
}

// memfdLink is what a backend's memfd is called below /proc.
// Source: QEMU, backends/hostmem-memfd.c.
const memfdLink = "/memfd:memory-backend-memfd"

// openBackend opens the one file of the backend's size that QEMU has open under
// the backend's name.
func openBackend(proc int, b memoryBackend) (*os.File, error) {
	fds, err := openDir(proc, "fd")
	if err != nil {
		return nil, err
	}
	defer fds.Close()
	names, err := fds.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var found *os.File
	var inode unix.Stat_t
	for _, name := range names {
		link, err := readlink(int(fds.Fd()), name)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				continue // closed since
			}
			return nil, errors.Join(noPtrace(err), closed(found))
		}
		var st unix.Stat_t
		if !b.names(link) || unix.Fstatat(int(fds.Fd()), name, &st, 0) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || uint64(st.Size) != b.Size {
			continue
		}
		if found != nil && st.Dev == inode.Dev && st.Ino == inode.Ino {
			continue
		}
		if found != nil {
			return nil, errors.Join(errSeveral, closed(found))
		}
		if found, err = openFound(int(fds.Fd()), name, &st); err != nil {
			return nil, err
		}
		inode = st
	}
	if found == nil {
		return nil, fmt.Errorf("no file of %d bytes that is its %s", b.Size, b.Kind)
	}
	return found, nil
}

func closed(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

func openDir(dir int, name string) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, noPtrace(err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// noPtrace says what is missing where the kernel does not let this process look.
func noPtrace(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: this process has no CAP_SYS_PTRACE", err)
	}
	return err
}

// openFound opens what was looked at, and makes sure that it is still that.
func openFound(dir int, name string, want *unix.Stat_t) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "guest memory")
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Dev != want.Dev || st.Ino != want.Ino {
		return nil, errors.Join(errors.New("it changed meanwhile"), err, f.Close())
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type == unix.HUGETLBFS_MAGIC {
		return nil, errors.Join(errHuge, err, f.Close())
	}
	return f, nil
}

func readlink(dir int, name string) (string, error) {
	buf := make([]byte, 4096)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// names reports whether the target of a link below /proc/PID/fd is the backend's.
func (b *memoryBackend) names(link string) bool {
	link = strings.TrimSuffix(link, " (deleted)")
	if b.Kind == "memory-backend-memfd" {
		return link == memfdLink
	}
	return b.Path != "" && (link == b.Path || strings.HasPrefix(link, strings.TrimSuffix(b.Path, "/")+"/"))
}
