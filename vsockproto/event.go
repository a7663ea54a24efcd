package vsockproto

import "fmt"

// EventType says which hook wrote a record. Numbers are never used again.
type EventType uint16

// The names are the LSM hooks' own; task_newtask and sched_process_exit are
// tracepoints, task_snapshot is a task that ran before the agent did. Hook by
// hook they are listed in hooks.go.
const (
	BprmCommittedCreds  EventType = 1
	FileOpen            EventType = 2
	MmapFile            EventType = 3
	SocketCreate        EventType = 4
	SocketBind          EventType = 5
	SocketConnect       EventType = 6
	SocketListen        EventType = 7
	SocketAccept        EventType = 8
	TaskKill            EventType = 9
	TaskNewtask         EventType = 10
	SchedProcessExit    EventType = 11
	TaskSnapshot        EventType = 12
	TaskSetpgid         EventType = 13
	TaskGetpgid         EventType = 14
	TaskGetsid          EventType = 15
	TaskSetnice         EventType = 16
	TaskSetioprio       EventType = 17
	TaskGetioprio       EventType = 18
	TaskPrlimit         EventType = 19
	TaskSetrlimit       EventType = 20
	TaskSetscheduler    EventType = 21
	TaskGetscheduler    EventType = 22
	TaskPrctl           EventType = 23
	FileIoctl           EventType = 24
	FileIoctlCompat     EventType = 25
	FileLock            EventType = 26
	FileFcntl           EventType = 27
	FileReceive         EventType = 28
	UnixStreamConnect   EventType = 29
	UnixMaySend         EventType = 30
	SocketSocketpair    EventType = 31
	SocketSendmsg       EventType = 32
	SocketRecvmsg       EventType = 33
	SocketGetsockname   EventType = 34
	SocketGetpeername   EventType = 35
	SocketSetsockopt    EventType = 36
	SocketShutdown      EventType = 37
	PtraceTraceme       EventType = 38
	KernelModuleRequest EventType = 39
	KernelLoadData      EventType = 40
	KernelReadFile      EventType = 41
	SbMount             EventType = 42
	SbUmount            EventType = 43
	SbRemount           EventType = 44
	SbPivotroot         EventType = 45
	SbStatfs            EventType = 46
	MoveMount           EventType = 47
	ShmAssociate        EventType = 48
	ShmShmctl           EventType = 49
	ShmShmat            EventType = 50
	SemAssociate        EventType = 51
	SemSemctl           EventType = 52
	SemSemop            EventType = 53
	Syslog              EventType = 54
	Settime             EventType = 55
	Quotactl            EventType = 56
	QuotaOn             EventType = 57
	MsgQueueAssociate   EventType = 58
	MsgQueueMsgctl      EventType = 59
	MsgQueueMsgsnd      EventType = 60
	MsgQueueMsgrcv      EventType = 61
	IpcPermission       EventType = 62
	KeyAlloc            EventType = 63
	KeyPermission       EventType = 64
	NetlinkSend         EventType = 65
	InodeCreate         EventType = 66
	InodeLink           EventType = 67
	InodeUnlink         EventType = 68
	InodeSymlink        EventType = 69
	InodeMkdir          EventType = 70
	InodeRmdir          EventType = 71
	InodeMknod          EventType = 72
	InodeRename         EventType = 73
	InodeSetattr        EventType = 74
	InodeGetattr        EventType = 75
	InodeSetxattr       EventType = 76
	InodeGetxattr       EventType = 77
	InodeListxattr      EventType = 78
	InodeRemovexattr    EventType = 79
	InodeKillpriv       EventType = 80
	TunDevCreate        EventType = 81
	TunDevAttachQueue   EventType = 82
	TunDevAttach        EventType = 83
	TunDevOpen          EventType = 84
	BPF                 EventType = 85
	BPFMap              EventType = 86
	BPFProg             EventType = 87
	PtraceAccessCheck   EventType = 88
	Capable             EventType = 89
	Capget              EventType = 90
	Capset              EventType = 91
	BprmCheckSecurity   EventType = 92
	TaskFixSetuid       EventType = 93
	TaskFixSetgid       EventType = 94
	PerfEventOpen       EventType = 95
	UsernsCreate        EventType = 96
	LockedDown          EventType = 97
	UringOverrideCreds  EventType = 98
	UringSqpoll         EventType = 99
	UringCmd            EventType = 100
	FileMprotect        EventType = 101
	SockGraft           EventType = 102
	SbKernMount         EventType = 103

	// Cgroups, the first three tracepoints: the name of what Subject.CgroupID
	// numbers, and who was moved. CgroupSnapshot is one that was there before. They
	// are beyond the policy: without them the others do not say whose they are.
	CgroupMkdir      EventType = 200
	CgroupAttachTask EventType = 201
	CgroupRmdir      EventType = 202
	CgroupSnapshot   EventType = 203
)

