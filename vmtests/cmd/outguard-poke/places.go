package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// child runs `outguard-poke exec ARG...`, which is to become a program that
// ends with want.
func child(want byte, attr *syscall.SysProcAttr, args ...string) error {
	return mustRun("/proc/self/exe", append([]string{"outguard-poke", "exec"}, args...),
		&os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}, Sys: attr}, want)
}

// descriptors runs programs by their descriptors, after their names have gone
// or have become others'.
func (s *stage) descriptors() error {
	before := program(0, "descriptor")
	after := program(0, "another")
	if err := os.Mkdir(s.at("fd"), 0o755); err != nil {
		return err
	}
	for _, kind := range []string{"memfd", "deleted", "replaced", "renamed", "procfd", "linked"} {
		if err := child('a', nil, kind, s.at("fd")); err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
	}
	run := func(fileless string, f seen, parts ...string) {
		recorded(1, execed, append(parts, f.String(), fmt.Sprintf(`"fileless":"%s"`, fileless))...)
	}
	run("memfd", seen{path: "/memfd:acted", flags: []string{"unlinked", "unreachable"}, data: before}, `"argv":["memfd","a"]`)
	run("deleted", seen{path: s.at("fd/deleted"), flags: []string{"unlinked"}, data: before})
	run("deleted", seen{path: s.at("fd/replaced"), flags: []string{"unlinked"}, data: before})
	run("", seen{path: s.at("fd/renamed.new"), data: before})
	run("", seen{path: s.at("fd/procfd"), data: before}, `"filename":"/proc/self/fd/`)
	run("", seen{path: s.at("fd/linked.new"), data: before})

	// The name is another's by now, or only says that it was deleted.
	odd, err := s.put("fd/odd (deleted)", after)
	if err != nil {
		return err
	}
	for _, path := range []string{s.at("fd/replaced"), odd} {
		if err := mustRun(path, []string{path, "a"}, nil, 'a'); err != nil {
			return err
		}
		run("", seen{path: path, data: after})
	}
	return nil
}

// scripts are run by an interpreter: it is the program, and the script what was
// asked for.
func (s *stage) scripts() error {
	interpreter := seen{data: program(0, "interpreter")}
	var err error
	if interpreter.path, err = s.put("interpreter", interpreter.data); err != nil {
		return err
	}
	script := seen{data: []byte("#!" + interpreter.path + " s\n")}
	if script.path, err = s.put("script", script.data); err != nil {
		return err
	}
	if err := mustRun(script.path, []string{"script", "argument"}, nil, 's'); err != nil {
		return err
	}
	recorded(1, execed, interpreter.String(), fmt.Sprintf(`"filename":"%s","argv":["%s","s","%s","argument"]`, script.path, interpreter.path, script.path))
	named := fmt.Sprintf(`"name":"%s"`, script.path)
	recorded(1, judged, script.String(), named)
	recorded(1, judged, interpreter.String(), named)
	s.opened(1, script)

	// A script of which there is no file.
	if err := child('s', nil, "script", string(script.data)); err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	recorded(1, execed, interpreter.String(), `"filename":"/dev/fd/`)
	recorded(1, judged, seen{path: "/memfd:script", flags: []string{"unlinked", "unreachable"}, data: script.data}.String(), `"name":"/dev/fd/`)
	return nil
}

// loaders bring code into a program that is another one by its name: a library
// by LD_PRELOAD, a program by the dynamic loader.
func (s *stage) loaders() error {
	// crun runs itself again from a memfd, with its library.
	const dynamic, loader, library = "/usr/bin/crun", "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libcap.so.2"
	preload, err := s.copied(library, "preload.so")
	if err != nil {
		return err
	}
	loaded, err := s.copied(dynamic, "loaded")
	if err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	attr := &os.ProcAttr{Env: []string{"LD_PRELOAD=" + preload.path}, Files: []*os.File{null, null, null}}
	if err := mustRun(dynamic, []string{"crun", "--version"}, attr, 0); err != nil {
		return err
	}
	const executable = `"mmap":{"reqprot":5,"prot":5,`
	recorded(some, mapped, preload.String(), executable)
	attr.Env = []string{}
	if err := mustRun(loader, []string{"ld.so", loaded.path, "--version"}, attr, 0); err != nil {
		return err
	}
	recorded(1, execed, fmt.Sprintf(`"argv":["ld.so","%s","--version"]`, loaded.path), fmt.Sprintf(`"path":"%s"`, loader))
	recorded(some, mapped, loaded.String(), executable)
	recorded(0, execed, fmt.Sprintf(`"path":"%s"`, loaded.path))
	return nil
}

func (s *stage) copied(from, name string) (f seen, err error) {
	if f.data, err = os.ReadFile(from); err != nil {
		return f, err
	}
	f.path, err = s.put(name, f.data)
	return f, err
}

// links are other names of a program.
func (s *stage) links() error {
	p := seen{data: program(0, "linked to")}
	var err error
	if p.path, err = s.put("target", p.data); err != nil {
		return err
	}
	link := s.at("symlink")
	if err := os.Symlink(p.path, link); err != nil {
		return err
	}
	if err := mustRun(link, []string{"symlink", "a"}, nil, 'a'); err != nil {
		return err
	}
	recorded(1, execed, p.String(), fmt.Sprintf(`"filename":"%s"`, link))
	p.path = s.at("hardlink")
	if err := os.Link(s.at("target"), p.path); err != nil {
		return err
	}
	if err := mustRun(p.path, []string{"hardlink", "a"}, nil, 'a'); err != nil {
		return err
	}
	recorded(1, execed, p.String(), `"links":2`)
	return nil
}

