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
	TASK_SETPGID = 13,
	TASK_GETPGID = 14,
	TASK_GETSID = 15,
	TASK_SETNICE = 16,
	TASK_SETIOPRIO = 17,
	TASK_GETIOPRIO = 18,
	TASK_PRLIMIT = 19,
	TASK_SETRLIMIT = 20,
	TASK_SETSCHEDULER = 21,
	TASK_GETSCHEDULER = 22,
	TASK_PRCTL = 23,
	FILE_IOCTL = 24,
	FILE_IOCTL_COMPAT = 25,
	FILE_LOCK = 26,
	FILE_FCNTL = 27,
	FILE_RECEIVE = 28,
	UNIX_STREAM_CONNECT = 29,
	UNIX_MAY_SEND = 30,
	SOCKET_SOCKETPAIR = 31,
	SOCKET_SENDMSG = 32,
	SOCKET_RECVMSG = 33,
	SOCKET_GETSOCKNAME = 34,
	SOCKET_GETPEERNAME = 35,
	SOCKET_SETSOCKOPT = 36,
	SOCKET_SHUTDOWN = 37,
	PTRACE_TRACEME = 38,
	KERNEL_MODULE_REQUEST = 39,
	KERNEL_LOAD_DATA = 40,
	KERNEL_READ_FILE = 41,
	SB_MOUNT = 42,
	SB_UMOUNT = 43,
	SB_REMOUNT = 44,
	SB_PIVOTROOT = 45,
	SB_STATFS = 46,
	MOVE_MOUNT = 47,
	SHM_ASSOCIATE = 48,
	SHM_SHMCTL = 49,
	SHM_SHMAT = 50,
	SEM_ASSOCIATE = 51,
	SEM_SEMCTL = 52,
	SEM_SEMOP = 53,
	SYSLOG = 54,
	SETTIME = 55,
	QUOTACTL = 56,
	QUOTA_ON = 57,
	MSG_QUEUE_ASSOCIATE = 58,
	MSG_QUEUE_MSGCTL = 59,
	MSG_QUEUE_MSGSND = 60,
	MSG_QUEUE_MSGRCV = 61,
	IPC_PERMISSION = 62,
	KEY_ALLOC = 63,
	KEY_PERMISSION = 64,
	NETLINK_SEND = 65,
	INODE_CREATE = 66,
	INODE_LINK = 67,
	INODE_UNLINK = 68,
	INODE_SYMLINK = 69,
	INODE_MKDIR = 70,
	INODE_RMDIR = 71,
	INODE_MKNOD = 72,
	INODE_RENAME = 73,
	INODE_SETATTR = 74,
	INODE_GETATTR = 75,
	INODE_SETXATTR = 76,
	INODE_GETXATTR = 77,
	INODE_LISTXATTR = 78,
	INODE_REMOVEXATTR = 79,
	INODE_KILLPRIV = 80,
	TUN_DEV_CREATE = 81,
	TUN_DEV_ATTACH_QUEUE = 82,
	TUN_DEV_ATTACH = 83,
	TUN_DEV_OPEN = 84,
	BPF = 85,
	BPF_MAP = 86,
	BPF_PROG = 87,
	PTRACE_ACCESS_CHECK = 88,
	CAPABLE = 89,
	CAPGET = 90,
	CAPSET = 91,
	BPRM_CHECK_SECURITY = 92,
	TASK_FIX_SETUID = 93,
	TASK_FIX_SETGID = 94,
	PERF_EVENT_OPEN = 95,
	USERNS_CREATE = 96,
	LOCKED_DOWN = 97,
	URING_OVERRIDE_CREDS = 98,
	URING_SQPOLL = 99,
	URING_CMD = 100,
	FILE_MPROTECT = 101,
	SOCK_GRAFT = 102,
	SB_KERN_MOUNT = 103,
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
	TAG_PATH2 = 5,
	TAG_NAME = 6,
	TAG_VALUE = 7,
	TAG_CRED = 8,
	TAG_OWNER = 9,
	TAG_RECEIVER = 10,
};

#define TAIL_TRUNCATED 1
#define TAIL_UNLINKED 2
#define TAIL_UNREACHABLE 4
#define TAIL_MADE 8
#define TAIL_FOREIGN 16

