package domain

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	libvirt "github.com/digitalocean/go-libvirt"
)

// TestUnreachableSaysWhatToDo: each way in which libvirtd turns one away has
// its remedy, and is permanent only where waiting does not cure it.
func TestUnreachableSaysWhatToDo(t *testing.T) {
	noBus := libvirt.Error{Code: 1, Message: "internal error: Unable to get system bus connection: Could not connect: No such file or directory"}
	for _, c := range []struct {
		err    error
		is     error
		remedy string
		final  bool
	}{
		{fmt.Errorf("dial: %w", fs.ErrNotExist), ErrUnreachable, "systemctl start libvirtd", false},
		{fmt.Errorf("dial: %w", syscall.ECONNREFUSED), ErrUnreachable, "virtlogd -d && libvirtd -d", false},
		{fmt.Errorf("dial: %w", fs.ErrPermission), ErrPermission, "member of the group libvirt", true},
		{noBus, ErrPermission, `auth_unix_rw = "none"`, true},
		{libvirt.Error{Code: uint32(libvirt.ErrAuthCancelled), Message: "authentication cancelled"}, ErrPermission, "polkit", true},
		{errors.New("odd"), ErrUnreachable, "/sock", false},
	} {
		err := unreachable("/sock", c.err)
		var p interface{ Permanent() bool }
		if !errors.Is(err, c.is) || !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.remedy) || errors.As(err, &p) != c.final {
			t.Errorf("%v became %v", c.err, err)
		}
	}
}
