package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const ipcKey = 0x6f67

// What of a performance counter the kernel asks about.
const (
	perfSecurityOpen   = 0
	perfSecurityKernel = 2
)

func ipc() error {
	owner := fmt.Sprintf(`"owner":{"pid":%d,"tgid":%d,`, os.Getpid(), os.Getpid())
	mine := `"key":28519` // ipcKey
	shm, err := unix.SysvShmGet(ipcKey, 4096, unix.IPC_CREAT|0o600)
	if err != nil {
		return err
	}
	again, err := unix.SysvShmGet(ipcKey, 4096, 0o600)
	if err != nil || again != shm {
		return errors.Join(err, errors.New("another segment"))
	}
	ran("shm_associate", mine, owner, arg("shmflg", 0o600))
	ran("ipc_permission", mine, owner, arg("flag", 0o600))
	var to unix.SysvShmDesc
	to.Perm.Uid, to.Perm.Gid, to.Perm.Mode = otherUID, otherGID, 0o640
	if _, err := unix.SysvShmCtl(shm, unix.IPC_SET, &to); err != nil {
		return err
	}
	mem, err := unix.SysvShmAttach(shm, 0, unix.SHM_RDONLY)
	if err == nil {
		err = unix.SysvShmDetach(mem)
	}
	given := fmt.Sprintf(`"id":%d,"uid":%d,"gid":%d,"cuid":0,"cgid":0,"mode":%d,`, shm, otherUID, otherGID, 0o640)
	ran("shm_shmat", mine, owner, given, arg("shmflg", unix.SHM_RDONLY))
	_, e := unix.SysvShmCtl(shm, unix.IPC_RMID, nil)
	ran("shm_shmctl", mine, owner, given, arg("cmd", unix.IPC_RMID))

	sem, _, _ := unix.Syscall(unix.SYS_SEMGET, ipcKey, 1, unix.IPC_CREAT|0o600)
	op := [3]int16{0, 1, 0}
	err = errors.Join(err, e,
		call(unix.SYS_SEMGET, ipcKey, 1, 0o600),
		call(unix.SYS_SEMOP, sem, uintptr(unsafe.Pointer(&op)), 1),
		call(unix.SYS_SEMCTL, sem, 0, unix.IPC_RMID),
	)
	ran("sem_associate", mine, owner, arg("semflg", 0o600))
	ran("sem_semop", mine, owner, arg("nsops", 1), arg("alter", 1))
	ran("sem_semctl", mine, owner, arg("cmd", unix.IPC_RMID))

	queue, _, _ := unix.Syscall(unix.SYS_MSGGET, ipcKey, unix.IPC_CREAT|0o600, 0)
	msg := [2]int64{5, 0}
	err = errors.Join(err,
		call(unix.SYS_MSGGET, ipcKey, 0o600),
		call(unix.SYS_MSGSND, queue, uintptr(unsafe.Pointer(&msg)), 8, unix.IPC_NOWAIT),
		call(unix.SYS_MSGRCV, queue, uintptr(unsafe.Pointer(&msg)), 8, 5, unix.IPC_NOWAIT),
		handOver(queue),
		call(unix.SYS_MSGCTL, queue, unix.IPC_RMID, 0),
	)
	ran("msg_queue_associate", mine, owner, arg("msqflg", 0o600))
	ran("msg_queue_msgsnd", mine, owner, arg("msqflg", unix.IPC_NOWAIT))
	self := fmt.Sprintf(`{"pid":%d,"tgid":%d,`, unix.Gettid(), os.Getpid())
	ran("msg_queue_msgrcv", mine, owner, `"subject":`+self, `"target":`+self, arg("type", 5), arg("mode", searchEqual))
	ran("msg_queue_msgctl", mine, owner, arg("cmd", unix.IPC_RMID))
	return err
}

// How a message is looked for.
const (
	searchEqual     = 2
	searchLessEqual = 4
)

// handOver sends a message to a thread that waits for one of any of its types: the
// sender takes it out of the queue for it.
func handOver(queue uintptr) error {
	waits, done := make(chan int), make(chan error)
	go func() {
		runtime.LockOSThread()
		var msg [2]int64
		waits <- unix.Gettid()
		least := int64(-7)
		_, _, e := unix.Syscall6(unix.SYS_MSGRCV, queue, uintptr(unsafe.Pointer(&msg)), 8, uintptr(least), 0, 0)
		if e != 0 {
			done <- e
			return
		}
		done <- nil
	}()
	thread := <-waits
	for range 600 {
		at, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/syscall", thread))
		if err != nil {
			return err
		}
		if strings.HasPrefix(string(at), fmt.Sprint(unix.SYS_MSGRCV, " ")) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	msg := [2]int64{6, 0}
	err := call(unix.SYS_MSGSND, queue, uintptr(unsafe.Pointer(&msg)), 8, unix.IPC_NOWAIT)
	pid := os.Getpid()
	ran("msg_queue_msgrcv", fmt.Sprintf(`"subject":{"pid":%d,"tgid":%d,`, unix.Gettid(), pid), fmt.Sprintf(`"target":{"pid":%d,"tgid":%d,`, thread, pid), arg("type", 7), arg("mode", searchLessEqual))
	return errors.Join(err, <-done)
}

const (
	keyNeedRead  = 2
	keyInQuota   = 1 << 2
	keyUserAlive = 1 << 10
)

// keyFlags are those of a key that is like any other: from 6.15 on they say as well
// that somebody holds it.
func keyFlags() (uint64, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return 0, err
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor); err != nil {
		return 0, err
	}
	if major > 6 || major == 6 && minor >= 15 {
		return keyInQuota | keyUserAlive, nil
	}
	return keyInQuota, nil
}

