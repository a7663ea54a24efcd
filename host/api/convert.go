package api

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

// timeLayout is RFC 3339 with all nine digits, so that times sort as text.
const timeLayout = "2006-01-02T15:04:05.000000000Z07:00"

// FormatTime is a time as the API writes it, "" for none.
func FormatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(timeLayout)
}

// ParseTime is the inverse of FormatTime.
func ParseTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	return time.Parse(time.RFC3339Nano, s)
}

// envelope is what the events of a batch have in common.
type envelope struct{ vm, uuid, session, received string }

func envelopeOf(b *engine.Batch, vm string) envelope {
	return envelope{vm, b.VM.String(), b.Session.String(), FormatTime(b.Received)}
}

// EventOf is a decoded record of a batch as the API says it.
func EventOf(b *engine.Batch, e *vsockproto.Event) *apipb.Event {
	v := envelopeOf(b, "")
	return v.event(b, e)
}

func (v *envelope) event(b *engine.Batch, e *vsockproto.Event) *apipb.Event {
	out := &apipb.Event{
		Vm: v.vm, Uuid: v.uuid, Session: v.session, Index: b.Index, Received: v.received,
		Type: e.Type.String(), Class: e.Class.String(), Cpu: e.CPU, Sequence: e.Sequence, BootNs: e.BootNs,
		Subject: subjectOf(&e.Subject),
		Unknown: e.Unknown,
	}
	switch e.Type {
	case vsockproto.BprmCommittedCreds:
		out.File, out.Exec = fileOf(e), execOf(e)
	case vsockproto.FileOpen, vsockproto.TaskSnapshot:
		out.File = fileOf(e)
	case vsockproto.MmapFile:
		out.Mmap = &apipb.Mmap{Reqprot: e.ReqProt, Prot: e.Prot, Flags: e.MapFlags}
		if e.HasFile {
			out.File = fileOf(e)
		}
	case vsockproto.SocketCreate, vsockproto.SocketListen:
		out.Socket = socketOf(e)
	case vsockproto.SocketBind, vsockproto.SocketConnect, vsockproto.SocketAccept:
		out.Socket, out.Address = socketOf(e), addressOf(e)
	case vsockproto.TaskKill:
		out.Signal = &apipb.Signal{Number: e.Signal, Target: taskOf(e.Target), TargetExecId: e.TargetExecID}
	case vsockproto.TaskNewtask:
		out.Newtask = &apipb.Newtask{
			Child: taskOf(e.Child), LeaderStartNs: e.ChildLeaderStartNs,
			ExecId: e.ChildExecID, CloneFlags: e.CloneFlags,
		}
	case vsockproto.SchedProcessExit:
		out.Exit = &apipb.Exit{Code: e.ExitCode, GroupDead: e.GroupDead}
	case vsockproto.CgroupMkdir, vsockproto.CgroupSnapshot, vsockproto.CgroupRmdir, vsockproto.CgroupAttachTask:
		out.Cgroup = cgroupOf(e)
	default:
		if e.Type.Known() {
			further(out, e)
		}
	}
	return out
}

// undecodable is what stands for the rest of a batch that does not parse: kept
// in the record, shown, and never an end of the stream.
func (v *envelope) undecodable(b *engine.Batch, rest []byte, err error) *apipb.Event {
	return &apipb.Event{
		Vm: v.vm, Uuid: v.uuid, Session: v.session, Index: b.Index, Received: v.received,
		Type: "undecodable", Unknown: rest[:min(len(rest), vsockproto.MaxRecord)], Error: safe.Text(err.Error()),
	}
}

func subjectOf(s *vsockproto.Subject) *apipb.Subject {
	return &apipb.Subject{
		Pid: s.PID, Tgid: s.TGID, StartNs: s.StartNs, LeaderStartNs: s.LeaderStartNs,
		ParentTgid: s.ParentTGID, ParentStartNs: s.ParentStartNs, ExecId: s.ExecID,
		Comm: safe.Quote(bytes.TrimRight(s.Comm[:], "\x00")),
		Uid:  s.UID, Euid: s.EUID, Suid: s.SUID, Gid: s.GID, Egid: s.EGID, Sgid: s.SGID,
		Fsuid: s.FSUID, Fsgid: s.FSGID, CapEff: hex16(s.CapEff), Securebits: s.Securebits,
		KernelThread: s.KernelThread, CgroupId: s.CgroupID,
		MntNs: s.MntNS, PidNs: s.PidNS, UserNs: s.UserNS, NetNs: s.NetNS,
	}
}

