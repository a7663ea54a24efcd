package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	ioprioWhoProcess = 1
	ioprioBestEffort = 2<<13 | 4
)

// call makes a system call for the sake of its hook. Some are meant to fail once
// the hook has run; of those only ENOSYS counts.
func call(trap uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	_, _, err := unix.Syscall6(trap, a[0], a[1], a[2], a[3], a[4], a[5])
	if err == unix.ENOSYS {
		return err
	}
	return nil
}

func tasks() error {
	self := uint64(os.Getpid())
	target := fmt.Sprintf(`"target":{"pid":%d`, os.Getpid())
	init := `"target":{"pid":1,"tgid":1`
	_ = unix.Setpgid(0, 0)
	ran("task_setpgid", target, arg("pgid", self))
	if _, err := unix.Getpgid(1); err != nil {
		return err
	}
	ran("task_getpgid", init)
	if _, err := unix.Getsid(1); err != nil {
		return err
	}
	ran("task_getsid", init)
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 3); err != nil {
		return err
	}
	ran("task_setnice", target, arg("nice", 3))
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -5); err != nil {
		return err
	}
	ran("task_setnice", target, arg("nice", 1<<32-5))
	err := errors.Join(
		call(unix.SYS_IOPRIO_SET, ioprioWhoProcess, 0, ioprioBestEffort),
		call(unix.SYS_IOPRIO_GET, ioprioWhoProcess, 1),
		call(unix.SYS_SCHED_SETSCHEDULER, 0, 3, 0), // SCHED_BATCH, no parameter: refused before the hook
		call(unix.SYS_SCHED_GETSCHEDULER, 1),
	)
	ran("task_setioprio", target, arg("ioprio", ioprioBestEffort))
	ran("task_getioprio", init)
	ran("task_getscheduler", init)
	if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: 3}, 0); err != nil {
		return err
	}
	ran("task_setscheduler", target)
	var l unix.Rlimit
	err = errors.Join(err, unix.Prlimit(1, unix.RLIMIT_NOFILE, nil, &l))
	ran("task_prlimit", arg("flags", 1), arg("uid", 0))
	if err := unix.Prlimit(0, unix.RLIMIT_CORE, &unix.Rlimit{Cur: 4096, Max: 8192}, nil); err != nil {
		return err
	}
	ran("task_setrlimit", target, arg("resource", unix.RLIMIT_CORE), arg("current", 4096), arg("max", 8192))
	err = errors.Join(err, unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0))
	ran("task_prctl", arg("option", unix.PR_SET_DUMPABLE), arg("arg2", 1))
	if _, e := os.Readlink("/proc/1/exe"); e != nil {
		err = errors.Join(err, e)
	}
	ran("ptrace_access_check", init)
	return err
}

// effective are the capabilities of this thread.
func effective() (uint64, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&head, &data[0])
	return uint64(data[0].Effective) | uint64(data[1].Effective)<<32, err
}

func credentials() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return err
	}
	caps, err := effective()
	if err != nil {
		return err
	}
	ran("capget", arg("effective", caps))
	if err := unix.Capset(&head, &data[0]); err != nil {
		return err
	}
	ran("capset", arg("effective", caps))
	err = errors.Join(
		call(unix.SYS_SETUID, 0), call(unix.SYS_SETGID, 0),
		call(unix.SYS_IOPERM, 0x80, 1, 1),
	)
	ran("task_fix_setuid", arg("flags", 1), arg("uid", 0), arg("fsuid", 0))
	ran("task_fix_setgid", arg("flags", 1), arg("gid", 0))
	ran("capable", arg("cap", unix.CAP_SYS_RAWIO))
	ran("locked_down", arg("what", lockdownIOPort))
	return err
}

const lockdownIOPort = 7

// Ids that nobody has but who takes them.
const otherUID, otherGID = 33, 44

// others is a process of another's, whose limits are read.
func others() error {
	c := exec.Command("/bin/busybox", "sleep", "600")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: otherUID, Gid: otherGID}}
	if err := c.Start(); err != nil {
		return err
	}
	ran("task_fix_setuid", arg("flags", 1), arg("uid", otherUID), arg("euid", otherUID), arg("suid", otherUID), arg("fsuid", otherUID))
	ran("task_fix_setgid", arg("flags", 1), arg("gid", otherGID), arg("egid", otherGID), arg("sgid", otherGID), arg("fsgid", otherGID))
	var l unix.Rlimit
	err := unix.Prlimit(c.Process.Pid, unix.RLIMIT_NOFILE, nil, &l)
	ran("task_prlimit", arg("flags", 1), arg("uid", otherUID), arg("sgid", otherGID), cred(otherUID, otherUID, otherGID, otherGID, "0000000000000000"))
	_ = c.Process.Kill()
	_ = c.Wait()
	return err
}

// cred is what a task may be, as an event has it.
func cred(uid, fsuid, gid, fsgid uint32, capEff string) string {
	return fmt.Sprintf(`"cred":{"uid":%[1]d,"euid":%[1]d,"suid":%[1]d,"gid":%[3]d,"egid":%[3]d,"sgid":%[3]d,"fsuid":%[2]d,"fsgid":%[4]d,"cap_eff":"%[5]s","securebits":0}`,
		uid, fsuid, gid, fsgid, capEff)
}

// children are those hooks that run in a process that is made for them.
func children() error {
	traced := exec.Command("/bin/true")
	traced.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := traced.Start(); err != nil {
		return err
	}
	_ = traced.Process.Kill()
	_ = traced.Wait()
	ran("ptrace_traceme", fmt.Sprintf(`"target":{"pid":%d`, os.Getpid()))
	ran("bprm_check_security", path("/bin/busybox"), `"digest_state":"sha256"`, named("/bin/true"))
	alone := exec.Command("/bin/true")
	alone.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
	if err := alone.Run(); err != nil {
		return err
	}
	ran("userns_create", `"args":[]`)
	return nil
}
