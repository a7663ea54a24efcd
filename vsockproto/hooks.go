package vsockproto

import (
	"fmt"
	"slices"
	"strings"
)

// layout is the shape of a record's body: a few shapes carry all hooks.
type layout uint8

const (
	layoutExec    layout = 1 // file, argc, envc, secureexec
	layoutOpen    layout = 2 // file with digest
	layoutMmap    layout = 3
	layoutCreate  layout = 4 // socket_create
	layoutAddress layout = 5 // socket, address
	layoutListen  layout = 6 // socket, backlog
	layoutKill    layout = 7
	layoutNewtask layout = 8
	layoutExit    layout = 9
	layoutArgs    layout = 10 // args; tails name, value, cred
	layoutTask    layout = 11 // task, args
	layoutFile    layout = 12 // file, args; tails path, name, value
	layoutFiles   layout = 13 // file, file, args; tails path, path2
	layoutSocket  layout = 14 // socket, args
	layoutSockets layout = 15 // socket, socket; tail address: the other's own
	layoutIPC     layout = 16 // ipc, args; tails owner, receiver
	layoutCgroup  layout = 17 // id, level; tail path
	layoutRmdir   layout = 18 // id, level
	layoutAttach  layout = 19 // id, task
)

// Body sizes by layout, in bytes; tails follow.
var layoutSizes = [...]int{
	layoutExec:    fileSize + 16,
	layoutOpen:    fileSize,
	layoutMmap:    fileSize + 16,
	layoutCreate:  16,
	layoutAddress: socketSize + addressSize,
	layoutListen:  socketSize + 8,
	layoutKill:    32,
	layoutNewtask: 48,
	layoutExit:    8,
	layoutArgs:    argsSize,
	layoutTask:    taskSize + 8 + argsSize,
	layoutFile:    fileSize + argsSize,
	layoutFiles:   2*fileSize + argsSize,
	layoutSocket:  socketSize + argsSize,
	layoutSockets: 2 * socketSize,
	layoutIPC:     ipcSize + argsSize,
	layoutCgroup:  16,
	layoutRmdir:   16,
	layoutAttach:  32,
}

// hook is what is known of a type.
type hook struct {
	name   string
	class  Class
	layout layout
	args   string // names of Args, in their order
}

