package engine

import (
	"fmt"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// confine takes from this process what judging does not need: core dumps,
// files of its own, new privileges, every path but the directory of its
// control socket, TCP, signals to others, and the system calls in refused.
// Where the kernel has no Landlock the rest holds.
func confine(socketDir string) error {
	unix.Umask(0) // the host's user must be able to connect; the directory guards the socket
	for what, limit := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_FSIZE: 0} {
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("limit resource %d: %w", what, err)
		}
	}
	// On every thread of the process, with cgo and without.
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("set no_new_privs: %w", errno)
	}
	var rules []landlock.Rule
	if socketDir != "" {
		rules = append(rules, landlock.RWDirs(socketDir))
	}
	if err := landlock.V6.BestEffort().Restrict(rules...); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	return refuseCalls()
}