// EventTypes lists every type that this version knows, ascending.
func EventTypes() []EventType {
	var all []EventType
	for t := range EventType(len(hooks)) {
		if t.Known() {
			all = append(all, t)
		}
	}
	return all
}

// Known reports whether this version has a layout for t.
func (t EventType) Known() bool { return int(t) < len(hooks) && hooks[t].name != "" }

func (t EventType) String() string {
	if t.Known() {
		return hooks[t].name
	}
	return fmt.Sprintf("event(%d)", uint16(t))
}

// ParseEventType finds the type of that name.
func ParseEventType(name string) (EventType, error) {
	for t, h := range hooks {
		if h.name == name && name != "" {
			return EventType(t), nil
		}
	}
	return 0, fmt.Errorf("event type %q: %w", name, ErrInvalid)
}

// Class is the ring that a record took: a flood of bulk costs no critical one.
type Class uint8

const (
	Critical Class = 1 // what becomes of tasks and of the system: execs, starts, exits, signals, mounts, modules, new ids, cgroups
	Bulk     Class = 2 // everything else
)

// Class is the ring that a type takes, and what its records say. A type that this
// version does not know is bulk: who sends it has no say in what it is worth.
func (t EventType) Class() Class {
	if t.Known() {
		return hooks[t].class
	}
	return Bulk
}

func (c Class) valid() bool { return c == Critical || c == Bulk }

