// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/outguard/outguard/vsockproto"
)

// field sets one field of an event to all ones, or a flag to true.
type field struct {
	name string // in the C struct
	set  func(e *vsockproto.Event)
}

const (
	ones16 = math.MaxUint16
	ones32 = math.MaxUint32
	ones64 = math.MaxUint64
)

func fill(b []byte) {
	for i := range b {
		b[i] = 0xff
	}
}

var everyRecord = []field{
	{"header.type", nil}, // TestHeader has what cannot be varied
	{"header.version", nil},
	{"header.class", func(e *vsockproto.Event) { e.Class = 0xff }},
	{"header.cpu", func(e *vsockproto.Event) { e.CPU = ones32 }},
	{"header.flags", func(e *vsockproto.Event) { e.Header.Flags = ones32 }},
	{"header.length", nil},
	{"header.sequence", func(e *vsockproto.Event) { e.Sequence = ones64 }},
	{"header.boot_ns", func(e *vsockproto.Event) { e.BootNs = ones64 }},
	{"subject.task.pid", func(e *vsockproto.Event) { e.PID = ones32 }},
	{"subject.task.tgid", func(e *vsockproto.Event) { e.TGID = ones32 }},
	{"subject.task.start_ns", func(e *vsockproto.Event) { e.StartNs = ones64 }},
	{"subject.leader_start_ns", func(e *vsockproto.Event) { e.LeaderStartNs = ones64 }},
	{"subject.parent_tgid", func(e *vsockproto.Event) { e.ParentTGID = ones32 }},
	{"subject.exec_id", func(e *vsockproto.Event) { e.ExecID = ones32 }},
	{"subject.parent_start_ns", func(e *vsockproto.Event) { e.ParentStartNs = ones64 }},
	{"subject.cgroup_id", func(e *vsockproto.Event) { e.CgroupID = ones64 }},
	{"subject.mnt_ns", func(e *vsockproto.Event) { e.MntNS = ones32 }},
	{"subject.pid_ns", func(e *vsockproto.Event) { e.PidNS = ones32 }},
	{"subject.user_ns", func(e *vsockproto.Event) { e.UserNS = ones32 }},
	{"subject.net_ns", func(e *vsockproto.Event) { e.NetNS = ones32 }},
	{"subject.uid", func(e *vsockproto.Event) { e.Subject.UID = ones32 }},
	{"subject.euid", func(e *vsockproto.Event) { e.EUID = ones32 }},
	{"subject.suid", func(e *vsockproto.Event) { e.SUID = ones32 }},
	{"subject.gid", func(e *vsockproto.Event) { e.Subject.GID = ones32 }},
	{"subject.egid", func(e *vsockproto.Event) { e.EGID = ones32 }},
	{"subject.sgid", func(e *vsockproto.Event) { e.SGID = ones32 }},
	{"subject.fsuid", func(e *vsockproto.Event) { e.FSUID = ones32 }},
	{"subject.fsgid", func(e *vsockproto.Event) { e.FSGID = ones32 }},
	{"subject.cap_eff", func(e *vsockproto.Event) { e.CapEff = ones64 }},
	{"subject.securebits", func(e *vsockproto.Event) { e.Securebits = ones32 }},
	{"subject.kernel_thread", func(e *vsockproto.Event) { e.KernelThread = true }},
	{"subject.comm", func(e *vsockproto.Event) { fill(e.Comm[:]) }},
}

var fileFields = []field{
	{"file.inode", func(e *vsockproto.Event) { e.File.Inode = ones64 }},
	{"file.generation", func(e *vsockproto.Event) { e.File.Generation = ones32 }},
	{"file.dev", func(e *vsockproto.Event) { e.File.Dev = ones32 }},
	{"file.flags", func(e *vsockproto.Event) { e.File.Flags = ones32 }},
	{"file.uid", func(e *vsockproto.Event) { e.File.UID = ones32 }},
	{"file.gid", func(e *vsockproto.Event) { e.File.GID = ones32 }},
	{"file.mode", func(e *vsockproto.Event) { e.File.Mode = ones16 }},
	{"file.path_kind", func(e *vsockproto.Event) { e.File.PathKind = 0xff }},
	{"file.digested", func(e *vsockproto.Event) { e.File.Digested = 0xff }},
	{"file.magic", func(e *vsockproto.Event) { e.File.Magic = ones32 }},
	{"file.links", func(e *vsockproto.Event) { e.File.Links = ones32 }},
	{"file.size", func(e *vsockproto.Event) { e.File.Size = ones64 }},
	{"file.fsid", func(e *vsockproto.Event) { fill(e.File.FSID[:]) }},
	{"file.uuid", func(e *vsockproto.Event) { fill(e.File.UUID[:]) }},
	{"file.digest", func(e *vsockproto.Event) { fill(e.File.Digest[:]) }},
}

