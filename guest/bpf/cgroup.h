/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Cgroups: every record has the number of its task's; here each number gets its
 * path, once. Their records are no hooks of the policy's: without them the
 * others do not say whose they are.
 */
#ifndef OUTGUARD_CGROUP_H
#define OUTGUARD_CGROUP_H

/* The ids of cgroups that have been named since the programs were loaded. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} named SEC(".maps");

#define CGROUP_DEPTH 32
#define CGROUP_NAME 256
#define CGROUP_PATH 2048

/* A walk from a cgroup up to the root, and down again. */
struct cgroup_walk {
	__u64 at;    /* the kernfs node */
	__u32 count; /* of kept */
	__u32 end;   /* of what is written */
	__u32 cut;
	__u32 pad;
	__u64 kept[CGROUP_DEPTH];
};

/* It stands behind any path. */
#define CGROUP_WALK_AT ((sizeof(struct cgroup_record) + 8 + CGROUP_PATH + CGROUP_NAME + 23) & ~7UL)

_Static_assert(CGROUP_WALK_AT + sizeof(struct cgroup_walk) <= RECORD_ROOM, "a path and the walk along it have room");

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node___up {
	const char *name;
	struct kernfs_node___up *parent;
};

/* Linux 6.15 and later. */
struct kernfs_node___rcu {
	const char *name;
	struct kernfs_node___rcu *__parent;
};

#pragma clang attribute pop

static __always_inline void *kernfs_parent(void *kn)
{
	struct kernfs_node___up *up = kn;
	struct kernfs_node___rcu *rcu = kn;

	if (bpf_core_field_exists(rcu->__parent))
		return BPF_CORE_READ(rcu, __parent);
	return BPF_CORE_READ(up, parent);
}

/* The one hierarchy of version 2 has the number 0. */
static __always_inline bool is_unified(struct cgroup *cgrp)
{
	return BPF_CORE_READ(cgrp, root, hierarchy_id) == 0;
}

static __always_inline struct cgroup_walk *cgroup_walk_of(struct scratch *sc)
{
	return (void *)sc + __builtin_offsetof(struct scratch, record) + CGROUP_WALK_AT;
}

/* Keep the node, unless it is the root, and go on to its parent. */
static long climb_cgroup(__u32 i, struct walk_in *in)
{
	volatile struct cgroup_walk *w = cgroup_walk_of(in->sc);
	__u64 at = w->at, up = (__u64)kernfs_parent((void *)at);
	__u32 slot = w->count;

	if (!up)
		return 1;
	if (slot >= CGROUP_DEPTH) {
		w->cut = 1;
		return 1;
	}
	w->kept[slot] = at;
	w->count = slot + 1;
	w->at = up;
	return 0;
}

/* Write the name of the last node that was kept and is not written yet. */
static long descend_cgroup(__u32 i, struct walk_in *in)
{
	const __u32 limit = sizeof(struct cgroup_record) + 8 + CGROUP_PATH;
	struct scratch *sc = in->sc;
	volatile struct cgroup_walk *w = cgroup_walk_of(sc);
	__u32 slot = w->count - 1, end = w->end;
	struct kernfs_node___up *node;
	long len;

	if (slot >= CGROUP_DEPTH)
		return 1;
	if (end > limit - 1) {
		w->cut = 1;
		return 1;
	}
	node = (void *)w->kept[slot];
	sc->record[end] = '/';
	len = bpf_probe_read_kernel_str(&sc->record[end + 1], CGROUP_NAME, BPF_CORE_READ(node, name));
	if (len <= 1 || len > CGROUP_NAME) {
		w->cut = 1;
		return 1;
	}
	end += len; /* the slash for the NUL */
	if (end > limit) {
		end = limit;
		w->cut = 1;
	}
	w->end = end;
	w->count = slot;
	return w->cut ? 1 : 0;
}

/*
 * Write the path of kn. Of one that is deeper only the last names are there, of
 * one that is longer the first; either is said to be cut.
 */
static __noinline __u32 put_cgroup_path(struct scratch *sc, void *kn)
{
	const __u32 at = sizeof(struct cgroup_record), start = at + 8;
	volatile struct cgroup_walk *w = cgroup_walk_of(sc);
	struct walk_in in = {sc};
	__u32 cut, end;

	w->at = (__u64)kn;
	w->count = 0;
	w->cut = 0;
	bpf_loop(CGROUP_DEPTH + 1, climb_cgroup, &in, 0);
	cut = w->cut;
	w->cut = 0;
	w->end = start;
	if (w->count) {
		bpf_loop(CGROUP_DEPTH, descend_cgroup, &in, 0);
	} else {
		sc->record[start] = '/';
		w->end = start + 1;
	}
	end = w->end;
	return close_tail(sc, at, TAG_PATH, cut | w->cut ? TAIL_TRUNCATED : 0, end - start);
}

static __always_inline struct kernfs_node *node_of(struct cgroup *cgrp)
{
	return to_follow(struct cgroup, cgrp)->kn;
}

/* Report a cgroup with its path. What finds no room is named again when it is met. */
static __noinline int name_cgroup(struct cgroup *cgrp, __u16 type)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct cgroup_record *r;
	__u64 id = node_of(cgrp)->id;
	struct scratch *sc;
	__u32 at;

	sc = take_scratch(t, CLASS_CRITICAL, NO_POLICY);
	if (!sc)
		return 0;
	r = (void *)sc->record;
	__builtin_memset(r, 0, sizeof(*r));
	fill_subject(&r->subject, t);
	r->id = id;
	r->level = cgrp->level;
	at = put_cgroup_path(sc, node_of(cgrp));
	if (at <= RECORD_MAX && !emit_critical(get_config(), t, &r->header, at, type))
		bpf_map_update_elem(&named, &id, &id, BPF_ANY);
	drop_scratch(sc);
	return 0;
}

/* A task is in it: if its making was not seen, it is named now. */
static __always_inline void meet_cgroup(struct cgroup *cgrp)
{
	__u64 id = node_of(cgrp)->id;

	if (!bpf_map_lookup_elem(&named, &id))
		name_cgroup(cgrp, CGROUP_SNAPSHOT);
}

static __always_inline void report_rmdir(struct cgroup *cgrp)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct cgroup_record r = {};

	if (!is_unified(cgrp))
		return;
	fill_subject(&r.subject, t);
	r.id = node_of(cgrp)->id;
	r.level = cgrp->level;
	bpf_map_delete_elem(&named, &r.id);
	emit_critical(get_config(), t, &r.header, sizeof(r), CGROUP_RMDIR);
}

static __always_inline void report_attach(struct cgroup *cgrp, struct task_struct *task, bool threadgroup)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct cgroup_attach_record r = {};

	if (!is_unified(cgrp))
		return;
	meet_cgroup(cgrp);
	fill_subject(&r.subject, t);
	r.id = node_of(cgrp)->id;
	fill_task(&r.target, task);
	r.threadgroup = threadgroup;
	emit_critical(get_config(), t, &r.header, sizeof(r), CGROUP_ATTACH_TASK);
}

#endif
