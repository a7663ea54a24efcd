package tsem

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"

	"github.com/outguard/outguard/plugins/lineage"
	"github.com/outguard/outguard/vsockproto"
)

// Digests of files that have none, each with a meaning of its own.
var (
	DigestFailed = ID(sha256.Sum256([]byte("outguard: the guest's kernel could not digest the file")))
	DigestAbsent = ID(sha256.Sum256([]byte("outguard: no digest was asked for")))
)

// pseudoFS reports a file system whose mappings TSEM does not model.
// Source: SPEC section 2.
func pseudoFS(magic uint32) bool {
	switch magic {
	case procMagic, 0x62656572, 0x64626720, tmpfsMagic, 0x1cd1, // sysfs, debugfs, devpts
		0x42494e4d, 0x73636673, 0xf97cff8c, 0x43415d53, // binfmt_misc, securityfs, selinuxfs, smackfs
		0x27e0eb, 0x63677270, 0x6e736673, 0xde5e81e4: // cgroup, cgroup2, nsfs, efivarfs
		return true
	}
	return false
}

const (
	procMagic = 0x9fa0
	modeType  = 0o170000
	modeFile  = 0o100000
	protExec  = 4
	accMode   = 3
	sigURG    = 23
)

// modelled reports whether TSEM turns this hook call into an event.
// Source: SPEC section 2.
func modelled(e *vsockproto.Event) bool {
	switch e.Type {
	case vsockproto.FileOpen:
		return e.File.Mode&modeType == modeFile
	case vsockproto.MmapFile:
		if !e.HasFile {
			return e.Prot&protExec != 0
		}
		return e.File.Mode&modeType == modeFile && !pseudoFS(e.File.Magic)
	case vsockproto.TaskKill:
		return e.Signal != sigURG
	case vsockproto.TaskNewtask, vsockproto.SchedProcessExit, vsockproto.TaskSnapshot:
		return false
	}
	return e.Type <= vsockproto.Capset // the last of TSEM's types; those behind it Quixote does not know
}

// translator turns records into events. One belongs to one engine; path is its
// scratch space.
type translator struct {
	event  Event
	taskID ID
	path   []byte
}

// translate makes the event of a record whose subject is who. The result is
// valid until the next call.
func (t *translator) translate(e *vsockproto.Event, who lineage.Identity, tree *lineage.Tree) *Event {
	ev := &t.event
	t.taskID = who.ID()
	*ev = Event{Name: e.Type.String(), TaskID: t.taskID[:]}
	ev.COE = coeOf(&e.Subject)
	switch e.Type {
	case vsockproto.BprmCommittedCreds:
		t.file(e)
	case vsockproto.FileOpen:
		t.file(e)
		if e.File.Flags&accMode != 0 {
			ev.File.Digest = zero // opened to be written: what is in it now is not what counts
		}
	case vsockproto.MmapFile:
		if ev.HasFile = e.HasFile; e.HasFile {
			t.file(e)
		}
		ev.Prot, ev.MapFlags = e.Prot, e.MapFlags
	case vsockproto.SocketCreate:
		s := &e.Socket
		ev.Socket = Socket{Family: s.Family, Type: s.Type, Protocol: s.Protocol}
		if s.Kernel {
			ev.Socket.Kernel = 1
		}
	case vsockproto.SocketListen:
		t.socket(e, tree)
	case vsockproto.SocketBind, vsockproto.SocketConnect, vsockproto.SocketAccept:
		t.socket(e, tree)
		t.address(e)
	case vsockproto.TaskKill:
		target := tree.Resolve(e.Target, e.TargetExecID)
		ev.Kill = Kill{Signal: e.Signal, Target: target.ID(), CrossNS: crosses(who, target)}
	default: // generic to Quixote: for words and exports, not for the point
		t.further(e, tree)
	}
	return ev
}

// further makes what is told of an event whose body has no part in its point.
func (t *translator) further(e *vsockproto.Event, tree *lineage.Tree) {
	if e.Type.Has(vsockproto.PartFile) {
		t.file(e)
	}
	if e.Type.Has(vsockproto.PartSocket) {
		t.socket(e, tree)
	}
	if e.Type == vsockproto.SocketSendmsg || e.Type == vsockproto.SocketRecvmsg {
		t.address(e)
	}
	if e.Type.Has(vsockproto.PartTarget) {
		t.event.Kill.Target = tree.Resolve(e.Target, e.TargetExecID).ID()
	}
}

