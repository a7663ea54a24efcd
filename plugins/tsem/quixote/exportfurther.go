package quixote

import (
	"encoding/base64"
	"strings"

	"github.com/outguard/outguard/plugins/tsem"
	"github.com/outguard/outguard/vsockproto"
)

// further appends the bodies of the events that are generic to Quixote's agents:
// they have no part in a point, and are there for who reads the export. What a record
// does not tell is left out, and nothing stands for it.
// Source: SPEC section 6.1.
func (w *writer) further(e *tsem.Exported) {
	r := e.Record
	switch r.Type {
	case vsockproto.TaskSetpgid:
		w.hex("task", e.Kill.Target[:])
		w.hex("source", e.TaskID)
	case vsockproto.PtraceTraceme:
		w.hex("source", e.Kill.Target[:])
	case vsockproto.PtraceAccessCheck:
		w.hex("child", e.Kill.Target[:])
		w.args(r)
	case vsockproto.TaskSetrlimit:
		w.hex("task", e.Kill.Target[:])
		w.open("new_rlim")
		w.args(r)
		w.close()
	case vsockproto.Capget:
		w.hex("target", e.Kill.Target[:])
		w.caps(r)
	case vsockproto.Capset:
		w.caps(r)
	case vsockproto.TaskPrlimit:
		w.open("cred")
		w.coe(&e.COE)
		w.prlimit(r)
	case vsockproto.KernelModuleRequest:
		w.text("kmod_name", r.Name.Data)
	case vsockproto.Settime:
		w.settime(r)
	case vsockproto.BPF:
		w.number("cmd", r.Args[0])
		w.open("attr")
		w.argsFrom(r, 1)
		w.close()
	case vsockproto.BPFMap:
		w.open("map")
		w.args(r)
		w.close()
	case vsockproto.BPFProg:
		w.open("prog")
		w.args(r)
		w.close()
	case vsockproto.KeyAlloc:
		w.cred("cred", r)
		w.number("flags", r.Args[4])
	case vsockproto.KeyPermission:
		w.keyPermission(r)
	case vsockproto.NetlinkSend:
		w.owned(e)
		w.netlink(r)
	case vsockproto.SbMount, vsockproto.SbUmount, vsockproto.SbRemount, vsockproto.SbPivotroot, vsockproto.MoveMount, vsockproto.Quotactl:
		w.mount(e)
	default:
		w.parts(e)
	}
}

// parts appends what a record holds, part by part.
func (w *writer) parts(e *tsem.Exported) {
	r, t := e.Record, e.Record.Type
	switch {
	case t.Has(vsockproto.PartTarget):
		w.hex("task", e.Kill.Target[:])
		w.args(r)
	case t.Has(vsockproto.PartSocket2):
		keys := [2]string{"sock", "other"}
		if t == vsockproto.SocketSocketpair {
			keys = [2]string{"socka", "sockb"}
		}
		w.ownedAs(keys[0], e)
		w.open(keys[1])
		w.number("family", uint64(r.Socket2.Family))
		w.number("type", uint64(r.Socket2.Type))
		w.number("protocol", uint64(r.Socket2.Protocol))
		w.hex("owner", e.Other[:])
		w.close()
	case t.Has(vsockproto.PartAddress):
		w.owned(e)
		if r.Address.Family != 0 || len(r.RawAddr.Data) > 0 {
			w.address(e)
		}
	case t.Has(vsockproto.PartSocket):
		w.owned(e)
		w.args(r)
	case t.Has(vsockproto.PartIPC):
		w.ipc(e)
	case t >= vsockproto.FileIoctl && t <= vsockproto.FileReceive || t == vsockproto.KernelReadFile:
		w.file(e)
		w.args(r)
	case t.Has(vsockproto.PartFile):
		w.name(e)
	default:
		w.args(r)
	}
}

func (w *writer) args(r *vsockproto.Event) { w.argsFrom(r, 0) }

