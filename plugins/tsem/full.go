package tsem

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"

	"github.com/outguard/outguard/plugins/lineage"
	"github.com/outguard/outguard/vsockproto"
)

// The full mapping, version 1. docs/TSEM-FULL.md specifies it byte by byte and
// says of each field that is left out why; testdata/full.jsonl are its vectors.
// Nothing of it changes without another name.
//
//	POINT = SHA256("OGFULL1\0" || STR(name) || p_task_id || task_id || SHA256(COE) || SHA256(CELL))
const fullMagic = "OGFULL1\x00"

const fullCOE = 45 // size of its preimage

// Numbers of the initial namespaces, which the kernel never gives to another.
const (
	initialUserNS = 0xeffffffd
	initialPidNS  = 0xeffffffc
)

// Digest states of the full mapping; the first four are the wire's.
const (
	fullToBeWritten = 4 // opened to be written: what is in it now is not what counts
	fullPseudonym   = 5 // a person said that its content may change
)

// Ports from here on are the kernel's to choose, unless it was told otherwise.
const firstEphemeral = 32768

// Families whose addresses hold what the kernel chose.
const (
	afNetlink = 16
	afPacket  = 17
)

// fullMapper maps records to points as the full mapping does. Like a Mapper it
// remembers, and is not safe for concurrent use. The preimages in buf are those
// of the last call.
type fullMapper struct {
	buf       []byte
	last      []byte
	coe, cell int // where their preimages begin in buf
	cache     cache
	tr        translator // its scratch space

	context [fullCOE]byte // the last COE
	digest  ID            // and its digest
}

func newFullMapper() *fullMapper {
	m := &fullMapper{cache: newCache()}
	m.digest = sha256.Sum256(m.context[:])
	return m
}

// ids are the TASK_IDs of a record. Other is the target's, or that of who made
// the socket, other2 that of who made the second one.
type ids struct{ task, parent, other, other2 ID }

func fullIDs(r *vsockproto.Event, who lineage.Identity, tree *lineage.Tree) ids {
	v := ids{task: who.ID(), parent: who.ParentID()}
	switch {
	case r.Type.Has(vsockproto.PartTarget):
		v.other = tree.Resolve(r.Target, r.TargetExecID).ID()
	case r.Socket.Owned == vsockproto.OwnerLabelled:
		v.other = tree.Resolve(r.Socket.Owner, r.Socket.OwnerExecID).ID()
	}
	if r.Socket2.Owned == vsockproto.OwnerLabelled {
		v.other2 = tree.Resolve(r.Socket2.Owner, r.Socket2.OwnerExecID).ID()
	}
	return v
}

// Map computes the coefficients of a record of a type that has a mapping. model
// knows the pseudonyms.
func (m *fullMapper) Map(r *vsockproto.Event, v *ids, model *Model) Coefficients {
	b := appendString(m.buf[:0], r.Type.String())
	b = append(append(b, v.parent[:]...), v.task[:]...)
	m.coe = len(b)
	b = appendFullCOE(b, &r.Subject)
	m.cell = len(b)
	b = m.appendCell(b, r, v, model)
	m.buf = b
	slot, hash := m.cache.slot(b)
	if slot.holds(b, hash) {
		return slot.value
	}
	if context := (*[fullCOE]byte)(b[m.coe:m.cell]); *context != m.context {
		m.context, m.digest = *context, sha256.Sum256(context[:])
	}
	c := Coefficients{COE: m.digest, CELL: sha256.Sum256(b[m.cell:])}
	p := append(append(m.last[:0], fullMagic...), b[:m.coe]...)
	p = append(append(p, c.COE[:]...), c.CELL[:]...)
	m.last, c.Point = p, sha256.Sum256(p)
	slot.keep(b, hash, &c)
	return c
}