var socketFields = []field{
	{"socket.family", func(e *vsockproto.Event) { e.Socket.Family = ones32 }},
	{"socket.type", func(e *vsockproto.Event) { e.Socket.Type = ones32 }},
	{"socket.protocol", func(e *vsockproto.Event) { e.Socket.Protocol = ones32 }},
	{"socket.kernel", func(e *vsockproto.Event) { e.Socket.Kernel = true }},
	{"socket.owned", func(e *vsockproto.Event) { e.Socket.Owned = 0xff }},
	{"socket.cookie", func(e *vsockproto.Event) { e.Socket.Cookie = ones64 }},
	{"socket.owner.pid", func(e *vsockproto.Event) { e.Socket.Owner.PID = ones32 }},
	{"socket.owner.tgid", func(e *vsockproto.Event) { e.Socket.Owner.TGID = ones32 }},
	{"socket.owner.start_ns", func(e *vsockproto.Event) { e.Socket.Owner.StartNs = ones64 }},
	{"socket.owner_exec_id", func(e *vsockproto.Event) { e.Socket.OwnerExecID = ones32 }},
}

var addressFields = []field{
	{"address.family", func(e *vsockproto.Event) { e.Address.Family = ones16 }},
	{"address.length", func(e *vsockproto.Event) { e.Address.Length = ones16 }},
	{"address.port", func(e *vsockproto.Event) { fill(e.Address.Port[:]) }},
	{"address.addr4", func(e *vsockproto.Event) { fill(e.Address.Addr4[:]) }},
	{"address.flow_info", func(e *vsockproto.Event) { e.Address.FlowInfo = ones32 }},
	{"address.addr6", func(e *vsockproto.Event) { fill(e.Address.Addr6[:]) }},
	{"address.scope", func(e *vsockproto.Event) { e.Address.Scope = ones32 }},
}

var cgroupFields = []field{
	{"id", func(e *vsockproto.Event) { e.Cgroup.ID = ones64 }},
	{"level", func(e *vsockproto.Event) { e.Cgroup.Level = ones32 }},
}

