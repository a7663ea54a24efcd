//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The hooks beyond the first twelve, in an object of their own, which is loaded
 * when the host asks for one of them, as the profile default does. One program for
 * each, and six that keep who made a System V object. All run before the thing is
 * done and may refuse it; none does: each returns 0, as every program before it has,
 * or it would not have been asked. Each is in the kernel only while the host wants
 * its records. Not sleepable, but for those that digest.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include "record.h"
#include "maps.h"
#include "emit.h"
#include "file.h"
#include "socket.h"
#include "walk.h"
#include "shape.h"

char LICENSE[] SEC("license") = "GPL v2";

/* Hooks that a kernel gives other arguments; the agent finds out. */
const volatile bool setattr_takes_idmap = false;
const volatile bool perf_takes_attr = false;

/* Hooks on another task: called with that task, before it is asked or changed. */
#define TASK_HOOK(name, type, class)                      \
	SEC("lsm/" #name)                                 \
	int BPF_PROG(name, struct task_struct *p)         \
	{                                                 \
		struct scratch *sc = begin(type, class);  \
                                                          \
		if (!sc)                                  \
			return 0;                         \
		fill_target(sc, p);                       \
		return send_task(sc, type, class);        \
	}

TASK_HOOK(task_getpgid, TASK_GETPGID, CLASS_BULK)
TASK_HOOK(task_getsid, TASK_GETSID, CLASS_BULK)
TASK_HOOK(task_getioprio, TASK_GETIOPRIO, CLASS_BULK)
TASK_HOOK(task_setscheduler, TASK_SETSCHEDULER, CLASS_BULK)
TASK_HOOK(task_getscheduler, TASK_GETSCHEDULER, CLASS_BULK)
TASK_HOOK(ptrace_traceme, PTRACE_TRACEME, CLASS_CRITICAL) /* with the parent, which will trace */

/* The same with a number beside it. */
#define TASK_VALUE_HOOK(name, type, class, number)                \
	SEC("lsm/" #name)                                         \
	int BPF_PROG(name, struct task_struct *p, number value)   \
	{                                                         \
		struct scratch *sc = begin(type, class);          \
                                                                  \
		if (!sc)                                          \
			return 0;                                 \
		fill_target(sc, p)->args[0] = (__u32)value;       \
		return send_task(sc, type, class);                \
	}

TASK_VALUE_HOOK(task_setpgid, TASK_SETPGID, CLASS_BULK, int)
TASK_VALUE_HOOK(task_setnice, TASK_SETNICE, CLASS_BULK, int)
TASK_VALUE_HOOK(task_setioprio, TASK_SETIOPRIO, CLASS_BULK, int)
TASK_VALUE_HOOK(ptrace_access_check, PTRACE_ACCESS_CHECK, CLASS_CRITICAL, unsigned int)

/* Hook: task_setrlimit, before a limit of a task changes. */
SEC("lsm/task_setrlimit")
int BPF_PROG(task_setrlimit, struct task_struct *p, unsigned int resource, struct rlimit *limit)
{
	struct scratch *sc = begin(TASK_SETRLIMIT, CLASS_BULK);
	__u64 *args;

	if (!sc)
		return 0;
	args = fill_target(sc, p)->args;
	args[0] = resource;
	args[1] = BPF_CORE_READ(limit, rlim_cur);
	args[2] = BPF_CORE_READ(limit, rlim_max);
	return send_task(sc, TASK_SETRLIMIT, CLASS_BULK);
}

/* Hook: task_prlimit, before limits of a task with these ids are read or set. */
SEC("lsm/task_prlimit")
int BPF_PROG(task_prlimit, const struct cred *cred, const struct cred *target, unsigned int flags)
{
	struct scratch *sc = begin(TASK_PRLIMIT, CLASS_BULK);
	__u64 *args;

	if (!sc)
		return 0;
	args = args_of(sc);
	args[0] = flags;
	args[1] = BPF_CORE_READ(target, uid.val);
	args[2] = BPF_CORE_READ(target, euid.val);
	args[3] = BPF_CORE_READ(target, suid.val);
	args[4] = BPF_CORE_READ(target, gid.val);
	args[5] = BPF_CORE_READ(target, egid.val);
	args[6] = BPF_CORE_READ(target, sgid.val);
	return finish(sc, put_cred(sc, sizeof(struct args_record), target), TASK_PRLIMIT, CLASS_BULK);
}

#define CANARY_OPTION 0x40000000 /* a canary's option is no smaller; the agent's runtime asks for small ones */

/* Hook: task_prctl, at each prctl, also of options that no kernel knows. */
SEC("lsm/task_prctl")
int BPF_PROG(task_prctl, int option, unsigned long arg2, unsigned long arg3, unsigned long arg4, unsigned long arg5)
{
	struct scratch *sc = begin_canary(TASK_PRCTL, CLASS_BULK, option >= CANARY_OPTION);
	__u64 *args;

	if (!sc)
		return 0;
	args = args_of(sc);
	args[0] = (__u32)option;
	args[1] = arg2;
	args[2] = arg3;
	args[3] = arg4;
	args[4] = arg5;
	return send_args(sc, TASK_PRCTL, CLASS_BULK);
}

/*
 * Hook: capget, before a task's capabilities are told. What its arguments point
 * at is filled in by another module, before this one or after it: the task's own
 * count.
 */
SEC("lsm/capget")
int BPF_PROG(capget, struct task_struct *p)
{
	struct scratch *sc = begin(CAPGET, CLASS_BULK);
	const struct cred *cred = BPF_CORE_READ(p, cred);
	__u64 *args;

	if (!sc)
		return 0;
	args = fill_target(sc, p)->args;
	args[0] = cap_of(&cred->cap_effective);
	args[1] = cap_of(&cred->cap_inheritable);
	args[2] = cap_of(&cred->cap_permitted);
	return send_task(sc, CAPGET, CLASS_BULK);
}

/* Hook: capset, before a task's own capabilities change. */
SEC("lsm/capset")
int BPF_PROG(capset, struct cred *fresh, const struct cred *old, struct kernel_cap *effective, struct kernel_cap *inheritable,
	     struct kernel_cap *permitted)
{
	struct scratch *sc = begin(CAPSET, CLASS_CRITICAL);
	__u64 *args;

	if (!sc)
		return 0;
	args = args_of(sc);
	args[0] = cap_of(effective);
	args[1] = cap_of(inheritable);
	args[2] = cap_of(permitted);
	return send_args(sc, CAPSET, CLASS_CRITICAL);
}

/* Hook: capable, whenever the kernel asks whether a task may; often. */
SEC("lsm/capable")
int BPF_PROG(capable, const struct cred *cred, struct user_namespace *ns, int cap, unsigned int opts)
{
	struct scratch *sc = begin(CAPABLE, CLASS_BULK);
	__u64 *args;

	if (!sc)
		return 0;
	args = args_of(sc);
	args[0] = (__u32)cap;
	args[1] = opts;
	args[2] = BPF_CORE_READ(ns, ns.inum);
	return send_args(sc, CAPABLE, CLASS_BULK);
}

/*
 * Hooks on an open file, with what is asked of it. Where the kernel lets a program
 * sleep, the record has the digest of what is open to be read; see digest_for.
 */
#define FILE_HOOK(section, name, type, put)                              \
	SEC(section "/" #name)                                           \
	int BPF_PROG(name, struct file *file, unsigned int cmd)          \
	{                                                                \
		struct scratch *sc = begin_canary(type, CLASS_BULK, is_nameless(file)); \
                                                                         \
		if (!sc)                                                 \
			return 0;                                        \
		object_args(sc)[0] = cmd;                                \
		return finish(sc, put(sc, file), type, CLASS_BULK);      \
	}

FILE_HOOK("lsm.s", file_ioctl, FILE_IOCTL, put_digested)
FILE_HOOK("lsm", file_ioctl_compat, FILE_IOCTL_COMPAT, put_opened)
FILE_HOOK("lsm.s", file_lock, FILE_LOCK, put_digested)
FILE_HOOK("lsm", file_fcntl, FILE_FCNTL, put_opened)

/*
 * Hook: file_receive, before a file that was sent over a socket gets a descriptor. Not
 * sleepable: who sends a file would have the receiver wait until it has been read.
 */
SEC("lsm/file_receive")
int BPF_PROG(file_receive, struct file *file)
{
	struct scratch *sc = begin(FILE_RECEIVE, CLASS_BULK);

	if (!sc)
		return 0;
	return finish(sc, put_opened(sc, file), FILE_RECEIVE, CLASS_BULK);
}

#define VM_PROT 7 /* VM_READ, VM_WRITE, VM_EXEC: the bits of PROT_* */

/* Hook: file_mprotect, before a mapping's protection changes. */
SEC("lsm/file_mprotect")
int BPF_PROG(file_mprotect, struct vm_area_struct *vma, unsigned long reqprot, unsigned long prot)
{
	struct scratch *sc = begin(FILE_MPROTECT, CLASS_BULK);
	__u64 *args;

	if (!sc)
		return 0;
	args = object_args(sc);
	args[0] = reqprot;
	args[1] = prot;
	args[2] = BPF_CORE_READ(vma, vm_flags) & VM_PROT;
	return finish(sc, put_opened(sc, BPF_CORE_READ(vma, vm_file)), FILE_MPROTECT, CLASS_BULK);
}

/* Hook: uring_cmd, before a command of io_uring's goes to a file's driver. */
SEC("lsm/uring_cmd")
int BPF_PROG(uring_cmd, struct io_uring_cmd *cmd)
{
	struct scratch *sc = begin(URING_CMD, CLASS_BULK);

	if (!sc)
		return 0;
	object_args(sc)[0] = BPF_CORE_READ(cmd, cmd_op);
	return finish(sc, put_opened(sc, BPF_CORE_READ(cmd, file)), URING_CMD, CLASS_BULK);
}

/* Hook: uring_override_creds, before io_uring acts with credentials that were put by. */
SEC("lsm/uring_override_creds")
int BPF_PROG(uring_override_creds, const struct cred *cred)
{
	struct scratch *sc = begin(URING_OVERRIDE_CREDS, CLASS_BULK);
	__u64 *args;

	if (!sc)
		return 0;
	args = args_of(sc);
	args[0] = BPF_CORE_READ(cred, uid.val);
	args[1] = BPF_CORE_READ(cred, euid.val);
	args[2] = BPF_CORE_READ(cred, suid.val);
	args[3] = BPF_CORE_READ(cred, fsuid.val);
	args[4] = BPF_CORE_READ(cred, gid.val);
	args[5] = BPF_CORE_READ(cred, egid.val);
	args[6] = BPF_CORE_READ(cred, sgid.val);
	args[7] = BPF_CORE_READ(cred, fsgid.val);
	return send_args(sc, URING_OVERRIDE_CREDS, CLASS_BULK);
}

/* Hooks that say nothing but that they ran. */
#define BARE_HOOK(name, type, class)                     \
	SEC("lsm/" #name)                                \
	int BPF_PROG(name)                               \
	{                                                \
		struct scratch *sc = begin(type, class); \
                                                         \
		return sc ? send_args(sc, type, class) : 0; \
	}

BARE_HOOK(uring_sqpoll, URING_SQPOLL, CLASS_BULK)
BARE_HOOK(userns_create, USERNS_CREATE, CLASS_CRITICAL)
BARE_HOOK(tun_dev_create, TUN_DEV_CREATE, CLASS_BULK)
BARE_HOOK(tun_dev_attach_queue, TUN_DEV_ATTACH_QUEUE, CLASS_BULK)
BARE_HOOK(tun_dev_open, TUN_DEV_OPEN, CLASS_BULK)

/* Hooks that are given one number. */
#define NUMBER_HOOK(name, type, class, number)           \
	SEC("lsm/" #name)                                \
	int BPF_PROG(name, number value)                 \
	{                                                \
		struct scratch *sc = begin(type, class); \
                                                         \
		if (!sc)                                 \
			return 0;                        \
		args_of(sc)[0] = (__u32)value;           \
		return send_args(sc, type, class);       \
	}

NUMBER_HOOK(syslog, SYSLOG, CLASS_BULK, int)
NUMBER_HOOK(locked_down, LOCKED_DOWN, CLASS_CRITICAL, int)

/* Hook: perf_event_open, before a performance counter is opened. */
SEC("lsm/perf_event_open")
int perf_event_open(unsigned long long *ctx)
{
	struct scratch *sc = begin(PERF_EVENT_OPEN, CLASS_BULK);
	__u64 type = 0;

	if (!sc)
		return 0;
	bpf_get_func_arg(ctx, perf_takes_attr ? 1 : 0, &type);
	args_of(sc)[0] = (__u32)type;
	return send_args(sc, PERF_EVENT_OPEN, CLASS_BULK);
}

/* Hooks on a socket. */
#define SOCKET_HOOK(name, type)                               \
	SEC("lsm/" #name)                                     \
	int BPF_PROG(name, struct socket *sock)               \
	{                                                     \
		struct scratch *sc = begin(type, CLASS_BULK); \
                                                              \
		if (!sc)                                      \
			return 0;                             \
		fill_socket(socket_of(sc), sock);             \
		return send_socket(sc, type);                 \
	}

SOCKET_HOOK(socket_getsockname, SOCKET_GETSOCKNAME)
SOCKET_HOOK(socket_getpeername, SOCKET_GETPEERNAME)

/* Hook: socket_setsockopt, before an option of a socket is set. */
SEC("lsm/socket_setsockopt")
int BPF_PROG(socket_setsockopt, struct socket *sock, int level, int name)
{
	struct scratch *sc = begin(SOCKET_SETSOCKOPT, CLASS_BULK);

	if (!sc)
		return 0;
	fill_socket(socket_of(sc), sock);
	socket_args(sc)[0] = (__u32)level;
	socket_args(sc)[1] = (__u32)name;
	return send_socket(sc, SOCKET_SETSOCKOPT);
}

/* Hook: socket_shutdown, before a half of a connection, or both, is closed. */
SEC("lsm/socket_shutdown")
int BPF_PROG(socket_shutdown, struct socket *sock, int how)
{
	struct scratch *sc = begin(SOCKET_SHUTDOWN, CLASS_BULK);

	if (!sc)
		return 0;
	fill_socket(socket_of(sc), sock);
	socket_args(sc)[0] = (__u32)how;
	return send_socket(sc, SOCKET_SHUTDOWN);
}

/* Hook: socket_sendmsg, before a message is sent; with the address, if one is given. */
SEC("lsm/socket_sendmsg")
int BPF_PROG(socket_sendmsg, struct socket *sock, struct msghdr *msg)
{
	struct scratch *sc = begin(SOCKET_SENDMSG, CLASS_BULK);

	if (!sc)
		return 0;
	fill_socket(socket_of(sc), sock);
	return finish(sc, put_to(sc, BPF_CORE_READ(msg, msg_name), BPF_CORE_READ(msg, msg_namelen)), SOCKET_SENDMSG, CLASS_BULK);
}

/* Hook: socket_recvmsg, before a message is taken: who sent it is not known yet. */
SEC("lsm/socket_recvmsg")
int BPF_PROG(socket_recvmsg, struct socket *sock)
{
	struct scratch *sc = begin(SOCKET_RECVMSG, CLASS_BULK);

	if (!sc)
		return 0;
	fill_socket(socket_of(sc), sock);
	return finish(sc, sizeof(struct socket_address_record), SOCKET_RECVMSG, CLASS_BULK);
}

/*
 * Hook: sock_graft, when an accepted connection gets its socket, so that the
 * peer is known, and at a few other places. Has no result.
 */
SEC("lsm/sock_graft")
int BPF_PROG(sock_graft, struct sock *sk)
{
	struct scratch *sc;
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	if (family != AF_INET && family != AF_INET6)
		return 0;
	sc = begin(SOCK_GRAFT, CLASS_BULK);
	if (!sc)
		return 0;
	fill_sock(socket_of(sc), sk);
	return finish(sc, put_peer(sc, sk), SOCK_GRAFT, CLASS_BULK);
}

/* Hook: socket_socketpair, when both ends are there. */
SEC("lsm/socket_socketpair")
int BPF_PROG(socket_socketpair, struct socket *a, struct socket *b)
{
	struct scratch *sc = begin(SOCKET_SOCKETPAIR, CLASS_BULK);

	if (!sc)
		return 0;
	fill_socket(socket_of(sc), a);
	fill_socket(other_of(sc), b);
	return finish(sc, sizeof(struct sockets_record), SOCKET_SOCKETPAIR, CLASS_BULK);
}

/* Hook: unix_stream_connect, before a connection within the machine; both ends are locked. */
SEC("lsm/unix_stream_connect")
int BPF_PROG(unix_stream_connect, struct sock *sk, struct sock *other)
{
	struct scratch *sc = begin(UNIX_STREAM_CONNECT, CLASS_BULK);

	if (!sc)
		return 0;
	fill_sock(socket_of(sc), sk);
	fill_sock(other_of(sc), other);
	return finish(sc, put_unix(sc, other), UNIX_STREAM_CONNECT, CLASS_BULK);
}

/* Hook: unix_may_send, before a datagram within the machine, and a connection for them. */
SEC("lsm/unix_may_send")
int BPF_PROG(unix_may_send, struct socket *sock, struct socket *other)
{
	struct scratch *sc = begin(UNIX_MAY_SEND, CLASS_BULK);
	struct sock *to;

	if (!sc)
		return 0;
	fill_socket(socket_of(sc), sock);
	fill_socket(other_of(sc), other);
	to = other->sk;
	return finish(sc, to ? put_unix(sc, to) : sizeof(struct sockets_record), UNIX_MAY_SEND, CLASS_BULK);
}

/* Hook: tun_dev_attach, before a socket is bound to a tun device. */
SEC("lsm/tun_dev_attach")
int BPF_PROG(tun_dev_attach, struct sock *sk)
{
	struct scratch *sc = begin(TUN_DEV_ATTACH, CLASS_BULK);

	if (!sc)
		return 0;
	fill_sock(socket_of(sc), sk);
	return send_socket(sc, TUN_DEV_ATTACH);
}

/* Hook: netlink_send, before a message goes to the kernel or another task. */
SEC("lsm/netlink_send")
int BPF_PROG(netlink_send, struct sock *sk, struct sk_buff *skb)
{
	struct scratch *sc = begin(NETLINK_SEND, CLASS_BULK);
	struct netlink_skb_parms *p = (void *)&skb->cb;
	__u16 type = 0;
	__u64 *args;

	if (!sc)
		return 0;
	fill_sock(socket_of(sc), sk);
	args = socket_args(sc);
	args[0] = BPF_CORE_READ(p, portid);
	args[1] = BPF_CORE_READ(p, dst_group);
	args[2] = BPF_CORE_READ(p, flags);
	bpf_probe_read_kernel(&type, sizeof(type), BPF_CORE_READ(skb, data) + 4); /* nlmsghdr's */
	args[3] = type;
	args[4] = BPF_CORE_READ(p, creds.uid.val);
	args[5] = BPF_CORE_READ(p, creds.gid.val);
	args[6] = BPF_CORE_READ(p, nsid_is_set) != 0;
	args[7] = (__u32)(args[6] ? BPF_CORE_READ(p, nsid) : -1);
	return send_socket(sc, NETLINK_SEND);
}

/* Hook: kernel_module_request, before the kernel has a module loaded by a helper program. */
SEC("lsm/kernel_module_request")
int BPF_PROG(kernel_module_request, char *name)
{
	struct scratch *sc = begin(KERNEL_MODULE_REQUEST, CLASS_CRITICAL);

	if (!sc)
		return 0;
	return finish(sc, put_text(sc, sizeof(struct args_record), TAG_NAME, name), KERNEL_MODULE_REQUEST, CLASS_CRITICAL);
}

/* Hook: kernel_load_data, before a module, a kernel, a policy is taken from memory. */
SEC("lsm/kernel_load_data")
int BPF_PROG(kernel_load_data, int id, bool contents)
{
	struct scratch *sc = begin(KERNEL_LOAD_DATA, CLASS_CRITICAL);

	if (!sc)
		return 0;
	args_of(sc)[0] = (__u32)id;
	args_of(sc)[1] = contents != 0;
	return send_args(sc, KERNEL_LOAD_DATA, CLASS_CRITICAL);
}

/*
 * Hook: kernel_read_file, before a module, a kernel, firmware, a policy is read
 * from a file. Sleepable: the record has the file's digest.
 */
SEC("lsm.s/kernel_read_file")
int BPF_PROG(kernel_read_file, struct file *file, int id, bool contents)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct mnt_namespace *own = mounts_of(t);
	struct inode *inode = file->f_inode;
	struct object_record *r;
	struct scratch *sc;
	__u32 at;

	sc = begin(KERNEL_READ_FILE, CLASS_CRITICAL);
	if (!sc)
		return 0;
	r = (void *)sc->record;
	fill_file(&r->file, file, inode);
	r->file.path_kind = path_kind(t, own);
	r->file.digested = digest_for(&r->file, file, inode, true, true);
	r->args[0] = (__u32)id;
	r->args[1] = contents != 0;
	at = put_path(sc, sizeof(*r), file, t, own, r->file.path_kind);
	return finish(sc, at, KERNEL_READ_FILE, CLASS_CRITICAL);
}

/*
 * Hook: bprm_check_security, before a program, and each interpreter that one
 * asks for, is run: the exec may still fail. Sleepable: the record has the
 * digest. Its name is what execve was asked for.
 */
SEC("lsm.s/bprm_check_security")
int BPF_PROG(bprm_check_security, struct linux_binprm *bprm)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct mnt_namespace *own = mounts_of(t);
	struct file *file = bprm->file;
	struct inode *inode = file->f_inode;
	struct object_record *r;
	struct scratch *sc;
	__u32 at;

	sc = begin(BPRM_CHECK_SECURITY, CLASS_CRITICAL);
	if (!sc)
		return 0;
	r = (void *)sc->record;
	fill_file(&r->file, file, inode);
	r->file.path_kind = path_kind(t, own);
	r->file.digested = digest_for(&r->file, file, inode, true, true);
	r->args[0] = BPF_CORE_READ_BITFIELD(bprm, secureexec);
	at = put_path(sc, sizeof(*r), file, t, own, r->file.path_kind);
	at = put_text(sc, at, TAG_NAME, bprm->filename);
	return finish(sc, at, BPRM_CHECK_SECURITY, CLASS_CRITICAL);
}

/* Hook: task_fix_setuid, after setuid and the like have chosen a task's new ids. */
SEC("lsm/task_fix_setuid")
int BPF_PROG(task_fix_setuid, struct cred *fresh, const struct cred *old, int flags)
{
	struct scratch *sc = begin(TASK_FIX_SETUID, CLASS_CRITICAL);
	__u64 *args;

	if (!sc)
		return 0;
	args = args_of(sc);
	args[0] = (__u32)flags;
	args[1] = BPF_CORE_READ(fresh, uid.val);
	args[2] = BPF_CORE_READ(fresh, euid.val);
	args[3] = BPF_CORE_READ(fresh, suid.val);
	args[4] = BPF_CORE_READ(fresh, fsuid.val);
	return send_args(sc, TASK_FIX_SETUID, CLASS_CRITICAL);
}

/* Hook: task_fix_setgid, the same for its groups. */
SEC("lsm/task_fix_setgid")
int BPF_PROG(task_fix_setgid, struct cred *fresh, const struct cred *old, int flags)
{
	struct scratch *sc = begin(TASK_FIX_SETGID, CLASS_CRITICAL);
	__u64 *args;

	if (!sc)
		return 0;
	args = args_of(sc);
	args[0] = (__u32)flags;
	args[1] = BPF_CORE_READ(fresh, gid.val);
	args[2] = BPF_CORE_READ(fresh, egid.val);
	args[3] = BPF_CORE_READ(fresh, sgid.val);
	args[4] = BPF_CORE_READ(fresh, fsgid.val);
	return send_args(sc, TASK_FIX_SETGID, CLASS_CRITICAL);
}

/* Hook: sb_mount, before a mount, a remount, a bind or a move by mount(2). */
SEC("lsm/sb_mount")
int BPF_PROG(sb_mount, const char *device, const struct path *path, const char *type, unsigned long flags)
{
	struct scratch *sc = begin_canary(SB_MOUNT, CLASS_CRITICAL, flags == MS_BIND);
	__u32 at;

	if (!sc)
		return 0;
	object_args(sc)[0] = flags;
	at = put_mounted(sc, BPF_CORE_READ(path, dentry), BPF_CORE_READ(path, mnt));
	at = put_text(sc, at, TAG_NAME, device);
	at = put_text(sc, at, TAG_VALUE, type);
	return finish(sc, at, SB_MOUNT, CLASS_CRITICAL);
}

/* Hook: sb_umount, before a mount is taken away. */
SEC("lsm/sb_umount")
int BPF_PROG(sb_umount, struct vfsmount *mnt, int flags)
{
	struct scratch *sc = begin(SB_UMOUNT, CLASS_CRITICAL);

	if (!sc)
		return 0;
	object_args(sc)[0] = (__u32)flags;
	return finish(sc, put_mounted(sc, BPF_CORE_READ(mnt, mnt_root), mnt), SB_UMOUNT, CLASS_CRITICAL);
}

/* Hook: sb_remount, before a file system's options change. */
SEC("lsm/sb_remount")
int BPF_PROG(sb_remount, struct super_block *sb)
{
	struct scratch *sc = begin(SB_REMOUNT, CLASS_CRITICAL);

	return sc ? finish(sc, put_volume(sc, sb, 0), SB_REMOUNT, CLASS_CRITICAL) : 0;
}

/*
 * Hook: sb_kern_mount, when a file system is there that a task asked to mount, by
 * mount(2) or by fsconfig(2), and before it is seen anywhere; not for a bind or a move.
 */
SEC("lsm/sb_kern_mount")
int BPF_PROG(sb_kern_mount, struct super_block *sb)
{
	struct scratch *sc = begin(SB_KERN_MOUNT, CLASS_CRITICAL);

	if (!sc)
		return 0;
	object_args(sc)[1] = BPF_CORE_READ(sb, s_bdev) || (BPF_CORE_READ(sb, s_type, fs_flags) & FS_REQUIRES_DEV);
	return finish(sc, put_volume(sc, sb, 0), SB_KERN_MOUNT, CLASS_CRITICAL);
}

/* Hooks on two paths: the new root and where the old one goes; from where a mount is moved and to where. */
#define PATHS_HOOK(name, type)                                                      \
	SEC("lsm/" #name)                                                           \
	int BPF_PROG(name, const struct path *a, const struct path *b)              \
	{                                                                           \
		struct scratch *sc = begin(type, CLASS_CRITICAL);                   \
                                                                                    \
		return sc ? finish(sc, put_paths(sc, a, b), type, CLASS_CRITICAL) : 0; \
	}

PATHS_HOOK(sb_pivotroot, SB_PIVOTROOT)
PATHS_HOOK(move_mount, MOVE_MOUNT)

/* Hooks on a name in a file system, and nothing else. */
#define DENTRY_HOOK(name, type)                                                \
	SEC("lsm/" #name)                                                      \
	int BPF_PROG(name, struct dentry *dentry)                              \
	{                                                                      \
		struct scratch *sc = begin(type, CLASS_BULK);                  \
                                                                               \
		return sc ? finish(sc, put_dentry(sc, dentry), type, CLASS_BULK) : 0; \
	}

DENTRY_HOOK(sb_statfs, SB_STATFS)
DENTRY_HOOK(quota_on, QUOTA_ON)
DENTRY_HOOK(inode_listxattr, INODE_LISTXATTR)

/* Hook: quotactl, before quotas are asked for or changed; of no file system: of all. */
SEC("lsm/quotactl")
int BPF_PROG(quotactl, int cmds, int type, int id, struct super_block *sb)
{
	struct scratch *sc = begin(QUOTACTL, CLASS_BULK);
	__u64 *args;

	if (!sc)
		return 0;
	args = object_args(sc);
	args[0] = (__u32)cmds;
	args[1] = (__u32)type;
	args[2] = (__u32)id;
	return finish(sc, is_given(sb) ? put_volume(sc, sb, 3) : sizeof(struct object_record), QUOTACTL, CLASS_BULK);
}

/* Hook: inode_getattr, at stat and the like; often. */
SEC("lsm/inode_getattr")
int BPF_PROG(inode_getattr, const struct path *path)
{
	struct scratch *sc = begin(INODE_GETATTR, CLASS_BULK);

	if (!sc)
		return 0;
	return finish(sc, put_mounted(sc, BPF_CORE_READ(path, dentry), BPF_CORE_READ(path, mnt)), INODE_GETATTR, CLASS_BULK);
}

/* Hooks that make something in a directory, with its mode. */
#define MAKE_HOOK(name, type)                                                             \
	SEC("lsm/" #name)                                                                 \
	int BPF_PROG(name, struct inode *dir, struct dentry *dentry, unsigned short mode) \
	{                                                                                 \
		struct scratch *sc = begin(type, CLASS_BULK);                             \
                                                                                          \
		if (!sc)                                                                  \
			return 0;                                                         \
		object_args(sc)[0] = mode;                                                \
		put_dir(object_args(sc) + 1, dir);                                        \
		return finish(sc, put_dentry(sc, dentry), type, CLASS_BULK);              \
	}

MAKE_HOOK(inode_create, INODE_CREATE)
MAKE_HOOK(inode_mkdir, INODE_MKDIR)

/* Hook: inode_mknod, before a device, a pipe or a socket is made. */
SEC("lsm/inode_mknod")
int BPF_PROG(inode_mknod, struct inode *dir, struct dentry *dentry, unsigned short mode, unsigned int dev)
{
	struct scratch *sc = begin(INODE_MKNOD, CLASS_BULK);

	if (!sc)
		return 0;
	object_args(sc)[0] = mode;
	object_args(sc)[1] = dev;
	put_dir(object_args(sc) + 2, dir);
	return finish(sc, put_dentry(sc, dentry), INODE_MKNOD, CLASS_BULK);
}

/* Hooks that take something out of a directory. */
#define TAKE_HOOK(name, type)                                                \
	SEC("lsm/" #name)                                                    \
	int BPF_PROG(name, struct inode *dir, struct dentry *dentry)         \
	{                                                                    \
		struct scratch *sc = begin(type, CLASS_BULK);                \
                                                                             \
		if (!sc)                                                     \
			return 0;                                            \
		put_dir(object_args(sc), dir);                               \
		return finish(sc, put_dentry(sc, dentry), type, CLASS_BULK); \
	}

TAKE_HOOK(inode_unlink, INODE_UNLINK)
TAKE_HOOK(inode_rmdir, INODE_RMDIR)

/* Hook: inode_symlink, before a symbolic link is made; its name is where it leads. */
SEC("lsm/inode_symlink")
int BPF_PROG(inode_symlink, struct inode *dir, struct dentry *dentry, const char *old)
{
	struct scratch *sc = begin(INODE_SYMLINK, CLASS_BULK);
	__u32 at;

	if (!sc)
		return 0;
	put_dir(object_args(sc), dir);
	at = put_dentry(sc, dentry);
	return finish(sc, put_text(sc, at, TAG_NAME, old), INODE_SYMLINK, CLASS_BULK);
}

/* Hook: inode_link, before a file gets another name. */
SEC("lsm/inode_link")
int BPF_PROG(inode_link, struct dentry *old, struct inode *dir, struct dentry *fresh)
{
	struct scratch *sc = begin(INODE_LINK, CLASS_BULK);

	if (!sc)
		return 0;
	put_dir(objects_args(sc), dir);
	return finish(sc, put_dentries(sc, old, fresh), INODE_LINK, CLASS_BULK);
}

/* Hook: inode_rename, before a name changes; what it replaces is the second file. */
SEC("lsm/inode_rename")
int BPF_PROG(inode_rename, struct inode *old_dir, struct dentry *old, struct inode *dir, struct dentry *fresh)
{
	struct scratch *sc = begin(INODE_RENAME, CLASS_BULK);

	if (!sc)
		return 0;
	put_dir(objects_args(sc), old_dir);
	put_dir(objects_args(sc) + 3, dir);
	return finish(sc, put_dentries(sc, old, fresh), INODE_RENAME, CLASS_BULK);
}

/*
 * Hook: inode_setattr, before owner, mode, size or times of a file change. The
 * program that ends versions at this hook is another one.
 */
SEC("lsm/inode_setattr")
int setattr(unsigned long long *ctx)
{
	struct scratch *sc = begin(INODE_SETATTR, CLASS_BULK);
	__u32 first = setattr_takes_idmap ? 1 : 0;
	__u64 of = 0, to = 0, *args;
	struct dentry *dentry;
	struct iattr *attr;

	if (!sc)
		return 0;
	bpf_get_func_arg(ctx, first, &of);
	bpf_get_func_arg(ctx, first + 1, &to);
	dentry = (void *)of;
	attr = (void *)to;
	args = object_args(sc);
	args[0] = BPF_CORE_READ(attr, ia_valid);
	args[1] = BPF_CORE_READ(attr, ia_mode);
	args[2] = BPF_CORE_READ(attr, ia_uid.val);
	args[3] = BPF_CORE_READ(attr, ia_gid.val);
	args[4] = BPF_CORE_READ(attr, ia_size);
	/* What is not to be changed was never set. */
	if (!(args[0] & ATTR_MODE))
		args[1] = 0;
	if (!(args[0] & ATTR_UID))
		args[2] = 0;
	if (!(args[0] & ATTR_GID))
		args[3] = 0;
	if (!(args[0] & ATTR_SIZE))
		args[4] = 0;
	return finish(sc, put_dentry(sc, dentry), INODE_SETATTR, CLASS_BULK);
}

/* Hook: inode_setxattr, before an extended attribute is set. */
SEC("lsm/inode_setxattr")
int BPF_PROG(inode_setxattr, void *idmap, struct dentry *dentry, const char *name, const void *value, unsigned long size,
	     int flags)
{
	struct scratch *sc = begin(INODE_SETXATTR, CLASS_BULK);
	__u64 bytes = 0;
	__u32 at;

	if (!sc)
		return 0;
	bpf_get_func_arg(ctx, 3, &bytes); /* value: a program may not take a const void * */
	object_args(sc)[0] = size;
	object_args(sc)[1] = (__u32)flags;
	at = put_dentry(sc, dentry);
	at = put_text(sc, at, TAG_NAME, name);
	return finish(sc, put_bytes(sc, at, TAG_VALUE, (void *)bytes, size), INODE_SETXATTR, CLASS_BULK);
}

/* Hook: inode_getxattr, before an extended attribute is read. */
SEC("lsm/inode_getxattr")
int BPF_PROG(inode_getxattr, struct dentry *dentry, const char *name)
{
	struct scratch *sc = begin(INODE_GETXATTR, CLASS_BULK);
	__u32 at;

	if (!sc)
		return 0;
	at = put_dentry(sc, dentry);
	return finish(sc, put_text(sc, at, TAG_NAME, name), INODE_GETXATTR, CLASS_BULK);
}

/* Hook: inode_removexattr, before an extended attribute is taken away. */
SEC("lsm/inode_removexattr")
int BPF_PROG(inode_removexattr, void *idmap, struct dentry *dentry, const char *name)
{
	struct scratch *sc = begin(INODE_REMOVEXATTR, CLASS_BULK);
	__u32 at;

	if (!sc)
		return 0;
	at = put_dentry(sc, dentry);
	return finish(sc, put_text(sc, at, TAG_NAME, name), INODE_REMOVEXATTR, CLASS_BULK);
}

/* Hook: inode_killpriv, before a changed file loses what made it privileged. */
SEC("lsm/inode_killpriv")
int BPF_PROG(inode_killpriv, void *idmap, struct dentry *dentry)
{
	struct scratch *sc = begin(INODE_KILLPRIV, CLASS_BULK);

	return sc ? finish(sc, put_dentry(sc, dentry), INODE_KILLPRIV, CLASS_BULK) : 0;
}

/*
 * Hooks at which a System V object is made, and its memory freed, the latter
 * after a grace period: what is labelled is there as long as its label. They
 * report nothing.
 */
#define IPC_MADE_HOOK(name)                                                  \
	SEC("lsm/" #name)                                                    \
	int BPF_PROG(name, struct kern_ipc_perm *perm)                       \
	{                                                                    \
		struct task_struct *t = bpf_get_current_task_btf();          \
		struct socket_label label = {};                              \
		__u64 key = (__u64)perm;                                     \
                                                                             \
		fill_task(&label.owner, t);                                  \
		label.exec_id = exec_id(t);                                  \
		bpf_map_update_elem(&ipc_labels, &key, &label, BPF_ANY);     \
		return 0;                                                    \
	}

IPC_MADE_HOOK(shm_alloc_security)
IPC_MADE_HOOK(sem_alloc_security)
IPC_MADE_HOOK(msg_queue_alloc_security)

#define IPC_FREED_HOOK(name)                              \
	SEC("lsm/" #name)                                 \
	int BPF_PROG(name, struct kern_ipc_perm *perm)    \
	{                                                 \
		__u64 key = (__u64)perm;                  \
                                                          \
		bpf_map_delete_elem(&ipc_labels, &key);   \
		return 0;                                 \
	}

IPC_FREED_HOOK(shm_free_security)
IPC_FREED_HOOK(sem_free_security)
IPC_FREED_HOOK(msg_queue_free_security)

/* Hooks on System V objects, with one number. */
#define IPC_HOOK(name, type)                                                \
	SEC("lsm/" #name)                                                   \
	int BPF_PROG(name, struct kern_ipc_perm *perm, int value)           \
	{                                                                   \
		struct scratch *sc = begin(type, CLASS_BULK);               \
                                                                            \
		if (!sc)                                                    \
			return 0;                                           \
		fill_ipc(sc, perm)[0] = (__u32)value;                       \
		return send_ipc(sc, perm, type);                            \
	}

IPC_HOOK(shm_associate, SHM_ASSOCIATE)
IPC_HOOK(shm_shmctl, SHM_SHMCTL)
IPC_HOOK(sem_associate, SEM_ASSOCIATE)
IPC_HOOK(sem_semctl, SEM_SEMCTL)
IPC_HOOK(msg_queue_associate, MSG_QUEUE_ASSOCIATE)
IPC_HOOK(msg_queue_msgctl, MSG_QUEUE_MSGCTL)

/* Hook: ipc_permission, before a System V object is used. */
SEC("lsm/ipc_permission")
int BPF_PROG(ipc_permission, struct kern_ipc_perm *perm, short flag)
{
	struct scratch *sc = begin(IPC_PERMISSION, CLASS_BULK);

	if (!sc)
		return 0;
	fill_ipc(sc, perm)[0] = (__u16)flag;
	return send_ipc(sc, perm, IPC_PERMISSION);
}

/* Hook: shm_shmat, before shared memory is attached. */
SEC("lsm/shm_shmat")
int BPF_PROG(shm_shmat, struct kern_ipc_perm *perm, char *address, int flags)
{
	struct scratch *sc = begin(SHM_SHMAT, CLASS_BULK);

	if (!sc)
		return 0;
	fill_ipc(sc, perm)[0] = (__u32)flags;
	return send_ipc(sc, perm, SHM_SHMAT);
}

/* Hook: sem_semop, before semaphores are used. */
SEC("lsm/sem_semop")
int BPF_PROG(sem_semop, struct kern_ipc_perm *perm, void *ops, unsigned int count, int alter)
{
	struct scratch *sc = begin(SEM_SEMOP, CLASS_BULK);
	__u64 *args;

	if (!sc)
		return 0;
	args = fill_ipc(sc, perm);
	args[0] = count;
	args[1] = (__u32)alter;
	return send_ipc(sc, perm, SEM_SEMOP);
}

/* Hook: msg_queue_msgsnd, before a message is put into a queue. */
SEC("lsm/msg_queue_msgsnd")
int BPF_PROG(msg_queue_msgsnd, struct kern_ipc_perm *perm, void *msg, int flags)
{
	struct scratch *sc = begin(MSG_QUEUE_MSGSND, CLASS_BULK);

	if (!sc)
		return 0;
	fill_ipc(sc, perm)[0] = (__u32)flags;
	return send_ipc(sc, perm, MSG_QUEUE_MSGSND);
}

/* Hook: msg_queue_msgrcv, before a message is taken from a queue, also by who sends it to a waiting task. */
SEC("lsm/msg_queue_msgrcv")
int BPF_PROG(msg_queue_msgrcv, struct kern_ipc_perm *perm, void *msg, struct task_struct *target, long type, int mode)
{
	struct scratch *sc = begin(MSG_QUEUE_MSGRCV, CLASS_BULK);
	__u64 *args;
	__u32 at;

	if (!sc)
		return 0;
	args = fill_ipc(sc, perm);
	args[0] = type;
	args[1] = (__u32)mode;
	at = put_task(sc, put_owner(sc, perm), TAG_RECEIVER, target);
	return finish(sc, at, MSG_QUEUE_MSGRCV, CLASS_BULK);
}

/*
 * Hook: settime, before the clock is set. Either argument may be NULL, which the
 * kernel's types do not say: as numbers they may be asked for it.
 */
SEC("lsm/settime")
int settime(unsigned long long *ctx)
{
	struct scratch *sc = begin(SETTIME, CLASS_CRITICAL);
	__u64 ts = 0, tz = 0, *args;

	if (!sc)
		return 0;
	bpf_get_func_arg(ctx, 0, &ts);
	bpf_get_func_arg(ctx, 1, &tz);
	args = args_of(sc);
	args[0] = BPF_CORE_READ((struct timespec64 *)ts, tv_sec);
	args[1] = BPF_CORE_READ((struct timespec64 *)ts, tv_nsec);
	args[2] = (__u32)BPF_CORE_READ((struct timezone *)tz, tz_minuteswest);
	args[3] = (__u32)BPF_CORE_READ((struct timezone *)tz, tz_dsttime);
	args[4] = ts != 0;
	args[5] = tz != 0;
	return send_args(sc, SETTIME, CLASS_CRITICAL);
}

static __always_inline void put_key(struct scratch *sc, struct key *k)
{
	__u64 *args = args_of(sc);

	args[0] = (__u32)BPF_CORE_READ(k, serial);
	args[1] = BPF_CORE_READ(k, uid.val);
	args[2] = BPF_CORE_READ(k, gid.val);
	args[3] = BPF_CORE_READ(k, perm);
}

/* The key's type and what it is called. */
static __noinline __u32 put_key_names(struct scratch *sc, struct key *k)
{
	__u32 at = put_text(sc, sizeof(struct args_record), TAG_NAME, BPF_CORE_READ(k, type, name));

	return put_text(sc, at, TAG_VALUE, BPF_CORE_READ(k, description));
}

/* Hook: key_alloc, when a key is made; it has no serial yet. */
SEC("lsm/key_alloc")
int BPF_PROG(key_alloc, struct key *k, const struct cred *cred, unsigned long flags)
{
	struct scratch *sc = begin(KEY_ALLOC, CLASS_BULK);

	if (!sc)
		return 0;
	put_key(sc, k);
	args_of(sc)[4] = flags;
	return finish(sc, put_cred(sc, put_key_names(sc, k), cred), KEY_ALLOC, CLASS_BULK);
}

/*
 * Hook: key_permission, before a key is used. Its first argument is a key's
 * address with a bit that says that the task possesses it; the kernel's types
 * have no struct for that.
 */
SEC("lsm/key_permission")
int key_permission(unsigned long long *ctx)
{
	struct scratch *sc = begin(KEY_PERMISSION, CLASS_BULK);
	__u64 ref = 0, cred = 0, need = 0;
	struct key *k;

	if (!sc)
		return 0;
	bpf_get_func_arg(ctx, 0, &ref);
	bpf_get_func_arg(ctx, 1, &cred);
	bpf_get_func_arg(ctx, 2, &need);
	k = (void *)(ref & ~1ULL);
	put_key(sc, k);
	args_of(sc)[4] = ref & 1;
	args_of(sc)[5] = (__u32)need;
	args_of(sc)[6] = BPF_CORE_READ(k, flags);
	return finish(sc, put_cred(sc, put_key_names(sc, k), (void *)cred), KEY_PERMISSION, CLASS_BULK);
}

/* Hook: bpf, at each call of bpf(2). */
SEC("lsm/bpf")
int BPF_PROG(bpf, int cmd, void *attr, unsigned int size)
{
	struct scratch *sc = begin(BPF, CLASS_BULK);

	if (!sc)
		return 0;
	args_of(sc)[0] = (__u32)cmd;
	args_of(sc)[1] = size;
	return send_args(sc, BPF, CLASS_BULK);
}

/* Hook: bpf_map, before a BPF map gets a descriptor. */
SEC("lsm/bpf_map")
int BPF_PROG(bpf_map, struct bpf_map *map, unsigned int mode)
{
	struct scratch *sc = begin(BPF_MAP, CLASS_BULK);
	__u64 *args;

	if (!sc)
		return 0;
	args = args_of(sc);
	args[0] = (__u32)BPF_CORE_READ(map, map_type);
	args[1] = mode;
	args[2] = BPF_CORE_READ(map, id);
	return finish(sc, put_text(sc, sizeof(struct args_record), TAG_NAME, (void *)&map->name), BPF_MAP, CLASS_BULK);
}

/* Hook: bpf_prog, before a BPF program gets a descriptor. */
SEC("lsm/bpf_prog")
int BPF_PROG(bpf_prog, struct bpf_prog *prog)
{
	struct scratch *sc = begin(BPF_PROG, CLASS_BULK);
	struct bpf_prog_aux *aux = BPF_CORE_READ(prog, aux);
	__u64 *args;

	if (!sc)
		return 0;
	args = args_of(sc);
	args[0] = (__u32)BPF_CORE_READ(prog, type);
	args[1] = (__u32)BPF_CORE_READ(prog, expected_attach_type);
	args[2] = BPF_CORE_READ(aux, id);
	return finish(sc, put_text(sc, sizeof(struct args_record), TAG_NAME, (void *)&aux->name), BPF_PROG, CLASS_BULK);
}