// argsFrom appends the arguments of a record, but for what stands elsewhere in the
// body: what the directory is, how long a value, and what the file system's flags.
func (w *writer) argsFrom(r *vsockproto.Event, from int) {
	for i, name := range r.Type.ArgNames() {
		switch {
		case i < from || strings.Contains(name, "dir_"):
		case r.Type == vsockproto.InodeSetxattr && name == "size":
		case r.Type == vsockproto.Quotactl && name == "s_flags":
		case r.Type == vsockproto.InodeMknod && name == "dev":
			w.dev(r.Args[i])
		case name == "mode" && r.Type.Has(vsockproto.PartFile):
			w.based(name, "0", r.Args[i], 8)
		case mayBeNegative(r.Type, name):
			w.signed(name, r.Args[i])
		default:
			w.number(name, r.Args[i])
		}
	}
}

// mayBeNegative reports an argument that the kernel has as an int, and not for bits or
// for an address.
func mayBeNegative(t vsockproto.EventType, name string) bool {
	switch name {
	case "nice", "ioprio", "option", "level", "optname", "how", "cmds":
		return true
	case "type", "id":
		return t == vsockproto.Quotactl || t == vsockproto.Syslog
	}
	return false
}

func (w *writer) caps(r *vsockproto.Event) {
	for i, name := range r.Type.ArgNames() {
		w.based(name, "0x", r.Args[i], 16)
	}
}

// cred is left out where the agent is of a build that does not tell it.
func (w *writer) cred(key string, r *vsockproto.Event) (told bool) {
	c, told := r.Creds()
	if told {
		w.open(key)
		w.coe(&tsem.COE{
			UID: c.UID, EUID: c.EUID, SUID: c.SUID, GID: c.GID, EGID: c.EGID, SGID: c.SGID, FSUID: c.FSUID, FSGID: c.FSGID, CapEff: c.CapEff,
		})
	}
	return told
}

// prlimit appends whose limits they are; an agent of an earlier build tells six ids of
// the eight.
func (w *writer) prlimit(r *vsockproto.Event) {
	if !w.cred("tcred", r) {
		w.open("tcred")
		w.argsFrom(r, 1)
		w.close()
	}
	w.number("flags", r.Args[0])
}

// settime appends what was given. Seconds and nanoseconds are of 64 bits, and either
// may be below zero.
func (w *writer) settime(r *vsockproto.Event) {
	if r.Args[4] != 0 {
		w.open("ts")
		w.long("seconds", r.Args[0])
		w.long("nsecs", r.Args[1])
		w.close()
	}
	if r.Args[5] != 0 {
		w.open("tz")
		w.signed("minuteswest", r.Args[2])
		w.signed("dsttime", r.Args[3])
		w.close()
	}
}

// keyPermission appends the key, who asks for it and what for. What the key's flags
// are an agent of an earlier build tells no more than the credentials.
func (w *writer) keyPermission(r *vsockproto.Event) {
	_, told := r.Creds()
	w.open("key_refs")
	w.number("possessed", r.Args[4])
	w.number("uid", r.Args[1])
	w.number("gid", r.Args[2])
	if told {
		w.number("flags", r.Args[6])
	}
	w.close()
	w.cred("creds", r)
	w.number("perm", r.Args[5])
}

// noNSID is what stands for a network namespace's number where there is none.
const noNSID = 1<<32 - 1

// netlink appends whom a message is for and from. An agent of an earlier build says
// nothing of the latter: all of it is zero then, which it never is where it is told.
func (w *writer) netlink(r *vsockproto.Event) {
	a := &r.Args
	told := a[6] != 0 || a[7] == noNSID
	if told {
		w.number("uid", a[4])
		w.number("gid", a[5])
	}
	w.number("portid", a[0])
	w.number("dst_group", a[1])
	w.number("flags", a[2])
	if told {
		w.number("nsid_set", a[6])
		w.signed("nsid", a[7]*a[6]) // the kernel's is 0 where it is not set
	}
	w.number("nlmsg_type", a[3])
}

func (w *writer) ipc(e *tsem.Exported) {
	p := &e.Record.IPC
	w.open("perm")
	w.number("uid", uint64(p.UID))
	w.number("gid", uint64(p.GID))
	w.number("cuid", uint64(p.CUID))
	w.number("cgid", uint64(p.CGID))
	w.based("mode", "0", uint64(p.Mode), 8)
	w.hex("owner", e.Maker[:])
	w.close()
	if e.Record.Type == vsockproto.MsgQueueMsgrcv {
		w.hex("target", e.Receiver[:])
		w.long("type", e.Record.Args[0])
		w.argsFrom(e.Record, 1)
		return
	}
	w.args(e.Record)
}

