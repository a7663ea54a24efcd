package quixote

import (
	"fmt"

	"github.com/outguard/outguard/plugins/tsem"
)

// object is a structure of a line, in either dialect.
type object interface {
	has(key string) bool
	text(key string) ([]byte, error)
	number(key string) (uint64, error)
}

// reading reads values; its first error stays.
type reading struct{ err error }

func (r *reading) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func text1[O object](r *reading, o O, key string) []byte {
	if r.err != nil {
		return nil
	}
	b, err := o.text(key)
	r.err = err
	return b
}

func number[O object](r *reading, o O, key string, most uint64) uint64 {
	if r.err != nil {
		return 0
	}
	n, err := o.number(key)
	if err == nil && n > most {
		err = fmt.Errorf("number %s: %w", key, ErrRange)
	}
	r.err = err
	return n
}

func u32[O object](r *reading, o O, key string) uint32 {
	return uint32(number(r, o, key, 1<<32-1))
}

func digest[O object](r *reading, o O, key string, into []byte) {
	b := text1(r, o, key)
	if r.err == nil && !unhex(into, b) {
		r.err = fmt.Errorf("%s: %w", key, ErrHex)
	}
}

// unhex decodes hex of either case that fills into.
func unhex(into, b []byte) bool {
	if len(b) != 2*len(into) {
		return false
	}
	bad := uint8(0)
	for i := range into {
		high, low := digits[b[2*i]], digits[b[2*i+1]]
		bad |= high | low
		into[i] = high<<4 | low
	}
	return bad < 16
}

func readCOE[O object](r *reading, o O, c *tsem.COE) {
	c.UID, c.EUID, c.SUID = u32(r, o, "uid"), u32(r, o, "euid"), u32(r, o, "suid")
	c.GID, c.EGID, c.SGID = u32(r, o, "gid"), u32(r, o, "egid"), u32(r, o, "sgid")
	c.FSUID, c.FSGID = u32(r, o, "fsuid"), u32(r, o, "fsgid")
	c.CapEff = number(r, o, "capeff", 1<<64-1)
}

func readFile[O object](r *reading, file, inode, path O, f *tsem.File) {
	f.Flags = u32(r, file, "flags")
	digest(r, file, "digest", f.Digest[:])
	f.UID, f.GID = u32(r, inode, "uid"), u32(r, inode, "gid")
	f.Mode, f.Magic = uint16(number(r, inode, "mode", 1<<16-1)), u32(r, inode, "s_magic")
	id := text1(r, inode, "s_id")
	if len(id) >= len(f.SID) { // a NUL follows
		r.fail(fmt.Errorf("s_id of %d bytes: %w", len(id), ErrRange))
	}
	copy(f.SID[:], id)
	digest(r, inode, "s_uuid", f.UUID[:])
	f.PathType = intern(text1(r, path, "type"))
	f.Path = text1(r, path, "pathname")
	if r.err == nil && path.has("instance") {
		f.Instance = number(r, path, "instance", 1<<64-1)
		digest(r, path, "owner", f.Owner[:])
	}
}

// pathTypes are the words for paths, which need no copy.
var pathTypes = func() map[string]string {
	m := map[string]string{}
	for _, word := range tsem.PathTypes() {
		m[word] = word
	}
	return m
}()

func intern(word []byte) string {
	if s, known := pathTypes[string(word)]; known {
		return s
	}
	return string(word)
}

func readDevice[O object](r *reading, dev O) {
	u32(r, dev, "major")
	u32(r, dev, "minor")
}

func readSocket[O object](r *reading, o O, s *tsem.Socket) {
	s.Family, s.Type, s.Protocol = u32(r, o, "family"), u32(r, o, "type"), u32(r, o, "protocol")
}

// addressKeys are the structures of an address by the socket's family.
func addressKey(family uint32) string {
	switch family {
	case afInet:
		return "af_inet"
	case afInet6:
		return "af_inet6"
	case afUnix:
		return "af_unix"
	}
	return "af_other"
}

const (
	afUnix  = 1
	afInet  = 2
	afInet6 = 10

	maxUnixPath = 108
)

// readAddress reads an address. Of an accept's no port is read, nor flow and
// scope.
func readAddress[O object](r *reading, o O, family uint32, accept bool, a *tsem.Address) {
	switch family {
	case afInet:
		if a.IP4 = u32(r, o, "address"); !accept {
			a.Port = uint16(number(r, o, "port", 1<<16-1))
		}
	case afInet6:
		if digest(r, o, "address", a.IP6[:]); !accept {
			a.Flow, a.Scope = u32(r, o, "flow"), u32(r, o, "scope")
		}
	case afUnix:
		if a.Path = text1(r, o, "address"); len(a.Path) > maxUnixPath {
			r.fail(fmt.Errorf("address of %d bytes: %w", len(a.Path), ErrRange))
		}
	default:
		digest(r, o, "address", a.Digest[:])
	}
}

func readKill[O object](r *reading, o O, k *tsem.Kill) {
	k.CrossNS, k.Signal = u32(r, o, "cross_ns"), u32(r, o, "sig")
	digest(r, o, "target", k.Target[:])
}