// hooks are all types, by their number. TSEM's event types, then others.
var hooks = [...]hook{
	BprmCommittedCreds:  {"bprm_committed_creds", Critical, layoutExec, ""},
	FileOpen:            {"file_open", Bulk, layoutOpen, ""},
	MmapFile:            {"mmap_file", Bulk, layoutMmap, ""},
	SocketCreate:        {"socket_create", Bulk, layoutCreate, ""},
	SocketBind:          {"socket_bind", Bulk, layoutAddress, ""},
	SocketConnect:       {"socket_connect", Bulk, layoutAddress, ""},
	SocketListen:        {"socket_listen", Bulk, layoutListen, ""},
	SocketAccept:        {"socket_accept", Bulk, layoutAddress, ""},
	TaskKill:            {"task_kill", Critical, layoutKill, ""},
	TaskNewtask:         {"task_newtask", Critical, layoutNewtask, ""},
	SchedProcessExit:    {"sched_process_exit", Critical, layoutExit, ""},
	TaskSnapshot:        {"task_snapshot", Critical, layoutOpen, ""},
	TaskSetpgid:         {"task_setpgid", Bulk, layoutTask, "pgid"},
	TaskGetpgid:         {"task_getpgid", Bulk, layoutTask, ""},
	TaskGetsid:          {"task_getsid", Bulk, layoutTask, ""},
	TaskSetnice:         {"task_setnice", Bulk, layoutTask, "nice"},
	TaskSetioprio:       {"task_setioprio", Bulk, layoutTask, "ioprio"},
	TaskGetioprio:       {"task_getioprio", Bulk, layoutTask, ""},
	TaskPrlimit:         {"task_prlimit", Bulk, layoutArgs, "flags uid euid suid gid egid sgid"},
	TaskSetrlimit:       {"task_setrlimit", Bulk, layoutTask, "resource current max"},
	TaskSetscheduler:    {"task_setscheduler", Bulk, layoutTask, ""},
	TaskGetscheduler:    {"task_getscheduler", Bulk, layoutTask, ""},
	TaskPrctl:           {"task_prctl", Bulk, layoutArgs, "option arg2 arg3 arg4 arg5"},
	FileIoctl:           {"file_ioctl", Bulk, layoutFile, "cmd"},
	FileIoctlCompat:     {"file_ioctl_compat", Bulk, layoutFile, "cmd"},
	FileLock:            {"file_lock", Bulk, layoutFile, "cmd"},
	FileFcntl:           {"file_fcntl", Bulk, layoutFile, "cmd"},
	FileReceive:         {"file_receive", Bulk, layoutFile, ""},
	UnixStreamConnect:   {"unix_stream_connect", Bulk, layoutSockets, ""},
	UnixMaySend:         {"unix_may_send", Bulk, layoutSockets, ""},
	SocketSocketpair:    {"socket_socketpair", Bulk, layoutSockets, ""},
	SocketSendmsg:       {"socket_sendmsg", Bulk, layoutAddress, ""},
	SocketRecvmsg:       {"socket_recvmsg", Bulk, layoutAddress, ""},
	SocketGetsockname:   {"socket_getsockname", Bulk, layoutSocket, ""},
	SocketGetpeername:   {"socket_getpeername", Bulk, layoutSocket, ""},
	SocketSetsockopt:    {"socket_setsockopt", Bulk, layoutSocket, "level optname"},
	SocketShutdown:      {"socket_shutdown", Bulk, layoutSocket, "how"},
	PtraceTraceme:       {"ptrace_traceme", Critical, layoutTask, ""},
	KernelModuleRequest: {"kernel_module_request", Critical, layoutArgs, ""},
	KernelLoadData:      {"kernel_load_data", Critical, layoutArgs, "id contents"},
	KernelReadFile:      {"kernel_read_file", Critical, layoutFile, "id contents"},
	SbMount:             {"sb_mount", Critical, layoutFile, "flags"},
	SbUmount:            {"sb_umount", Critical, layoutFile, "flags"},
	SbRemount:           {"sb_remount", Critical, layoutFile, "s_flags"},
	SbPivotroot:         {"sb_pivotroot", Critical, layoutFiles, ""},
	SbStatfs:            {"sb_statfs", Bulk, layoutFile, ""},
	MoveMount:           {"move_mount", Critical, layoutFiles, ""},
	ShmAssociate:        {"shm_associate", Bulk, layoutIPC, "shmflg"},
	ShmShmctl:           {"shm_shmctl", Bulk, layoutIPC, "cmd"},
	ShmShmat:            {"shm_shmat", Bulk, layoutIPC, "shmflg"},
	SemAssociate:        {"sem_associate", Bulk, layoutIPC, "semflg"},
	SemSemctl:           {"sem_semctl", Bulk, layoutIPC, "cmd"},
	SemSemop:            {"sem_semop", Bulk, layoutIPC, "nsops alter"},
	Syslog:              {"syslog", Bulk, layoutArgs, "type"},
	Settime:             {"settime", Critical, layoutArgs, "seconds nsecs minuteswest dsttime has_ts has_tz"},
	Quotactl:            {"quotactl", Bulk, layoutFile, "cmds type id s_flags"},
	QuotaOn:             {"quota_on", Bulk, layoutFile, ""},
	MsgQueueAssociate:   {"msg_queue_associate", Bulk, layoutIPC, "msqflg"},
	MsgQueueMsgctl:      {"msg_queue_msgctl", Bulk, layoutIPC, "cmd"},
	MsgQueueMsgsnd:      {"msg_queue_msgsnd", Bulk, layoutIPC, "msqflg"},
	MsgQueueMsgrcv:      {"msg_queue_msgrcv", Bulk, layoutIPC, "type mode"},
	IpcPermission:       {"ipc_permission", Bulk, layoutIPC, "flag"},
	KeyAlloc:            {"key_alloc", Bulk, layoutArgs, "serial uid gid perm flags"},
	KeyPermission:       {"key_permission", Bulk, layoutArgs, "serial uid gid perm possessed need_perm key_flags"},
	NetlinkSend:         {"netlink_send", Bulk, layoutSocket, "portid dst_group flags nlmsg_type uid gid nsid_set nsid"},
	InodeCreate:         {"inode_create", Bulk, layoutFile, "mode dir_uid dir_gid dir_mode"},
	InodeLink:           {"inode_link", Bulk, layoutFiles, "dir_uid dir_gid dir_mode"},
	InodeUnlink:         {"inode_unlink", Bulk, layoutFile, "dir_uid dir_gid dir_mode"},
	InodeSymlink:        {"inode_symlink", Bulk, layoutFile, "dir_uid dir_gid dir_mode"},
	InodeMkdir:          {"inode_mkdir", Bulk, layoutFile, "mode dir_uid dir_gid dir_mode"},
	InodeRmdir:          {"inode_rmdir", Bulk, layoutFile, "dir_uid dir_gid dir_mode"},
	InodeMknod:          {"inode_mknod", Bulk, layoutFile, "mode dev dir_uid dir_gid dir_mode"},
	InodeRename:         {"inode_rename", Bulk, layoutFiles, "old_dir_uid old_dir_gid old_dir_mode new_dir_uid new_dir_gid new_dir_mode"},
	InodeSetattr:        {"inode_setattr", Bulk, layoutFile, "valid mode uid gid size"},
	InodeGetattr:        {"inode_getattr", Bulk, layoutFile, ""},
	InodeSetxattr:       {"inode_setxattr", Bulk, layoutFile, "size flags"},
	InodeGetxattr:       {"inode_getxattr", Bulk, layoutFile, ""},
	InodeListxattr:      {"inode_listxattr", Bulk, layoutFile, ""},
	InodeRemovexattr:    {"inode_removexattr", Bulk, layoutFile, ""},
	InodeKillpriv:       {"inode_killpriv", Bulk, layoutFile, ""},
	TunDevCreate:        {"tun_dev_create", Bulk, layoutArgs, ""},
	TunDevAttachQueue:   {"tun_dev_attach_queue", Bulk, layoutArgs, ""},
	TunDevAttach:        {"tun_dev_attach", Bulk, layoutSocket, ""},
	TunDevOpen:          {"tun_dev_open", Bulk, layoutArgs, ""},
	BPF:                 {"bpf", Bulk, layoutArgs, "cmd size"},
	BPFMap:              {"bpf_map", Bulk, layoutArgs, "map_type fmode id"},
	BPFProg:             {"bpf_prog", Bulk, layoutArgs, "type attach_type id"},
	PtraceAccessCheck:   {"ptrace_access_check", Critical, layoutTask, "mode"},
	Capable:             {"capable", Bulk, layoutArgs, "cap opts user_ns"},
	Capget:              {"capget", Bulk, layoutTask, "effective inheritable permitted"},
	Capset:              {"capset", Critical, layoutArgs, "effective inheritable permitted"},
	BprmCheckSecurity:   {"bprm_check_security", Critical, layoutFile, "secure_exec"},
	TaskFixSetuid:       {"task_fix_setuid", Critical, layoutArgs, "flags uid euid suid fsuid"},
	TaskFixSetgid:       {"task_fix_setgid", Critical, layoutArgs, "flags gid egid sgid fsgid"},
	PerfEventOpen:       {"perf_event_open", Bulk, layoutArgs, "type"},
	UsernsCreate:        {"userns_create", Critical, layoutArgs, ""},
	LockedDown:          {"locked_down", Critical, layoutArgs, "what"},
	UringOverrideCreds:  {"uring_override_creds", Bulk, layoutArgs, "uid euid suid fsuid gid egid sgid fsgid"},
	UringSqpoll:         {"uring_sqpoll", Bulk, layoutArgs, ""},
	UringCmd:            {"uring_cmd", Bulk, layoutFile, "cmd_op"},
	FileMprotect:        {"file_mprotect", Bulk, layoutFile, "reqprot prot old_prot"},
	SockGraft:           {"sock_graft", Bulk, layoutAddress, ""},
	SbKernMount:         {"sb_kern_mount", Critical, layoutFile, "s_flags has_device"},
	CgroupMkdir:         {"cgroup_mkdir", Critical, layoutCgroup, ""},
	CgroupAttachTask:    {"cgroup_attach_task", Critical, layoutAttach, ""},
	CgroupRmdir:         {"cgroup_rmdir", Critical, layoutRmdir, ""},
	CgroupSnapshot:      {"cgroup_snapshot", Critical, layoutCgroup, ""},
}

