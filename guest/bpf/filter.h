/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Filters: which bulk records are not made, by the host's policy. Each has a bit,
 * and a record is left out when some bit stands in all that is asked: for its type,
 * and for each condition among the filters without it or those that it meets.
 *
 * There are two places for everything here. The agent writes into the one that is
 * not in force, and then swaps the policy in config, for hooks and filters alike. A
 * record that is still being made when its policy's place is written anew, two
 * policies later, is not left out.
 */
#ifndef OUTGUARD_FILTER_H
#define OUTGUARD_FILTER_H

#define PREFIX_SIZE 128

enum filter_kind {
	FILTER_UID = 1,
	FILTER_CGROUP = 2,
	FILTER_PROGRAM = 3,
};

struct filter_set {
	__u64 number;	 /* of the policy; 0: no filters */
	__u64 policy;	 /* as config has it; 0 while the agent writes here */
	__u64 programs;	 /* those that name a program */
	__u64 any[4];	 /* those without a condition: by kind, 0 for the path */
	__u64 types[TYPES];
};

struct filter_key {
	__u32 place;
	__u32 kind;
	__u8 value[32]; /* filled up with zeros */
};

struct prefix_key {
	__u32 bits;
	__u8 path[PREFIX_SIZE];
};

/* Where a key has room: the stack has none. What else stands there is done with. */
#define PREFIX_AT ((RECORD_ROOM - sizeof(struct prefix_key)) & ~7UL)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct filter_set);
} filter_sets SEC(".maps");

/* What a filter names, but for paths: which filters do. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * 3 * 64);
	__type(key, struct filter_key);
	__type(value, __u64);
} filter_keys SEC(".maps");

/*
 * What paths begin with; the value has the filters of the shorter ones as well. A
 * program that may sleep can use such a map only out of another. The agent puts a
 * new one where the last but one was, so that none is freed that is in use.
 */
struct prefix_trie {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct prefix_key));
	__uint(value_size, sizeof(__u64));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct prefix_trie);
} filter_paths SEC(".maps");

/* How many records were left out, by CPU. The agent sizes it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} filtered SEC(".maps");

/* Where the filters of a policy are: every other bit has the same place. */
static __always_inline __u32 place_of(__u32 policy)
{
	return (policy & 0x15) == 0;
}

static __always_inline __u64 naming(const struct filter_key *key)
{
	__u64 *bits = bpf_map_lookup_elem(&filter_keys, key);

	return bits ? *bits : 0;
}

/* A task whose ids are not all the same is nobody's in particular. */
static __always_inline __u64 naming_uid(struct filter_key *key, const struct subject *s)
{
	if (s->uid != s->euid || s->uid != s->suid)
		return 0;
	key->kind = FILTER_UID;
	*(__u32 *)key->value = s->uid;
	return naming(key);
}

/* What the task has exec'd last, as its digest was then; see note_program. */
static __always_inline __u64 naming_program(struct filter_key *key, struct task_struct *t)
{
	struct committed_exec *e = bpf_task_storage_get(&committed, t, 0, 0);

	if (!e || e->digested != t->self_exec_id + 1)
		return 0;
	key->kind = FILTER_PROGRAM;
	__builtin_memcpy(key->value, e->digest, sizeof(key->value));
	return naming(key);
}

/*
 * The path counts only where it is the machine's own: what a task calls a file in
 * a root or a mount namespace of its own is its own affair. That its open made it
 * leaves a path as it is.
 */
static __always_inline __u64 naming_path(__u32 place, struct scratch *sc, __u32 at)
{
	struct file_body *f = &((struct file_record *)sc->record)->file; /* where all have it */
	struct prefix_key *key = (void *)&sc->record[PREFIX_AT];
	struct tail_header *path;
	__u64 *bits;
	void *trie;

	if (at > sizeof(struct object_record))
		return 0;
	path = (void *)&sc->record[at];
	if (f->path_kind != PATH_ROOT || path->tag != TAG_PATH || (path->flags & ~TAIL_MADE) || !path->length)
		return 0;
	trie = bpf_map_lookup_elem(&filter_paths, &place);
	if (!trie || bpf_probe_read_kernel(key->path, PREFIX_SIZE, path + 1))
		return 0;
	key->bits = 8 * (path->length < PREFIX_SIZE ? path->length : PREFIX_SIZE);
	bits = bpf_map_lookup_elem(trie, key);
	return bits ? *bits : 0;
}

/*
 * Is this record left out by the policy that it is held to? Then it is counted, and
 * has no number. The path's tail stands at sc's record[at]; at is 0, or sc NULL, where
 * there is none. Whose filters these were is looked at last.
 */
static __noinline bool is_filtered(__u32 policy, __u32 type, const struct subject *s, struct scratch *sc, __u32 at)
{
	__u32 cpu, place = place_of(policy);
	struct filter_key key = {};
	struct filter_set *set;
	__u64 bits, *count;

	set = bpf_map_lookup_elem(&filter_sets, &place);
	if (!set)
		return false;
	/* The verifier may have lost the number; what the compiler knows of it is in the way of a test. */
	barrier_var(type);
	if (type >= TYPES)
		return false;
	bits = set->types[type];
	if (!bits)
		return false;
	key.place = place;
	bits &= set->any[FILTER_UID] | naming_uid(&key, s);
	if (bits) {
		key.kind = FILTER_CGROUP;
		*(__u64 *)key.value = s->cgroup_id;
		bits &= set->any[FILTER_CGROUP] | naming(&key);
	}
	if (bits && (bits & set->any[FILTER_PROGRAM]) != bits)
		bits &= set->any[FILTER_PROGRAM] | naming_program(&key, bpf_get_current_task_btf());
	if (bits && (bits & set->any[0]) != bits)
		bits &= set->any[0] | (sc && at ? naming_path(place, sc, at) : 0);
	if (!bits || *(volatile __u64 *)&set->policy != policy)
		return false;
	cpu = bpf_get_smp_processor_id();
	count = bpf_map_lookup_elem(&filtered, &cpu);
	if (count)
		__sync_fetch_and_add(count, 1);
	return true;
}

/* The task runs what was digested just now, or what could not be. */
static __always_inline void note_program(struct task_struct *t, const struct file_body *f)
{
	struct committed_exec *e = bpf_task_storage_get(&committed, t, 0, 0);

	if (!e)
		return;
	e->digested = 0;
	if (f->digested != DIGEST_SHA256)
		return;
	__builtin_memcpy(e->digest, f->digest, sizeof(e->digest));
	e->digested = t->self_exec_id + 1;
}

/* A task that was made runs what its maker does; kept while a filter asks for it. */
static __always_inline void inherit_program(const struct agent_config *c, struct task_struct *t, struct task_struct *child)
{
	__u32 place = place_of(c->policy);
	struct filter_set *set = bpf_map_lookup_elem(&filter_sets, &place);
	struct committed_exec *e, *of;

	if (!set || !set->programs)
		return;
	e = bpf_task_storage_get(&committed, t, 0, 0);
	if (!e || e->digested != t->self_exec_id + 1)
		return;
	of = bpf_task_storage_get(&committed, child, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!of)
		return;
	__builtin_memcpy(of->digest, e->digest, sizeof(of->digest));
	of->digested = child->self_exec_id + 1;
}

#endif
