package tsem

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"testing"
)

// lines reads a gzipped file of one JSON object a line.
func lines(t testing.TB, path string, each func(line []byte)) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	s := bufio.NewScanner(z)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		each(s.Bytes())
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
}

// object is a JSON object whose numbers are strings, as TSEM exports them.
type object map[string]json.RawMessage

// reading turns an exported event into an Event, strictly; the first error
// stays.
type reading struct{ err error }

func (r *reading) fail(err error) {
	if r.err == nil && err != nil {
		r.err = err
	}
}

func (r *reading) object(raw json.RawMessage) object {
	var o object
	if len(raw) > 0 {
		r.fail(json.Unmarshal(raw, &o))
	}
	return o
}

func (r *reading) text(o object, key string) string {
	var s string
	if raw, has := o[key]; has {
		r.fail(json.Unmarshal(raw, &s))
	} else {
		r.fail(fmt.Errorf("no %q", key))
	}
	return s
}

func (r *reading) number(o object, key string, bits int) uint64 {
	n, err := strconv.ParseUint(r.text(o, key), 0, bits)
	r.fail(err)
	return n
}

func (r *reading) u32(o object, key string) uint32 { return uint32(r.number(o, key, 32)) }

func (r *reading) hex(o object, key string, into []byte) {
	b, err := hex.DecodeString(r.text(o, key))
	r.fail(err)
	if len(b) != len(into) {
		r.fail(fmt.Errorf("%s of %d bytes", key, len(b)))
	}
	copy(into, b)
}

func (r *reading) file(o object) File {
	inode, path := r.object(o["inode"]), r.object(o["path"])
	f := File{
		Flags: r.u32(o, "flags"), UID: r.u32(inode, "uid"), GID: r.u32(inode, "gid"),
		Mode: uint16(r.number(inode, "mode", 16)), Magic: r.u32(inode, "s_magic"),
		PathType: r.text(path, "type"), Path: []byte(r.text(path, "pathname")),
	}
	copy(f.SID[:], r.text(inode, "s_id"))
	r.hex(inode, "s_uuid", f.UUID[:])
	r.hex(o, "digest", f.Digest[:])
	if _, has := path["instance"]; has {
		f.Instance = r.number(path, "instance", 63)
		r.hex(path, "owner", f.Owner[:])
	}
	return f
}

func (r *reading) socket(o object) Socket {
	s := Socket{Family: r.u32(o, "family"), Type: r.u32(o, "type"), Protocol: r.u32(o, "protocol")}
	if _, has := o["owner"]; has {
		r.hex(o, "owner", s.Owner[:])
	}
	return s
}

// address reads an address. The ports that Quixote leaves undefined are zero
// in the vectors.
func (r *reading) address(o object, name string) Address {
	for family, key := range map[uint32]string{afInet: "af_inet", afInet6: "af_inet6", afUnix: "af_unix", 0: "af_other"} {
		a := r.object(o[key])
		if a == nil {
			continue
		}
		out := Address{Family: family}
		switch family {
		case afInet:
			out.IP4 = r.u32(a, "address")
			if name != "socket_accept" {
				out.Port = uint16(r.number(a, "port", 16))
			}
		case afInet6:
			r.hex(a, "address", out.IP6[:])
			if name != "socket_accept" {
				out.Flow, out.Scope = r.u32(a, "flow"), r.u32(a, "scope")
			}
		case afUnix:
			out.Path = []byte(r.text(a, "address"))
		default:
			r.hex(a, "address", out.Digest[:])
		}
		return out
	}
	r.fail(fmt.Errorf("no address"))
	return Address{}
}

// parseEvent reads one exported line.
func parseEvent(line []byte) (Event, error) {
	d := json.NewDecoder(bytes.NewReader(line))
	var o object
	if err := d.Decode(&o); err != nil {
		return Event{}, err
	}
	var r reading
	head, coe := r.object(o["event"]), r.object(o["COE"])
	e := Event{Name: r.text(head, "type")}
	r.hex(head, "task_id", e.TaskID[:])
	e.COE = COE{
		UID: r.u32(coe, "uid"), EUID: r.u32(coe, "euid"), SUID: r.u32(coe, "suid"), GID: r.u32(coe, "gid"),
		EGID: r.u32(coe, "egid"), SGID: r.u32(coe, "sgid"), FSUID: r.u32(coe, "fsuid"), FSGID: r.u32(coe, "fsgid"),
		CapEff: r.number(coe, "capeff", 63),
	}
	r.body(&e, r.object(o[e.Name]))
	return e, r.err
}

func (r *reading) body(e *Event, body object) {
	switch e.Name {
	case "file_open":
		e.File = r.file(r.object(body["file"]))
	case "mmap_file":
		if file, has := body["file"]; has {
			e.HasFile, e.File = true, r.file(r.object(file))
		}
		e.Prot, e.MapFlags = r.u32(body, "prot"), r.u32(body, "flags")
	case "socket_create":
		e.Socket = r.socket(body)
		e.Socket.Kernel = r.u32(body, "kern")
	case "socket_bind", "socket_connect", "socket_accept":
		e.Socket = r.socket(r.object(body["sock"]))
		e.Address = r.address(r.object(body["addr"]), e.Name)
	case "task_kill":
		e.Kill = Kill{CrossNS: r.u32(body, "cross_ns"), Signal: r.u32(body, "sig")}
		r.hex(body, "target", e.Kill.Target[:])
	}
}
