package tsem

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// ID is a SHA-256 value: a TASK_ID, COE, CELL, point, measurement or state.
type ID = [32]byte

var (
	le   = binary.LittleEndian
	zero = ID(sha256.Sum256(nil)) // the digest of no content
)

// Magic numbers of file systems, as in s_magic.
const tmpfsMagic = 0x01021994

// Address families.
const (
	afUnspec = 0
	afUnix   = 1
	afInet   = 2
	afInet6  = 10
)

// Event is one security event as TSEM's model sees it. Which fields count
// depends on Name; a name without fields of its own is a generic event, whose
// body has no part in its point.
type Event struct {
	Name     string // the LSM hook's
	TaskID   []byte // 32 bytes, but Quixote takes what an export says
	COE      COE
	HasFile  bool // mmap_file; file_open always has one
	File     File
	Prot     uint32 // mmap_file
	MapFlags uint32
	Socket   Socket
	Address  Address // socket_bind, socket_connect, socket_accept
	Kill     Kill
}

// COE is the context of execution. FSGID stands here and in no digest: see
// appendCOE.
type COE struct {
	UID, EUID, SUID, GID, EGID, SGID, FSUID, FSGID uint32
	CapEff                                         uint64
}

// File is a file description.
type File struct {
	Flags    uint32
	UID, GID uint32
	Mode     uint16
	Magic    uint32
	SID      [32]byte // zero padded
	UUID     [16]byte
	PathType string
	Path     []byte
	Instance uint64 // of a temporary file; 0: none
	Owner    ID     // of a temporary file
	Digest   ID
}

// Socket is a socket; Kernel counts at socket_create, Owner elsewhere.
type Socket struct {
	Family, Type, Protocol, Kernel uint32
	Owner                          ID
}

// Address is a socket address; the socket's family says which fields count.
// Port and IP4 are what the kernel prints: the number that the bytes in network
// order make on a little endian machine; but the port of socket_accept is the
// listening socket's in host order.
type Address struct {
	Port        uint16
	IP4         uint32
	IP6         [16]byte
	Flow, Scope uint32
	Path        []byte // af_unix; an abstract name has @ for each NUL
	Digest      ID     // of the bytes of any other family
}

// Kill is a signal.
type Kill struct {
	CrossNS, Signal uint32
	Target          ID
}

// ErrPath is for the path of a temporary file that has no directory.
var ErrPath = errors.New("path without a directory")

// appendCOE appends the preimage of the COE digest. As in Quixote's userspace
// the eighth slot, which should be fsgid, holds fsuid again.
// Source: Quixote SecurityModel/COE.c, see SPEC section 3.
func appendCOE(b []byte, c *COE) []byte {
	for _, v := range [...]uint32{c.UID, c.EUID, c.SUID, c.GID, c.EGID, c.SGID, c.FSUID, c.FSUID} {
		b = le.AppendUint32(b, v)
	}
	return le.AppendUint64(b, c.CapEff)
}

// appendCell appends the preimage of the CELL digest.
// Source: Quixote SecurityModel/*.c, see SPEC section 4.2.
func appendCell(b []byte, e *Event) ([]byte, error) {
	switch e.Name {
	case "file_open":
		return appendFile(b, &e.File)
	case "mmap_file":
		if e.HasFile {
			var err error
			if b, err = appendFile(b, &e.File); err != nil {
				return b, err
			}
		}
		b = le.AppendUint32(b, e.Prot)
		return le.AppendUint32(b, e.MapFlags), nil
	case "socket_create":
		b = appendSocket(b, &e.Socket)
		return le.AppendUint32(b, e.Socket.Kernel), nil
	case "socket_connect", "socket_bind":
		b = append(appendSocket(b, &e.Socket), e.Socket.Owner[:]...)
		return appendPeer(b, e.Socket.Family, &e.Address), nil
	case "socket_accept":
		b = append(appendSocket(b, &e.Socket), e.Socket.Owner[:]...)
		return appendLocal(b, e.Socket.Family, &e.Address), nil
	case "task_kill":
		b = le.AppendUint32(b, e.Kill.CrossNS)
		b = le.AppendUint32(b, e.Kill.Signal)
		return append(b, e.Kill.Target[:]...), nil
	}
	return append(append(b, e.Name...), zero[:]...), nil
}

func appendString[S ~string | ~[]byte](b []byte, s S) []byte {
	return append(le.AppendUint32(b, uint32(len(s))), s...)
}

// appendFile appends the file block. The device number has no part in it.
func appendFile(b []byte, f *File) ([]byte, error) {
	b = le.AppendUint32(b, f.Flags)
	b = le.AppendUint32(b, f.UID)
	b = le.AppendUint32(b, f.GID)
	b = le.AppendUint16(b, f.Mode)
	b = le.AppendUint32(b, f.Magic)
	b = append(b, f.SID[:]...)
	if f.Magic == tmpfsMagic {
		b = append(b, make([]byte, len(f.UUID))...) // it is new with each mount
	} else {
		b = append(b, f.UUID[:]...)
	}
	b = appendString(b, f.PathType)
	if f.Instance > 0 {
		slash := bytes.LastIndexByte(f.Path, '/')
		if slash < 0 {
			return b, fmt.Errorf("file block of %q: %w", f.Path, ErrPath)
		}
		b = appendString(b, f.Path[:slash+1])
		b = le.AppendUint64(b, f.Instance)
		b = append(b, f.Owner[:]...)
	} else {
		b = appendString(b, f.Path)
	}
	return append(b, f.Digest[:]...), nil
}

