package tsem

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/outguard/outguard/plugins/engine/enginetest"
	"github.com/outguard/outguard/vsockproto"
)

// fullVector is a record as it is on the wire, the TASK_IDs that the lineage
// gives it, and what they map to.
type fullVector struct {
	Tag       string `json:"tag"`
	Record    string `json:"record"`
	TaskID    string `json:"task_id"`
	ParentID  string `json:"p_task_id"`
	OtherID   string `json:"other_id"`            // the target's, or that of the socket's maker
	Other2ID  string `json:"other2_id,omitempty"` // that of the second socket's
	Pseudonym bool   `json:"pseudonym"`
	COEBytes  string `json:"coe_preimage"`
	CELLBytes string `json:"cell_preimage"`
	COE       string `json:"coe"`
	CELL      string `json:"cell"`
	Point     string `json:"point"`
}

const fullVectors = "testdata/full.jsonl"

// The vectors hold docs/TSEM-FULL.md against the code. They never change: what
// would change them is another version.
func TestFullVectors(t *testing.T) {
	if *update {
		writeFullVectors(t)
	}
	if n, types := holdVectors(t, fullVectors); n < 80 || types != 9 {
		t.Errorf("%d vectors of %d types", n, types)
	}
}

// Those of the further types were computed by another program, from
// PROTOCOL.md and docs/TSEM-FULL.md.
func TestFullFurtherVectors(t *testing.T) {
	want := 0
	for _, typ := range vsockproto.EventTypes() {
		if fullMapped(typ) {
			want++
		}
	}
	if n, types := holdVectors(t, "testdata/full-further.jsonl"); types != want-9 {
		t.Errorf("%d vectors of %d types, want %d types", n, types, want-9)
	}
}

func holdVectors(t *testing.T, path string) (n, typesHeld int) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, types := newFullMapper(), map[string]bool{}
	for line := range bytes.Lines(text) {
		var v fullVector
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatal(err)
		}
		record := unhexAll(t, v.Record)
		var r vsockproto.Event
		if rest, err := r.Parse(record); err != nil || len(rest) > 0 {
			t.Fatalf("%s: %v", v.Tag, err)
		}
		who := ids{task: ID(unhexAll(t, v.TaskID)), parent: ID(unhexAll(t, v.ParentID)), other: ID(unhexAll(t, v.OtherID))}
		copy(who.other2[:], unhexAll(t, v.Other2ID))
		for range 3 { // computed, computed, remembered
			if d := cmp.Diff(v, measure(m, v.Tag, &r, &who, record, v.Pseudonym)); d != "" {
				t.Errorf("%s (-want +got):\n%s", v.Tag, d)
			}
		}
		types[r.Type.String()] = true
		n++
	}
	return n, len(types)
}