// mounts put one file in another's place, and a file where no path leads any more.
func (s *stage) mounts() error {
	below, err := s.put("bound", program(0, "below"))
	if err != nil {
		return err
	}
	above := program(0, "above")
	other, err := s.put("above", above)
	if err != nil {
		return err
	}
	if err := unix.Mount(other, below, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	n, err := inode(other)
	if err != nil {
		return err
	}
	if err := mustRun(below, []string{"bound", "a"}, nil, 'a'); err != nil {
		return err
	}
	recorded(1, execed, seen{path: below, data: above}.String(), inodePart(n))
	return errors.Join(unix.Unmount(below, 0), s.detached(), s.handled())
}

// detached opens a file of a mount that is in no namespace any more.
func (s *stage) detached() error {
	dir := s.at("detached")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("acted", dir, "tmpfs", 0, ""); err != nil {
		return err
	}
	if _, err := s.put("detached/hidden-file", []byte("x")); err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return err
	}
	hidden, err := unix.Openat(fd, "hidden-file", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := seen{path: "/hidden-file", flags: []string{"unreachable"}, state: "no-file"}
	recorded(1, opened, f.String())
	return unix.Close(hidden)
}

// handled opens a file by its handle through a mount that does not have it: there is
// no way from it up to the mount's root.
func (s *stage) handled() error {
	under := s.at("handled")
	if err := os.Mkdir(under, 0o755); err != nil {
		return err
	}
	f := seen{path: "/", flags: []string{"unreachable"}, data: []byte("beside what is mounted")}
	beside, err := s.put("beside-handled", f.data)
	if err != nil {
		return err
	}
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, beside, 0)
	if err != nil {
		return err
	}
	if err := unix.Mount(under, under, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	mount, err := unix.Open(under, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	fd, err := unix.OpenByHandleAt(mount, handle, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	s.opened(1, f)
	return errors.Join(unix.Close(fd), unix.Close(mount), unix.Unmount(under, 0))
}

// chroots open and run what is in their root, and what lies outside: of a root that
// is a directory, a mount, a namespace's, or the machine's behind another's back.
func (s *stage) chroots() error {
	inside := program(0, "inside")
	for how, c := range map[string]struct {
		kind  string
		flags []string // of what is inside
	}{
		"chroot":    {"chroot", nil},
		"mount":     {"chroot", nil},
		"namespace": {"namespace", nil},
		"machine":   {"chroot", []string{"unreachable", "foreign"}},
	} {
		jail := "jail-" + how
		outside, err := s.put("outside-"+how, []byte("outside "+how))
		if err != nil {
			return err
		}
		if err := os.Mkdir(s.at(jail), 0o755); err != nil {
			return err
		}
		attr := &syscall.SysProcAttr{}
		if how != "chroot" {
			attr.Cloneflags = unix.CLONE_NEWNS
		}
		if err := child('a', attr, "chroot", s.dir, jail, how); err != nil {
			return fmt.Errorf("%s: %w", how, err)
		}
		recorded(1, execed, seen{path: "/program-" + how, kind: c.kind, flags: c.flags, data: inside}.String())
		s.opened(1, seen{path: "/file-" + how, kind: c.kind, flags: c.flags, data: []byte(how)})
		s.opened(1, seen{path: outside, kind: c.kind, flags: []string{"unreachable"}, data: []byte("outside " + how)})
	}
	return nil
}

// userns runs a program from a tmpfs that somebody without any rights has
// mounted in a user namespace.
func (s *stage) userns() error {
	if err := os.Mkdir(s.at("userns"), 0o755); err != nil {
		return err
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}}
	return child('a', &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: ids, GidMappings: ids,
		Credential: &syscall.Credential{NoSetGroups: true},
	}, "userns", s.at("userns"))
}

const nobody = 65534

// deep opens, maps and runs where a path is longer than any that can be named.
func (s *stage) deep() error {
	if err := os.Mkdir(s.at("deep"), 0o755); err != nil {
		return err
	}
	return child('a', nil, "deep", s.at("deep"))
}

// nameless makes a file without a name, gives it one and runs it.
func (s *stage) nameless() error {
	fd, err := unix.Open(s.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o755)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	f := seen{path: s.at("born"), data: program(0, "nameless")}
	_, err = unix.Write(fd, f.data)
	err = errors.Join(err, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, f.path, unix.AT_SYMLINK_FOLLOW), unix.Close(fd))
	if err != nil {
		return err
	}
	if err := mustRun(f.path, []string{"born", "a"}, nil, 'a'); err != nil {
		return err
	}
	made := seen{path: fmt.Sprintf("%s/#%d", s.dir, st.Ino), flags: []string{"unlinked"}, state: "absent"}
	recorded(1, opened, made.String(), inodePart(st.Ino))
	recorded(1, execed, f.String(), inodePart(st.Ino))
	return s.queue()
}

// queue opens a message queue, to which no path leads. Where file_post_open
// reports what is opened nobody is told.
func (s *stage) queue() error {
	name := []byte("acted\x00")
	fd, _, e := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(&name[0])), unix.O_CREAT|unix.O_RDWR, 0o600, 0, 0, 0)
	if e != 0 {
		return fmt.Errorf("mq_open: %w", e)
	}
	n := 1
	if s.postOpen {
		n = 0
	}
	const mqueue = 0x19800202
	recorded(n, opened, fmt.Sprintf(`"magic":%d,`, mqueue))
	return unix.Close(int(fd))
}