func keys() error {
	if err := unix.Setfsuid(otherUID); err != nil {
		return err
	}
	k, err := unix.AddKey("user", "outguard:poked", []byte("secret"), unix.KEY_SPEC_PROCESS_KEYRING)
	if e := unix.Setfsuid(0); err != nil || e != nil {
		return errors.Join(err, e)
	}
	ran("key_alloc", named("user"), valued("outguard:poked"), `"cred":{"uid":0,"euid":0,"suid":0,"gid":0,"egid":0,"sgid":0,"fsuid":33,"fsgid":0,`)
	ran("key_permission", named("keyring"), `"fsuid":33,"fsgid":0,`)
	const may = 0x3f0b0000
	var b [16]byte
	_, e := unix.KeyctlInt(unix.KEYCTL_CHOWN, k, otherUID, otherGID, 0)
	err = errors.Join(e, unix.KeyctlSetperm(k, may))
	_, e = unix.KeyctlBuffer(unix.KEYCTL_READ, k, b[:], 0)
	caps, e2 := effective()
	flags, e3 := keyFlags()
	ran("key_permission", named("user"), valued("outguard:poked"), arg("serial", uint64(k)), arg("uid", otherUID), arg("gid", otherGID), arg("perm", may),
		arg("possessed", 1), arg("need_perm", keyNeedRead), arg("key_flags", flags), cred(0, 0, 0, 0, fmt.Sprintf("%016x", caps)))
	return errors.Join(err, e, e2, e3)
}

// kernel asks for things that only root may have, and gets few of them.
func kernel() error {
	_, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_BUFFER, nil)
	ran("syslog", arg("type", unix.SYSLOG_ACTION_SIZE_BUFFER))
	now := unix.NsecToTimespec(time.Now().UnixNano())
	err = errors.Join(err, unix.ClockSettime(unix.CLOCK_REALTIME, &now))
	ran("settime", arg("has_ts", 1), arg("has_tz", 0))
	const qSync = 0x800001 << 8
	err = errors.Join(err, call(unix.SYS_QUOTACTL, qSync, 0, 0, 0))
	ran("quotactl", arg("cmds", 0x800001))
	err = errors.Join(err, quota())
	if fd, e := unix.Socket(unix.AF_X25, unix.SOCK_SEQPACKET, 0); e == nil {
		unix.Close(fd)
	}
	ran("kernel_module_request", named("net-pf-9"))
	_ = unix.InitModule(make([]byte, 4096), "") // as long as the head of one
	ran("kernel_load_data", arg("id", 2), arg("contents", 1))
	f, e := os.Open("file")
	if e != nil {
		return errors.Join(err, e)
	}
	defer f.Close()
	_ = unix.FinitModule(int(f.Fd()), "", 0)
	ran("kernel_read_file", path(here("file")), `"digest_state":"sha256"`, arg("id", 2))
	a := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{})), Config: unix.PERF_COUNT_SW_CPU_CLOCK}
	if fd, e := unix.PerfEventOpen(&a, 0, -1, -1, 0); e == nil {
		unix.Close(fd)
	}
	ran("perf_event_open", arg("type", perfSecurityOpen))
	ran("perf_event_open", arg("type", perfSecurityKernel))
	return err
}

// quota has a file system count from a file in which there is nothing to count
// from: the hook is asked before anybody reads it.
func quota() error {
	if err := os.WriteFile("quota", nil, 0o600); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT, "usrquota"); err != nil {
		skip("quota_on", err)
		return nil
	}
	const qQuotaOn, vfsV1 = 0x800002 << 8, 4
	device, file := append([]byte("/dev/vda"), 0), append([]byte(here("quota")), 0)
	_, _, e := unix.Syscall6(unix.SYS_QUOTACTL, qQuotaOn, uintptr(unsafe.Pointer(&device[0])), vfsV1, uintptr(unsafe.Pointer(&file[0])), 0, 0)
	if e == 0 {
		return errors.New("a file of no quotas was taken")
	}
	ran("quotactl", arg("cmds", 0x800002), path("/"), `"path_kind":"volume"`, valued("ext4"))
	ran("quota_on", path(here("quota")), `"path_kind":"volume"`)
	return unix.Mount("", "/", "", unix.MS_REMOUNT, "noquota")
}

// programs makes a map and a program that do nothing.
func programs() error {
	m := struct{ typ, key, value, entries uint32 }{2, 4, 8, 1} // an array
	fd, _, e := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_CREATE, uintptr(unsafe.Pointer(&m)), unsafe.Sizeof(m))
	if e != 0 {
		return e
	}
	unix.Close(int(fd))
	ran("bpf", arg("cmd", unix.BPF_MAP_CREATE), arg("size", uint64(unsafe.Sizeof(m))))
	ran("bpf_map", arg("map_type", 2))
	code, license := [2]uint64{0x00000000000000b7, 0x95}, [4]byte{'G', 'P', 'L'} // r0 = 0; exit
	p := struct {
		typ, count     uint32
		code, license  uint64
		level, logSize uint32
		log            uint64
	}{1, 2, uint64(uintptr(unsafe.Pointer(&code))), uint64(uintptr(unsafe.Pointer(&license))), 0, 0, 0}
	if fd, _, e = unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&p)), unsafe.Sizeof(p)); e != 0 {
		return e
	}
	ran("bpf_prog", arg("type", 1))
	return unix.Close(int(fd))
}
