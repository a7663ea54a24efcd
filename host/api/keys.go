package api

import (
	"bytes"
	"strings"

	"github.com/outguard/outguard/plugins/lineage"
	"github.com/outguard/outguard/vsockproto"
)

// KeyScheme is that of the keys below. Whoever changes what they say, or adds
// to them, changes it too: what was indexed with others is then indexed anew.
const KeyScheme = 1

// what a key is of.
const (
	keyKind      = 1  // the kind of a record that is no frame
	keyHook      = 2  // the type of an event
	keyPID       = 3  // the acting task's pid, and its process's
	keyPath      = 4  // a path in an event
	keyDir       = 5  // one that it begins with, to a slash
	keyBase      = 6  // its last element
	keyCgroup    = 7  // the number of the acting task's cgroup
	keyNamed     = 8  // of the cgroup that an event names
	keyContainer = 9  // the container that this cgroup is of: RUNTIME/ID, ID or its first 12 digits
	keyProgram   = 10 // as keyPath, of what is executed or was running
	keyProgDir   = 11
	keyProgBase  = 12
)

// maxDirs is how many of a path's beginnings are keys.
const maxDirs = 8

// KindKey is the key of a record of that kind that is no frame.
func KindKey(kind uint16) uint64 { return numberKey(keyKind, uint64(kind)) }

// EventKeys calls add with every key of an event. What an Asked of its like may
// be about has at least the keys that its May asks for.
func EventKeys(e *vsockproto.Event, add func(key uint64)) {
	add(numberKey(keyHook, uint64(e.Type)))
	add(numberKey(keyPID, uint64(e.PID)))
	if e.TGID != e.PID {
		add(numberKey(keyPID, uint64(e.TGID)))
	}
	add(numberKey(keyCgroup, e.CgroupID))
	for _, p := range [...][]byte{e.Path.Data, e.Path2.Data, e.Filename.Data, unixPath(e)} {
		pathKeys(keyPath, keyDir, keyBase, p, add)
	}
	if startsProgram(e) {
		pathKeys(keyProgram, keyProgDir, keyProgBase, e.Path.Data, add)
	}
	if namesCgroup(e) {
		add(numberKey(keyNamed, e.Cgroup.ID))
		for _, name := range containerNames(string(e.Path.Data)) {
			add(textKey(keyContainer, name))
		}
	}
}

// startsProgram: from this event on the task runs what its path says.
func startsProgram(e *vsockproto.Event) bool {
	return e.Type == vsockproto.BprmCommittedCreds || e.Type == vsockproto.TaskSnapshot
}

func namesCgroup(e *vsockproto.Event) bool {
	return e.Type == vsockproto.CgroupMkdir || e.Type == vsockproto.CgroupSnapshot
}

// shortID is how many digits of a container's id people write.
const shortID = 12

// containerNames are the names by which the container that a cgroup belongs to
// can be asked for; none where it belongs to none.
func containerNames(cgroup string) []string {
	runtime, id, _ := lineage.RuntimeOf(cgroup)
	switch {
	case id == "":
		return nil
	case lineage.Random(id):
		return []string{runtime + "/" + id, id, id[:shortID]}
	}
	return []string{runtime + "/" + id, id}
}

// Keys are FNV-1a, mixed: whoever looks for two that are equal makes a question
// read more.
const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

func step(h uint64, c byte) uint64 { return (h ^ uint64(c)) * fnvPrime }

func mix(h uint64, of byte) uint64 {
	h = step(h, of)
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

func numberKey(of byte, n uint64) uint64 {
	h := uint64(fnvOffset)
	for ; n != 0; n >>= 8 {
		h = step(h, byte(n))
	}
	return mix(h, of)
}

func textKey[T string | []byte](of byte, s T) uint64 {
	h := uint64(fnvOffset)
	for i := range len(s) {
		h = step(h, s[i])
	}
	return mix(h, of)
}

// pathKeys adds the keys of a path: whole, of the directories that it begins
// with, and of its last element.
func pathKeys(whole, dir, base byte, p []byte, add func(uint64)) {
	if len(p) == 0 {
		return
	}
	h, last, dirs := uint64(fnvOffset), uint64(fnvOffset), 0
	for _, c := range p {
		h, last = step(h, c), step(last, c)
		if c != '/' {
			continue
		}
		last = fnvOffset
		if dirs++; dirs <= maxDirs {
			add(mix(h, dir))
		}
	}
	add(mix(h, whole))
	add(mix(last, base))
}

// patternKeys are keys that everything has which a pattern matches: of the
// whole, or of where it begins and of its last element as far as it says them.
func patternKeys(whole, dir, base byte, pattern string) (keys []uint64) {
	first := strings.IndexAny(pattern, "*?")
	if first < 0 {
		if pattern == "" {
			return nil
		}
		return []uint64{textKey(whole, pattern)}
	}
	if d := dirOf(pattern[:first]); d != "" {
		keys = append(keys, textKey(dir, d))
	}
	rest := pattern[strings.LastIndexAny(pattern, "*?")+1:]
	if i := strings.LastIndexByte(rest, '/'); i >= 0 {
		keys = append(keys, textKey(base, rest[i+1:]))
	}
	return keys
}

// dirOf is what of s is a key of every path that begins with s.
func dirOf(s string) string {
	end, dirs := 0, 0
	for i := range len(s) {
		if s[i] == '/' && dirs < maxDirs {
			end = i + 1
			dirs++
		}
	}
	return s[:end]
}

const afUnix = 1

func unixPath(e *vsockproto.Event) []byte {
	if e.Address.Family != afUnix && !e.Type.Has(vsockproto.PartSocket2) {
		return nil
	}
	return bytes.TrimRight(e.RawAddr.Data, "\x00")
}