func unhexAll(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func measure(m *fullMapper, tag string, r *vsockproto.Event, who *ids, record []byte, pseudonym bool) fullVector {
	model := NewModelOf(Full, 0)
	if pseudonym {
		_ = model.AddPseudonym(Pseudonym(r.Path.Data))
	}
	c := m.Map(r, who, model)
	var other2 string
	if who.other2 != (ID{}) {
		other2 = hexOf(who.other2)
	}
	return fullVector{
		Other2ID: other2,
		Tag:      tag, Record: hex.EncodeToString(record), TaskID: hexOf(who.task), ParentID: hexOf(who.parent), OtherID: hexOf(who.other),
		Pseudonym: pseudonym, COEBytes: hex.EncodeToString(m.buf[m.coe:m.cell]), CELLBytes: hex.EncodeToString(m.buf[m.cell:]),
		COE: hexOf(c.COE), CELL: hexOf(c.CELL), Point: hexOf(c.Point),
	}
}

// base is a record of each kind with every field set to something of its own.
func base(kind vsockproto.EventType) *vsockproto.Event {
	r := &vsockproto.Event{Header: vsockproto.Header{Type: kind, Class: kind.Class(), CPU: 1, Sequence: 7, BootNs: 5e9}}
	r.Subject = vsockproto.Subject{
		Task: vsockproto.Task{PID: 701, TGID: 700, StartNs: 4e9}, LeaderStartNs: 3e9, ParentTGID: 600, ExecID: 2, ParentStartNs: 2e9,
		CgroupID: 77, MntNS: 0xf0000000, PidNS: initialPidNS, UserNS: initialUserNS, NetNS: 0xf0000098,
		UID: 1, EUID: 2, SUID: 3, GID: 4, EGID: 5, SGID: 6, FSUID: 7, FSGID: 8, CapEff: 0x1ffffffffff, Securebits: 0x2f,
	}
	copy(r.Comm[:], "comm")
	switch kind {
	case vsockproto.BprmCommittedCreds, vsockproto.FileOpen, vsockproto.MmapFile:
		r.File = vsockproto.File{
			Inode: 12, Generation: 13, Dev: 8 << 20, Flags: 0o100000, UID: 9, GID: 10, Mode: 0o100755, PathKind: vsockproto.PathRoot,
			Digested: vsockproto.DigestSHA256, Magic: 0xef53, Links: 1, Size: 14, UUID: [16]byte{0: 0xfe, 15: 0xed}, Digest: sha256.Sum256([]byte("content")),
		}
		copy(r.File.FSID[:], "vda1")
		r.Path.Data = []byte("/usr/bin/x")
	}
	switch kind {
	case vsockproto.BprmCommittedCreds:
		r.Argv.Data, r.Filename.Data, r.Argc, r.Envc = []byte("x\x00-v\x00"), []byte("./x"), 2, 20
	case vsockproto.MmapFile:
		r.HasFile, r.ReqProt, r.Prot, r.MapFlags = true, 1, 5, 2
	case vsockproto.SocketCreate:
		r.Socket = vsockproto.Socket{Family: 2, Type: 1, Protocol: 6}
	case vsockproto.SocketListen:
		r.Socket, r.Backlog = fullSocket(2), 128
	case vsockproto.SocketBind, vsockproto.SocketConnect, vsockproto.SocketAccept:
		r.Socket = fullSocket(2)
		r.Address = vsockproto.Address{Family: 2, Length: 16, Port: [2]byte{0, 80}, Addr4: [4]byte{192, 0, 2, 1}}
	case vsockproto.TaskKill:
		r.Target, r.TargetExecID, r.Signal = vsockproto.Task{PID: 900, TGID: 900, StartNs: 1e9}, 3, 15
	}
	return r
}

func fullSocket(family uint32) vsockproto.Socket {
	return vsockproto.Socket{
		Family: family, Type: 1, Protocol: 6, Owned: vsockproto.OwnerLabelled, Cookie: 99,
		Owner: vsockproto.Task{PID: 701, TGID: 700, StartNs: 4e9}, OwnerExecID: 2,
	}
}

var fullKinds = []vsockproto.EventType{
	vsockproto.BprmCommittedCreds, vsockproto.FileOpen, vsockproto.MmapFile, vsockproto.SocketCreate, vsockproto.SocketBind,
	vsockproto.SocketConnect, vsockproto.SocketListen, vsockproto.SocketAccept, vsockproto.TaskKill,
}

// change is one thing about a record.
type change struct {
	tag    string
	kinds  []vsockproto.EventType // nil: every one
	do     func(r *vsockproto.Event)
	counts bool // it makes another point
}

var (
	onFiles     = []vsockproto.EventType{vsockproto.BprmCommittedCreds, vsockproto.FileOpen, vsockproto.MmapFile}
	onSockets   = []vsockproto.EventType{vsockproto.SocketBind, vsockproto.SocketConnect, vsockproto.SocketListen, vsockproto.SocketAccept}
	onAddresses = []vsockproto.EventType{vsockproto.SocketBind, vsockproto.SocketConnect, vsockproto.SocketAccept}
	onExec      = fullKinds[:1]
	onOpen      = fullKinds[1:2]
	onMmap      = fullKinds[2:3]
	onCreate    = fullKinds[3:4]
	onListen    = fullKinds[6:7]
	onKill      = fullKinds[8:]
)

func raw(family uint16, data string) func(*vsockproto.Event) {
	return func(r *vsockproto.Event) {
		r.Address = vsockproto.Address{Family: family, Length: uint16(len(data))}
		r.RawAddr.Data = []byte(data)
	}
}

// fullChanges name every field of the wire, and whether it counts.
var fullChanges = []change{
	{"plain", nil, func(*vsockproto.Event) {}, false},
	{"cpu", nil, func(r *vsockproto.Event) { r.CPU++ }, false},
	{"sequence", nil, func(r *vsockproto.Event) { r.Sequence++ }, false},
	{"boot_ns", nil, func(r *vsockproto.Event) { r.BootNs++ }, false},
	{"pid", nil, func(r *vsockproto.Event) { r.PID++ }, false},
	{"start_ns", nil, func(r *vsockproto.Event) { r.StartNs++ }, false},
	{"leader_start_ns", nil, func(r *vsockproto.Event) { r.LeaderStartNs++ }, false},
	{"parent_tgid", nil, func(r *vsockproto.Event) { r.ParentTGID++ }, false},
	{"parent_start_ns", nil, func(r *vsockproto.Event) { r.ParentStartNs++ }, false},
	{"exec_id", nil, func(r *vsockproto.Event) { r.ExecID++ }, false},
	{"cgroup", nil, func(r *vsockproto.Event) { r.CgroupID++ }, false},
	{"mnt_ns", nil, func(r *vsockproto.Event) { r.MntNS++ }, false},
	{"net_ns", nil, func(r *vsockproto.Event) { r.NetNS++ }, false},
	{"comm", nil, func(r *vsockproto.Event) { r.Comm[0]++ }, false},
	{"user_ns", nil, func(r *vsockproto.Event) { r.UserNS++ }, true},
	{"pid_ns", nil, func(r *vsockproto.Event) { r.PidNS++ }, true},
	{"uid", nil, func(r *vsockproto.Event) { r.UID++ }, true},
	{"euid", nil, func(r *vsockproto.Event) { r.EUID++ }, true},
	{"suid", nil, func(r *vsockproto.Event) { r.SUID++ }, true},
	{"gid", nil, func(r *vsockproto.Event) { r.GID++ }, true},
	{"egid", nil, func(r *vsockproto.Event) { r.EGID++ }, true},
	{"sgid", nil, func(r *vsockproto.Event) { r.SGID++ }, true},
	{"fsuid", nil, func(r *vsockproto.Event) { r.FSUID++ }, true},
	{"fsgid", nil, func(r *vsockproto.Event) { r.FSGID++ }, true},
	{"cap_eff", nil, func(r *vsockproto.Event) { r.CapEff++ }, true},
	{"securebits", nil, func(r *vsockproto.Event) { r.Securebits++ }, true},
	{"kernel_thread", nil, func(r *vsockproto.Event) { r.KernelThread = true }, true},

	{"inode", onFiles, func(r *vsockproto.Event) { r.File.Inode++ }, false},
	{"generation", onFiles, func(r *vsockproto.Event) { r.File.Generation++ }, false},
	{"dev", onFiles, func(r *vsockproto.Event) { r.File.Dev++ }, false},
	{"links", onFiles, func(r *vsockproto.Event) { r.File.Links++ }, false},
	{"size", onFiles, func(r *vsockproto.Event) { r.File.Size++ }, false},
	{"s_id", onFiles, func(r *vsockproto.Event) { r.File.FSID[0]++ }, false},
	{"s_id without uuid", onFiles, func(r *vsockproto.Event) { r.File.UUID = [16]byte{} }, true},
	{"tmpfs", onFiles, func(r *vsockproto.Event) { r.File.Magic = tmpfsMagic }, true},
	{"file flags", onFiles, func(r *vsockproto.Event) { r.File.Flags |= 0o4000 }, true},
	{"file uid", onFiles, func(r *vsockproto.Event) { r.File.UID++ }, true},
	{"file gid", onFiles, func(r *vsockproto.Event) { r.File.GID++ }, true},
	{"file mode", onFiles, func(r *vsockproto.Event) { r.File.Mode |= 0o4000 }, true},
	{"s_magic", onFiles, func(r *vsockproto.Event) { r.File.Magic++ }, true},
	{"s_uuid", onFiles, func(r *vsockproto.Event) { r.File.UUID[3]++ }, true},
	{"path kind", onFiles, func(r *vsockproto.Event) { r.File.PathKind = vsockproto.PathNamespace }, true},
	{"path truncated", onFiles, func(r *vsockproto.Event) { r.Path.Flags = vsockproto.TailTruncated }, true},
	{"path", onFiles, func(r *vsockproto.Event) { r.Path.Data = []byte("/usr/bin/y") }, true},
	{"own proc", onFiles, func(r *vsockproto.Event) { r.File.Magic, r.Path.Data = procMagic, []byte("/proc/700/fd/12") }, true},
	{"digest", onFiles, func(r *vsockproto.Event) { r.File.Digest[0]++ }, true},
	{"digest failed", onFiles, func(r *vsockproto.Event) { r.File.Digested, r.File.Digest = vsockproto.DigestFailed, ID{} }, true},
	{"digest absent", onFiles, func(r *vsockproto.Event) { r.File.Digested, r.File.Digest = vsockproto.DigestAbsent, ID{} }, true},
	{"to be written", onOpen, func(r *vsockproto.Event) { r.File.Flags |= 1 }, true},

	{"argv", onExec, func(r *vsockproto.Event) { r.Argv.Data = []byte("y\x00") }, false},
	{"argc", onExec, func(r *vsockproto.Event) { r.Argc++ }, false},
	{"envc", onExec, func(r *vsockproto.Event) { r.Envc++ }, false},
	{"filename", onExec, func(r *vsockproto.Event) { r.Filename.Data = []byte("./y") }, true},
	{"filename of a descriptor", onExec, func(r *vsockproto.Event) { r.Filename.Data = []byte("/dev/fd/17") }, true},
	{"secureexec", onExec, func(r *vsockproto.Event) { r.SecureExec = true }, true},

	{"reqprot", onMmap, func(r *vsockproto.Event) { r.ReqProt++ }, false},
	{"prot", onMmap, func(r *vsockproto.Event) { r.Prot |= 2 }, true},
	{"map flags", onMmap, func(r *vsockproto.Event) { r.MapFlags |= 16 }, true},
	{"anonymous", onMmap, func(r *vsockproto.Event) {
		r.HasFile, r.File, r.Path, r.MapFlags = false, vsockproto.File{}, vsockproto.Tail{}, 34
	}, true},

	{"create family", onCreate, func(r *vsockproto.Event) { r.Socket.Family = 10 }, true},
	{"create type", onCreate, func(r *vsockproto.Event) { r.Socket.Type = 3 }, true},
	{"create protocol", onCreate, func(r *vsockproto.Event) { r.Socket.Protocol = 17 }, true},
	{"create kernel", onCreate, func(r *vsockproto.Event) { r.Socket.Kernel = true }, true},

	{"cookie", onSockets, func(r *vsockproto.Event) { r.Socket.Cookie++ }, false},
	{"owner", onSockets, func(r *vsockproto.Event) { r.Socket.Owner.PID++ }, false},
	{"socket family", onSockets, func(r *vsockproto.Event) { r.Socket.Family = 10 }, true},
	{"socket type", onSockets, func(r *vsockproto.Event) { r.Socket.Type = 2 }, true},
	{"socket protocol", onSockets, func(r *vsockproto.Event) { r.Socket.Protocol = 17 }, true},
	{"socket kernel", onSockets, func(r *vsockproto.Event) { r.Socket.Kernel = true }, true},
	{"backlog", onListen, func(r *vsockproto.Event) { r.Backlog++ }, true},

	{"address length", onAddresses, func(r *vsockproto.Event) { r.Address.Length++ }, false},
	{"address", onAddresses, func(r *vsockproto.Event) { r.Address.Addr4[3]++ }, true},
	{"port", onAddresses, func(r *vsockproto.Event) { r.Address.Port[1]++ }, true},
	{"port 40000", onAddresses, func(r *vsockproto.Event) { r.Address.Port = [2]byte{0x9c, 0x40} }, true},
	{"inet6", onAddresses, func(r *vsockproto.Event) {
		r.Address = vsockproto.Address{Family: 10, Length: 28, Port: [2]byte{1, 187}, FlowInfo: 5, Addr6: [16]byte{15: 1}, Scope: 2}
	}, true},
	{"unspec", onAddresses, raw(0, "\x00\x00junk"), true},
	{"unix", onAddresses, raw(afUnix, "/run/x.sock\x00junk"), true},
	{"unix unnamed", onAddresses, raw(afUnix, ""), true},
	{"unix abstract", onAddresses, raw(afUnix, "\x00bus\x00x"), true},
	{"unix autobind", onAddresses, raw(afUnix, "\x0000a1f"), true},
	{"netlink", onAddresses, raw(afNetlink, "\x10\x00\x00\x00\xbc\x02\x00\x00\x01\x02\x03\x04"), true},
	{"packet", onAddresses, raw(afPacket, "\x11\x00\x08\x00\x02\x00\x00\x00\x01\x00\x00\x06\xaa\xbb\xcc\xdd\xee\xff\x00\x00"), true},
	{"vsock", onAddresses, raw(40, "\x28\x00\x00\x00\xac\x1a\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00"), true},

	{"target", onKill, func(r *vsockproto.Event) { r.Target.PID++ }, false},
	{"target exec id", onKill, func(r *vsockproto.Event) { r.TargetExecID++ }, false},
	{"signal", onKill, func(r *vsockproto.Event) { r.Signal++ }, true},
	{"itself", onKill, func(r *vsockproto.Event) { r.Target.TGID = r.TGID }, true},
}

func (c *change) applies(kind vsockproto.EventType) bool {
	for _, k := range c.kinds {
		if k == kind {
			return true
		}
	}
	return c.kinds == nil
}

var fullWho = ids{task: sha256.Sum256([]byte("task")), parent: sha256.Sum256([]byte("parent")), other: sha256.Sum256([]byte("other"))}

// Every field of the wire either makes another point or does not, as the
// document says.
func TestFullFields(t *testing.T) {
	m, none := newFullMapper(), NewModelOf(Full, 0)
	for _, kind := range fullKinds {
		plain := m.Map(base(kind), &fullWho, none)
		for _, c := range fullChanges {
			if !c.applies(kind) {
				continue
			}
			r := base(kind)
			c.do(r)
			if got := m.Map(r, &fullWho, none); (got.Point != plain.Point) != c.counts {
				t.Errorf("%s, %s: another point %v, want %v", kind, c.tag, got.Point != plain.Point, c.counts)
			}
		}
		for i, other := range []ids{{task: ID{1}, parent: fullWho.parent, other: fullWho.other}, {task: fullWho.task, parent: ID{1}, other: fullWho.other}, {task: fullWho.task, parent: fullWho.parent, other: ID{1}}} {
			got := m.Map(base(kind), &other, none)
			owned := kind == vsockproto.TaskKill || kind >= vsockproto.SocketBind && kind <= vsockproto.SocketAccept
			if want := i < 2 || owned; (got.Point != plain.Point) != want {
				t.Errorf("%s, id %d: another point %v, want %v", kind, i, got.Point != plain.Point, want)
			}
		}
	}
}

// What of an address or path is the kernel's choice makes no other point.
func TestFullChosenByTheKernel(t *testing.T) {
	m, none := newFullMapper(), NewModelOf(Full, 0)
	same := func(kind vsockproto.EventType, one, two func(*vsockproto.Event)) {
		t.Helper()
		x, y := base(kind), base(kind)
		one(x)
		two(y)
		if m.Map(x, &fullWho, none).Point != m.Map(y, &fullWho, none).Point {
			t.Errorf("%s: different points", kind)
		}
	}
	same(vsockproto.SocketBind, raw(afUnix, "\x0000a1f"), raw(afUnix, "\x00fffff"))
	same(vsockproto.SocketBind, raw(afNetlink, "\x10\x00\x00\x00\xbc\x02\x00\x00\x01\x00\x00\x00"), raw(afNetlink, "\x10\x00\x00\x00\xbd\x02\x00\x00\x01\x00\x00\x00"))
	same(vsockproto.SocketBind, raw(afPacket, "\x11\x00\x08\x00\x02\x00\x00\x00"), raw(afPacket, "\x11\x00\x08\x00\x03\x00\x00\x00"))
	same(vsockproto.SocketConnect, raw(0, "\x00\x00junk"), raw(0, "\x00\x00more junk"))
	port := func(high byte) func(*vsockproto.Event) {
		return func(r *vsockproto.Event) { r.Address.Port = [2]byte{high, 1} }
	}
	same(vsockproto.SocketAccept, port(0x80), port(0xe0))
	proc := func(path string) func(*vsockproto.Event) {
		return func(r *vsockproto.Event) { r.File.Magic, r.Path.Data = procMagic, []byte(path) }
	}
	same(vsockproto.FileOpen, proc("/proc/700/maps"), proc("/proc/701/maps"))
	same(vsockproto.FileOpen, proc("/proc/1/maps"), proc("/proc/2/maps"))
	name := func(s string) func(*vsockproto.Event) {
		return func(r *vsockproto.Event) { r.Filename.Data = []byte(s) }
	}
	same(vsockproto.BprmCommittedCreds, name("/dev/fd/3"), name("/dev/fd/33"))
	written := func(b byte) func(*vsockproto.Event) {
		return func(r *vsockproto.Event) { r.File.Flags, r.File.Digest[0] = 2, b }
	}
	same(vsockproto.FileOpen, written(1), written(2))
}

func writeFullVectors(t *testing.T) {
	t.Helper()
	m := newFullMapper()
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	for _, kind := range fullKinds {
		for _, c := range fullChanges {
			if !c.applies(kind) || c.kinds == nil && c.tag != "plain" && kind != vsockproto.FileOpen {
				continue
			}
			r := base(kind)
			c.do(r)
			record, err := r.Append(nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, pseudonym := range []bool{false, true}[:1+boolByte(c.tag == "plain" && strings.HasPrefix(kind.String(), "file"))] {
				if err := e.Encode(measure(m, kind.String()+"/"+c.tag, r, &fullWho, record, pseudonym)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := os.WriteFile(fullVectors, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A model of either mapping judges by its own, and both are kept apart.
func TestMappings(t *testing.T) {
	for _, mapping := range []Mapping{Quixote, Full} {
		e, g := New(&Options{Mapping: mapping}), enginetest.NewGuest(id)
		server := g.Running("/usr/sbin/httpd")
		g.Serve(server, 5)
		judge(t, e, g.Batch())
		if m, err := e.Seal(t.Context(), id); err != nil || m.Mapping != mapping.String() {
			t.Fatalf("%+v, error %v", m, err)
		}
		g.Serve(server, 5)
		if f := judge(t, e, g.Batch()); len(f) > 0 {
			t.Errorf("%s: what is known: %s", mapping, summary(f))
		}
		g.Exploit(server)
		if f := judge(t, e, g.Batch()); len(f) != 4 {
			t.Errorf("%s: what is not: %s", mapping, summary(f))
		}
		saved, err := e.Checkpoint(id)
		if err != nil {
			t.Fatal(err)
		}
		other := New(&Options{Mapping: 3 - mapping})
		if err := other.Restore(id, saved); err != nil || other.Models()[0].Mapping != mapping.String() {
			t.Errorf("%s: restored it is %s, error %v", mapping, other.Models()[0].Mapping, err)
		}
	}
}