var bodies = map[vsockproto.EventType][]field{
	vsockproto.BprmCommittedCreds: append([]field{
		{"argc", func(e *vsockproto.Event) { e.Argc = ones32 }},
		{"envc", func(e *vsockproto.Event) { e.Envc = ones32 }},
		{"secure_exec", func(e *vsockproto.Event) { e.SecureExec = true }},
	}, fileFields...),
	vsockproto.FileOpen:     fileFields,
	vsockproto.TaskSnapshot: fileFields,
	vsockproto.MmapFile: append([]field{
		{"req_prot", func(e *vsockproto.Event) { e.ReqProt = ones32 }},
		{"prot", func(e *vsockproto.Event) { e.Prot = ones32 }},
		{"map_flags", func(e *vsockproto.Event) { e.MapFlags = ones32 }},
		{"has_file", func(e *vsockproto.Event) { e.HasFile = true }},
	}, fileFields...),
	vsockproto.SocketCreate: {
		{"family", func(e *vsockproto.Event) { e.Socket.Family = ones32 }},
		{"type", func(e *vsockproto.Event) { e.Socket.Type = ones32 }},
		{"protocol", func(e *vsockproto.Event) { e.Socket.Protocol = ones32 }},
		{"kernel", func(e *vsockproto.Event) { e.Socket.Kernel = true }},
	},
	vsockproto.SocketBind:    append(addressFields[:len(addressFields):len(addressFields)], socketFields...),
	vsockproto.SocketConnect: append(addressFields[:len(addressFields):len(addressFields)], socketFields...),
	vsockproto.SocketAccept:  append(addressFields[:len(addressFields):len(addressFields)], socketFields...),
	vsockproto.SocketListen: append([]field{
		{"backlog", func(e *vsockproto.Event) { e.Backlog = ones32 }},
	}, socketFields...),
	vsockproto.TaskKill: {
		{"target.pid", func(e *vsockproto.Event) { e.Target.PID = ones32 }},
		{"target.tgid", func(e *vsockproto.Event) { e.Target.TGID = ones32 }},
		{"target.start_ns", func(e *vsockproto.Event) { e.Target.StartNs = ones64 }},
		{"target_exec_id", func(e *vsockproto.Event) { e.TargetExecID = ones32 }},
		{"signal", func(e *vsockproto.Event) { e.Signal = ones32 }},
	},
	vsockproto.TaskNewtask: {
		{"child.pid", func(e *vsockproto.Event) { e.Child.PID = ones32 }},
		{"child.tgid", func(e *vsockproto.Event) { e.Child.TGID = ones32 }},
		{"child.start_ns", func(e *vsockproto.Event) { e.Child.StartNs = ones64 }},
		{"child_leader_start_ns", func(e *vsockproto.Event) { e.ChildLeaderStartNs = ones64 }},
		{"child_exec_id", func(e *vsockproto.Event) { e.ChildExecID = ones32 }},
		{"clone_flags", func(e *vsockproto.Event) { e.CloneFlags = ones64 }},
	},
	vsockproto.CgroupMkdir: cgroupFields, vsockproto.CgroupRmdir: cgroupFields, vsockproto.CgroupSnapshot: cgroupFields,
	vsockproto.CgroupAttachTask: {
		{"id", func(e *vsockproto.Event) { e.Cgroup.ID = ones64 }},
		{"target.pid", func(e *vsockproto.Event) { e.Target.PID = ones32 }},
		{"target.tgid", func(e *vsockproto.Event) { e.Target.TGID = ones32 }},
		{"target.start_ns", func(e *vsockproto.Event) { e.Target.StartNs = ones64 }},
		{"threadgroup", func(e *vsockproto.Event) { e.ThreadGroup = true }},
	},
	vsockproto.SchedProcessExit: {
		{"exit_code", func(e *vsockproto.Event) { e.ExitCode = ones32 }},
		{"group_dead", func(e *vsockproto.Event) { e.GroupDead = true }},
	},
}

var targetFields = []field{
	{"target.pid", func(e *vsockproto.Event) { e.Target.PID = ones32 }},
	{"target.tgid", func(e *vsockproto.Event) { e.Target.TGID = ones32 }},
	{"target.start_ns", func(e *vsockproto.Event) { e.Target.StartNs = ones64 }},
	{"target_exec_id", func(e *vsockproto.Event) { e.TargetExecID = ones32 }},
}

var ipcFields = []field{
	{"ipc.key", func(e *vsockproto.Event) { e.IPC.Key = ones32 }},
	{"ipc.id", func(e *vsockproto.Event) { e.IPC.ID = ones32 }},
	{"ipc.uid", func(e *vsockproto.Event) { e.IPC.UID = ones32 }},
	{"ipc.gid", func(e *vsockproto.Event) { e.IPC.GID = ones32 }},
	{"ipc.cuid", func(e *vsockproto.Event) { e.IPC.CUID = ones32 }},
	{"ipc.cgid", func(e *vsockproto.Event) { e.IPC.CGID = ones32 }},
	{"ipc.mode", func(e *vsockproto.Event) { e.IPC.Mode = ones16 }},
}

var argFields = []field{{"args", func(e *vsockproto.Event) {
	for i := range e.Args {
		e.Args[i] = ones64
	}
}}}

// second are the fields of the second file or socket, which are set in the
// first and moved.
func second(name string, fields []field, move func(e *vsockproto.Event)) []field {
	out := make([]field, len(fields))
	for i, f := range fields {
		_, rest, _ := strings.Cut(f.name, ".")
		out[i] = field{name + "." + rest, func(e *vsockproto.Event) {
			f.set(e)
			move(e)
		}}
	}
	return out
}

