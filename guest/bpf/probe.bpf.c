//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The guest's eyes: LSM hooks and two tracepoints, each written down as one
 * record. Nothing here refuses anything: every program returns what the
 * programs before it said.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include "record.h"
#include "maps.h"
#include "emit.h"
#include "file.h"
#include "cgroup.h"
#include "exec.h"
#include "socket.h"

char LICENSE[] SEC("license") = "GPL v2";

const union any_record *described __attribute__((unused));

/*
 * Hook: bprm_committed_creds, when an exec can no longer fail and the task has
 * its new credentials and its new memory, with the arguments on its stack.
 * Sleepable. May refuse nothing (the hook has no result).
 */
SEC("lsm.s/bprm_committed_creds")
int BPF_PROG(bprm_committed_creds, struct linux_binprm *bprm)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct agent_config *c = get_config();
	struct scratch *sc;

	note_committed(t);
	if (!reports(c, BPRM_COMMITTED_CREDS, t))
		return 0;
	sc = take_scratch(t, CLASS_CRITICAL, NO_POLICY);
	if (!sc)
		return 0;
	report_exec(c, sc, bprm, t);
	drop_scratch(sc);
	return 0;
}

/*
 * Tracepoint: sched_process_exec, at the end of every exec. Unlike LSM hooks it
 * goes on when kernel.ftrace_enabled is 0, so it shows an exec that the hook
 * above was not called for. Reports nothing; the account tells.
 */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(sched_process_exec, struct task_struct *t)
{
	check_committed(t);
	return 0;
}

/* Whether the kernel has file_post_open, which can digest; the agent finds out. */
const volatile bool has_post_open = false;

static __always_inline void report_open(const struct agent_config *c, __u32 policy, struct file *file, struct inode *inode,
					struct task_struct *t, bool readable)
{
	struct mnt_namespace *own;
	struct file_record *r;
	struct scratch *sc;
	__u32 at;

	sc = take_scratch(t, CLASS_BULK, policy);
	if (!sc)
		return;
	r = (void *)sc->record; /* all of it is written below */
	own = fill_subject(&r->subject, t);
	fill_file(&r->file, file, inode);
	r->file.path_kind = path_kind(t, own);
	r->file.digested = digest_for(&r->file, file, inode, false, readable);
	at = put_path(sc, sizeof(*r), file, t, own, r->file.path_kind);
	if (at <= RECORD_MAX)
		emit_file(c, sc->busy, t, &r->header, at, FILE_OPEN, CLASS_BULK, sc, sizeof(*r));
	drop_scratch(sc);
}

/*
 * Hook: file_open, at every open of a file of any kind, when it is set up but
 * before its file system's own open runs. An open for writing already counts
 * as a writer then. Sleepable. May refuse; does not.
 *
 * It ends the version of a file that is opened for writing, whether or not
 * anything is to be reported. It cannot digest: the file is not readable yet.
 * A file that is made without a name (O_TMPFILE) no other hook is asked about.
 */
SEC("lsm.s/file_open")
int BPF_PROG(file_open, struct file *file, int ret)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct agent_config *c = get_config();
	struct inode *inode = file->f_inode;
	__u32 policy;

	if (file->f_mode & FMODE_WRITE)
		end_version(inode);
	if (c && is_agent(c, t))
		__sync_fetch_and_add(&c->agent_opens, 1);
	if ((!has_post_open || (file->f_flags & __O_TMPFILE)) && reports_canary(c, FILE_OPEN, t, true, &policy))
		report_open(c, policy, file, inode, t, false);
	return ret;
}

/*
 * Hook: file_post_open, when an open that a task asked for is complete (Linux
 * 6.9 and later). Reports what file_open reports elsewhere, with the digest.
 * Sleepable. May refuse; does not.
 */
SEC("lsm.s/file_post_open")
int BPF_PROG(file_post_open, struct file *file, int mask, int ret)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct agent_config *c = get_config();
	__u32 policy;

	if (reports_canary(c, FILE_OPEN, t, true, &policy))
		report_open(c, policy, file, file->f_inode, t, true);
	return ret;
}

/*
 * Hook: mmap_file, before a mapping is made, of a file or of nothing. Runs
 * before the memory map's lock is taken. Sleepable. May refuse; does not.
 */