func appendSocket(b []byte, s *Socket) []byte {
	b = le.AppendUint32(b, s.Family)
	b = le.AppendUint32(b, s.Type)
	return le.AppendUint32(b, s.Protocol)
}

// appendPeer appends the address of a bind or connect. As in Quixote, a path
// ends at its first NUL, and of another family's digest the first 8 bytes
// count. Quixote leaves the port of AF_INET6 undefined; it is 0 here.
func appendPeer(b []byte, family uint32, a *Address) []byte {
	switch family {
	case afInet:
		b = le.AppendUint16(b, a.Port)
		return le.AppendUint32(b, a.IP4)
	case afInet6:
		b = le.AppendUint16(b, 0)
		b = append(b, a.IP6[:]...)
		b = le.AppendUint32(b, a.Flow)
		return le.AppendUint32(b, a.Scope)
	case afUnix:
		path, _, _ := bytes.Cut(a.Path, []byte{0})
		return append(b, path...)
	}
	return append(b, a.Digest[:8]...)
}

// appendLocal appends the address of the listening socket of an accept, whose
// port Quixote leaves undefined; it is 0 here.
func appendLocal(b []byte, family uint32, a *Address) []byte {
	switch family {
	case afInet:
		b = le.AppendUint16(b, 0)
		return le.AppendUint32(b, a.IP4)
	case afInet6:
		b = le.AppendUint16(b, 0)
		return append(b, a.IP6[:]...)
	case afUnix:
		path, _, _ := bytes.Cut(a.Path, []byte{0})
		return append(b, path...)
	}
	return append(b, a.Digest[:]...)
}

// Coefficients are the digests of one event.
type Coefficients struct {
	COE, CELL, Point ID
}

// Mapper maps events to points as Quixote's userspace does, the mapping named
// "quixote". It remembers what it computed; it is not safe for concurrent use.
type Mapper struct {
	buf     []byte // the event's preimages
	last    []byte // the last point's
	cache   cache
	context [coeSize]byte // the last COE
	coe     ID            // and its digest
}

const coeSize = 40

// NewMapper makes a Mapper.
func NewMapper() *Mapper {
	m := &Mapper{cache: newCache()}
	m.coe = sha256.Sum256(m.context[:])
	return m
}

// Map computes the coefficients of e, or finds those of an event that equals
// it in all that counts.
func (m *Mapper) Map(e *Event) (Coefficients, error) {
	b := append(m.buf[:0], e.TaskID...)
	b = appendCOE(b, &e.COE)
	b, err := appendCell(b, e)
	cell := len(e.TaskID) + coeSize
	end := len(b)
	b = append(append(b, e.Name...), byte(len(e.Name)), byte(len(e.TaskID)))
	m.buf = b
	if err != nil {
		return Coefficients{}, fmt.Errorf("map %s: %w", e.Name, err)
	}
	slot, hash := m.cache.slot(b)
	if slot.holds(b, hash) {
		return slot.value, nil
	}
	if context := (*[coeSize]byte)(b[len(e.TaskID):cell]); *context != m.context {
		m.context, m.coe = *context, sha256.Sum256(context[:])
	}
	c := Coefficients{COE: m.coe, CELL: sha256.Sum256(b[cell:end])}
	c.Point = m.point(e, &c)
	slot.keep(b, hash, &c)
	return c, nil
}

// point is SHA256(name || task_id || COE || CELL).
func (m *Mapper) point(e *Event, c *Coefficients) ID {
	b := append(m.last[:0], e.Name...)
	b = append(b, e.TaskID...)
	b = append(b, c.COE[:]...)
	b = append(b, c.CELL[:]...)
	m.last = b
	return sha256.Sum256(b)
}

// TaskID computes the TASK_ID of a program that a task starts, whose
// p_task_id is parent: the kernel's form over Quixote's digests, SPEC 4.4. e
// carries COE and File. name is "bprm_committed_creds" for an exec.
func TaskID(name string, parent ID, e *Event) (ID, error) {
	var space [512]byte
	coe := sha256.Sum256(appendCOE(space[:0], &e.COE))
	b, err := appendFile(space[:0], &e.File)
	if err != nil {
		return ID{}, err
	}
	cell := sha256.Sum256(b)
	b = append(space[:0], name...)
	b = append(b, parent[:]...)
	b = append(b, make([]byte, len(ID{}))...)
	b = append(b, coe[:]...)
	b = append(b, cell[:]...)
	return sha256.Sum256(b), nil
}
