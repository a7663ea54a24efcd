package main

import (
	"errors"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const ipcKey = 0x6f67

func ipc() error {
	shm, err := unix.SysvShmGet(ipcKey, 4096, unix.IPC_CREAT|0o600)
	if err != nil {
		return err
	}
	again, err := unix.SysvShmGet(ipcKey, 4096, 0o600)
	if err != nil || again != shm {
		return errors.Join(err, errors.New("another segment"))
	}
	ran("shm_associate", `"key":28519`, arg("shmflg", 0o600))
	ran("ipc_permission", `"key":28519`)
	mem, err := unix.SysvShmAttach(shm, 0, unix.SHM_RDONLY)
	if err == nil {
		err = unix.SysvShmDetach(mem)
	}
	ran("shm_shmat", `"key":28519`, arg("shmflg", unix.SHM_RDONLY))
	_, e := unix.SysvShmCtl(shm, unix.IPC_RMID, nil)
	ran("shm_shmctl", `"key":28519`, arg("cmd", unix.IPC_RMID))

	sem, _, _ := unix.Syscall(unix.SYS_SEMGET, ipcKey, 1, unix.IPC_CREAT|0o600)
	op := [3]int16{0, 1, 0}
	err = errors.Join(err, e,
		call(unix.SYS_SEMGET, ipcKey, 1, 0o600),
		call(unix.SYS_SEMOP, sem, uintptr(unsafe.Pointer(&op)), 1),
		call(unix.SYS_SEMCTL, sem, 0, unix.IPC_RMID),
	)
	ran("sem_associate", `"key":28519`, arg("semflg", 0o600))
	ran("sem_semop", `"key":28519`, arg("nsops", 1), arg("alter", 1))
	ran("sem_semctl", `"key":28519`, arg("cmd", unix.IPC_RMID))

	queue, _, _ := unix.Syscall(unix.SYS_MSGGET, ipcKey, unix.IPC_CREAT|0o600, 0)
	msg := [2]int64{5, 0}
	err = errors.Join(err,
		call(unix.SYS_MSGGET, ipcKey, 0o600),
		call(unix.SYS_MSGSND, queue, uintptr(unsafe.Pointer(&msg)), 8, unix.IPC_NOWAIT),
		call(unix.SYS_MSGRCV, queue, uintptr(unsafe.Pointer(&msg)), 8, 5, unix.IPC_NOWAIT),
		call(unix.SYS_MSGCTL, queue, unix.IPC_RMID, 0),
	)
	ran("msg_queue_associate", `"key":28519`, arg("msqflg", 0o600))
	ran("msg_queue_msgsnd", `"key":28519`, arg("msqflg", unix.IPC_NOWAIT))
	ran("msg_queue_msgrcv", `"key":28519`, arg("type", 5))
	ran("msg_queue_msgctl", `"key":28519`, arg("cmd", unix.IPC_RMID))
	return err
}

func keys() error {
	_, err := unix.AddKey("user", "outguard:poked", []byte("secret"), unix.KEY_SPEC_PROCESS_KEYRING)
	ran("key_alloc", named("user"), valued("outguard:poked"))
	ran("key_permission", named("keyring"))
	return err
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
	ran("perf_event_open", named("type"))
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
