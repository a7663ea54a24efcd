/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Numbers, rings, and the parts that every record has. */
#ifndef OUTGUARD_EMIT_H
#define OUTGUARD_EMIT_H

/*
 * How long bulk records may wait before one wakes the agent, and how many bytes
 * may come in between. What is in the ring tells nothing: the agent has read it
 * and leaves it there until the host has it.
 */
#define BULK_WAKE_NS 16000000
#define BULK_WAKE_BYTES (256 << 10)

/* How many small ones of a CPU go by before the ring is asked how many bytes there were. */
#define BULK_UNASKED 32
#define BULK_SMALL 1024

/* Has the kernel bpf_rdonly_cast (Linux 6.2)? What it casts is read without a probe. */
const volatile bool has_casts = false;

/*
 * Are pointers read out of casts? Where the kernel's types are unsorted (before Linux
 * 7.0), the verifier looks up to four times through all of them for each pointer that
 * is read out of one that it trusts: most of the time that it takes to load a program.
 */
const volatile bool follows_casts = false;

extern void *bpf_rdonly_cast(const void *obj, __u32 type) __ksym __weak;

#define cast_to(type, p) ((type *)bpf_rdonly_cast((void *)(p), bpf_core_type_id_kernel(type)))

/*
 * p, to read pointers out of: cast, it is not trusted, and nothing is looked for.
 * What is no pointer costs less to read out of p itself.
 */
#define to_follow(type, p) (follows_casts ? cast_to(type, p) : (p))

/*
 * Is p there, an argument of a hook? The verifier of 6.12 trusts each of them to be: it
 * takes a test for NULL out, and what is for NULL alone. It cannot know that nothing is 0.
 */
static volatile __u64 nothing;

#define is_given(p) ((__u64)(p) != nothing && (p))

static volatile __u64 woken_ns;
static volatile __u64 bulk_woken_pos;

static __always_inline __u32 exec_id(struct task_struct *t)
{
	return (__u32)t->self_exec_id;
}

/*
 * Is t a thread of the agent? Its name does not count: anybody can take it. A
 * program that the agent's process would exec is not the agent any more.
 */
static __always_inline bool is_agent(const struct agent_config *c, struct task_struct *t)
{
	return t->tgid == c->agent_tgid && exec_id(t) == c->agent_exec_id &&
	       to_follow(struct task_struct, t)->group_leader->start_boottime == c->agent_start_ns;
}

static __always_inline struct agent_config *get_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

/* Is t the thread of the agent that does what a canary asks for? */
static __always_inline bool is_canary(const struct agent_config *c, struct task_struct *t)
{
	return c->canary_pid == t->pid && is_agent(c, t);
}

#include "filter.h"

/*
 * Does the policy in force want records of this type? Asked once for a record, which is
 * held to that policy. It is read first: what it wants was there before it.
 */
static __always_inline bool wants(const struct agent_config *c, __u32 type, __u32 *policy)
{
	__u32 wanted;

	*policy = *(volatile const __u8 *)&c->policy;
	wanted = *(volatile const __u8 *)&c->hooks[type];
	return wanted & *policy;
}

/*
 * Are records of this type wanted, and is it not the agent that acts? Where a
 * hook can run for the agent's runtime as well, asked tells what a canary does
 * from that.
 */
static __always_inline bool reports_canary(const struct agent_config *c, __u32 type, struct task_struct *t, bool asked,
					   __u32 *policy)
{
	if (!c || !wants(c, type, policy))
		return false;
	return !is_agent(c, t) || (asked && is_canary(c, t));
}

static __always_inline bool reports(const struct agent_config *c, __u32 type, struct task_struct *t)
{
	__u32 policy;

	return reports_canary(c, type, t, false, &policy);
}

static __always_inline struct counter *get_counter(__u32 cpu, __u32 class)
{
	__u32 slot = cpu * 2 + class - 1;

	return bpf_map_lookup_elem(&counters, &slot);
}

