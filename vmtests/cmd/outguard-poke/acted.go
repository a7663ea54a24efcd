package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/vmtests/tiny"
)

// acted does what would tell a record that believes user memory, or a name,
// from one of what the kernel acted on, and says what is to be recorded:
//
//	N & TYPE & PART & PART...
//
// one line each: so many events of that type hold all the parts, as `outguard
// events --json` writes them; + is at least one. Or
//
//	before & TYPE & PART & PART & TYPE & PART & PART
//
// where an event is to stand in the record before another one. What was acted on it knows from
// the kernel's answers: which inode a descriptor is of, how a program that ran
// ended, which port a socket is connected to. Only names what is to be done; none: all.
func acted(dir string, only ...string) error {
	s := &stage{dir: dir, postOpen: hasPostOpen()}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	var all []error
	for _, d := range []struct {
		name string
		do   func() error
	}{
		{"opens", s.racedOpens}, {"connects", s.racedConnects}, {"sends", s.racedSends}, {"execs", s.racedExecs},
		{"names", s.racedNames}, {"io_uring", s.rings}, {"descriptors", s.descriptors}, {"scripts", s.scripts},
		{"loaders", s.loaders}, {"links", s.links}, {"mounts", s.mounts}, {"chroot", s.chroots}, {"user namespace", s.userns},
		{"long paths", s.deep}, {"nameless", s.nameless}, {"stalls", s.stalls},
	} {
		if len(only) > 0 && !slices.Contains(only, d.name) {
			continue
		}
		if err := d.do(); err != nil {
			all = append(all, fmt.Errorf("%s: %w", d.name, err))
		}
	}
	return errors.Join(all...)
}

// stage is where it is all done.
type stage struct {
	dir      string
	postOpen bool // opened files have a digest
}

// hasPostOpen reports whether the kernel has file_post_open, as those from 6.9
// on have.
func hasPostOpen() bool {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false
	}
	var major, minor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return err == nil && (major > 6 || major == 6 && minor >= 9)
}

func (s *stage) at(name string) string { return filepath.Join(s.dir, name) }

// put makes a file, with the directories that it takes.
func (s *stage) put(name string, data []byte) (string, error) {
	path := s.at(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	return path, os.WriteFile(path, data, 0o755)
}

const (
	execed = "bprm_committed_creds"
	opened = "file_open"
	mapped = "mmap_file"
	judged = "bprm_check_security"
	some   = -1 // instead of a number: at least one
)

func recorded(n int, event string, parts ...string) {
	count := strconv.Itoa(n)
	if n == some {
		count = "+"
	}
	fmt.Println(strings.Join(append([]string{count, event}, parts...), " & "))
}

// seen is a file as an event has it.
type seen struct {
	path  string
	kind  string // root, unless it says otherwise
	flags []string
	data  []byte // of which the digest is; nil: it has none, for the reason in state
	state string
}

func (f seen) String() string {
	kind, state, digest := f.kind, f.state, ""
	if kind == "" {
		kind = "root"
	}
	if f.data != nil {
		state, digest = "sha256", fmt.Sprintf("%x", sha256.Sum256(f.data))
	}
	flags := ""
	if len(f.flags) > 0 {
		flags = `"` + strings.Join(f.flags, `","`) + `"`
	}
	return fmt.Sprintf(`"file":{"path":"%s","path_kind":"%s","path_flags":[%s],"digest":"%s","digest_state":"%s"`, f.path, kind, flags, digest, state)
}

// opened says that f was opened so often to be read. When it was made it had
// no size yet.
func (s *stage) opened(n int, f seen, parts ...string) {
	size := fmt.Sprintf(`"size":%d,`, len(f.data))
	if !s.postOpen {
		f.data, f.state = nil, "absent"
	}
	recorded(n, opened, append(parts, f.String(), size)...)
}

func inode(path string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return st.Ino, err
}

func inodePart(n uint64) string { return fmt.Sprintf(`"inode":%d,`, n) }

// program is a static ELF for x86-64 that ends with the first byte of its first
// argument, plus add. What follows it in the file tells it from others.
func program(add byte, mark string) []byte {
	code := []byte{
		0x48, 0x8b, 0x44, 0x24, 0x10, // mov rax, [rsp+16]
		0x0f, 0xb6, 0x38, // movzx edi, byte [rax]
		0x83, 0xc7, add, // add edi, add
		0xb8, 60, 0, 0, 0, // mov eax, SYS_exit
		0x0f, 0x05, // syscall
	}
	return append(tiny.ELF(code), mark...)
}

// ran runs a program and returns how it ended.
func ran(path string, argv []string, attr *os.ProcAttr) (int, error) {
	if attr == nil {
		attr = &os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}}
	}
	p, err := os.StartProcess(path, argv, attr)
	if err != nil {
		return 0, err
	}
	state, err := p.Wait()
	if err != nil {
		return 0, err
	}
	return state.ExitCode(), nil
}

// mustRun runs a program that is to end with the first byte of its argument.
func mustRun(path string, argv []string, attr *os.ProcAttr, want byte) error {
	code, err := ran(path, argv, attr)
	if err == nil && code != int(want) {
		err = fmt.Errorf("run %s: ended with %d instead of %d", path, code, want)
	}
	return err
}
