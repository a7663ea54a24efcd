package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/vmtests/tiny"
)

// The numbers of the 32-bit interface.
const (
	open32    = 5
	execve32  = 11
	connect32 = 362
)

func errno32(got uint32) error {
	if e := int32(got); e < 0 && e > -4096 {
		return unix.Errno(-e)
	}
	return nil
}

// word is one in memory that another thread changes while the kernel reads what
// is around it.
type word struct {
	addr uintptr // of what is around it
	at   *uint32
	both [2]uint32
}

// newWord lays out before, the word and after, below 4 GiB.
func newWord(before []byte, both [2]uint32, after []byte) (*word, error) {
	const middle = 4096
	m, err := unix.Mmap(-1, 0, 2*middle, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_32BIT)
	if err != nil {
		return nil, fmt.Errorf("map memory below 4 GiB: %w", err)
	}
	copy(m[middle-len(before):], before)
	binary.LittleEndian.PutUint32(m[middle:], both[0])
	copy(m[middle+4:], after)
	return &word{uintptr(unsafe.Pointer(&m[middle-len(before)])), (*uint32)(unsafe.Pointer(&m[middle])), both}, nil
}

// twoNames is a path that ends in a or in b.
func twoNames(before string) (*word, error) {
	return newWord([]byte(before), [2]uint32{'a', 'b'}, nil)
}

// twoPorts is a sockaddr_in of 127.0.0.1 with one port or the other.
func twoPorts(ports [2]uint16) (*word, error) {
	var both [2]uint32
	for i, p := range ports {
		both[i] = unix.AF_INET | uint32(p>>8)<<16 | uint32(p&0xff)<<24
	}
	return newWord(nil, both, []byte{127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})
}

// race has a thread change words as fast as it can; the function that it returns ends it.
func race(words ...*word) func() {
	return inThread(func() {
		for _, w := range words {
			atomic.StoreUint32(w.at, w.both[0])
		}
		for _, w := range words {
			atomic.StoreUint32(w.at, w.both[1])
		}
	})
}

// inThread does it again and again, from before it returns until the function
// that it returns is called.
func inThread(do func()) func() {
	var stop atomic.Bool
	var began, ended sync.WaitGroup
	began.Add(1)
	ended.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		do()
		began.Done()
		for !stop.Load() {
			do()
		}
	})
	began.Wait()
	return func() { stop.Store(true); ended.Wait() }
}

// entry is a way into the kernel.
type entry struct {
	name    string
	open    func(path uintptr) (int, error)
	connect func(fd int, sockaddr uintptr) error
}

const sockaddrSize = 16

var direct = entry{
	"64",
	func(path uintptr) (int, error) {
		fd, _, e := unix.Syscall6(unix.SYS_OPENAT, ^uintptr(99), path, unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0)
		if e != 0 {
			return -1, e
		}
		return int(fd), nil
	},
	func(fd int, sockaddr uintptr) error {
		if _, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), sockaddr, sockaddrSize); e != 0 {
			return e
		}
		return nil
	},
}

