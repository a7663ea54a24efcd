package vsockproto

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
)

// canaryPrefix begins the name under which an agent does what a Canary asks
// for; the nonce in hex, lower case, follows.
const canaryPrefix = "outguard-canary-"

const (
	afUnix     = 1
	memfdPath  = "/memfd:"
	abstract   = "\x00"
	nonceBytes = 16
	msBind     = 0x1000
)

// CanaryTypes lists the types whose hooks a Canary makes run, ascending: of the
// further hooks those that can be made to run without a trace. An exec is not
// among them, since the agent never execs: Totals.Unhooked tells of those; nor
// are task_newtask and sched_process_exit, which Totals.Starts and every
// thread's end tell of.
func CanaryTypes() []EventType {
	return []EventType{
		FileOpen, MmapFile, SocketCreate, SocketBind, SocketConnect, SocketListen, SocketAccept, TaskKill,
		TaskPrctl, FileIoctl, FileLock, FileFcntl, SbMount,
	}
}

// CanaryName is the name of the memfd and the abstract name (without its
// leading NUL) of the socket that belong to a nonce.
func CanaryName(nonce [nonceBytes]byte) string { return canaryPrefix + hex.EncodeToString(nonce[:]) }

// CanaryProtocol is the protocol that socket_create is tried with, never 0, so
// that no AF_UNIX socket can come of it, and the option of prctl.
func CanaryProtocol(nonce [nonceBytes]byte) uint32 {
	return le.Uint32(nonce[:])&0x7fffffff | 0x40000000
}

// CanaryRecord is what one flagged record says.
type CanaryRecord struct {
	Nonce  [nonceBytes]byte // where Named
	Named  bool             // the record has the whole nonce
	Cookie uint64           // of the socket; socket_bind, socket_listen, socket_accept
}

// CanaryOf checks that a record with FlagCanary is of something that a Canary
// asks for, and nothing else: what is done to a memfd of that name, an AF_UNIX
// socket that is tried with an impossible protocol, the abstract socket of that
// name, a signal 0 of the agent's to itself, a prctl that is only the nonce, and a
// bind mount over the memfd, which no kernel makes. Anything else under that flag
// is ErrInvalid, so that nothing hides behind it.
func (e *Event) CanaryOf() (CanaryRecord, error) {
	var c CanaryRecord
	switch e.Type {
	case FileOpen, MmapFile, FileIoctl, FileLock, FileFcntl:
		c.Named = c.name(e.Path.Data, memfdPath) && e.File.Links == 0
	case SbMount:
		c.Named = c.name(e.Path.Data, memfdPath) && e.File.Links == 0 && e.Args == [MaxArgs]uint64{msBind}
	case TaskPrctl:
		c.Named = c.args(e.Args)
	case SocketBind, SocketConnect, SocketAccept:
		c.Cookie = e.Socket.Cookie
		c.Named = c.name(e.RawAddr.Data, abstract) && e.Address.Family == afUnix
	case SocketListen:
		c.Cookie = e.Socket.Cookie
		if e.Socket.Family == afUnix {
			return c, nil
		}
	case SocketCreate:
		if e.Socket.Family == afUnix && e.Socket.Protocol >= CanaryProtocol([nonceBytes]byte{}) {
			return c, nil
		}
	case TaskKill:
		if e.Signal == 0 && e.Target.TGID == e.TGID {
			return c, nil
		}
	}
	if !c.Named {
		return CanaryRecord{}, fmt.Errorf("%s that says it is a canary: %w", e.Type, ErrInvalid)
	}
	return c, nil
}

// CanaryArgs are the two arguments of prctl that are the nonce.
func CanaryArgs(nonce [nonceBytes]byte) (arg2, arg3 uint64) {
	return le.Uint64(nonce[:]), le.Uint64(nonce[8:])
}

// args reads the nonce out of a prctl's arguments.
func (c *CanaryRecord) args(a [MaxArgs]uint64) bool {
	le.PutUint64(c.Nonce[:], a[1])
	le.PutUint64(c.Nonce[8:], a[2])
	return a == [MaxArgs]uint64{uint64(CanaryProtocol(c.Nonce)), a[1], a[2]}
}

// name reads the nonce out of a whole name.
func (c *CanaryRecord) name(b []byte, before string) bool {
	b, ok := bytes.CutPrefix(b, []byte(before+canaryPrefix))
	if !ok || len(b) != hex.EncodedLen(len(c.Nonce)) {
		return false
	}
	n, err := hex.Decode(c.Nonce[:], b)
	return err == nil && n == len(c.Nonce) && !slices.ContainsFunc(b, func(d byte) bool { return d >= 'A' && d <= 'F' })
}

// DropCanaries removes the records with FlagCanary from records, in place, and
// returns what is left of them and how many went. Records that are not
// well-formed end it; they and what follows stay.
func DropCanaries(records []byte) (rest []byte, dropped int) {
	at, n := nextCanary(records, 0)
	if n == 0 {
		return records, 0
	}
	out := records[:at]
	for n > 0 {
		from := at + n
		dropped++
		at, n = nextCanary(records, from)
		out = append(out, records[from:at]...)
	}
	return append(out, records[at:]...), dropped
}

// nextCanary finds the first flagged record at or behind from, and its length:
// 0 where there is none, and at is the end, or a record that is not well-formed.
func nextCanary(records []byte, from int) (at, length int) {
	for at = from; at+RecordHeaderSize <= len(records); at += length {
		length = int(le.Uint32(records[at:]))
		flags := le.Uint32(records[at+12:])
		if length < RecordFixed || length > len(records)-at || flags > FlagCanary {
			return at, 0
		}
		if flags == FlagCanary {
			return at, length
		}
	}
	return len(records), 0
}
