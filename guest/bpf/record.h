/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The wire record, as vsockproto/record.go parses it. The Go test beside this
 * file holds every offset and size against vsockproto through the object's
 * BTF, so a change here without one there does not pass.
 *
 * Everything is little endian and naturally aligned; there is no implicit
 * padding, and reserved bytes are zero.
 */
#ifndef OUTGUARD_RECORD_H
#define OUTGUARD_RECORD_H

#define RECORD_VERSION 1
#define RECORD_MAX 8192

/* In a header's flags: the agent did it because the host sent a canary. */
#define FLAG_CANARY 1

enum event_type {
	BPRM_COMMITTED_CREDS = 1,
	FILE_OPEN = 2,
	MMAP_FILE = 3,
	SOCKET_CREATE = 4,
	SOCKET_BIND = 5,
	SOCKET_CONNECT = 6,
	SOCKET_LISTEN = 7,
	SOCKET_ACCEPT = 8,
	TASK_KILL = 9,
	TASK_NEWTASK = 10,
	SCHED_PROCESS_EXIT = 11,
	TASK_SNAPSHOT = 12,
	CGROUP_MKDIR = 200,
	CGROUP_ATTACH_TASK = 201,
	CGROUP_RMDIR = 202,
	CGROUP_SNAPSHOT = 203,
};

enum event_class {
	CLASS_CRITICAL = 1,
	CLASS_BULK = 2,
};

enum tail_tag {
	TAG_PATH = 1,
	TAG_ARGV = 2,
	TAG_ADDRESS = 3,
	TAG_FILENAME = 4,
};

#define TAIL_TRUNCATED 1
#define TAIL_UNLINKED 2
#define TAIL_UNREACHABLE 4

enum path_kind {
	PATH_UNKNOWN = 0,
	PATH_ROOT = 1,
	PATH_NAMESPACE = 2,
	PATH_CHROOT = 3,
};

enum digest_state {
	DIGEST_ABSENT = 0,
	DIGEST_SHA256 = 1,
	DIGEST_FAILED = 2,
	DIGEST_NO_FILE = 3,
};

enum owner_state {
	OWNER_UNKNOWN = 0,
	OWNER_LABELLED = 1,
};

struct record_header {
	__u32 length;
	__u16 type;
	__u8 version;
	__u8 class;
	__u32 cpu;
	__u32 flags;
	__u64 sequence;
	__u64 boot_ns;
};

struct task_id {
	__u32 pid;
	__u32 tgid;
	__u64 start_ns;
};

struct subject {
	struct task_id task;
	__u64 leader_start_ns;
	__u32 parent_tgid;
	__u32 exec_id;
	__u64 parent_start_ns;
	__u64 cgroup_id;
	__u32 mnt_ns;
	__u32 pid_ns;
	__u32 user_ns;
	__u32 net_ns;
	__u32 uid;
	__u32 euid;
	__u32 suid;
	__u32 gid;
	__u32 egid;
	__u32 sgid;
	__u32 fsuid;
	__u32 fsgid;
	__u64 cap_eff;
	__u32 securebits;
	__u8 kernel_thread;
	__u8 reserved[3];
	__u8 comm[16];
};

struct file_body {
	__u64 inode;
	__u32 generation;
	__u32 dev;
	__u32 flags;
	__u32 uid;
	__u32 gid;
	__u16 mode;
	__u8 path_kind;
	__u8 digested;
	__u32 magic;
	__u32 links;
	__u64 size;
	__u8 fsid[32];
	__u8 uuid[16];
	__u8 digest[32];
};

struct socket_body {
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u8 kernel;
	__u8 owned;
	__u8 reserved[2];
	__u64 cookie;
	struct task_id owner;
	__u32 owner_exec_id;
	__u32 reserved2;
};

struct address_body {
	__u16 family;
	__u16 length;
	__u8 port[2];
	__u8 reserved[2];
	__u8 addr4[4];
	__u32 flow_info;
	__u8 addr6[16];
	__u32 scope;
	__u32 reserved2;
};

struct tail_header {
	__u16 tag;
	__u16 flags;
	__u32 length;
};

/* One struct for each type; tails follow, in ascending order of their tags. */

struct exec_record {
	struct record_header header;
	struct subject subject;
	struct file_body file;
	__u32 argc;
	__u32 envc;
	__u8 secure_exec;
	__u8 reserved[7];
};

struct file_record { /* file_open and task_snapshot */
	struct record_header header;
	struct subject subject;
	struct file_body file;
};

struct mmap_record {
	struct record_header header;
	struct subject subject;
	struct file_body file;
	__u32 req_prot;
	__u32 prot;
	__u32 map_flags;
	__u8 has_file;
	__u8 reserved[3];
};

struct socket_create_record {
	struct record_header header;
	struct subject subject;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u8 kernel;
	__u8 reserved[3];
};

struct socket_address_record { /* socket_bind, socket_connect, socket_accept */
	struct record_header header;
	struct subject subject;
	struct socket_body socket;
	struct address_body address;
};

struct socket_listen_record {
	struct record_header header;
	struct subject subject;
	struct socket_body socket;
	__u32 backlog;
	__u32 reserved;
};

struct kill_record {
	struct record_header header;
	struct subject subject;
	struct task_id target;
	__u32 target_exec_id;
	__u32 signal;
	__u64 reserved;
};

struct newtask_record {
	struct record_header header;
	struct subject subject;
	struct task_id child;
	__u64 child_leader_start_ns;
	__u32 child_exec_id;
	__u32 reserved;
	__u64 clone_flags;
	__u64 reserved2;
};

struct exit_record {
	struct record_header header;
	struct subject subject;
	__u32 exit_code;
	__u8 group_dead;
	__u8 reserved[3];
};

struct cgroup_record { /* cgroup_mkdir, cgroup_rmdir, cgroup_snapshot */
	struct record_header header;
	struct subject subject;
	__u64 id;
	__u32 level;
	__u32 reserved;
};

struct cgroup_attach_record {
	struct record_header header;
	struct subject subject;
	__u64 id;
	struct task_id target;
	__u8 threadgroup;
	__u8 reserved[7];
};

/* Every record, so that the object describes them all; see record_test.go. */
union any_record {
	struct exec_record bprm_committed_creds;
	struct file_record file_open;
	struct mmap_record mmap_file;
	struct socket_create_record socket_create;
	struct socket_address_record socket_bind;
	struct socket_address_record socket_connect;
	struct socket_listen_record socket_listen;
	struct socket_address_record socket_accept;
	struct kill_record task_kill;
	struct newtask_record task_newtask;
	struct exit_record sched_process_exit;
	struct file_record task_snapshot;
	struct cgroup_record cgroup_mkdir;
	struct cgroup_attach_record cgroup_attach_task;
	struct cgroup_record cgroup_rmdir;
	struct cgroup_record cgroup_snapshot;
	struct tail_header tail;
	enum event_type types;
	enum event_class classes;
	enum tail_tag tags;
	enum path_kind path_kinds;
	enum digest_state digest_states;
	enum owner_state owner_states;
};

#endif
