// Package prototest is both ends of the protocol for tests and benchmarks: an
// Agent that sends the events it is told to, with honest numbers and accounts,
// a Host that takes them, connections between the two, and a sample of every
// event.
//
// It is no fake of the bytes: both ends stand on vsockproto/link, as the real
// ones do.
package prototest

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/outguard/outguard/vsockproto"
)

// Key is a key for tests.
var Key = [vsockproto.KeySize]byte{0: 0x6f, 1: 0x67, 31: 0x01}

// Pipe connects the two ends in memory, without a buffer. It can be used
// inside testing/synctest.
func Pipe() (agent, host net.Conn) { return net.Pipe() }

// SocketPair connects the two ends by a unix stream socket.
func SocketPair() (agent, host net.Conn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	if agent, err = fileConn(fds[0]); err != nil {
		syscall.Close(fds[1])
		return nil, nil, err
	}
	if host, err = fileConn(fds[1]); err != nil {
		agent.Close()
		return nil, nil, err
	}
	return agent, host, nil
}

func fileConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "socketpair")
	defer f.Close()
	return net.FileConn(f)
}

// Sample returns a well-formed event of that type in which every field that
// the type has is set. It belongs to CPU 0 and has no sequence.
func Sample(t vsockproto.EventType) *vsockproto.Event {
	e := &vsockproto.Event{
		Header:  vsockproto.Header{Type: t, Class: ClassOf(t), BootNs: 5_000_000_000},
		Subject: subject(),
	}
	switch t {
	case vsockproto.BprmCommittedCreds:
		e.File, e.Path = file(), text("/usr/bin/wget")
		e.Argv, e.Filename = text("wget\x00-q\x00http://198.51.100.7/x\x00"), text("/usr/bin/wget")
		e.Argc, e.Envc, e.SecureExec = 3, 21, true
	case vsockproto.FileOpen:
		e.File, e.Path = file(), text("/etc/passwd")
	case vsockproto.MmapFile:
		e.File, e.Path, e.HasFile = file(), text("/usr/lib/x86_64-linux-gnu/libc.so.6"), true
		e.ReqProt, e.Prot, e.MapFlags = 5, 5, 0x802
	case vsockproto.SocketCreate:
		e.Socket = vsockproto.Socket{Family: 2, Type: 1, Protocol: 6, Kernel: true}
	case vsockproto.SocketBind:
		e.Socket, e.Address = socket(10), vsockproto.Address{Family: 10, Length: 28, Port: [2]byte{0x1f, 0x90}, Addr6: [16]byte{15: 1}, FlowInfo: 7, Scope: 2}
	case vsockproto.SocketConnect:
		e.Socket, e.Address = socket(2), inet()
	case vsockproto.SocketListen:
		e.Socket, e.Backlog = socket(2), 128
	case vsockproto.SocketAccept:
		e.Socket, e.Address, e.RawAddr = socket(1), vsockproto.Address{Family: 1, Length: 16}, text("/run/app.sock")
	case vsockproto.TaskKill:
		e.Signal, e.Target, e.TargetExecID = 9, vsockproto.Task{PID: 77, TGID: 77, StartNs: 3_000}, 4
	case vsockproto.TaskNewtask:
		e.CloneFlags, e.Child = 0x1200011, vsockproto.Task{PID: 4243, TGID: 4243, StartNs: 5_000_000_000}
		e.ChildLeaderStartNs, e.ChildExecID = 5_000_000_000, 3
	case vsockproto.SchedProcessExit:
		e.ExitCode, e.GroupDead = 256, true
	case vsockproto.TaskSnapshot:
		e.File, e.Path = file(), text("/usr/sbin/nginx")
		e.Path.Flags = vsockproto.TailUnlinked
	case vsockproto.CgroupMkdir, vsockproto.CgroupSnapshot:
		e.Cgroup, e.Path = vsockproto.Cgroup{ID: 4711, Level: 2}, text("/machine.slice/crun-web.scope")
	case vsockproto.CgroupRmdir:
		e.Cgroup = vsockproto.Cgroup{ID: 4711, Level: 2}
	case vsockproto.CgroupAttachTask:
		e.Cgroup.ID, e.Target, e.ThreadGroup = 4711, vsockproto.Task{PID: 77, TGID: 77, StartNs: 3_000}, true
	default:
		if !t.Known() {
			e.Unknown = []byte("12345678")
			break
		}
		return shaped(e)
	}
	return e
}