// What records of a type have, by its number, for the parser.
var (
	layouts  [len(hooks)]layout
	bodySize [len(hooks)]int
	argNames [len(hooks)][]string
	tagsOf   [len(hooks)]tagSet
)

func init() {
	for t, h := range hooks[1:] {
		t++
		layouts[t], bodySize[t] = h.layout, layoutSizes[h.layout]
		argNames[t], tagsOf[t] = strings.Fields(h.args), layoutTags[h.layout]
	}
	for _, t := range [...]EventType{TaskPrlimit, KeyAlloc, KeyPermission} {
		tagsOf[t] |= tags(TagCred)
	}
	tagsOf[MsgQueueMsgrcv] |= tags(TagReceiver)
}

// tagSet is a set of tags of records, which are all below 64.
type tagSet uint64

func tags(all ...Tag) (s tagSet) {
	for _, t := range all {
		s |= 1 << t
	}
	return s
}

func (s tagSet) has(t Tag) bool { return s&(1<<t) != 0 }

// layoutTags are the tails that the records of a layout may have.
var layoutTags = [...]tagSet{
	layoutIPC:     tags(TagOwner),
	layoutExec:    tags(TagPath, TagArgv, TagFilename),
	layoutOpen:    tags(TagPath),
	layoutMmap:    tags(TagPath),
	layoutAddress: tags(TagAddress),
	layoutArgs:    tags(TagName, TagValue),
	layoutFile:    tags(TagPath, TagName, TagValue),
	layoutFiles:   tags(TagPath, TagPath2),
	layoutSockets: tags(TagAddress),
	layoutCgroup:  tags(TagPath),
	layoutAttach:  0,
}