// crosses is 1 for a signal from one workload to another, which are what TSEM calls
// modelling namespaces. Source: SPEC section 2. Where a target is that nobody knows
// is not known either.
func crosses(who, target lineage.Identity) uint32 {
	if target.Task == nil {
		return 0
	}
	from, to := who.Container, target.Task.Container()
	if from == to || WorkloadOf(from) == WorkloadOf(to) {
		return 0
	}
	return 1
}

var quote1 = []byte{'"'}

// asQuixote makes empty names what Quixote's agents read for them: a quote.
func (e *Event) asQuixote() {
	switch {
	case e.Name == "file_open" || e.HasFile:
		if len(e.File.Path) == 0 {
			e.File.Path = quote1
		}
		if e.File.SID == ([32]byte{}) {
			e.File.SID[0] = '"'
		}
	case e.Socket.Family == afUnix && len(e.Address.Path) == 0:
		e.Address.Path = quote1
	}
}

func (t *translator) socket(e *vsockproto.Event, tree *lineage.Tree) {
	s := &e.Socket
	t.event.Socket = Socket{Family: s.Family, Type: s.Type, Protocol: s.Protocol, Owner: owner(s, tree)}
}

func coeOf(s *vsockproto.Subject) COE {
	return COE{
		UID: s.UID, EUID: s.EUID, SUID: s.SUID, GID: s.GID, EGID: s.EGID, SGID: s.SGID,
		FSUID: s.FSUID, FSGID: s.FSGID, CapEff: s.CapEff,
	}
}

// owner is the TASK_ID of a socket's maker; the kernel's own is zero.
func owner(s *vsockproto.Socket, tree *lineage.Tree) ID {
	switch {
	case s.Owned == vsockproto.OwnerLabelled:
		return tree.Resolve(s.Owner, s.OwnerExecID).ID()
	case s.Kernel:
		return ID{}
	}
	return lineage.UnknownID
}

func (t *translator) file(e *vsockproto.Event) {
	f := &e.File
	t.event.File = File{
		Flags: f.Flags, UID: f.UID, GID: f.GID, Mode: f.Mode, Magic: f.Magic, SID: f.FSID, UUID: f.UUID,
		PathType: pathType(f.PathKind, e.Path.Flags), Path: t.stable(e), Digest: digest(f),
	}
}

// temporary makes, in the quixote mapping, a file that a task of this session made one of its directory:
// who made it and which of theirs it is, instead of name and content.
// Source: SPEC sections 2 and 4.1. A path that was cut before its first slash
// would have no directory.
func (t *translator) temporary(e *vsockproto.Event, tree *lineage.Tree) {
	if e.Type != vsockproto.FileOpen && e.Type != vsockproto.MmapFile {
		return
	}
	f := &t.event.File
	m, is := tree.Made(&e.File)
	if !is || bytes.IndexByte(f.Path, '/') < 0 {
		return
	}
	f.Instance, f.Owner, f.Digest = m.Instance, m.Owner, zero
}

func digest(f *vsockproto.File) ID {
	switch f.Digested {
	case vsockproto.DigestSHA256:
		return f.Digest
	case vsockproto.DigestNoFile:
		return zero
	case vsockproto.DigestFailed:
		return DigestFailed
	}
	return DigestAbsent
}

// pathTypes are the kinds by their number and then by their tail's flags.
var pathTypes = func() (all [5][8]string) {
	for kind, name := range [...]string{"unknown", "root", "namespace", "chroot", "volume"} {
		for flags := range all[kind] {
			all[kind][flags] = name
			for bit, word := range [...]string{"+truncated", "+unlinked", "+unreachable"} {
				if flags>>bit&1 != 0 {
					all[kind][flags] += word
				}
			}
		}
	}
	return all
}()

// PathTypes lists the words that are said of a path.
func PathTypes() (all []string) {
	for _, kind := range pathTypes {
		all = append(all, kind[:]...)
	}
	return all
}

// PathType is the word for the path of a file.
func PathType(f *vsockproto.File, path *vsockproto.Tail) string {
	return pathType(f.PathKind, path.Flags)
}

// ContentOf is the digest of a file's content, false where the record has none: that of
// no content for what has none, as in TSEM.
func ContentOf(f *vsockproto.File) (ID, bool) {
	switch {
	case f.Digested == vsockproto.DigestSHA256:
		return f.Digest, true
	case f.Digested == vsockproto.DigestNoFile, f.Mode&modeType != modeFile, pseudoFS(f.Magic):
		return zero, true
	}
	return ID{}, false
}

