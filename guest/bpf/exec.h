/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Programs: those that start, and those that run already. */
#ifndef OUTGUARD_EXEC_H
#define OUTGUARD_EXEC_H

#define ARGV_SIZE 2560
#define FILENAME_SIZE 896
#define CHUNK_SIZE 512
#define ARGV_END (sizeof(struct exec_record) + 8 + PATH_SIZE + 8 + ARGV_SIZE)

_Static_assert(ARGV_END + 8 + FILENAME_SIZE + 8 <= RECORD_ROOM, "an exec with all its tails has room");
_Static_assert(ARGV_END + CHUNK_SIZE <= RECORD_ROOM, "the walk over the arguments has room behind them");
_Static_assert(RECORD_ROOM <= RECORD_MAX, "no record is larger than the protocol allows");

/* Walks argument strings, so that the environment behind them stays out. */
struct argv_walk {
	struct scratch *sc;
	unsigned long from;
	__u32 size;
	__u32 length;
	__u32 argc;
	__u32 seen;
};

/* One string, or CHUNK_SIZE bytes of a longer one; the copy is only measured. */
static long next_arg(__u32 i, struct argv_walk *w)
{
	__u32 left = w->size - w->length;
	const char *from = (void *)(w->from + w->length);
	char last = 0;
	long n;

	if (w->seen >= w->argc || left == 0 || left > ARGV_SIZE)
		return 1;
	if (left > CHUNK_SIZE)
		left = CHUNK_SIZE;
	n = bpf_probe_read_kernel_str(&w->sc->record[ARGV_END], left, from);
	if (n <= 0)
		return 1;
	bpf_probe_read_kernel(&last, 1, from + n - 1);
	w->length += n;
	if (!last)
		w->seen++;
	return 0;
}

/*
 * The argument strings lie at the bottom of the new stack, each with its NUL,
 * and the environment's above them up to bprm->exec.
 */
static __always_inline __u32 put_argv(struct scratch *sc, __u32 at, struct linux_binprm *bprm)
{
	struct argv_walk w = {.sc = sc, .argc = bprm->argc};
	unsigned long from = bprm->p, to = bprm->exec;
	__u64 size = to - from;

	if (w.argc == 0)
		return at;
	if (at > ARGV_END - ARGV_SIZE - 8)
		return at;
	if (to <= from)
		return close_tail(sc, at, TAG_ARGV, TAIL_TRUNCATED, 0);
	if (size > ARGV_SIZE)
		size = ARGV_SIZE;
	if (bpf_copy_from_user(&sc->record[at + 8], size, (void *)from))
		return close_tail(sc, at, TAG_ARGV, TAIL_TRUNCATED, 0);
	w.from = (unsigned long)&sc->record[at + 8];
	w.size = size;
	bpf_loop(ARGV_SIZE + ARGV_SIZE / CHUNK_SIZE + 1, next_arg, &w, 0);
	return close_tail(sc, at, TAG_ARGV, w.seen < w.argc ? TAIL_TRUNCATED : 0, w.length);
}

/* What execve was asked for: for a script the script, not its interpreter. */
static __always_inline __u32 put_filename(struct scratch *sc, __u32 at, struct linux_binprm *bprm)
{
	long n;

	if (at > RECORD_ROOM - 16 - FILENAME_SIZE)
		return at;
	n = bpf_probe_read_kernel_str(&sc->record[at + 8], FILENAME_SIZE, bprm->filename);
	if (n <= 1 || n > FILENAME_SIZE)
		return at;
	return close_tail(sc, at, TAG_FILENAME, n == FILENAME_SIZE ? TAIL_TRUNCATED : 0, n - 1);
}

static __always_inline void report_exec(const struct agent_config *c, struct scratch *sc, struct linux_binprm *bprm,
					struct task_struct *t)
{
	struct exec_record *r = (void *)sc->record;
	struct file *file = bprm->file;
	struct inode *inode = file->f_inode;
	struct mnt_namespace *own;
	__u32 at;

