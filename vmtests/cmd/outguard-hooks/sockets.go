package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func sockets() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	ran("socket_socketpair", append(cookies(pair[0], pair[1]), `"socket":{"family":1,"type":1`)...)
	_, err = unix.Write(pair[0], []byte("x"))
	var b [64]byte
	_, e := unix.Read(pair[1], b[:])
	_, e2 := unix.Getsockname(pair[0])
	_, e3 := unix.Getpeername(pair[0])
	err = errors.Join(err, e, e2, e3, unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1), rights(pair), unix.Shutdown(pair[0], unix.SHUT_WR))
	ran("socket_sendmsg", `"socket":{"family":1,"type":1`)
	ran("socket_recvmsg", `"socket":{"family":1,"type":1`)
	ran("socket_getsockname", `"socket":{"family":1,"type":1`)
	ran("socket_getpeername", `"socket":{"family":1,"type":1`)
	ran("socket_setsockopt", arg("level", unix.SOL_SOCKET), arg("optname", unix.SO_PASSCRED))
	ran("file_receive", path(here("file")))
	ran("socket_shutdown", arg("how", unix.SHUT_WR))
	return errors.Join(err, local(), datagram(), netlink(), peer())
}

// cookies are the kernel's numbers of sockets, as an event has them.
func cookies(fds ...int) (texts []string) {
	for _, fd := range fds {
		n, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			return []string{err.Error()} // no event has that
		}
		texts = append(texts, fmt.Sprintf(`"cookie":%d,`, n))
	}
	return texts
}

// cookiesOf are those of connections.
func cookiesOf(all ...syscall.Conn) (texts []string) {
	for _, c := range all {
		raw, err := c.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { texts = append(texts, cookies(int(fd))...) })
		}
		if err != nil {
			return []string{err.Error()}
		}
	}
	return texts
}

// rights sends a file from one end to the other.
func rights(pair [2]int) error {
	f, err := os.Open("file")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Sendmsg(pair[0], []byte("f"), unix.UnixRights(int(f.Fd())), nil, 0); err != nil {
		return err
	}
	var b [8]byte
	oob := make([]byte, unix.CmsgSpace(4)+64)
	_, _, _, _, err = unix.Recvmsg(pair[1], b[:], oob, 0)
	return err
}

func local() error {
	l, err := net.Listen("unix", "stream.sock")
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := net.Dial("unix", "stream.sock")
	if err != nil {
		return err
	}
	ran("unix_stream_connect", append(cookiesOf(l.(*net.UnixListener), c.(*net.UnixConn)), `"text":"stream.sock"`)...)
	return c.Close()
}

func datagram() error {
	to := &net.UnixAddr{Name: "datagram.sock", Net: "unixgram"}
	l, err := net.ListenUnixgram("unixgram", to)
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := net.DialUnix("unixgram", nil, to)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("x"))
	ran("unix_may_send", append(cookiesOf(l, c), `"text":"datagram.sock"`, `"socket":{"family":1,"type":2`)...)
	return err
}

// netlink asks for the links, and says to a group who it is.
func netlink() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	from := arg("portid", uint64(name.(*unix.SockaddrNetlink).Pid))
	m := make([]byte, 20)
	m[0], m[4], m[6] = 20, unix.RTM_GETLINK, 1
	err = unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	none := arg("nsid", 1<<32-1)
	ran("netlink_send", append(cookies(fd), from, arg("dst_group", 0), arg("nlmsg_type", unix.RTM_GETLINK), arg("uid", 0), arg("gid", 0), arg("nsid_set", 0), none)...)
	as := unix.UnixCredentials(&unix.Ucred{Pid: int32(os.Getpid()), Uid: otherUID, Gid: otherGID})
	e := unix.Sendmsg(fd, m, as, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_NOTIFY}, 0)
	if errors.Is(e, unix.ESRCH) { // nobody listens
		e = nil
	}
	ran("netlink_send", append(cookies(fd), from, arg("dst_group", 2), arg("uid", otherUID), arg("gid", otherGID))...)
	return errors.Join(err, e)
}

// peer accepts a connection of its own.
func peer() error {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		skip("sock_graft", err)
		return nil
	}
	defer l.Close()
	d := net.Dialer{Timeout: 2 * time.Second}
	c, err := d.Dial("tcp4", l.Addr().String())
	if err != nil {
		skip("sock_graft", err)
		return nil
	}
	defer c.Close()
	a, err := l.Accept()
	if err != nil {
		return err
	}
	ran("sock_graft", `"text":"`+c.LocalAddr().String()+`"`)
	return a.Close()
}