// pathType is TSEM's word for a path, and more than that for one that is not
// plain, so that a part never equals a whole.
func pathType(kind vsockproto.PathKind, flags uint16) string { return pathTypes[kind][flags&7] }

// stable is the path without what changes from one boot to the next: in the
// file system of processes, the number of a process. Its own becomes "self".
func (t *translator) stable(e *vsockproto.Event) []byte {
	return t.stablePath(e, e.Path.Data, e.File.Magic)
}

func (t *translator) stablePath(e *vsockproto.Event, path []byte, magic uint32) []byte {
	if magic != procMagic {
		return path
	}
	t.path = t.path[:0]
	for len(path) > 0 {
		slash := bytes.IndexByte(path[1:], '/') + 1
		if slash == 0 {
			slash = len(path)
		}
		t.path = appendElement(t.path, path[:slash], &e.Subject)
		path = path[slash:]
	}
	return t.path
}

// appendElement appends one element of a path, its slash in front.
func appendElement(b, element []byte, s *vsockproto.Subject) []byte {
	n, is := number(element)
	switch {
	case !is:
		return append(b, element...)
	case n == s.TGID || n == s.PID:
		return append(b, "/self"...)
	}
	return append(b, "/pid"...)
}

func number(element []byte) (n uint32, is bool) {
	if len(element) < 2 || len(element) > 9 || element[0] != '/' {
		return 0, false
	}
	for _, c := range element[1:] {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint32(c-'0')
	}
	return n, true
}

// address has the form that the socket's family says, as in the kernel. A guest
// may pass an address of another family: AF_UNSPEC ends a connection, and an
// AF_INET6 socket takes an AF_INET address; that counts as the mapped one. Of
// the others the bytes count, so that no address hides behind another.
func (t *translator) address(e *vsockproto.Event) {
	from, to, family := &e.Address, &t.event.Address, uint32(e.Address.Family)
	if e.Type == vsockproto.SocketAccept {
		to.Port = binary.BigEndian.Uint16(from.Port[:])
	} else {
		to.Port = le.Uint16(from.Port[:])
	}
	switch socket := e.Socket.Family; {
	case socket == afUnix:
		to.Path = t.name(e.RawAddr.Data)
	case socket != afInet && socket != afInet6:
		if to.Digest = sha256.Sum256(e.RawAddr.Data); family == afInet || family == afInet6 {
			t.foreign(e)
		}
	case socket == family:
		to.IP4, to.IP6 = le.Uint32(from.Addr4[:]), from.Addr6
		to.Flow, to.Scope = from.FlowInfo, from.Scope
	case family == afInet:
		to.IP6 = netip.AddrFrom4(from.Addr4).As16()
	case family != afUnspec || e.Type == vsockproto.SocketBind:
		t.foreign(e)
	}
}

// foreign makes an address of one that is not of the socket's family.
func (t *translator) foreign(e *vsockproto.Event) {
	a, to := &e.Address, &t.event.Address
	b := le.AppendUint16(t.path[:0], a.Family)
	b = append(append(append(b, a.Port[:]...), a.Addr4[:]...), a.Addr6[:]...)
	t.path = append(b, e.RawAddr.Data...)
	to.Digest = sha256.Sum256(t.path)
	to.IP4 = le.Uint32(to.Digest[:])
	copy(to.IP6[:], to.Digest[:])
}

// name is sun_path as text: an abstract name has @ for each NUL, another ends
// at the first.
func (t *translator) name(path []byte) []byte {
	if len(path) == 0 || path[0] != 0 {
		path, _, _ = bytes.Cut(path, []byte{0})
		return path
	}
	t.path = append(t.path[:0], path...)
	for i, c := range t.path {
		if c == 0 {
			t.path[i] = '@'
		}
	}
	return t.path
}

// identify computes the TASK_ID of a program at its exec or snapshot; it is
// the lineage's.
func identify(e *vsockproto.Event, parent ID) ID {
	var t translator
	t.event.COE = coeOf(&e.Subject)
	t.file(e)
	id, err := TaskID(e.Type.String(), parent, &t.event)
	if err != nil { // as the kernel does
		return ID(bytes.Repeat([]byte{0xff}, len(ID{})))
	}
	return id
}