static __always_inline __u64 bulk_wakeup(const struct record_header *h)
{
	bool late = h->boot_ns - woken_ns >= BULK_WAKE_NS;
	__u64 pos;

	if (!late && h->length < BULK_SMALL && h->sequence % BULK_UNASKED)
		return BPF_RB_NO_WAKEUP;
	pos = bpf_ringbuf_query(&bulk, BPF_RB_PROD_POS);
	if (!late && pos - bulk_woken_pos < BULK_WAKE_BYTES)
		return BPF_RB_NO_WAKEUP;
	woken_ns = h->boot_ns;
	bulk_woken_pos = pos;
	return BPF_RB_FORCE_WAKEUP;
}

/* A critical record waits for nothing. Who is woken reads both rings. */
static __always_inline __u64 critical_wakeup(__u64 now)
{
	woken_ns = now;
	return BPF_RB_FORCE_WAKEUP;
}

/*
 * Number the record and put it into its ring, unless it is filtered. The number is
 * drawn last, and nothing between it and the output can sleep, so that a number is
 * under way only for moments. Not zero: it found no room. Policy is the one that the
 * record is held to; a critical one is to none. T is the task that runs. The path of the
 * record's one file stands at sc's record[at]; NULL and 0: it has none.
 */
static __always_inline long emit_file(const struct agent_config *config, __u32 policy, struct task_struct *t,
				      struct record_header *h, __u32 length, __u16 type, __u8 class, struct scratch *sc,
				      __u32 at)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct counter *c = get_counter(cpu, class);
	long err;

	if (!c || !config)
		return 0;
	h->flags = is_canary(config, t) ? FLAG_CANARY : 0;
	if (class == CLASS_BULK && !h->flags && (policy & HAS_FILTERS) && is_filtered(policy, type, (void *)(h + 1), sc, at))
		return 0;
	h->length = length;
	h->type = type;
	h->version = RECORD_VERSION;
	h->class = class;
	h->cpu = cpu;
	h->boot_ns = bpf_ktime_get_boot_ns();
	h->sequence = __sync_fetch_and_add(&c->emitted, 1) + 1;
	if (class == CLASS_CRITICAL)
		err = bpf_ringbuf_output(&critical, h, length, critical_wakeup(h->boot_ns));
	else
		err = bpf_ringbuf_output(&bulk, h, length, bulk_wakeup(h));
	__sync_fetch_and_add(err ? &c->lost : &c->submitted, 1);
	return err;
}

static __always_inline long emit(const struct agent_config *config, __u32 policy, struct task_struct *t,
				 struct record_header *h, __u32 length, __u16 type, __u8 class)
{
	return emit_file(config, policy, t, h, length, type, class, NULL, 0);
}

static __always_inline long emit_critical(const struct agent_config *config, struct task_struct *t,
					  struct record_header *h, __u32 length, __u16 type)
{
	return emit(config, NO_POLICY, t, h, length, type, CLASS_CRITICAL);
}

/* There was no room to build a record in: it has a number all the same. */
static __always_inline void emit_lost(__u8 class)
{
	struct counter *c = get_counter(bpf_get_smp_processor_id(), class);

	if (!c)
		return;
	__sync_fetch_and_add(&c->emitted, 1);
	__sync_fetch_and_add(&c->lost, 1);
}

/* A task was made of which no record tells. */
static __always_inline void note_unrecorded(void)
{
	struct counter *c = get_counter(bpf_get_smp_processor_id(), CLASS_CRITICAL);

	if (c)
		__sync_fetch_and_add(&c->unrecorded, 1);
}

static __always_inline void fill_task(struct task_id *id, struct task_struct *t)
{
	id->pid = t->pid;
	id->tgid = t->tgid;
	id->start_ns = t->start_boottime;
}

/* Of the first pid namespace: the same on every kernel. */
#define FIRST_PID_NS 0xEFFFFFFC

