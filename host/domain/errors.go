package domain

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	libvirt "github.com/digitalocean/go-libvirt"
)

var (
	// ErrClosed: the client has been closed.
	ErrClosed = errors.New("client is closed")
	// ErrUnreachable: no libvirtd answers at the socket, or it went away during
	// the call, which may have had its effect or not.
	ErrUnreachable error = away("libvirtd does not answer")
	// ErrNotFound: libvirt knows no such domain.
	ErrNotFound error = permanent("no such domain")
	// ErrNotRunning: the domain is shut off.
	ErrNotRunning error = permanent("the domain is not running")
	// ErrRunning: the domain must be shut off for this.
	ErrRunning error = permanent("the domain is running")
	// ErrPermission: this user may not do that.
	ErrPermission error = permanent("permission denied")
	// ErrNoSpace: a capture would not fit where it is to go.
	ErrNoSpace = errors.New("not enough space")
	// ErrOtherNetwork: QEMU's command line, or the host's own devices, give the
	// domain a network device whose link libvirt cannot take down.
	ErrOtherNetwork error = permanent("a network device has no link that libvirt could take down (pause the domain instead)")
	// ErrResumed: the domain ran while it was captured.
	ErrResumed = errors.New("the domain was resumed during the capture")
)

// permanent is an error that trying again does not cure.
type permanent string

func (e permanent) Error() string   { return string(e) }
func (e permanent) Permanent() bool { return true }

// away is an error that passes when libvirtd is back.
type away string

func (e away) Error() string { return string(e) }
func (e away) Away() bool    { return true }

// unreachable says what to do about a libvirtd that cannot be reached.
func unreachable(socket string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s: start it with `systemctl start libvirtd` (where systemd runs) or `virtlogd -d && libvirtd -d`: %w", ErrUnreachable, socket, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %s: run as root or as a member of the group libvirt: %w", ErrPermission, socket, err)
	case isAuth(err):
		return fmt.Errorf("%w: libvirtd refused this user: run as root, or as a member of the group libvirt with polkit running, or give libvirtd auth_unix_rw = \"none\": %w", ErrPermission, err)
	}
	return fmt.Errorf("%w at %s: %w", ErrUnreachable, socket, err)
}

func isAuth(err error) bool {
	var e libvirt.Error
	if !errors.As(err, &e) {
		return false
	}
	switch libvirt.ErrorNumber(e.Code) {
	case libvirt.ErrAuthFailed, libvirt.ErrAuthCancelled, libvirt.ErrAuthUnavailable, libvirt.ErrAccessDenied:
		return true
	}
	return strings.Contains(e.Message, "system bus") // polkit is asked over it
}

// explain puts the package's words on libvirt's errors, and keeps its own.
func explain(err error) error {
	if lost(err) {
		return fmt.Errorf("%w: the connection broke: %w", ErrUnreachable, err)
	}
	var e libvirt.Error
	if !errors.As(err, &e) {
		return err
	}
	switch libvirt.ErrorNumber(e.Code) {
	case libvirt.ErrNoDomain:
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case libvirt.ErrAccessDenied, libvirt.ErrOperationDenied:
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case libvirt.ErrOperationInvalid:
		if strings.Contains(e.Message, "not running") {
			return fmt.Errorf("%w: %w", ErrNotRunning, err)
		}
	}
	return err
}
