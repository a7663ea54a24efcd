package quixote

import (
	"bytes"
	"encoding/hex"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/outguard/outguard/plugins/tsem"
	"github.com/outguard/outguard/vsockproto"
)

// AppendEvent appends an event as TSEM exports it: one line of JSON, all of its
// values strings.
//
// JSON and Quixote's agents, who search text, do not agree on every name. What
// is written is JSON: a byte that is no UTF-8 stands as \udc80 to \udcff. plain
// is false where an agent would read another name, or none, from the line: in
// one with a brace, a backslash or a control character, or that is empty. The
// name of a process, which is in no model, has _ for these.
func AppendEvent(b []byte, e *tsem.Exported) (line []byte, plain bool) {
	w := &writer{b: b, plain: true}
	w.head(e)
	w.coe(&e.COE)
	w.b = append(append(append(w.b, `, "`...), e.Name...), `": `...)
	w.body(e)
	return append(w.b, "}\n"...), !w.brace && (w.plain || !hasBody(e.Name))
}

// writer appends JSON.
type writer struct {
	b     []byte
	plain bool
	brace bool // in a name: it counts even where the body does not
}

func (w *writer) raw(s string) { w.b = append(w.b, s...) }

func (w *writer) key(name string) {
	if c := w.b[len(w.b)-1]; c != '{' {
		w.b = append(w.b, ", "...)
	}
	w.b = append(append(append(w.b, '"'), name...), `": `...)
}

func (w *writer) open(name string) {
	w.key(name)
	w.b = append(w.b, '{')
}

func (w *writer) close() { w.b = append(w.b, '}') }

func (w *writer) number(name string, v uint64) {
	w.key(name)
	w.b = append(strconv.AppendUint(append(w.b, '"'), v, 10), '"')
}

// based is a number in octal or hex, with what says so in front.
func (w *writer) based(name, prefix string, v uint64, base int) {
	w.key(name)
	w.b = append(strconv.AppendUint(append(append(w.b, '"'), prefix...), v, base), '"')
}

// signed is a number of 32 bits that may be below zero.
func (w *writer) signed(name string, v uint64) {
	w.key(name)
	w.b = append(strconv.AppendInt(append(w.b, '"'), int64(int32(v)), 10), '"')
}

// long is one of 64 bits.
func (w *writer) long(name string, v uint64) {
	w.key(name)
	w.b = append(strconv.AppendInt(append(w.b, '"'), int64(v), 10), '"')
}

func (w *writer) hex(name string, v []byte) {
	w.key(name)
	w.b = append(hex.AppendEncode(append(w.b, '"'), v), '"')
}

// text is a name that the model holds.
func (w *writer) text(name string, v []byte) {
	w.key(name)
	w.plain = w.plain && len(v) > 0
	w.b = append(w.b, '"')
	for len(v) > 0 {
		r, n := utf8.DecodeRune(v)
		switch {
		case r == utf8.RuneError && n == 1:
			w.plain = false
			w.b = append(w.b, `\udc`...)
			w.b = hex.AppendEncode(w.b, v[:1])
		case r == '"':
			w.b = append(w.b, `\"`...)
		case r == '\\':
			w.plain = false
			w.b = append(w.b, `\\`...)
		case r < ' ':
			w.plain = false
			w.b = append(w.b, `\u00`...)
			w.b = hex.AppendEncode(w.b, v[:1])
		default:
			w.brace = w.brace || r == '{' || r == '}'
			w.b = append(w.b, v[:n]...)
		}
		v = v[n:]
	}
	w.b = append(w.b, '"')
}

