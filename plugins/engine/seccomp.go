package engine

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// refused are the system calls that no engine has a use for and an attacker
// has: other programs, other processes' memory, the kernel's own doors.
var refused = [...]uint32{
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_REBOOT,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_UNSHARE, unix.SYS_SETNS,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME,
}

var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// Offsets in struct seccomp_data.
const (
	dataNumber = 0
	dataArch   = 4
	dataArg0   = 16 // its low half
)

// x32Bit marks the numbers of the x32 interface, which would pass a list of
// plain ones.
const x32Bit = 0x40000000

// seccompFilter answers EPERM to the refused calls, to sockets that are not
// local (Landlock's rules for TCP leave out MPTCP), and to any other
// architecture's calls.
func seccompFilter(arch uint32) []unix.SockFilter {
	const list = 7 // where the refused calls begin
	allow, refuse := list+len(refused), list+len(refused)+1
	var f []unix.SockFilter
	load := func(offset uint32) {
		f = append(f, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset})
	}
	jump := func(op uint16, k uint32, yes, no int) {
		next := len(f) + 1
		f = append(f, unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: uint8(yes - next), Jf: uint8(no - next)})
	}
	load(dataArch)
	jump(unix.BPF_JEQ, arch, 2, refuse)
	load(dataNumber)
	jump(unix.BPF_JGE, x32Bit, refuse, 4)
	jump(unix.BPF_JEQ, unix.SYS_SOCKET, 5, list)
	load(dataArg0)
	jump(unix.BPF_JEQ, unix.AF_UNIX, allow, refuse)
	for i, call := range refused {
		jump(unix.BPF_JEQ, call, refuse, list+i+1)
	}
	return append(f, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)})
}

// refuseCalls sets the filter on every thread. no_new_privs must be set.
func refuseCalls() error {
	arch, has := auditArch[runtime.GOARCH]
	if !has {
		return nil
	}
	filter := seccompFilter(arch)
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := psx.Syscall3(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}
