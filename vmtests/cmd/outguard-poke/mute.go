package main

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// configTypes are the bytes of the agent's configuration that say which types are
// wanted; configSize is all of it. See guest/bpf/maps.h.
const configTypes, configSize = 256, 312

// mute has the programs believe that nobody wants the records of a type, with
// everything still attached: it takes its bits out of the pinned map at path.
func mute(path string, event int) error {
	if event < 0 || event >= configTypes {
		return fmt.Errorf("type %d: not below %d", event, configTypes)
	}
	name := append([]byte(path), 0)
	get := struct {
		path     uint64
		fd, flag uint32
	}{path: uint64(uintptr(unsafe.Pointer(&name[0])))}
	fd, err := bpf(unix.BPF_OBJ_GET, unsafe.Pointer(&get), unsafe.Sizeof(get))
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(int(fd))
	var key uint32
	var value [configSize]byte
	element := struct {
		fd, pad           uint32
		key, value, flags uint64
	}{fd: uint32(fd), key: uint64(uintptr(unsafe.Pointer(&key))), value: uint64(uintptr(unsafe.Pointer(&value)))}
	if _, err := bpf(unix.BPF_MAP_LOOKUP_ELEM, unsafe.Pointer(&element), unsafe.Sizeof(element)); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	value[event] = 0
	if _, err := bpf(unix.BPF_MAP_UPDATE_ELEM, unsafe.Pointer(&element), unsafe.Sizeof(element)); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (uintptr, error) {
	r, _, e := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
	if e != 0 {
		return 0, e
	}
	return r, nil
}