	__builtin_memset(r, 0, sizeof(*r));
	own = fill_subject(&r->subject, t);
	fill_file(&r->file, file, inode);
	r->file.path_kind = path_kind(t, own);
	r->file.digested = digest_for(&r->file, file, inode, true, true);
	note_program(t, &r->file);
	r->argc = bprm->argc;
	r->envc = bprm->envc;
	r->secure_exec = BPF_CORE_READ_BITFIELD(bprm, secureexec);
	at = put_path(sc, sizeof(*r), file, t, own, r->file.path_kind);
	at = put_argv(sc, at, bprm);
	at = put_filename(sc, at, bprm);
	if (at <= RECORD_MAX)
		emit_critical(c, t, &r->header, at, BPRM_COMMITTED_CREDS);
}

/*
 * Before the snapshot the agent maps the programs that run: tell it which inode that is,
 * for it to keep their digests by. True if it is the agent that maps, on its own account;
 * that is not reported.
 */
static __always_inline bool is_look(const struct agent_config *c, struct inode *inode, struct task_struct *t)
{
	__u64 address = (__u64)inode;
	__u32 zero = 0;

	if (!c || !is_agent(c, t) || is_canary(c, t))
		return false;
	if (c->snapshotting && (inode->i_mode & S_IFMT) == S_IFREG)
		bpf_map_update_elem(&mapped, &zero, &address, BPF_ANY);
	return true;
}

/* The hook has seen this exec; see sched_process_exec. */
static __always_inline void note_committed(struct task_struct *t)
{
	struct committed_exec *e = bpf_task_storage_get(&committed, t, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (e)
		e->seen = t->self_exec_id + 1;
}

static __always_inline void check_committed(struct task_struct *t)
{
	struct committed_exec *e = bpf_task_storage_get(&committed, t, 0, 0);
	struct counter *c;

	if (e && e->seen == t->self_exec_id + 1)
		return;
	c = get_counter(bpf_get_smp_processor_id(), CLASS_CRITICAL);
	if (c)
		__sync_fetch_and_add(&c->unhooked, 1);
}

/* Whether this kernel lets an iterator name a task's file; the agent finds out. */
const volatile bool snapshot_paths = true;

/*
 * From where the snapshot names a task's file: the kernel does it for the agent,
 * from the agent's root, or from the top of another namespace.
 */
static __always_inline __u8 agents_kind(struct mnt_namespace *own)
{
	struct task_struct *agent = bpf_get_current_task_btf();

	return own == mounts_of(agent) ? path_kind(agent, own) : PATH_NAMESPACE;
}

static __always_inline __u32 put_exe(struct scratch *sc, struct file_record *r, struct file *file, struct task_struct *t,
				     struct mnt_namespace *own)
{
	struct inode *inode = file->f_inode;
	__u64 key = (__u64)inode;
	__u8 *known = bpf_map_lookup_elem(&running, &key);

	fill_file(&r->file, file, inode);
	r->file.path_kind = agents_kind(own);
	if (known) {
		__builtin_memcpy(r->file.digest, known, sizeof(r->file.digest));
		r->file.digested = DIGEST_SHA256;
	}
	if (snapshot_paths)
		return put_path(sc, sizeof(*r), file, t, own, PATH_ROOT);
	return close_tail(sc, sizeof(*r), TAG_PATH, TAIL_TRUNCATED, 0);
}

static __always_inline int report_snapshot(struct task_struct *t)
{
	struct agent_config *c = get_config();
	struct mnt_namespace *own;
	struct file_record *r;
	struct scratch *sc;
	struct file *file;
	__u32 policy, at = sizeof(*r);

	if (!t || !c || !wants(c, TASK_SNAPSHOT, &policy))
		return 0;
	meet_cgroup(cgroup_of(t));
	sc = take_scratch(bpf_get_current_task_btf(), CLASS_CRITICAL, NO_POLICY);
	if (!sc)
		return 0;
	r = (void *)sc->record;
	__builtin_memset(r, 0, sizeof(*r));
	own = fill_subject(&r->subject, t);
	r->file.digested = DIGEST_NO_FILE;
	if (t->mm) {
		file = t->mm->exe_file;
		if (file) {
			r->file.digested = DIGEST_ABSENT;
			at = put_exe(sc, r, file, t, own);
		}
	}
	if (at <= RECORD_MAX)
		emit_critical(c, bpf_get_current_task_btf(), &r->header, at, TASK_SNAPSHOT);
	drop_scratch(sc);
	return 0;
}

#endif
