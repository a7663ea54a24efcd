/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the programs share with the agent and with each other. */
#ifndef OUTGUARD_MAPS_H
#define OUTGUARD_MAPS_H

/*
 * What the agent tells the programs. Policies that follow each other have one bit
 * after the other, of POLICIES; hooks has for each type of records the bits of those
 * that want it, and policy the bit of the one in force. That byte is what is swapped:
 * the agent writes the bits of the next policy while nobody looks at them. A record
 * takes the policy that it finds first and is held to that one to its end; only one
 * that is held up while POLICIES of them follow takes another for its own.
 *
 * The agent's own tasks are known by the rest: a thread group, its start and its exec
 * id, which no other program can come by.
 */
#define TYPES 256
#define POLICIES 6	 /* an even number: they take turns with the filters' two places */
#define HAS_FILTERS 0x80 /* in policy: there is something to look up */
struct agent_config {
	__u8 hooks[TYPES];
	__u64 snapshotting; /* not zero while the agent prepares the snapshot */
	__u64 agent_opens;  /* files that the agent opened: shows that the hooks run; a write of the rest may
			     * take some back, so that it is compared only where nothing writes */
	__u64 unseen_opens; /* by the agent: files that it opened and agent_opens does not count */
	__u64 further; /* the object of which the further hooks' programs are that are attached */
	__u64 agent_start_ns;
	__u32 agent_tgid;
	__u32 agent_exec_id;
	__u32 canary_pid; /* the agent's thread that does what a canary asks for; 0: none */
	__u8 policy;	  /* the bit of the one in force, and whether it has filters */
	__u8 reserved[3];
};

/*
 * The account of one (CPU, class). Emitted is the last number given out; every
 * number ends up in one of the next two. When they add up to emitted, read
 * after them, no record was under way at that moment.
 *
 * The last two count for all classes, in the critical one's: starts of tasks
 * that have no record, and executions that bprm_committed_creds did not see.
 */
struct counter {
	__u64 emitted;
	__u64 submitted;
	__u64 lost;
	__u64 unrecorded;
	__u64 unhooked;
};

/* Who made a socket, or a System V object. */
struct socket_label {
	struct task_id owner;
	__u32 exec_id;
	__u32 reserved;
};

/*
 * The digest of one version of a file. The version ends with every open for
 * writing and every truncation, which add one to epoch; stored is the epoch,
 * plus one, whose digest this is. Guard is odd while somebody writes it.
 */
struct digest_cache {
	__u64 epoch;
	__u64 stored;
	__u64 guard;
	__u8 digest[32];
};

/*
 * Room to build a record in; it is sent as far as it is filled. Newer kernels
 * (7.2) refuse task storage of more than 8 KiB, their own header included. Busy is
 * the policy that what is built is held to, 0 where nothing is.
 */
#define NO_POLICY 1 /* critical records are held to none */
#define RECORD_ROOM 7928
struct scratch {
	__u64 busy;
	__u8 record[RECORD_ROOM];
};

/* What a loop is given has to be on the stack; where it stands is in the scratch. */
struct walk_in {
	struct scratch *sc;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 2 << 20);
} critical SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} bulk SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct agent_config);
} config SEC(".maps");

/* Indexed by cpu * 2 + class - 1. The agent sizes it to the possible CPUs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct counter);
} counters SEC(".maps");

/* For the agent alone: what a restarted one needs to go on with a session. */
#define STATE_SIZE 64
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__uint(value_size, STATE_SIZE);
} state SEC(".maps");

/*
 * For the agent alone: how far both rings stand in the frames up to one that it
 * sent, so that a restarted one knows where to go on. Stamp is the frame's index
 * plus one, or 0; last is 1 for a frame that ends its session. The first of
 * them is another thing: its stamp is the index of the last frame that the host
 * has confirmed. The agent maps them, so that a frame costs it no system call.
 */
#define FRAMES 1024
struct frame_mark {
	__u64 stamp;
	__u64 critical;
	__u64 bulk;
	__u64 last;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1 + FRAMES);
	__type(key, __u32);
	__type(value, struct frame_mark);
} frames SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct scratch);
} scratches SEC(".maps");

/*
 * Of a task: the exec id, plus one, that bprm_committed_creds has seen last, and
 * the one whose program has this digest.
 */
struct committed_exec {
	__u64 seen;
	__u64 digested;
	__u8 digest[32];
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct committed_exec);
} committed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_INODE_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct digest_cache);
} digests SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct socket_label);
} labels SEC(".maps");

/*
 * Who made a System V object, by its address: from the moment that it is made
 * until it is freed, and only while the programs at both are attached. The agent
 * empties it before it attaches them. For what it has no room for nobody is known.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 2048);
	__type(key, __u64);
	__type(value, struct socket_label);
} ipc_labels SEC(".maps");

/*
 * The address of the inode that the agent has mapped last, of a regular file, while it
 * prepares the snapshot.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} mapped SEC(".maps");

/*
 * Digests of the programs that run at attach, by the address of their inode. The
 * agent maps each /proc/PID/exe, of which mmap_file tells the inode, and computes
 * them; the snapshot takes them from here, since an iterator can neither digest nor
 * reach inode storage.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__uint(value_size, 32);
} running SEC(".maps");

#endif
