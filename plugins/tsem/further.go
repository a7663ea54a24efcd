package tsem

import (
	"bytes"

	"github.com/outguard/outguard/vsockproto"
)

// unsaid are the arguments that have no part in a point of the full mapping, for
// the reasons that docs/TSEM-FULL.md gives.
var unsaid = map[string]bool{
	"pgid": true, "arg2": true, "arg3": true, "arg4": true, "arg5": true, // see prctlValue
	"user_ns": true, // see appendFurther
	"serial":  true, "portid": true, "id": true,
	"seconds": true, "nsecs": true,
	"size": true, "reqprot": true,
}

// counted tells of each type's arguments whether they count, by their place.
var counted = func() (all [int(vsockproto.SbKernMount) + 1][vsockproto.MaxArgs]bool) {
	for t := range all {
		for i, name := range vsockproto.EventType(t).ArgNames() {
			all[t][i] = !unsaid[name]
		}
	}
	// What is not always the kernel's or a clock's.
	say := func(t vsockproto.EventType, name string, does bool) {
		for i, n := range t.ArgNames() {
			if n == name {
				all[t][i] = does
			}
		}
	}
	say(vsockproto.BPF, "size", true)
	say(vsockproto.KernelLoadData, "id", true)
	say(vsockproto.KernelReadFile, "id", true)
	say(vsockproto.Quotactl, "id", true)
	say(vsockproto.MsgQueueMsgrcv, "type", false)
	// What the wire has gained since: version 1 of the mapping does not know it.
	say(vsockproto.KeyPermission, "key_flags", false)
	say(vsockproto.Quotactl, "s_flags", false)
	for _, name := range [...]string{"uid", "gid", "nsid_set", "nsid"} {
		say(vsockproto.NetlinkSend, name, false)
	}
	return all
}()

// Options of prctl whose second argument, or third as well, is a value and no
// address or task.
func prctlValues(option uint64) int {
	switch option {
	case 1, 4, 8, 22, 24, 28, 38: // PDEATHSIG, DUMPABLE, KEEPCAPS, SECCOMP, CAPBSET_DROP, SECUREBITS, NO_NEW_PRIVS
		return 1
	case 47: // CAP_AMBIENT
		return 2
	}
	return 0
}

// appendFurther appends what a record beyond the first twelve types is about,
// part by part, in this order, and then its arguments.
func (m *fullMapper) appendFurther(b []byte, r *vsockproto.Event, v *ids, model *Model) []byte {
	t := r.Type
	if t.Has(vsockproto.PartTarget) {
		b = append(append(b, v.other[:]...), boolByte(r.Target.TGID == r.TGID))
	}
	if t.Has(vsockproto.PartFile) {
		has := r.File != (vsockproto.File{})
		if b = append(b, boolByte(has)); has {
			b = m.appendFile(b, r, model)
		}
	}
	if t.Has(vsockproto.PartFile2) {
		b = m.appendFileAt(b, r, &r.File2, &r.Path2, model)
	}
	if t.Has(vsockproto.PartSocket) {
		b = appendFullSocket(b, &r.Socket, &v.other)
	}
	switch {
	case t.Has(vsockproto.PartSocket2):
		b = appendFullSocket(b, &r.Socket2, &v.other2)
		b = appendUnix(append(b, byte(r.RawAddr.Flags)), r.RawAddr.Data)
	case t.Has(vsockproto.PartAddress):
		b = appendFullAddress(b, r)
	}
	if t.Has(vsockproto.PartIPC) {
		p := &r.IPC
		b = le.AppendUint32(le.AppendUint32(b, p.UID), p.GID)
		b = le.AppendUint32(le.AppendUint32(b, p.CUID), p.CGID)
		b = le.AppendUint16(b, p.Mode)
	}
	b = appendArgs(b, r)
	if t.Has(vsockproto.PartName) {
		b = appendNamed(b, r)
	}
	return b
}

func appendArgs(b []byte, r *vsockproto.Event) []byte {
	for i, does := range counted[r.Type] {
		if does {
			b = le.AppendUint64(b, r.Args[i])
		}
	}
	switch r.Type {
	case vsockproto.TaskPrctl:
		for i := range prctlValues(r.Args[0]) {
			b = le.AppendUint64(b, r.Args[1+i])
		}
	case vsockproto.Capable:
		b = append(b, boolByte(uint32(r.Args[2]) != initialUserNS))
	}
	return b
}

// appendNamed appends a record's name, and its value where that is no data.
func appendNamed(b []byte, r *vsockproto.Event) []byte {
	b = appendString(append(b, byte(r.Name.Flags)), stableName(r.Name.Data))
	if r.Type == vsockproto.InodeSetxattr && !bytes.HasPrefix(r.Name.Data, []byte("security.")) && !bytes.HasPrefix(r.Name.Data, []byte("system.")) {
		return b
	}
	return appendString(append(b, byte(r.Value.Flags)), r.Value.Data)
}