/* The pid namespace of a task: of most it is the first. */
static __always_inline __u32 pid_ns(struct pid *p)
{
	struct upid at = {};

	if (!p) /* it has left its place */
		return 0;
	if (p->level == 0)
		return FIRST_PID_NS;
	bpf_probe_read_kernel(&at, sizeof(at), &p->numbers[p->level & 31]);
	return BPF_CORE_READ(at.ns, ns.inum);
}

static __always_inline void fill_cred(struct subject *s, const struct cred *c)
{
	s->uid = c->uid.val;
	s->euid = c->euid.val;
	s->suid = c->suid.val;
	s->gid = c->gid.val;
	s->egid = c->egid.val;
	s->sgid = c->sgid.val;
	s->fsuid = c->fsuid.val;
	s->fsgid = c->fsgid.val;
	s->securebits = c->securebits;
	s->user_ns = c->user_ns->ns.inum;
	s->cap_eff = *(const __u64 *)&c->cap_effective; /* two of 32 bits, or one of 64 */
}

static __always_inline struct cgroup *cgroup_of(struct task_struct *t)
{
	return to_follow(struct task_struct, t)->cgroups->dfl_cgrp;
}

/* Writes all of s, and returns the task's mount namespace, which nobody has to look for again. */
static __always_inline struct mnt_namespace *fill_subject(struct subject *s, struct task_struct *t)
{
	struct task_struct *from = to_follow(struct task_struct, t);
	struct task_struct *parent = from->real_parent;
	struct nsproxy *ns = from->nsproxy;
	struct mnt_namespace *mounts = ns->mnt_ns;

	fill_task(&s->task, t);
	/* Only the first of a thread group has its number. */
	s->leader_start_ns = s->task.pid == s->task.tgid ? s->task.start_ns : from->group_leader->start_boottime;
	s->parent_tgid = parent->tgid;
	s->exec_id = exec_id(t);
	s->parent_start_ns = parent->group_leader->start_boottime;
	s->cgroup_id = from->cgroups->dfl_cgrp->kn->id;
	s->mnt_ns = mounts->ns.inum;
	s->pid_ns = pid_ns(from->thread_pid);
	s->net_ns = ns->net_ns->ns.inum;
	fill_cred(s, from->cred);
	s->kernel_thread = (t->flags & PF_KTHREAD) != 0;
	__builtin_memset(s->reserved, 0, sizeof(s->reserved));
	/* The kernel pads a name with zeros; to look for its end would cost more. */
	((__u64 *)s->comm)[0] = *(__u64 *)&t->comm[0];
	((__u64 *)s->comm)[1] = *(__u64 *)&t->comm[8];
	return mounts;
}

/*
 * Take the task's scratch, for a record that is held to a policy. A hook that runs
 * while the task builds a record comes from the digest itself (the kernel opens the
 * file again to read it): the agent's own doing, so it is not reported, and busy
 * tells it apart.
 */
static __always_inline struct scratch *take_scratch(struct task_struct *t, __u8 class, __u32 policy)
{
	struct scratch *sc = bpf_task_storage_get(&scratches, t, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!sc) {
		emit_lost(class);
		return NULL;
	}
	if (sc->busy)
		return NULL;
	sc->busy = policy;
	return sc;
}

static __always_inline void drop_scratch(struct scratch *sc)
{
	sc->busy = 0;
}

/* Write the header of a tail whose bytes stand at record[at + 8]; zero what pads it. */
static __always_inline __u32 close_tail(struct scratch *sc, __u32 at, __u16 tag, __u16 flags, __u32 length)
{
	__u32 end = at + 8 + length;
	struct tail_header *t;
	__u64 *padding;

	barrier_var(end); /* or the compiler forgets below what was checked here */
	if (at > RECORD_ROOM - 8 || end > RECORD_ROOM - 8)
		return at;
	t = (void *)&sc->record[at];
	t->tag = tag;
	t->flags = flags;
	t->length = length;
	padding = (void *)&sc->record[end]; /* a variable: a byte's address would be written byte by byte */
	*padding = 0;
	return (end + 7) & ~7U;
}

#endif
