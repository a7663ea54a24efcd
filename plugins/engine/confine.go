package engine

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strconv"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// MemoryVariable is the variable of the environment in which the monitor says
// how many bytes of memory an engine may have; none: no limit.
const MemoryVariable = "OUTGUARD_ENGINE_MEMORY"

// limitMemory bounds what this process can write to of its own: one that leaks
// ends, and not its neighbours. Short of it the collector works harder.
func limitMemory(text string) error {
	if text == "" {
		return nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 {
		return fmt.Errorf("limit memory: %q is no number of bytes", text)
	}
	debug.SetMemoryLimit(n / 10 * 8)
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: uint64(n), Max: uint64(n)}); err != nil {
		return fmt.Errorf("limit memory: %w", err)
	}
	return nil
}

// confine takes from this process what judging does not need: core dumps,
// files of its own, capabilities, new privileges, every path but the directory of its
// control socket, TCP, signals to others, and the system calls in refused.
// Where the kernel has no Landlock the rest holds.
func confine(socketDir string) error {
	unix.Umask(0) // the host's user must be able to connect; the directory guards the socket
	for what, limit := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_FSIZE: 0} {
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("limit resource %d: %w", what, err)
		}
	}
	// What is a thread's is set on every one, with cgo and without.
	if err := dropCapabilities(); err != nil {
		return err
	}
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

func dropCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	_, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none)), 0)
	runtime.KeepAlive(&header)
	runtime.KeepAlive(&none)
	if errno != 0 {
		return fmt.Errorf("drop capabilities: %w", errno)
	}
	return nil
}