SEC("lsm.s/mmap_file")
int BPF_PROG(mmap_file, struct file *file, unsigned long req_prot, unsigned long prot, unsigned long flags, int ret)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct agent_config *c = get_config();
	bool given = is_given(file);
	struct mnt_namespace *own;
	struct mmap_record *r;
	struct scratch *sc;
	struct inode *inode = NULL;
	__u32 policy, at = sizeof(*r);

	if (given) {
		inode = file->f_inode;
		if (is_look(c, inode, t))
			return ret;
	}
	if (!reports_canary(c, MMAP_FILE, t, given, &policy)) /* its runtime maps memory */
		return ret;
	sc = take_scratch(t, CLASS_BULK, policy);
	if (!sc)
		return ret;
	r = (void *)sc->record; /* all of it is written below */
	own = fill_subject(&r->subject, t);
	r->req_prot = req_prot;
	r->prot = prot;
	r->map_flags = flags;
	r->has_file = given;
	__builtin_memset(r->reserved, 0, sizeof(r->reserved));
	if (given) {
		fill_file(&r->file, file, inode);
		r->file.path_kind = path_kind(t, own);
		r->file.digested = digest_for(&r->file, file, inode, prot & PROT_EXEC, true);
		at = put_path(sc, at, file, t, own, r->file.path_kind);
	} else {
		__builtin_memset(&r->file, 0, sizeof(r->file));
	}
	if (at <= RECORD_MAX)
		emit_file(c, sc->busy, t, &r->header, at, MMAP_FILE, CLASS_BULK, sc,
			  at > sizeof(*r) ? sizeof(*r) : 0);
	drop_scratch(sc);
	return ret;
}

/*
 * Hook: inode_setattr, before a file's attributes change; of interest are
 * truncations, which end a version of its content. Reports nothing. May
 * refuse; does not.
 */
SEC("lsm/inode_setattr")
int BPF_PROG(inode_setattr, struct dentry *dentry, struct iattr *attr, int ret)
{
	note_truncation(dentry, attr);
	return ret;
}

/* The same where the hook is given the mount's id map first (Linux 6.8 and later). */
SEC("lsm/inode_setattr")
int BPF_PROG(inode_setattr_idmap, void *idmap, struct dentry *dentry, struct iattr *attr, int ret)
{
	note_truncation(dentry, attr);
	return ret;
}

/*
 * Hook: socket_create, before a socket of that kind is made, by a task or by
 * the kernel for itself. May refuse; does not.
 */
SEC("lsm/socket_create")
int BPF_PROG(socket_create, int family, int type, int protocol, int kern, int ret)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct agent_config *c = get_config();
	struct socket_create_record r = {};
	__u32 policy;

	if (!reports_canary(c, SOCKET_CREATE, t, family == AF_UNIX && protocol != 0, &policy))
		return ret;
	fill_subject(&r.subject, t);
	r.family = family;
	r.type = type;
	r.protocol = protocol;
	r.kernel = kern != 0;
	emit(c, policy, t, &r.header, sizeof(r), SOCKET_CREATE, CLASS_BULK);
	return ret;
}

/*
 * Hook: socket_post_create, when the socket is there: labels it with who made
 * it. What a listening socket accepts inherits the label. Reports nothing. May
 * refuse; does not.
 */
SEC("lsm/socket_post_create")
int BPF_PROG(socket_post_create, struct socket *sock, int family, int type, int protocol, int kern, int ret)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct sock *sk = sock->sk;
	struct socket_label *label;

	if (!sk || kern)
		return ret;
	label = bpf_sk_storage_get(&labels, sk, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!label)
		return ret;
	fill_task(&label->owner, t);
	label->exec_id = exec_id(t);
	return ret;
}

/*
 * Hook: socket_bind, before a socket gets the address; the address has been
 * copied into the kernel. May refuse; does not.
 */
SEC("lsm/socket_bind")
int BPF_PROG(socket_bind, struct socket *sock, struct sockaddr *address, int length, int ret)
{
	report_address(sock, address, length, SOCKET_BIND);
	return ret;
}

/*
 * Hook: socket_connect, before a socket connects to the address; the address
 * has been copied into the kernel. May refuse; does not.
 */
SEC("lsm/socket_connect")
int BPF_PROG(socket_connect, struct socket *sock, struct sockaddr *address, int length, int ret)
{
	report_address(sock, address, length, SOCKET_CONNECT);
	return ret;
}

/* Hook: socket_listen, before a socket listens. May refuse; does not. */
SEC("lsm/socket_listen")
int BPF_PROG(socket_listen, struct socket *sock, int backlog, int ret)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct agent_config *c = get_config();
	struct socket_listen_record r = {};
	__u32 policy;

	if (!reports_canary(c, SOCKET_LISTEN, t, true, &policy))
		return ret;
	fill_subject(&r.subject, t);
	fill_socket(&r.socket, sock);
	r.backlog = backlog;
	emit(c, policy, t, &r.header, sizeof(r), SOCKET_LISTEN, CLASS_BULK);
	return ret;
}