// ArgNames says what the first of Event.Args are in a record of this type, at
// most MaxArgs names; what follows them is zero.
func (t EventType) ArgNames() []string {
	if !t.Known() {
		return nil
	}
	return argNames[t]
}

// Profiles of hooks, each a list of types, ascending.
const (
	MinimalProfile = "minimal"   // programs: what runs, and who started it
	DefaultProfile = "default"   // and files opened and mapped, sockets, signals, new file systems
	TSEMProfile    = "tsem-full" // and every event type of TSEM
	EveryProfile   = "everything"
)

// ProfileNames lists the profiles, from the smallest on.
func ProfileNames() []string {
	return []string{MinimalProfile, DefaultProfile, TSEMProfile, EveryProfile}
}

// ParseProfile returns the types of a profile.
func ParseProfile(name string) ([]EventType, error) {
	switch name {
	case MinimalProfile:
		return []EventType{BprmCommittedCreds, TaskKill, TaskNewtask, SchedProcessExit, TaskSnapshot}, nil
	case DefaultProfile:
		return DefaultTypes(), nil
	case TSEMProfile:
		return append(upTo(Capset), SbKernMount), nil
	case EveryProfile:
		return PolicyTypes(), nil
	}
	return nil, fmt.Errorf("profile %q is none of %s: %w", name, strings.Join(ProfileNames(), ", "), ErrInvalid)
}

// PolicyTypes are the types that a policy may ask for.
func PolicyTypes() []EventType { return upTo(SbKernMount) }

func upTo(last EventType) []EventType { return slices.Clip(EventTypes()[:last]) }

// StartTypes are what an agent reports until the host has said otherwise.
func StartTypes() []EventType { return upTo(TaskSnapshot) }

// DefaultTypes are those of DefaultProfile.
func DefaultTypes() []EventType { return append(StartTypes(), SbKernMount) }

// BookTypes are the types whose hooks an agent keeps attached whatever the policy
// asks for: its proofs of what ran stand on them, and on cgroups whose each record
// is. Their records are sent only where the policy asks for them, but cgroups'.
func BookTypes() []EventType {
	return []EventType{
		BprmCommittedCreds, FileOpen, TaskNewtask, TaskSnapshot,
		CgroupMkdir, CgroupAttachTask, CgroupRmdir, CgroupSnapshot,
	}
}

// Parts say what records of a type hold beside subject and args, as a set.
type Parts uint16

const (
	PartFile    Parts = 1 << 0 // File, Path
	PartFile2   Parts = 1 << 1 // File2, Path2
	PartSocket  Parts = 1 << 2 // Socket
	PartSocket2 Parts = 1 << 3 // Socket2
	PartAddress Parts = 1 << 4 // Address, RawAddr
	PartTarget  Parts = 1 << 5 // Target, TargetExecID
	PartIPC     Parts = 1 << 6
	PartName    Parts = 1 << 7 // Name, Value
)

var layoutParts = [...]Parts{
	layoutExec:    PartFile,
	layoutOpen:    PartFile,
	layoutMmap:    PartFile,
	layoutAddress: PartSocket | PartAddress,
	layoutListen:  PartSocket,
	layoutKill:    PartTarget,
	layoutArgs:    PartName,
	layoutTask:    PartTarget,
	layoutFile:    PartFile | PartName,
	layoutFiles:   PartFile | PartFile2,
	layoutSocket:  PartSocket,
	layoutSockets: PartSocket | PartSocket2 | PartAddress, // RawAddr alone
	layoutIPC:     PartIPC,
	layoutAttach:  0,
}

// Has reports whether records of this type hold that part.
func (t EventType) Has(p Parts) bool { return t.Known() && layoutParts[layouts[t]]&p != 0 }