// appendFullCOE appends who acts: the ids and capabilities that decide what it
// may do.
func appendFullCOE(b []byte, s *vsockproto.Subject) []byte {
	for _, v := range [...]uint32{s.UID, s.EUID, s.SUID, s.GID, s.EGID, s.SGID, s.FSUID, s.FSGID} {
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint64(b, s.CapEff)
	b = le.AppendUint32(b, s.Securebits)
	flags := boolByte(s.KernelThread) | boolByte(s.UserNS != initialUserNS)<<1 | boolByte(s.PidNS != initialPidNS)<<2
	return append(b, flags)
}

func (m *fullMapper) appendCell(b []byte, r *vsockproto.Event, v *ids, model *Model) []byte {
	other := &v.other
	switch r.Type {
	case vsockproto.BprmCommittedCreds:
		b = m.appendFile(b, r, model)
		b = append(b, boolByte(r.SecureExec), byte(r.Filename.Flags))
		return appendString(b, stableName(r.Filename.Data))
	case vsockproto.FileOpen:
		return m.appendFile(b, r, model)
	case vsockproto.MmapFile:
		if b = append(b, boolByte(r.HasFile)); r.HasFile {
			b = m.appendFile(b, r, model)
		}
		return le.AppendUint32(le.AppendUint32(b, r.Prot), r.MapFlags)
	case vsockproto.SocketCreate:
		s := &r.Socket
		b = le.AppendUint32(le.AppendUint32(le.AppendUint32(b, s.Family), s.Type), s.Protocol)
		return append(b, boolByte(s.Kernel))
	case vsockproto.SocketListen:
		return le.AppendUint32(appendFullSocket(b, &r.Socket, other), r.Backlog)
	case vsockproto.TaskKill:
		b = le.AppendUint32(append(b, other[:]...), r.Signal)
		return append(b, boolByte(r.Target.TGID == r.TGID))
	}
	if r.Type > vsockproto.TaskSnapshot {
		return m.appendFurther(b, r, v, model)
	}
	return appendFullAddress(appendFullSocket(b, &r.Socket, other), r)
}

// stableName is what execve was asked for, without the number of a descriptor.
func stableName(name []byte) []byte {
	const fd = "/dev/fd/"
	if rest, is := bytes.CutPrefix(name, []byte(fd)); is && len(bytes.Trim(rest, "0123456789")) == 0 {
		return name[:len(fd)]
	}
	return name
}

// appendFile appends the file of a record.
func (m *fullMapper) appendFile(b []byte, r *vsockproto.Event, model *Model) []byte {
	return m.appendFileAt(b, r, &r.File, &r.Path, model)
}

func (m *fullMapper) appendFileAt(b []byte, r *vsockproto.Event, f *vsockproto.File, name *vsockproto.Tail, model *Model) []byte {
	b = le.AppendUint32(b, f.Flags)
	b = le.AppendUint32(b, f.UID)
	b = le.AppendUint32(b, f.GID)
	b = le.AppendUint16(b, f.Mode)
	b = le.AppendUint32(b, f.Magic)
	var device [48]byte // s_id where there is no s_uuid that tells more
	if copy(device[32:], f.UUID[:]); f.Magic == tmpfsMagic {
		clear(device[32:])
	}
	if [16]byte(device[32:]) == ([16]byte{}) {
		copy(device[:32], f.FSID[:])
	}
	b = append(b, device[:]...)
	b = append(b, byte(f.PathKind), byte(name.Flags&^(vsockproto.TailMade|vsockproto.TailForeign)))
	path := m.tr.stablePath(r, name.Data, f.Magic)
	b = appendString(b, path)
	state, digest := byte(f.Digested), f.Digest
	switch {
	case model.pseudonym(path):
		state, digest = fullPseudonym, ID{}
	case r.Type == vsockproto.FileOpen && f.Flags&accMode != 0:
		state, digest = fullToBeWritten, ID{}
	}
	return append(append(b, state), digest[:]...)
}

func appendFullSocket(b []byte, s *vsockproto.Socket, owner *ID) []byte {
	b = le.AppendUint32(le.AppendUint32(le.AppendUint32(b, s.Family), s.Type), s.Protocol)
	b = append(b, boolByte(s.Kernel), byte(s.Owned))
	return append(b, owner[:]...)
}

// appendFullAddress appends an address by its own family.
func appendFullAddress(b []byte, r *vsockproto.Event) []byte {
	a, raw := &r.Address, r.RawAddr.Data
	b = append(le.AppendUint16(b, a.Family), byte(r.RawAddr.Flags))
	switch a.Family {
	case afUnspec:
		return b
	case afInet:
		return append(appendPort(b, r), a.Addr4[:]...)
	case afInet6:
		return append(appendPort(b, r), a.Addr6[:]...)
	case afUnix:
		return appendUnix(b, raw)
	case afNetlink: // family, zero, port id, groups
		return append(b, cut(raw, 8, 12)...)
	case afPacket: // family, protocol, interface, …
		return append(b, cut(raw, 2, 4)...)
	}
	return appendString(b, raw)
}

// cut is raw[from:to], with zeros for what is not there.
func cut(raw []byte, from, to int) []byte {
	var b [8]byte
	if from < len(raw) {
		copy(b[:to-from], raw[from:])
	}
	return b[:to-from]
}

// appendPort appends the port in network order. A listening socket's is in host
// order, as TSEM's kernel has it, and the kernel's choice from firstEphemeral
// on.
func appendPort(b []byte, r *vsockproto.Event) []byte {
	port := r.Address.Port
	if r.Type != vsockproto.SocketAccept {
		return append(b, port[:]...)
	}
	n := binary.BigEndian.Uint16(port[:])
	if n >= firstEphemeral {
		n = 0
	}
	return le.AppendUint16(b, n)
}

// Kinds of af_unix addresses.
const (
	unixUnnamed  = 0
	unixPath     = 1
	unixAbstract = 2
	unixAutobind = 3 // five hex digits after the NUL: the kernel's choice
)

func appendUnix(b, path []byte) []byte {
	switch {
	case len(path) == 0:
		return append(b, unixUnnamed)
	case path[0] != 0:
		path, _, _ = bytes.Cut(path, []byte{0})
		return appendString(append(b, unixPath), path)
	case len(path) == 6 && len(bytes.Trim(path[1:], "0123456789abcdef")) == 0:
		return append(b, unixAutobind)
	}
	return appendString(append(b, unixAbstract), path[1:])
}

// fullMapped reports whether version 1 of the full mapping has events of that
// type. A type that the wire gains later has none before the document says it.
func fullMapped(t vsockproto.EventType) bool {
	switch t {
	case vsockproto.BprmCommittedCreds, vsockproto.FileOpen, vsockproto.MmapFile, vsockproto.SocketCreate, vsockproto.SocketBind,
		vsockproto.SocketConnect, vsockproto.SocketListen, vsockproto.SocketAccept, vsockproto.TaskKill:
		return true
	}
	return t > vsockproto.TaskSnapshot && t < vsockproto.SockGraft
}