var compat = entry{
	"32",
	func(path uintptr) (int, error) {
		fd := tiny.Int80(open32, uint32(path), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return int(int32(fd)), errno32(fd)
	},
	func(fd int, sockaddr uintptr) error {
		return errno32(tiny.Int80(connect32, uint32(fd), uint32(sockaddr), sockaddrSize))
	},
}

// entries are all ways in that this machine has.
func entries() ([]entry, func(), error) {
	inline, err := newRing(0)
	if err != nil {
		return nil, nil, err
	}
	polled, err := newRing(setupSQPoll)
	if err != nil {
		return nil, nil, err
	}
	all := []entry{direct, compat, inline.entry("ring", 0), inline.entry("worker", sqeAsync), polled.entry("poller", 0)}
	return all, func() { inline.close(); polled.close() }, nil
}

// rounds there are at least; more until it went both ways, up to patience.
const rounds, patience = 400, 40000

// both plays rounds that say which way they went, and counts.
func both[W comparable](round func() (W, error)) (map[W]int, error) {
	got := map[W]int{}
	for i := 0; i < rounds || len(got) < 2 && i < patience; i++ {
		way, err := round()
		if err != nil {
			return nil, err
		}
		got[way]++
	}
	if len(got) < 2 {
		return nil, fmt.Errorf("of %d rounds none went the other way: it was no race", patience)
	}
	return got, nil
}

// racedOpens opens a path whose last letter changes meanwhile.
func (s *stage) racedOpens() error {
	all, done, err := entries()
	if err != nil {
		return err
	}
	defer done()
	for _, e := range all {
		if err := s.racedOpen(e); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return nil
}

func (s *stage) racedOpen(e entry) error {
	dir := "open-" + e.name + "/"
	w, err := twoNames(s.at(dir) + "/")
	if err != nil {
		return err
	}
	files := [2]seen{{data: []byte("a " + e.name)}, {data: []byte("b " + e.name)}}
	for i := range files {
		if files[i].path, err = s.put(dir+string(rune(w.both[i])), files[i].data); err != nil {
			return err
		}
	}
	end := race(w)
	got, err := countInodes(func() (int, error) { return e.open(w.addr) })
	end()
	if err != nil {
		return err
	}
	for _, f := range files {
		n, err := inode(f.path)
		if err != nil {
			return err
		}
		s.opened(got[n], f, inodePart(n), tgidPart())
	}
	return nil
}

func tgidPart() string { return fmt.Sprintf(`"tgid":%d,`, os.Getpid()) }

// countInodes opens again and again, and counts what was opened.
func countInodes(open func() (int, error)) (map[uint64]int, error) {
	return both(func() (uint64, error) {
		fd, err := open()
		if err != nil {
			return 0, err
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		return st.Ino, errors.Join(err, unix.Close(fd))
	})
}

// racedConnects connects to a port that changes meanwhile.
func (s *stage) racedConnects() error {
	all, done, err := entries()
	if err != nil {
		return err
	}
	defer done()
	for i, e := range all {
		if err := racedConnect(e, 12300+2*uint16(i)); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return nil
}

func racedConnect(e entry, port uint16) error {
	ports := [2]uint16{port, port + 1}
	w, err := twoPorts(ports)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	defer race(w)()
	got, err := both(func() (uint16, error) {
		if err := e.connect(fd, w.addr); err != nil {
			return 0, err
		}
		peer, err := unix.Getpeername(fd)
		if err != nil {
			return 0, err
		}
		return uint16(peer.(*unix.SockaddrInet4).Port), nil
	})
	if err != nil {
		return err
	}
	for _, p := range ports {
		recorded(got[p], "socket_connect", addressPart(p), tgidPart())
	}
	return nil
}

func addressPart(port uint16) string { return fmt.Sprintf(`"text":"127.0.0.1:%d"`, port) }

// racedSends sends to a port that changes meanwhile, and looks where it arrives.
func (s *stage) racedSends() error {
	ports := [2]uint16{12400, 12401}
	w, err := twoPorts(ports)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var heard [2]int
	for i, p := range ports {
		if heard[i], err = listener(p); err != nil {
			return err
		}
		defer unix.Close(heard[i])
	}
	defer race(w)()
	got, err := both(func() (uint16, error) {
		letter := [1]byte{'x'}
		_, _, e := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&letter)), 1, 0, w.addr, sockaddrSize)
		if e != 0 {
			return 0, e
		}
		// The kernel may leave it to a thread of its own to hand it over.
		arrived := []unix.PollFd{{Fd: int32(heard[0]), Events: unix.POLLIN}, {Fd: int32(heard[1]), Events: unix.POLLIN}}
		if _, err := unix.Poll(arrived, 10_000); err != nil && err != unix.EINTR {
			return 0, err
		}
		for i, p := range ports {
			if n, _, err := unix.Recvfrom(heard[i], letter[:], 0); err == nil && n == 1 {
				return p, nil
			}
		}
		return 0, errors.New("a datagram arrived nowhere")
	})
	if err != nil {
		return err
	}
	for _, p := range ports {
		recorded(got[p], "socket_sendmsg", addressPart(p), tgidPart())
	}
	return nil
}

func listener(port uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}})
}

// racedNames opens a name while what it stands for changes: a symbolic link, and
// the directory above.
func (s *stage) racedNames() error {
	for _, name := range []string{"link", "directory"} {
		if err := s.racedName(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (s *stage) racedName(kind string) error {
	var inodes [2]uint64
	var names, paths [2]string
	for i, n := range []string{"a", "b"} {
		path, err := s.put(kind+"/"+n+"/file", []byte(kind+n))
		if err != nil {
			return err
		}
		if inodes[i], err = inode(path); err != nil {
			return err
		}
		paths[i], names[i] = path, s.at(kind+"/"+n)
		if kind == "link" {
			names[i] = s.at(kind + "/to-" + n)
			if err := os.Symlink(path, names[i]); err != nil {
				return err
			}
		}
	}
	at := names[0]
	if kind == "directory" {
		at = paths[0]
	}
	end := inThread(func() { _ = unix.Renameat2(unix.AT_FDCWD, names[0], unix.AT_FDCWD, names[1], unix.RENAME_EXCHANGE) })
	got, err := countInodes(func() (int, error) { return unix.Open(at, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	end()
	if err != nil {
		return err
	}
	for i, n := range inodes {
		if kind == "link" {
			s.opened(got[n], seen{path: paths[i], data: []byte(kind + names[i][len(names[i])-1:])}, inodePart(n), tgidPart())
		} else { // the directory may have its other name when it is asked
			recorded(got[n], opened, fmt.Sprintf(`"size":%d,`, len(kind)+1), inodePart(n), tgidPart())
		}
	}
	return nil
}

const execRounds = 24

// racedExecs runs a program whose name, and argument, change meanwhile. How it
// ends tells which program it was, and which argument it was given.
func (s *stage) racedExecs() error {
	for _, way := range []string{direct.name, compat.name} {
		if err := s.racedExec(way); err != nil {
			return fmt.Errorf("%s: %w", way, err)
		}
	}
	return nil
}

func (s *stage) racedExec(way string) error {
	var programs [2]seen
	var err error
	for i, n := range []string{"a", "b"} {
		programs[i].data = program(byte(i*64), way+n)
		if programs[i].path, err = s.put("exec-"+way+"/"+n, programs[i].data); err != nil {
			return err
		}
	}
	got := map[int]int{}
	for range execRounds {
		code, err := ran("/proc/self/exe", []string{"outguard-poke", "exec", "raced", way, s.at("exec-" + way)}, nil)
		if err != nil {
			return err
		}
		got[code]++
	}
	for i, p := range programs {
		for _, arg := range []byte("ab") {
			n := got[int(arg)+i*64]
			recorded(n, execed, p.String(), fmt.Sprintf(`"filename":"%s","argv":["raced","%c"],`, p.path, arg))
			delete(got, int(arg)+i*64)
		}
	}
	if len(got) > 0 {
		return fmt.Errorf("ended otherwise: %v", got)
	}
	return nil
}