enum path_kind {
	PATH_UNKNOWN = 0,
	PATH_ROOT = 1,
	PATH_NAMESPACE = 2,
	PATH_CHROOT = 3,
	PATH_VOLUME = 4,
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

struct ipc_body {
	__u32 key;
	__u32 id;
	__u32 uid;
	__u32 gid;
	__u32 cuid;
	__u32 cgid;
	__u16 mode;
	__u8 reserved[6];
};

struct tail_header {
	__u16 tag;
	__u16 flags;
	__u32 length;
};

/* What some tails hold. */
struct cred_tail {
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
	__u32 reserved;
};

struct task_tail {
	struct task_id task;
	__u32 exec_id;
	__u32 reserved;
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

/*
 * A few shapes carry every other hook. What the integers at their end are is
 * vsockproto's to say, in hooks.go; those that a hook does not have are zero.
 */
#define ARGS 8

struct args_record {
	struct record_header header;
	struct subject subject;
	__u64 args[ARGS];
};

struct task_record {
	struct record_header header;
	struct subject subject;
	struct task_id target;
	__u32 target_exec_id;
	__u32 reserved;
	__u64 args[ARGS];
};

struct object_record { /* one file */
	struct record_header header;
	struct subject subject;
	struct file_body file;
	__u64 args[ARGS];
};

struct objects_record { /* two */
	struct record_header header;
	struct subject subject;
	struct file_body file;
	struct file_body file2;
	__u64 args[ARGS];
};

struct socket_record {
	struct record_header header;
	struct subject subject;
	struct socket_body socket;
	__u64 args[ARGS];
};

struct sockets_record {
	struct record_header header;
	struct subject subject;
	struct socket_body socket;
	struct socket_body socket2;
};

struct ipc_record {
	struct record_header header;
	struct subject subject;
	struct ipc_body ipc;
	__u64 args[ARGS];
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
	struct task_record task_setpgid;
	struct task_record task_getpgid;
	struct task_record task_getsid;
	struct task_record task_setnice;
	struct task_record task_setioprio;
	struct task_record task_getioprio;
	struct args_record task_prlimit;
	struct task_record task_setrlimit;
	struct task_record task_setscheduler;
	struct task_record task_getscheduler;
	struct args_record task_prctl;
	struct object_record file_ioctl;
	struct object_record file_ioctl_compat;
	struct object_record file_lock;
	struct object_record file_fcntl;
	struct object_record file_receive;
	struct sockets_record unix_stream_connect;
	struct sockets_record unix_may_send;
	struct sockets_record socket_socketpair;
	struct socket_address_record socket_sendmsg;
	struct socket_address_record socket_recvmsg;
	struct socket_record socket_getsockname;
	struct socket_record socket_getpeername;
	struct socket_record socket_setsockopt;
	struct socket_record socket_shutdown;
	struct task_record ptrace_traceme;
	struct args_record kernel_module_request;
	struct args_record kernel_load_data;
	struct object_record kernel_read_file;
	struct object_record sb_mount;
	struct object_record sb_umount;
	struct object_record sb_remount;
	struct objects_record sb_pivotroot;
	struct object_record sb_statfs;
	struct objects_record move_mount;
	struct ipc_record shm_associate;
	struct ipc_record shm_shmctl;
	struct ipc_record shm_shmat;
	struct ipc_record sem_associate;
	struct ipc_record sem_semctl;
	struct ipc_record sem_semop;
	struct args_record syslog;
	struct args_record settime;
	struct object_record quotactl;
	struct object_record quota_on;
	struct ipc_record msg_queue_associate;
	struct ipc_record msg_queue_msgctl;
	struct ipc_record msg_queue_msgsnd;
	struct ipc_record msg_queue_msgrcv;
	struct ipc_record ipc_permission;
	struct args_record key_alloc;
	struct args_record key_permission;
	struct socket_record netlink_send;
	struct object_record inode_create;
	struct objects_record inode_link;
	struct object_record inode_unlink;
	struct object_record inode_symlink;
	struct object_record inode_mkdir;
	struct object_record inode_rmdir;
	struct object_record inode_mknod;
	struct objects_record inode_rename;
	struct object_record inode_setattr;
	struct object_record inode_getattr;
	struct object_record inode_setxattr;
	struct object_record inode_getxattr;
	struct object_record inode_listxattr;
	struct object_record inode_removexattr;
	struct object_record inode_killpriv;
	struct args_record tun_dev_create;
	struct args_record tun_dev_attach_queue;
	struct socket_record tun_dev_attach;
	struct args_record tun_dev_open;
	struct args_record bpf;
	struct args_record bpf_map;
	struct args_record bpf_prog;
	struct task_record ptrace_access_check;
	struct args_record capable;
	struct task_record capget;
	struct args_record capset;
	struct object_record bprm_check_security;
	struct args_record task_fix_setuid;
	struct args_record task_fix_setgid;
	struct args_record perf_event_open;
	struct args_record userns_create;
	struct args_record locked_down;
	struct args_record uring_override_creds;
	struct args_record uring_sqpoll;
	struct object_record uring_cmd;
	struct object_record file_mprotect;
	struct socket_address_record sock_graft;
	struct object_record sb_kern_mount;
	struct cgroup_record cgroup_mkdir;
	struct cgroup_attach_record cgroup_attach_task;
	struct cgroup_record cgroup_rmdir;
	struct cgroup_record cgroup_snapshot;
	struct tail_header tail;
	struct cred_tail cred_tail;
	struct task_tail task_tail;
	enum event_type types;
	enum event_class classes;
	enum tail_tag tags;
	enum path_kind path_kinds;
	enum digest_state digest_states;
	enum owner_state owner_states;
};

#endif