func cgroupOf(e *vsockproto.Event) *apipb.Cgroup {
	out := &apipb.Cgroup{
		Id: e.Cgroup.ID, Level: e.Cgroup.Level, Path: safe.Quote(e.Path.Data), PathFlags: tailFlags(e.Path.Flags),
		ThreadGroup: e.ThreadGroup,
	}
	if e.Type == vsockproto.CgroupAttachTask {
		out.Moved = taskOf(e.Target)
	}
	return out
}

func hex16(v uint64) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v)
	return hex.EncodeToString(b[:])
}

func taskOf(t vsockproto.Task) *apipb.Task {
	return &apipb.Task{Pid: t.PID, Tgid: t.TGID, StartNs: t.StartNs}
}

var pathKinds = [...]string{
	vsockproto.PathUnknown: "unknown", vsockproto.PathRoot: "root",
	vsockproto.PathNamespace: "namespace", vsockproto.PathChroot: "chroot", vsockproto.PathVolume: "volume",
}

var digestStates = [...]string{
	vsockproto.DigestAbsent: "absent", vsockproto.DigestSHA256: "sha256",
	vsockproto.DigestFailed: "failed", vsockproto.DigestNoFile: "no-file",
}

func fileOf(e *vsockproto.Event) *apipb.File { return fileAt(&e.File, e.Path) }

func fileAt(f *vsockproto.File, path vsockproto.Tail) *apipb.File {
	out := &apipb.File{
		Path: safe.Quote(path.Data), PathKind: pathKinds[f.PathKind], PathFlags: tailFlags(path.Flags),
		DigestState: digestStates[f.Digested],
		Inode:       f.Inode, Generation: f.Generation, Dev: f.Dev, Flags: f.Flags,
		Uid: f.UID, Gid: f.GID, Mode: uint32(f.Mode), Magic: f.Magic, Links: f.Links, Size: f.Size,
		FsId: safe.Quote(bytes.TrimRight(f.FSID[:], "\x00")), FsUuid: hex.EncodeToString(f.UUID[:]),
	}
	if f.Digested == vsockproto.DigestSHA256 {
		out.Digest = hex.EncodeToString(f.Digest[:])
	}
	return out
}

func tailFlags(flags uint16) []string {
	var out []string
	for _, f := range []struct {
		bit  uint16
		name string
	}{
		{vsockproto.TailTruncated, "truncated"},
		{vsockproto.TailUnlinked, "unlinked"},
		{vsockproto.TailUnreachable, "unreachable"},
		{vsockproto.TailMade, "made"},
		{vsockproto.TailForeign, "foreign"},
	} {
		if flags&f.bit != 0 {
			out = append(out, f.name)
		}
	}
	return out
}

func execOf(e *vsockproto.Event) *apipb.Exec {
	return &apipb.Exec{
		Filename: safe.Quote(e.Filename.Data), Argv: argvOf(e.Argv),
		ArgvTruncated: e.Argv.Flags&vsockproto.TailTruncated != 0,
		Argc:          e.Argc, Envc: e.Envc, Secure: e.SecureExec, Fileless: e.Fileless(),
	}
}

// argvOf splits the strings, each ended by a NUL; the last may lack it where
// it was cut off.
func argvOf(t vsockproto.Tail) []string {
	if len(t.Data) == 0 {
		return nil
	}
	var out []string
	for _, arg := range bytes.Split(bytes.TrimSuffix(t.Data, []byte{0}), []byte{0}) {
		out = append(out, safe.Quote(arg))
	}
	return out
}

func socketOf(e *vsockproto.Event) *apipb.Socket { return socketAt(e, &e.Socket) }