// shaped fills in everything and keeps of it what a record of e's type holds.
func shaped(e *vsockproto.Event) *vsockproto.Event {
	e.File, e.Path = file(), text("/srv/data/parts.txt")
	e.File2, e.Path2 = file(), text("/srv/data/parts.old")
	e.File2.Inode, e.File2.PathKind = 131074, vsockproto.PathVolume
	e.Name, e.Value = text("user.origin"), text("https://198.51.100.7")
	e.Socket, e.Socket2 = socket(1), socket(1)
	e.Socket2.Cookie, e.Socket2.Owned = 100, vsockproto.OwnerUnknown
	e.Socket2.Owner, e.Socket2.OwnerExecID = vsockproto.Task{}, 0
	e.Address, e.RawAddr = vsockproto.Address{Family: 1, Length: 16}, text("/run/app.sock")
	e.Target, e.TargetExecID = vsockproto.Task{PID: 77, TGID: 77, StartNs: 3_000}, 4
	e.IPC = vsockproto.IPC{Key: 0x6f67, ID: 32769, UID: 1, GID: 2, CUID: 3, CGID: 4, Mode: 0o640}
	e.Cred.Data = vsockproto.AppendCred(nil, &vsockproto.Cred{UID: 41, EUID: 42, SUID: 43, GID: 44, EGID: 45, SGID: 46, FSUID: 47, FSGID: 48, CapEff: 0x2ff, Securebits: 3})
	e.Owner.Data = vsockproto.AppendTask(nil, vsockproto.Task{PID: 78, TGID: 78, StartNs: 3_100}, 5)
	e.Receiver.Data = vsockproto.AppendTask(nil, vsockproto.Task{PID: 79, TGID: 79, StartNs: 3_200}, 6)
	for i := range e.Args {
		e.Args[i] = uint64(i+1)<<32 | 7
	}
	e.Sequence = 1
	b, err := e.Append(nil)
	if err == nil {
		_, err = e.Parse(b)
	}
	if err != nil {
		panic("prototest: a sample of " + e.Type.String() + ": " + err.Error())
	}
	e.Sequence, e.Length = 0, 0
	return e
}

// ClassOf is the ring that a type takes.
func ClassOf(t vsockproto.EventType) vsockproto.Class { return t.Class() }

func text(s string) vsockproto.Tail { return vsockproto.Tail{Data: []byte(s)} }

func subject() vsockproto.Subject {
	return vsockproto.Subject{
		Task:          vsockproto.Task{PID: 4242, TGID: 4242, StartNs: 4_000_000_000},
		LeaderStartNs: 4_000_000_000, ParentTGID: 1, ExecID: 3, ParentStartNs: 1_000_000,
		CgroupID: 1234, MntNS: 4026531841, PidNS: 4026531836, UserNS: 4026531837, NetNS: 4026531840,
		UID: 33, EUID: 34, SUID: 35, GID: 36, EGID: 37, SGID: 38, FSUID: 39, FSGID: 40,
		CapEff: 0x1ff, Securebits: 1, KernelThread: true, Comm: [16]byte{'s', 'h'},
	}
}

func file() vsockproto.File {
	return vsockproto.File{
		Inode: 131073, Generation: 9, Dev: 8<<20 | 1, Flags: 0x8000, UID: 1, GID: 2, Mode: 0o100755,
		PathKind: vsockproto.PathRoot, Digested: vsockproto.DigestSHA256, Magic: 0xef53, Links: 1, Size: 4096,
		FSID: [32]byte{'s', 'd', 'a', '1'}, UUID: [16]byte{0: 0xaa, 15: 0xbb}, Digest: [32]byte{0: 0xd1, 31: 0x9e},
	}
}

func socket(family uint32) vsockproto.Socket {
	return vsockproto.Socket{
		Family: family, Type: 1, Protocol: 6, Kernel: false, Owned: vsockproto.OwnerLabelled, Cookie: 99,
		Owner: vsockproto.Task{PID: 4242, TGID: 4242, StartNs: 4_000_000_000}, OwnerExecID: 3,
	}
}

func inet() vsockproto.Address {
	return vsockproto.Address{Family: 2, Length: 16, Port: [2]byte{0x01, 0xbb}, Addr4: [4]byte{198, 51, 100, 7}}
}