// process is a name that no model holds.
func (w *writer) process(comm []byte) {
	comm, _, _ = bytes.Cut(comm, []byte{0})
	w.key("process")
	w.b = append(w.b, '"')
	for len(comm) > 0 {
		r, n := utf8.DecodeRune(comm)
		if r < ' ' || r == utf8.RuneError && n == 1 || bytes.ContainsRune([]byte(`{}"\`), r) {
			w.b = append(w.b, '_')
		} else {
			w.b = append(w.b, comm[:n]...)
		}
		comm = comm[n:]
	}
	w.b = append(w.b, '"')
}

func (w *writer) head(e *tsem.Exported) {
	kind, r := "event", e.Record
	if asynchronous(e.Name) {
		kind = "async_event"
	}
	w.raw(`{"export": {"type": "` + kind + `"}, "event": {`)
	w.number("pid", uint64(r.PID))
	w.number("tnum", r.StartNs)
	w.number("context", e.Context)
	w.number("number", e.Number)
	w.process(r.Comm[:])
	w.key("type")
	w.raw(`"` + e.Name + `"`)
	w.number("ttd", e.TTD)
	w.number("p_ttd", e.ParentTTD)
	w.hex("task_id", e.TaskID)
	w.hex("p_task_id", e.ParentID[:])
	w.number("ts", r.BootNs)
	w.raw(`}, "COE": {`)
}

// asynchronous reports whether TSEM exports such an event after the fact.
// Source: SPEC section 2.
func asynchronous(name string) bool {
	switch name {
	case "task_kill", "ptrace_access_check", "ptrace_traceme", "capget", "capset", "capable", "unix_stream_connect", "unix_may_send",
		"ipc_permission", "key_permission", "task_setioprio", "task_getioprio":
		return !strings.HasSuffix(name, "ioprio")
	}
	for _, prefix := range [...]string{"task_", "shm_", "sem_", "msg_queue_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

func (w *writer) coe(c *tsem.COE) {
	for i, v := range [...]uint32{c.UID, c.EUID, c.SUID, c.GID, c.EGID, c.SGID, c.FSUID, c.FSGID} {
		w.number(coeKeys[i], uint64(v))
	}
	w.based("capeff", "0x", c.CapEff, 16)
	w.close()
}

var coeKeys = [...]string{"uid", "euid", "suid", "gid", "egid", "sgid", "fsuid", "fsgid"}

func (w *writer) body(e *tsem.Exported) {
	w.raw("{")
	switch e.Name {
	case "file_open", "bprm_committed_creds":
		w.file(e)
	case "mmap_file":
		if e.HasFile {
			w.file(e)
		}
		w.number("reqprot", uint64(e.Record.ReqProt))
		w.number("prot", uint64(e.Prot))
		w.number("flags", uint64(e.MapFlags))
	case "socket_create":
		w.socket(e)
		w.number("kern", uint64(e.Socket.Kernel))
	case "socket_bind", "socket_connect", "socket_accept":
		w.owned(e)
		w.address(e)
	case "socket_listen":
		w.owned(e)
		w.number("backlog", uint64(e.Record.Backlog))
	case "task_kill":
		w.hex("target", e.Kill.Target[:])
		w.number("sig", uint64(e.Kill.Signal))
		w.number("cross_ns", uint64(e.Kill.CrossNS))
	default:
		w.further(e)
	}
	w.close()
}

func (w *writer) file(e *tsem.Exported) {
	f := &e.File
	w.open("file")
	w.number("flags", uint64(f.Flags))
	w.open("inode")
	w.inode(uint64(f.UID), uint64(f.GID), uint64(f.Mode), &e.Record.File, f.SID[:])
	w.close()
	w.open("path")
	w.dev(uint64(e.Record.File.Dev))
	w.text("type", []byte(f.PathType))
	if f.Instance > 0 {
		w.hex("owner", f.Owner[:])
		w.number("instance", f.Instance)
	}
	w.text("pathname", f.Path)
	w.close()
	if hasBody(e.Name) || e.Name == "bprm_committed_creds" {
		w.hex("digest", f.Digest[:])
	} else if digest, is := tsem.ContentOf(&e.Record.File); is { // nothing stands for one that nobody took
		w.hex("digest", digest[:])
	}
	w.close()
}

// inode appends what is known of one on the file system of f. ID is that of the file
// system, without which an event that is modelled has a word of its own.
func (w *writer) inode(uid, gid, mode uint64, f *vsockproto.File, id []byte) {
	w.number("uid", uid)
	w.number("gid", gid)
	w.based("mode", "0", mode, 8)
	w.based("s_magic", "0x", uint64(f.Magic), 16)
	id, _, _ = bytes.Cut(id, []byte{0})
	w.text("s_id", id)
	w.hex("s_uuid", f.UUID[:])
}

// dev is a device's number, as the kernel has it.
func (w *writer) dev(v uint64) {
	w.open("dev")
	w.number("major", v>>20)
	w.number("minor", v&(1<<20-1))
	w.close()
}

func (w *writer) socket(e *tsem.Exported) {
	w.number("family", uint64(e.Socket.Family))
	w.number("type", uint64(e.Socket.Type))
	w.number("protocol", uint64(e.Socket.Protocol))
}

func (w *writer) owned(e *tsem.Exported) { w.ownedAs("sock", e) }

func (w *writer) ownedAs(key string, e *tsem.Exported) {
	w.open(key)
	w.socket(e)
	w.hex("owner", e.Socket.Owner[:])
	w.close()
}

func (w *writer) address(e *tsem.Exported) {
	a := &e.Address
	w.open("addr")
	w.open(addressKey(e.Socket.Family))
	switch e.Socket.Family {
	case afInet:
		w.number("port", uint64(a.Port))
		w.number("address", uint64(a.IP4))
	case afInet6:
		w.number("port", uint64(a.Port))
		if e.Name != "socket_accept" {
			w.number("flow", uint64(a.Flow))
			w.number("scope", uint64(a.Scope))
		}
		w.hex("address", a.IP6[:])
	case afUnix:
		path, _, _ := bytes.Cut(a.Path, []byte{0})
		w.text("address", path)
	default:
		w.hex("address", a.Digest[:])
	}
	w.close()
	w.close()
}
