package main

import (
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func sockets() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	ran("socket_socketpair", `"socket":{"family":1,"type":1`)
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
	ran("unix_stream_connect", `"text":"stream.sock"`)
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
	ran("unix_may_send", `"text":"datagram.sock"`, `"socket":{"family":1,"type":2`)
	return err
}

// netlink asks for the links.
func netlink() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	m := make([]byte, 20)
	m[0], m[4], m[6] = 20, unix.RTM_GETLINK, 1
	ran("netlink_send", arg("nlmsg_type", unix.RTM_GETLINK))
	return unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
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
