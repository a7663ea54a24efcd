/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Records of files that are built where they are sent from, in the ring: that saves
 * a copy of them and the way to the task's scratch. It is for what needs no waiting:
 * a short path, and a digest that is known. Everything else is built in the scratch.
 */
#ifndef OUTGUARD_PLACE_H
#define OUTGUARD_PLACE_H

/* The agent takes as much of it as is filled, by the record's own length. */
#define PLACE_SIZE 448

extern void bpf_preempt_disable(void) __ksym __weak;
extern void bpf_preempt_enable(void) __ksym __weak;

/*
 * What is reserved holds up everything behind it, so whoever has it keeps the CPU. Before
 * 6.10 nothing takes it away, unless the kernel is built to be preempted.
 */
static __always_inline void keep_cpu(void)
{
	if (has_preempt)
		bpf_preempt_disable();
}

static __always_inline void give_cpu(void)
{
	if (has_preempt)
		bpf_preempt_enable();
}

/* NULL: it has to be built in the scratch, where filters look at it, and loss is counted. */
static __always_inline void *take_place(__u32 policy)
{
	void *place;

	if (policy & HAS_FILTERS)
		return NULL;
	keep_cpu();
	place = bpf_ringbuf_reserve(&bulk, PLACE_SIZE, 0);
	if (!place)
		give_cpu();
	return place;
}

static __always_inline void leave_place(void *place)
{
	bpf_ringbuf_discard(place, BPF_RB_NO_WAKEUP);
	give_cpu();
}

/* Send what is built up to at. */
static __always_inline void send_place(const struct agent_config *config, struct task_struct *t, void *place, __u32 at,
				       __u16 type)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct counter *c = get_counter(cpu, CLASS_BULK);
	struct record_header *h = place;

	if (!c || !config) {
		leave_place(place);
		return;
	}
	h->flags = flags_of(config, t);
	number(c, h, cpu, at, type, CLASS_BULK);
	bpf_ringbuf_submit(place, bulk_wakeup(h));
	__sync_fetch_and_add(&c->submitted, 1);
	give_cpu();
}

/*
 * File, and its path behind at. Returns where the record ends; 0: the path is too long,
 * or the digest is not known.
 */
static __always_inline __u32 place_file(void *place, struct file_body *f, __u32 at, struct file *file, struct inode *inode,
					struct task_struct *t, struct mnt_namespace *own, bool run, bool readable)
{
	__u16 flags;
	long length;

	fill_file(f, file, inode);
	f->path_kind = path_kind(t, own);
	f->digested = digest_wanted(f, file, run, readable);
	if (f->digested == DIGEST_SHA256 && !read_known(inode, f->digest))
		return 0;
	length = read_path(place + at + 8, PLACE_SIZE - at - 16, file, t, own, f->path_kind, &flags);
	return length > 0 ? end_tail(place, PLACE_SIZE, at, TAG_PATH, flags, length) : 0;
}

#endif
