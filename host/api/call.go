package api

import (
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/vsockproto"
)

// further says what a record beyond the first twelve types holds. What stands
// for nothing, such as a file that is not there, is left out.
func further(out *apipb.Event, e *vsockproto.Event) {
	call := &apipb.Call{Name: safe.Quote(e.Name.Data), Value: safe.Quote(e.Value.Data)}
	for i, name := range e.Type.ArgNames() {
		call.Args = append(call.Args, &apipb.Arg{Name: name, Value: e.Args[i]})
	}
	if e.File != (vsockproto.File{}) {
		out.File = fileOf(e)
	}
	if e.File2 != (vsockproto.File{}) {
		call.File = fileAt(&e.File2, e.Path2)
	}
	if e.Type.Has(vsockproto.PartSocket) {
		out.Socket = socketOf(e)
	}
	switch {
	case e.Type.Has(vsockproto.PartSocket2) && len(e.RawAddr.Data) > 0:
		out.Address = &apipb.Address{
			Family: afUnix, Text: safe.Quote(unixPath(e)), Truncated: e.RawAddr.Flags&vsockproto.TailTruncated != 0,
		}
	case e.Address.Family != 0 || len(e.RawAddr.Data) > 0:
		out.Address = addressOf(e)
	}
	if e.Socket2 != (vsockproto.Socket{}) {
		call.Socket = socketAt(e, &e.Socket2)
	}
	if e.Target != (vsockproto.Task{}) {
		call.Target, call.TargetExecId = taskOf(e.Target), e.TargetExecID
	}
	if task, execID, is := e.Receives(); is {
		call.Target, call.TargetExecId = taskOf(task), execID
	}
	if c, is := e.Creds(); is {
		call.Cred = &apipb.Cred{
			Uid: c.UID, Euid: c.EUID, Suid: c.SUID, Gid: c.GID, Egid: c.EGID, Sgid: c.SGID, Fsuid: c.FSUID, Fsgid: c.FSGID,
			CapEff: hex16(c.CapEff), Securebits: c.Securebits,
		}
	}
	if p := &e.IPC; *p != (vsockproto.IPC{}) {
		call.Ipc = &apipb.Ipc{Key: p.Key, Id: p.ID, Uid: p.UID, Gid: p.GID, Cuid: p.CUID, Cgid: p.CGID, Mode: uint32(p.Mode)}
		if task, execID, is := e.Maker(); is {
			call.Ipc.Owner, call.Ipc.OwnerExecId = taskOf(task), execID
		}
	}
	out.Call = call
}
