package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	"github.com/outguard/outguard/host/api/apipb/apipbconnect"
)

// DefaultSocket is where outguardd listens and outguard looks.
const DefaultSocket = "/run/outguard/api.sock"

// SocketMode lets the owner and the group in, and nobody else.
const SocketMode = 0o660

// Listen makes the socket at path, with mode SocketMode and the group gid (-1:
// the process's own). It replaces a socket that nobody answers on, and refuses
// to replace one that somebody does. The listener's Close removes the file.
func Listen(path string, gid int) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("listen on %s: another monitor answers there; stop it first", path)
	}
	if err := checkReplaceable(path); err != nil {
		return nil, err
	}
	// The socket is made where nobody else can reach it and moved when its mode
	// and group are right, so there is no moment in which others could connect.
	private, err := os.MkdirTemp(filepath.Dir(path), ".api-")
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer func() { _ = os.RemoveAll(private) }()
	l, err := listenAt(filepath.Join(private, "s"), path, gid)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

func listenAt(made, path string, gid int) (net.Listener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(made, SocketMode)
	if err == nil && gid >= 0 {
		err = os.Chown(made, -1, gid)
	}
	if err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &unlinkListener{UnixListener: l, path: path}, nil
}

// checkReplaceable refuses to replace what is no socket.
func checkReplaceable(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	if fi.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("listen on %s: a file that is no socket is in the way", path)
	}
	return nil
}

type unlinkListener struct {
	*net.UnixListener
	path string
}

func (l *unlinkListener) Close() error {
	err := l.UnixListener.Close()
	if err == nil { // not at a second Close, when the file may be another's
		err = os.Remove(l.path)
	}
	return err
}

// NewClient returns a client of the monitor that listens on the unix socket.
// The connection is made with the first call.
func NewClient(socket string) apipbconnect.OutguardClient {
	var d net.Dialer
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
	}
	return apipbconnect.NewOutguardClient(&http.Client{Transport: t}, "http://outguard",
		connect.WithReadMaxBytes(16<<20), connect.WithAcceptCompression("gzip", nil, nil))
}
