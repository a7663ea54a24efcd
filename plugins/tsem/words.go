package tsem

import (
	"fmt"
	"net/netip"
)

// Words say what an event is, without who did it. What a guest chose is in it
// as it is: escape it before showing.
func (e *Event) Words() string {
	switch e.Name {
	case "file_open":
		return "file_open " + e.File.words()
	case "mmap_file":
		if !e.HasFile {
			return fmt.Sprintf("mmap_file anonymous prot %d flags %d", e.Prot, e.MapFlags)
		}
		return fmt.Sprintf("mmap_file %s prot %d flags %d", e.File.words(), e.Prot, e.MapFlags)
	case "socket_create":
		return fmt.Sprintf("socket_create family %d type %d protocol %d", e.Socket.Family, e.Socket.Type, e.Socket.Protocol)
	case "socket_connect", "socket_bind", "socket_accept":
		return e.Name + " " + e.address()
	case "task_kill":
		return fmt.Sprintf("task_kill signal %d to task %.4x", e.Kill.Signal, e.Kill.Target)
	}
	switch {
	case len(e.File.Path) > 0:
		return fmt.Sprintf("%s %s %s", e.Name, e.File.PathType, e.File.Path)
	case e.Socket.Family != 0:
		return fmt.Sprintf("%s family %d type %d protocol %d", e.Name, e.Socket.Family, e.Socket.Type, e.Socket.Protocol)
	case e.Kill.Target != ID{}:
		return fmt.Sprintf("%s task %.4x", e.Name, e.Kill.Target)
	}
	return e.Name
}

func (f *File) words() string {
	text := fmt.Sprintf("%s %s flags %#o mode %#o uid %d digest %.4x", f.PathType, f.Path, f.Flags, f.Mode, f.UID, f.Digest)
	if f.Instance > 0 {
		text += fmt.Sprintf(" temporary %d", f.Instance)
	}
	return text
}

func (e *Event) address() string {
	a := &e.Address
	port := a.Port<<8 | a.Port>>8
	switch e.Socket.Family {
	case afInet:
		var b [4]byte
		le.PutUint32(b[:], a.IP4)
		if e.Name == "socket_accept" {
			return netip.AddrFrom4(b).String()
		}
		return netip.AddrPortFrom(netip.AddrFrom4(b), port).String()
	case afInet6:
		return netip.AddrFrom16(a.IP6).String()
	case afUnix:
		return "unix " + string(a.Path)
	}
	return fmt.Sprintf("family %d address %.4x", e.Socket.Family, a.Digest)
}