// shapes are the fields of the structs that several types share.
var shapes = map[string][]field{
	"args_record":    argFields,
	"task_record":    append(argFields[:1:1], targetFields...),
	"object_record":  append(argFields[:1:1], fileFields...),
	"socket_record":  append(argFields[:1:1], socketFields...),
	"ipc_record":     append(argFields[:1:1], ipcFields...),
	"objects_record": append(append(argFields[:1:1], fileFields...), second("file2", fileFields, func(e *vsockproto.Event) { e.File, e.File2 = e.File2, e.File })...),
	"sockets_record": append(socketFields[:len(socketFields):len(socketFields)],
		second("socket2", socketFields, func(e *vsockproto.Event) { e.Socket, e.Socket2 = e.Socket2, e.Socket })...),
	"socket_address_record": append(addressFields[:len(addressFields):len(addressFields)], socketFields...),
}

// extent is where a member stands, in bytes.
type extent struct{ offset, size uint32 }

func records(t *testing.T) *btf.Union {
	t.Helper()
	spec, err := LoadProbe()
	if err != nil {
		t.Fatal(err)
	}
	var u *btf.Union
	if err := spec.Types.TypeByName("any_record", &u); err != nil {
		t.Fatal(err)
	}
	return u
}

func recordOf(t *testing.T, u *btf.Union, name string) *btf.Struct {
	t.Helper()
	for _, m := range u.Members {
		if m.Name == name {
			return btf.UnderlyingType(m.Type).(*btf.Struct)
		}
	}
	t.Fatalf("any_record has no %s", name)
	return nil
}

// leaves lists the members of s that have none themselves.
func leaves(t *testing.T, s *btf.Struct, prefix string, at uint32, into map[string]extent) {
	t.Helper()
	for _, m := range s.Members {
		if m.BitfieldSize != 0 {
			t.Errorf("%s%s is a bit field", prefix, m.Name)
		}
		offset := at + m.Offset.Bytes()
		if sub, ok := btf.UnderlyingType(m.Type).(*btf.Struct); ok {
			leaves(t, sub, prefix+m.Name+".", offset, into)
			continue
		}
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			t.Fatal(err)
		}
		into[prefix+m.Name] = extent{offset, uint32(size)}
	}
}