func socketAt(e *vsockproto.Event, s *vsockproto.Socket) *apipb.Socket {
	out := &apipb.Socket{
		Family: s.Family, Type: s.Type, Protocol: s.Protocol, Kernel: s.Kernel,
		Cookie: s.Cookie, OwnerExecId: s.OwnerExecID, Backlog: e.Backlog,
	}
	if s.Owned == vsockproto.OwnerLabelled {
		out.Owner = taskOf(s.Owner)
	}
	return out
}

const (
	afInet  = 2
	afInet6 = 10
)

func addressOf(e *vsockproto.Event) *apipb.Address {
	a := &e.Address
	port := binary.BigEndian.Uint16(a.Port[:])
	out := &apipb.Address{
		Family: uint32(a.Family), Port: uint32(port),
		Truncated: e.RawAddr.Flags&vsockproto.TailTruncated != 0,
	}
	switch a.Family {
	case afInet:
		out.Text = netip.AddrPortFrom(netip.AddrFrom4(a.Addr4), port).String()
	case afInet6:
		out.Text = netip.AddrPortFrom(netip.AddrFrom16(a.Addr6), port).String()
	case afUnix:
		out.Text = safe.Quote(unixPath(e))
	default:
		out.Text = hex.EncodeToString(e.RawAddr.Data)
	}
	return out
}

// FindingOf is a finding as the API says it.
func FindingOf(f *engine.Finding) *apipb.Finding {
	out := &apipb.Finding{
		Id: f.ID, Engine: f.Engine, Uuid: uuidText(f.VM), At: FormatTime(f.At), Received: FormatTime(f.Received),
		BootNs: f.BootNs, Rule: safe.Text(f.Rule), Severity: SeverityName(f.Severity), Technique: safe.Text(f.Technique),
		Reason: safe.Text(f.Reason), Event: safe.Text(f.Event), Pid: f.PID,
		Comm: safe.Quote(f.Comm), Path: safe.Quote(f.Path),
	}
	if f.Ref != nil {
		out.Ref = &apipb.Ref{
			Session: f.Ref.Session.String(), Index: f.Ref.Index, Cpu: f.Ref.CPU,
			Class: vsockproto.Class(f.Ref.Class).String(), Sequence: f.Ref.Sequence,
		}
	}
	for k, v := range f.Detail {
		if out.Detail == nil {
			out.Detail = make(map[string]string, len(f.Detail))
		}
		out.Detail[safe.Text(k)] = safe.Text(v)
	}
	return out
}

// ModelOf is a model as the API says it.
func ModelOf(m *Model) *apipb.Model {
	return &apipb.Model{
		Engine: safe.Text(m.Engine), Uuid: uuidText(m.VM), Mapping: safe.Text(m.Mapping), Sealed: m.Sealed,
		Points: m.Points, Events: m.Events, Violations: m.Violations,
		Measurement: safe.Text(m.Measurement), State: safe.Text(m.State), LastNew: FormatTime(m.LastNew),
		Aggregate: safe.Text(m.Aggregate), Version: m.Version, Forensics: m.Forensics, SinceNew: m.SinceNew, Quiet: m.Quiet,
		Hours: hoursOf(m.Hours), Workload: safe.Text(m.Workload), Group: safe.Text(m.Group),
	}
}

// ContainerOf is a container as the API says it.
func ContainerOf(c *engine.Container) *apipb.Container {
	return &apipb.Container{
		CgroupId: c.Cgroup, Cgroup: safe.Quote(c.Path), Runtime: safe.Text(c.Runtime), Id: safe.Quote(c.ID), Begun: c.Begun,
		MntNs: c.Mnt, PidNs: c.PID, UserNs: c.User, NetNs: c.Net,
		Program: safe.Quote(c.Program), BootNs: c.BootNs, Tasks: c.Tasks, Workload: safe.Text(c.Workload),
	}
}

func hoursOf(hours []engine.Hour) (out []*apipb.ModelHour) {
	for _, h := range hours {
		out = append(out, &apipb.ModelHour{Start: FormatTime(h.Start), Events: h.Events, New: h.New})
	}
	return out
}

func uuidText(id uuid.UUID) string {
	if id == uuid.Nil {
		return ""
	}
	return id.String()
}
