package quixote

import (
	"encoding/base64"

	"github.com/outguard/outguard/plugins/lineage"
	"github.com/outguard/outguard/plugins/tsem"
	"github.com/outguard/outguard/vsockproto"
)

// further appends the bodies of the events that are generic to Quixote's agents:
// they have no part in a point, and are there for who reads the export.
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
		w.open("tcred")
		w.argsFrom(r, 1)
		w.close()
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
		w.open("cred")
		w.coe(&e.COE)
		w.number("flags", r.Args[4])
	case vsockproto.KeyPermission:
		w.keyPermission(e)
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
		w.owned(e)
		w.open("other")
		w.number("family", uint64(r.Socket2.Family))
		w.number("type", uint64(r.Socket2.Type))
		w.number("protocol", uint64(r.Socket2.Protocol))
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
		w.ipc(r)
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

func (w *writer) argsFrom(r *vsockproto.Event, from int) {
	for i, name := range r.Type.ArgNames() {
		if i >= from {
			w.number(name, r.Args[i])
		}
	}
}

func (w *writer) caps(r *vsockproto.Event) {
	for i, name := range r.Type.ArgNames() {
		w.based(name, "0x", r.Args[i], 16)
	}
}

func (w *writer) settime(r *vsockproto.Event) {
	if r.Args[4] != 0 {
		w.open("ts")
		w.number("seconds", r.Args[0])
		w.number("nsecs", r.Args[1])
		w.close()
	}
	if r.Args[5] != 0 {
		w.open("tz")
		w.number("minuteswest", r.Args[2])
		w.number("dsttime", r.Args[3])
		w.close()
	}
}

func (w *writer) keyPermission(e *tsem.Exported) {
	a := &e.Record.Args
	w.open("key_refs")
	w.number("possessed", a[4])
	w.number("uid", a[1])
	w.number("gid", a[2])
	w.based("flags", "0x", a[3], 16)
	w.close()
	w.open("creds")
	w.coe(&e.COE)
	w.number("perm", a[5])
}

func (w *writer) ipc(r *vsockproto.Event) {
	p := &r.IPC
	w.open("perm")
	w.number("uid", uint64(p.UID))
	w.number("gid", uint64(p.GID))
	w.number("cuid", uint64(p.CUID))
	w.number("cgid", uint64(p.CGID))
	w.based("mode", "0", uint64(p.Mode), 8)
	w.hex("owner", lineage.UnknownID[:]) // who made it is not on the wire
	w.close()
	w.args(r)
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
		w.path("mnt", e)
		w.args(r)
	case vsockproto.SbRemount:
		w.dentry("dentry", &r.File, r.Path.Data)
		w.text("fstype", r.Value.Data)
		w.args(r)
	case vsockproto.SbPivotroot:
		w.path("old_path", e)
		w.second("new_path", r)
	case vsockproto.MoveMount:
		w.path("from_path", e)
		w.second("to_path", r)
	case vsockproto.Quotactl:
		w.args(r)
		w.dentry("sb", &r.File, r.Path.Data)
	}
}

func (w *writer) path(key string, e *tsem.Exported) {
	w.open(key)
	w.text("type", []byte(e.File.PathType))
	w.text("pathname", e.File.Path)
	w.close()
}

func (w *writer) second(key string, r *vsockproto.Event) {
	w.open(key)
	w.text("pathname", r.Path2.Data)
	w.close()
}

// dentry is a name in a file system, and what it leads to.
func (w *writer) dentry(key string, f *vsockproto.File, path []byte) {
	w.open(key)
	w.open("inode")
	w.number("uid", uint64(f.UID))
	w.number("gid", uint64(f.GID))
	w.based("mode", "0", uint64(f.Mode), 8)
	w.based("s_magic", "0x", uint64(f.Magic), 16)
	w.hex("s_uuid", f.UUID[:])
	w.close()
	w.open("path")
	w.text("pathname", path)
	w.close()
	w.close()
}

// name appends the body of a hook on names in directories.
func (w *writer) name(e *tsem.Exported) {
	r := e.Record
	switch r.Type {
	case vsockproto.InodeLink, vsockproto.InodeRename:
		w.dentry("old_dentry", &r.File, r.Path.Data)
		w.dentry("new_dentry", &r.File2, r.Path2.Data)
		w.args(r)
		return
	case vsockproto.InodeGetattr:
		w.path("path", e)
		return
	}
	w.dentry("dentry", &r.File, r.Path.Data)
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
