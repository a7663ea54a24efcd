package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/vmtests/tiny"
)

// file is one that is changed and used. Its content is a program that ends at
// once, and behind it what tells the versions apart.
type file struct {
	path string
	data []byte // what is in it now
	out  io.Writer
	said strings.Builder // where out is nil: what was to be said
}

// program is exit(0) as a static ELF for x86-64 Linux.
var program = tiny.ELF([]byte{0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05}) // xor edi, edi; mov eax, SYS_exit; syscall

// tail is how much follows the program: the mark of the version, and something
// to cut off.
const tail = 64

var marks uint64 // every version of every file has another

// next is a version as long as the last one.
func (f *file) next() {
	marks++
	copy(f.data[len(program):], fmt.Sprintf("%08x", marks))
}

func (f *file) create() error {
	f.data = append(append([]byte(nil), program...), make([]byte, tail)...)
	f.next()
	return os.WriteFile(f.path, f.data, 0o755)
}

// use uses the file, and says which digest that is to have recorded.
func (f *file) use(u use) error {
	digest := fmt.Sprintf("%x", sha256.Sum256(f.data))
	if u.event == "file_open" && onTmpfs(f.path) {
		digest = "no-file"
	}
	line := fmt.Sprintf("digest %s %s %s\n", u.event, f.path, digest)
	if f.out == nil {
		f.said.WriteString(line)
	} else {
		fmt.Fprint(f.out, line)
	}
	return u.do(f.path)
}

// onTmpfs reports whether a file lies on one of the file systems that TSEM
// counts as pseudo: an open there has no digest.
func onTmpfs(path string) bool {
	var s unix.Statfs_t
	return unix.Statfs(path, &s) == nil && s.Type == unix.TMPFS_MAGIC
}

func (f *file) change(c change) error { return c.do(f) }

// use is one way to use a file.
type use struct {
	event string
	do    func(path string) error
}

var (
	running = use{"bprm_committed_creds", runIt}
	mapping = use{"mmap_file", mapToRun}
)

// uses begin with the one that a writer forbids.
var uses = []use{running, mapping, {"file_open", openToRead}}

func runIt(path string) error {
	p, err := os.StartProcess(path, []string{path}, &os.ProcAttr{})
	if err != nil {
		return err
	}
	s, err := p.Wait()
	if err == nil && !s.Success() {
		err = fmt.Errorf("%s: %s", path, s)
	}
	return err
}

func mapToRun(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	m, err := unix.Mmap(fd, 0, len(program), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	return unix.Munmap(m)
}

func openToRead(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// change is one way to change a file's content.
type change struct {
	name string
	do   func(f *file) error
}

var changes = []change{
	{"write", func(f *file) error {
		f.next()
		fd, err := unix.Open(f.path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		_, err = unix.Pwrite(fd, f.data, 0)
		return err
	}},
	{"rewrite", func(f *file) error { // as a shell's > does
		f.next()
		return os.WriteFile(f.path, f.data, 0o755)
	}},
	{"truncate", func(f *file) error { // by name: nobody opens the file
		f.data = f.data[:len(f.data)-8]
		return syscall.Truncate(f.path, int64(len(f.data)))
	}},
	{"ftruncate", func(f *file) error {
		f.data = f.data[:len(f.data)-8]
		fd, err := unix.Open(f.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Ftruncate(fd, int64(len(f.data)))
	}},
	{"mmap", func(f *file) error {
		m, err := f.mapShared()
		if err != nil {
			return err
		}
		f.next()
		copy(m, f.data)
		return unix.Munmap(m)
	}},
	{"rename", func(f *file) error {
		f.next()
		if err := os.WriteFile(f.path+".new", f.data, 0o755); err != nil {
			return err
		}
		return os.Rename(f.path+".new", f.path)
	}},
}

// mapShared maps the whole file to be written, and keeps no descriptor.
func (f *file) mapShared() ([]byte, error) {
	fd, err := unix.Open(f.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return unix.Mmap(fd, 0, len(f.data), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}