/*
 * Hook: socket_accept, before a connection is taken from the queue: the peer
 * is not known yet, so the address is the listening socket's own. May refuse;
 * does not.
 */
SEC("lsm/socket_accept")
int BPF_PROG(socket_accept, struct socket *sock, struct socket *fresh, int ret)
{
	report_accept(sock);
	return ret;
}

/*
 * Hook: task_kill, before a signal that a task sends is delivered; not for
 * those of the kernel itself. Under RCU. May refuse; does not.
 */
SEC("lsm/task_kill")
int BPF_PROG(task_kill, struct task_struct *target, struct kernel_siginfo *info, int sig, const struct cred *cred,
	     int ret)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct agent_config *c = get_config();
	struct kill_record r = {};
	__u32 policy;

	if (!reports_canary(c, TASK_KILL, t, sig == 0, &policy))
		return ret;
	fill_subject(&r.subject, t);
	fill_task(&r.target, target);
	r.target_exec_id = exec_id(target);
	r.signal = sig;
	emit_critical(c, t, &r.header, sizeof(r), TASK_KILL);
	return ret;
}

/*
 * Tracepoint: task_newtask, when a new thread or process has its pid and has
 * not run yet. Also for io_uring's workers and kernel threads. The agent's
 * threads are left out, a process that it would make is not.
 */
SEC("tp_btf/task_newtask")
int BPF_PROG(task_newtask, struct task_struct *child, unsigned long clone_flags)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct agent_config *c = get_config();
	struct newtask_record r = {};
	__u32 policy;

	if (!c || !wants(c, TASK_NEWTASK, &policy) || (is_agent(c, t) && (clone_flags & CLONE_THREAD))) {
		note_unrecorded();
		return 0;
	}
	meet_cgroup(cgroup_of(child));
	inherit_program(c, t, child);
	fill_subject(&r.subject, t);
	fill_task(&r.child, child);
	r.child_leader_start_ns = to_follow(struct task_struct, child)->group_leader->start_boottime;
	r.child_exec_id = exec_id(child);
	r.clone_flags = clone_flags;
	if (emit_critical(c, t, &r.header, sizeof(r), TASK_NEWTASK))
		note_unrecorded();
	return 0;
}

/*
 * Tracepoint: sched_process_exit, when a thread has given up its memory and is
 * still in its place. Two last threads that leave at the same moment can both
 * find their group dead.
 */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(sched_process_exit, struct task_struct *gone)
{
	struct agent_config *c = get_config();
	struct exit_record r = {};

	if (!reports(c, SCHED_PROCESS_EXIT, gone))
		return 0;
	fill_subject(&r.subject, gone);
	r.exit_code = gone->exit_code;
	r.group_dead = to_follow(struct task_struct, gone)->signal->live.counter == 0;
	emit_critical(c, gone, &r.header, sizeof(r), SCHED_PROCESS_EXIT);
	return 0;
}

/*
 * Tracepoint: cgroup_mkdir, when a cgroup is there and no task can be in it yet,
 * so that its name comes before what is done in it.
 */
SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(cgroup_mkdir, struct cgroup *cgrp, const char *path)
{
	if (is_unified(cgrp))
		name_cgroup(cgrp, CGROUP_MKDIR);
	return 0;
}

/* Tracepoint: cgroup_rmdir, when a cgroup without tasks is taken away. */
SEC("tp_btf/cgroup_rmdir")
int BPF_PROG(cgroup_rmdir, struct cgroup *cgrp, const char *path)
{
	report_rmdir(cgrp);
	return 0;
}

/*
 * Tracepoint: cgroup_attach_task, when a task has been moved into a cgroup, by
 * whoever; one that was made in it (CLONE_INTO_CGROUP) was not moved.
 */
SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(cgroup_attach_task, struct cgroup *cgrp, const char *path, struct task_struct *task, bool threadgroup)
{
	report_attach(cgrp, task, threadgroup);
	return 0;
}

/*
 * Iterator over tasks, run by the agent once its programs are attached: writes
 * down every thread that runs already, the agent's own included, so that a
 * signal sent to them can be told.
 */
SEC("iter/task")
int task_snapshot(struct bpf_iter__task *ctx)
{
	return report_snapshot(ctx->task);
}

/*
 * Run by the agent itself, through BPF_PROG_RUN: from here on its own threads
 * are not reported.
 */
SEC("syscall")
int adopt(void *ctx)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct agent_config *c = get_config();

	if (!c)
		return 1;
	c->agent_start_ns = t->group_leader->start_boottime;
	c->agent_exec_id = exec_id(t);
	c->agent_tgid = t->tgid;
	return 0;
}