func encode(t *testing.T, typ vsockproto.EventType, set func(*vsockproto.Event)) []byte {
	t.Helper()
	e := vsockproto.Event{Header: vsockproto.Header{Type: typ}}
	if set != nil {
		set(&e)
	}
	b, err := e.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// changed returns the one run of bytes in which a and b differ.
func changed(a, b []byte) (extent, error) {
	if len(a) != len(b) {
		return extent{}, fmt.Errorf("%d and %d bytes", len(a), len(b))
	}
	first, last := -1, -1
	for i := range a {
		if a[i] != b[i] {
			if first < 0 {
				first = i
			}
			last = i
		}
	}
	if first < 0 {
		return extent{}, fmt.Errorf("no byte differs")
	}
	if bytes.IndexByte(b[first:last+1], 0) >= 0 {
		return extent{}, fmt.Errorf("more than one run differs")
	}
	return extent{uint32(first), uint32(last - first + 1)}, nil
}

// TestLayout holds every field of every record in C against what vsockproto
// writes, and sees to it that there is no field which it does not know.
func TestLayout(t *testing.T) {
	all := records(t)
	for _, typ := range vsockproto.EventTypes() {
		t.Run(typ.String(), func(t *testing.T) {
			s := recordOf(t, all, typ.String())
			zero := encode(t, typ, nil)
			if int(s.Size) != len(zero) {
				t.Errorf("%d bytes in C, %d on the wire", s.Size, len(zero))
			}
			inC := make(map[string]extent)
			leaves(t, s, "", 0, inC)
			checkHoles(t, inC, s.Size)
			fields, ok := bodies[typ]
			if !ok {
				fields = shapes[s.Name]
			}
			checkFields(t, typ, fields, zero, inC)
			for name := range inC {
				if last := name[strings.LastIndex(name, ".")+1:]; !strings.HasPrefix(last, "reserved") {
					t.Errorf("%s: in C, but not known here", name)
				}
			}
		})
	}
}

// checkFields takes out of inC what it has seen.
func checkFields(t *testing.T, typ vsockproto.EventType, fields []field, zero []byte, inC map[string]extent) {
	t.Helper()
	for _, f := range append(everyRecord[:len(everyRecord):len(everyRecord)], fields...) {
		have, ok := inC[f.name]
		if !ok {
			t.Errorf("%s: not in C", f.name)
			continue
		}
		delete(inC, f.name)
		if f.set == nil {
			continue
		}
		want, err := changed(zero, encode(t, typ, f.set))
		if f.name == "args" { // as many as have a name; the others stay zero
			n := len(typ.ArgNames())
			if have.size = uint32(8 * n); n == 0 {
				continue
			}
		}
		switch {
		case err != nil:
			t.Errorf("%s: %v", f.name, err)
		case want != have:
			t.Errorf("%s: at %d, %d bytes in C; at %d, %d bytes on the wire",
				f.name, have.offset, have.size, want.offset, want.size)
		}
	}
}

// checkHoles finds padding that the compiler put in: it would not be zero.
func checkHoles(t *testing.T, inC map[string]extent, size uint32) {
	t.Helper()
	var sum uint32
	for _, e := range inC {
		sum += e.size
	}
	if sum != size {
		t.Errorf("fields are %d bytes, the record %d", sum, size)
	}
}

// TestHeader pins what TestLayout cannot vary.
func TestHeader(t *testing.T) {
	inC := make(map[string]extent)
	leaves(t, recordOf(t, records(t), "file_open"), "", 0, inC)
	want := map[string]extent{"header.length": {0, 4}, "header.type": {4, 2}, "header.version": {6, 1}}
	for name, w := range want {
		if inC[name] != w {
			t.Errorf("%s: %+v in C, %+v on the wire", name, inC[name], w)
		}
	}
	h, err := vsockproto.ParseHeader(encode(t, vsockproto.TaskKill, func(e *vsockproto.Event) {
		e.Class, e.Sequence = vsockproto.Critical, 1
	}))
	if err != nil || h.Type != vsockproto.TaskKill {
		t.Errorf("ParseHeader = %+v, %v", h, err)
	}
}

// TestConstants holds the names and numbers of record.h against vsockproto.
func TestConstants(t *testing.T) {
	want := map[string]map[string]uint64{
		"types": {},
		"classes": {
			"CLASS_CRITICAL": uint64(vsockproto.Critical), "CLASS_BULK": uint64(vsockproto.Bulk),
		},
		"tags": {
			"TAG_PATH": uint64(vsockproto.TagPath), "TAG_ARGV": uint64(vsockproto.TagArgv),
			"TAG_ADDRESS": uint64(vsockproto.TagAddress), "TAG_FILENAME": uint64(vsockproto.TagFilename),
			"TAG_PATH2": uint64(vsockproto.TagPath2), "TAG_NAME": uint64(vsockproto.TagName), "TAG_VALUE": uint64(vsockproto.TagValue),
			"TAG_CRED": uint64(vsockproto.TagCred), "TAG_OWNER": uint64(vsockproto.TagOwner), "TAG_RECEIVER": uint64(vsockproto.TagReceiver),
		},
		"path_kinds": {
			"PATH_UNKNOWN": uint64(vsockproto.PathUnknown), "PATH_ROOT": uint64(vsockproto.PathRoot),
			"PATH_NAMESPACE": uint64(vsockproto.PathNamespace), "PATH_CHROOT": uint64(vsockproto.PathChroot),
			"PATH_VOLUME": uint64(vsockproto.PathVolume),
		},
		"digest_states": {
			"DIGEST_ABSENT": uint64(vsockproto.DigestAbsent), "DIGEST_SHA256": uint64(vsockproto.DigestSHA256),
			"DIGEST_FAILED": uint64(vsockproto.DigestFailed), "DIGEST_NO_FILE": uint64(vsockproto.DigestNoFile),
		},
		"owner_states": {
			"OWNER_UNKNOWN": uint64(vsockproto.OwnerUnknown), "OWNER_LABELLED": uint64(vsockproto.OwnerLabelled),
		},
	}
	for _, typ := range vsockproto.EventTypes() {
		want["types"][strings.ToUpper(typ.String())] = uint64(typ)
	}
	all := records(t)
	for name, w := range want {
		if got := enumOf(t, all, name); !maps.Equal(got, w) {
			t.Errorf("%s: %v in C, want %v", name, got, w)
		}
	}
}

func enumOf(t *testing.T, u *btf.Union, name string) map[string]uint64 {
	t.Helper()
	for _, m := range u.Members {
		e, ok := btf.UnderlyingType(m.Type).(*btf.Enum)
		if m.Name != name || !ok {
			continue
		}
		got := make(map[string]uint64)
		for _, v := range e.Values {
			got[v.Name] = v.Value
		}
		return got
	}
	t.Fatalf("any_record has no %s", name)
	return nil
}

// TestTail holds the header of a tail against vsockproto.
func TestTail(t *testing.T) {
	inC := make(map[string]extent)
	leaves(t, recordOf(t, records(t), "tail"), "", 0, inC)
	e := vsockproto.Event{
		Header: vsockproto.Header{Type: vsockproto.FileOpen},
		Path:   vsockproto.Tail{Flags: vsockproto.TailUnlinked, Data: []byte("/x")},
	}
	b, err := e.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	tail := b[len(encode(t, vsockproto.FileOpen, nil)):]
	want := map[string]struct {
		extent
		bytes string
	}{
		"tag":    {extent{0, 2}, "\x01\x00"},
		"flags":  {extent{2, 2}, "\x02\x00"},
		"length": {extent{4, 4}, "\x02\x00\x00\x00"},
	}
	for name, w := range want {
		if inC[name] != w.extent {
			t.Errorf("%s: %+v in C, %+v on the wire", name, inC[name], w.extent)
		}
		if got := string(tail[w.offset : w.offset+w.size]); got != w.bytes {
			t.Errorf("%s: % x on the wire, want % x", name, got, w.bytes)
		}
	}
	if len(inC) != len(want) {
		t.Errorf("tail has %d fields in C, %d here", len(inC), len(want))
	}
}

// TestTailLayouts holds what some tails hold against vsockproto: a field of all ones
// stands where it does in C.
func TestTailLayouts(t *testing.T) {
	cred := func(set func(*vsockproto.Cred)) []byte {
		var c vsockproto.Cred
		set(&c)
		return vsockproto.AppendCred(nil, &c)
	}
	task := func(task vsockproto.Task, execID uint32) []byte { return vsockproto.AppendTask(nil, task, execID) }
	for name, fields := range map[string]map[string][]byte{
		"cred_tail": {
			"uid":        cred(func(c *vsockproto.Cred) { c.UID = ones32 }),
			"euid":       cred(func(c *vsockproto.Cred) { c.EUID = ones32 }),
			"suid":       cred(func(c *vsockproto.Cred) { c.SUID = ones32 }),
			"gid":        cred(func(c *vsockproto.Cred) { c.GID = ones32 }),
			"egid":       cred(func(c *vsockproto.Cred) { c.EGID = ones32 }),
			"sgid":       cred(func(c *vsockproto.Cred) { c.SGID = ones32 }),
			"fsuid":      cred(func(c *vsockproto.Cred) { c.FSUID = ones32 }),
			"fsgid":      cred(func(c *vsockproto.Cred) { c.FSGID = ones32 }),
			"cap_eff":    cred(func(c *vsockproto.Cred) { c.CapEff = ones64 }),
			"securebits": cred(func(c *vsockproto.Cred) { c.Securebits = ones32 }),
			"reserved":   nil,
		},
		"task_tail": {
			"task.pid":      task(vsockproto.Task{PID: ones32}, 0),
			"task.tgid":     task(vsockproto.Task{TGID: ones32}, 0),
			"task.start_ns": task(vsockproto.Task{StartNs: ones64}, 0),
			"exec_id":       task(vsockproto.Task{}, ones32),
			"reserved":      nil,
		},
	} {
		s, inC := recordOf(t, records(t), name), make(map[string]extent)
		leaves(t, s, "", 0, inC)
		checkHoles(t, inC, s.Size)
		for field, bytes := range fields {
			have, ok := inC[field]
			delete(inC, field)
			if !ok || bytes == nil {
				continue
			}
			if got, err := changed(make([]byte, s.Size), bytes); err != nil || got != have {
				t.Errorf("%s.%s: %+v in C, %+v on the wire, %v", name, field, have, got, err)
			}
		}
		if len(inC) > 0 {
			t.Errorf("%s: in C, but not known here: %v", name, inC)
		}
	}
}