func (w *writer) mount(e *tsem.Exported) {
	r := e.Record
	switch r.Type {
	case vsockproto.SbMount:
		w.text("dev_name", r.Name.Data)
		w.path("path", e)
		w.text("type", r.Value.Data)
		w.args(r)
	case vsockproto.SbUmount:
		w.dentry("mnt", &r.File, &r.Path)
		w.args(r)
	case vsockproto.SbRemount:
		w.open("sb")
		w.dentry("dentry", &r.File, &r.Path)
		w.text("fstype", r.Value.Data)
		w.args(r)
		w.close()
	case vsockproto.SbPivotroot:
		w.path("old_path", e)
		w.second("new_path", r)
	case vsockproto.MoveMount:
		w.path("from_path", e)
		w.second("to_path", r)
	case vsockproto.Quotactl:
		w.args(r)
		if r.File != (vsockproto.File{}) { // else it is about all file systems
			w.open("sb")
			w.dentry("dentry", &r.File, &r.Path)
			if len(r.Value.Data) > 0 {
				w.text("fstype", r.Value.Data)
				w.number("s_flags", r.Args[3])
			}
			w.close()
		}
	}
}

func (w *writer) path(key string, e *tsem.Exported) {
	w.pathOf(key, &e.Record.File, e.File.PathType, e.File.Path)
}

func (w *writer) second(key string, r *vsockproto.Event) {
	w.pathOf(key, &r.File2, tsem.PathType(&r.File2, &r.Path2), r.Path2.Data)
}

func (w *writer) pathOf(key string, f *vsockproto.File, kind string, path []byte) {
	w.open(key)
	if f.Dev != 0 {
		w.dev(uint64(f.Dev))
	}
	w.text("type", []byte(kind))
	w.text("pathname", path)
	w.close()
}

// dentry is a name in a file system, and what it leads to, if it leads anywhere.
func (w *writer) dentry(key string, f *vsockproto.File, path *vsockproto.Tail) {
	w.open(key)
	if f.Mode != 0 {
		w.open("inode")
		w.inode(uint64(f.UID), uint64(f.GID), uint64(f.Mode), f, f.FSID[:])
		w.close()
	}
	w.pathOf("path", f, tsem.PathType(f, path), path.Data)
	w.close()
}

// dir is the directory of a name, of which uid, gid and mode are arguments. It is on
// the file system of what the name leads to.
func (w *writer) dir(key string, args []uint64, f *vsockproto.File) {
	w.open(key)
	w.inode(args[0], args[1], args[2], f, f.FSID[:])
	w.close()
}

// name appends the body of a hook on names in directories.
func (w *writer) name(e *tsem.Exported) {
	r := e.Record
	switch r.Type {
	case vsockproto.InodeCreate, vsockproto.InodeMkdir:
		w.dir("dir", r.Args[1:], &r.File)
	case vsockproto.InodeUnlink, vsockproto.InodeRmdir, vsockproto.InodeSymlink:
		w.dir("dir", r.Args[:], &r.File)
	case vsockproto.InodeMknod:
		w.dir("dir", r.Args[2:], &r.File)
	case vsockproto.InodeLink:
		w.dentry("old_dentry", &r.File, &r.Path)
		w.dir("dir", r.Args[:], &r.File2)
		w.dentry("new_dentry", &r.File2, &r.Path2)
		return
	case vsockproto.InodeRename:
		w.dir("old_dir", r.Args[:], &r.File)
		w.dentry("old_dentry", &r.File, &r.Path)
		w.dir("new_dir", r.Args[3:], &r.File2)
		w.dentry("new_dentry", &r.File2, &r.Path2)
		return
	case vsockproto.InodeGetattr:
		w.path("path", e)
		return
	}
	w.dentry("dentry", &r.File, &r.Path)
	switch r.Type {
	case vsockproto.InodeSymlink:
		w.text("old_name", r.Name.Data)
	case vsockproto.InodeSetxattr:
		w.text("name", r.Name.Data)
		w.text("value", []byte(base64.StdEncoding.EncodeToString(r.Value.Data)))
	case vsockproto.InodeGetxattr, vsockproto.InodeRemovexattr:
		w.text("name", r.Name.Data)
	case vsockproto.InodeSetattr:
		w.open("attr")
		w.args(r)
		w.close()
		return
	}
	w.args(r)
}
