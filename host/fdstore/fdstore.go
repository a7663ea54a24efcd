// Package fdstore leaves descriptors with the service manager, so that what they lead to
// outlives this process, however it ends (systemd's file descriptor store, sd_notify(3)).
package fdstore

import (
	"errors"
	"fmt"
	"os"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// ErrNone: no service manager keeps anything for this process.
var ErrNone = errors.New("no service manager keeps descriptors")

// Put has the manager keep a copy of a descriptor under a name, of at most 255 bytes and
// without a colon, until Remove or until its other end is closed.
func Put(name string, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var told error
	err = raw.Control(func(fd uintptr) {
		told = tell("FDSTORE=1\nFDNAME="+name+"\n", unix.UnixRights(int(fd)))
	})
	return errors.Join(err, told)
}

// Remove has the manager close what it keeps under a name.
func Remove(name string) error { return tell("FDSTOREREMOVE=1\nFDNAME="+name+"\n", nil) }

func tell(text string, rights []byte) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return ErrNone
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Sendmsg(fd, []byte(text), rights, &unix.SockaddrUnix{Name: path}, unix.MSG_NOSIGNAL)
		_ = unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}

// Kept is what an earlier process of the service left, by name. It is handed out once.
func Kept() map[string]*os.File {
	kept := map[string]*os.File{}
	for _, f := range activation.Files(true) {
		if kept[f.Name()] != nil {
			_ = f.Close()
			continue
		}
		kept[f.Name()] = f
	}
	return kept
}