func (c Class) String() string {
	switch c {
	case Critical:
		return "critical"
	case Bulk:
		return "bulk"
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// Sizes and limits of records, in bytes.
const (
	RecordHeaderSize = 32
	SubjectSize      = 128
	RecordFixed      = RecordHeaderSize + SubjectSize
	MaxRecord        = 8192

	taskSize    = 16
	fileSize    = 128
	socketSize  = 48
	addressSize = 40
	ipcSize     = 32
	credSize    = 48
	makerSize   = taskSize + 8
	argsSize    = 8 * MaxArgs
)

// MaxArgs is how many integers a record of a type with arguments has.
const MaxArgs = 8

// FlagCanary in a Header: the agent did it because a Canary asked for it. It
// is nothing that the workload did; see CanaryOf for what such a record holds.
const FlagCanary = 1

// Header is the fixed start of every record.
type Header struct {
	Length   uint32 // whole record in bytes; a multiple of 8, at most MaxRecord
	Type     EventType
	Class    Class
	CPU      uint32 // where Sequence was drawn
	Flags    uint32 // FlagCanary; the others zero
	Sequence uint64 // 1, 2, 3 … for each (CPU, Class); may arrive out of order
	BootNs   uint64 // CLOCK_BOOTTIME, ns
}

// Task names one thread for good: a pid is used again, a pid and its start are not.
type Task struct {
	PID     uint32 // thread id in the initial pid namespace
	TGID    uint32
	StartNs uint64 // start_boottime of the thread, ns since boot
}

// Subject is the task in whose context a hook ran. Ids are those of the
// initial user namespace.
type Subject struct {
	Task
	LeaderStartNs uint64 // start_boottime of the thread group's leader, ns
	ParentTGID    uint32 // real_parent
	ExecID        uint32 // self_exec_id, low 32 bits: grows with each exec, inherited by fork
	ParentStartNs uint64 // start_boottime of the real parent's leader, ns
	CgroupID      uint64 // cgroup v2
	MntNS, PidNS  uint32 // inode numbers
	UserNS, NetNS uint32
	UID, EUID     uint32
	SUID, GID     uint32
	EGID, SGID    uint32
	FSUID, FSGID  uint32
	CapEff        uint64
	Securebits    uint32
	KernelThread  bool
	Comm          [16]byte // NUL padded
}

// PathKind says from where TagPath is named.
type PathKind uint8

const (
	PathUnknown   PathKind = 0 // no path
	PathRoot      PathKind = 1 // from the root of the initial mount namespace
	PathNamespace PathKind = 2 // from the root of another mount namespace
	PathChroot    PathKind = 3 // from a root that chroot set
	PathVolume    PathKind = 4 // from the root of its file system: the hook is told no mount
	pathHighest            = PathVolume
)

// DigestState says what File.Digest is.
type DigestState uint8

const (
	DigestAbsent  DigestState = 0 // not asked for; Digest is zero
	DigestSHA256  DigestState = 1 // of the whole content
	DigestFailed  DigestState = 2 // the kernel could not; Digest is zero
	DigestNoFile  DigestState = 3 // no regular file, or a pseudo file system; Digest is zero
	digestHighest             = DigestNoFile
)

// File is an open file as the kernel holds it.
type File struct {
	Inode      uint64
	Generation uint32
	Dev        uint32 // dev_t as in the kernel: major<<20 | minor
	Flags      uint32 // f_flags
	UID, GID   uint32
	Mode       uint16
	PathKind   PathKind
	Digested   DigestState
	Magic      uint32 // s_magic
	Links      uint32 // i_nlink; 0: deleted, or never linked (memfd)
	Size       uint64
	FSID       [32]byte // s_id, NUL padded
	UUID       [16]byte // s_uuid
	Digest     [32]byte
}

// OwnerState says whether a socket's creator is known.
type OwnerState uint8

const (
	OwnerUnknown  OwnerState = 0 // made before the agent attached, or by the kernel
	OwnerLabelled OwnerState = 1 // labelled at socket_post_create
)

// Socket is a socket and who made it.
type Socket struct {
	Family, Type, Protocol uint32
	Kernel                 bool // made by the kernel for itself
	Owned                  OwnerState
	Cookie                 uint64
	Owner                  Task   // zero unless OwnerLabelled
	OwnerExecID            uint32 // the owner's ExecID at that time
}

// Address is a sockaddr. Port and Addr4 keep network order.
type Address struct {
	Family   uint16
	Length   uint16 // of the sockaddr as given, bytes
	Port     [2]byte
	Addr4    [4]byte
	FlowInfo uint32 // as in memory
	Addr6    [16]byte
	Scope    uint32
}

// Cgroup is one of the unified hierarchy (version 2). An ID is not given again
// in one boot.
type Cgroup struct {
	ID    uint64 // as in Subject.CgroupID
	Level uint32 // below the root, whose level is 0
}

// IPC is a System V object: a message queue, a set of semaphores, shared memory.
type IPC struct {
	Key, ID    uint32
	UID, GID   uint32
	CUID, CGID uint32 // of who made it
	Mode       uint16
}

// Cred is what a task may be, other than the subject: ids are those of the initial
// user namespace.
type Cred struct {
	UID, EUID, SUID, GID, EGID, SGID, FSUID, FSGID uint32
	CapEff                                         uint64
	Securebits                                     uint32
}

// Event is one record, decoded. Which fields count depends on Type; the others
// are zero. Tails alias the bytes that were parsed.
type Event struct {
	Header
	Subject

	File     File // bprm_committed_creds, file_open, mmap_file, task_snapshot; what other hooks are about
	Path     Tail // its path; the cgroup's: cgroup_mkdir, cgroup_snapshot
	Argv     Tail // bprm_committed_creds
	Filename Tail

	Argc, Envc uint32 // bprm_committed_creds
	SecureExec bool

	HasFile                 bool // mmap_file
	ReqProt, Prot, MapFlags uint32

	Socket  Socket  // socket_*, netlink_send; in socket_create without cookie and owner
	Address Address // socket_bind, socket_connect; socket_accept: the listening socket's own; sock_graft: the peer's
	RawAddr Tail    // sun_path, or a sockaddr of a family without fields of its own
	Backlog uint32  // socket_listen

	Signal       uint32 // task_kill
	Target       Task   // task_kill, task_*, ptrace_*, capget; cgroup_attach_task: who was moved
	TargetExecID uint32

	CloneFlags         uint64 // task_newtask
	Child              Task
	ChildLeaderStartNs uint64
	ChildExecID        uint32

	ExitCode  uint32 // sched_process_exit, as in wait status
	GroupDead bool   // the last thread of its group

	Cgroup      Cgroup // cgroup_mkdir, cgroup_rmdir, cgroup_snapshot; cgroup_attach_task: its id
	ThreadGroup bool   // cgroup_attach_task: with all its threads

	// The hooks beyond the first twelve. EventType.ArgNames says what Args are.
	Args    [MaxArgs]uint64
	Name    Tail   // of an attribute, a module, a device, a link's aim
	Value   Tail   // of an attribute; a file system's type; a key's description
	File2   File   // inode_link, inode_rename: where it goes; sb_pivotroot, move_mount: the second path
	Path2   Tail   // its path
	Socket2 Socket // unix_stream_connect, unix_may_send, socket_socketpair: the other end
	IPC     IPC    // shm_*, sem_*, msg_queue_*, ipc_permission

	// What agents of earlier builds do not tell. Parse has seen that they are whole.
	Cred     Tail // task_prlimit, key_alloc, key_permission: read by Creds
	Owner    Tail // of IPC: read by Maker
	Receiver Tail // msg_queue_msgrcv: read by Receives

	Unknown []byte // what follows the subject in a record of an unknown type
}
