package vsockproto

import (
	"bytes"
	"fmt"
)

// MaxFilters bounds the filters of a Policy, MaxPrefix a filter's path, bytes.
const (
	MaxFilters = 64
	MaxPrefix  = 128
)

// Filter keeps records from being made in the guest's kernel: of Type, or with
// Type 0 of every type of Class, those for which all of its conditions hold. What
// any filter of a policy matches is left out, and counted.
//
// Critical records cannot be filtered: who runs what, and what became of it, is
// what everything else is judged by.
type Filter struct {
	Type       EventType
	Class      Class // of Type; Bulk
	Conditions FilterConditions
	UID        uint32   // all of a task's user ids but those that stand for files alone
	Cgroup     uint64   // its id; not those below it
	Program    [32]byte // SHA-256 of what the task runs, or the one that it was forked from
	Path       string   // what a path begins with, byte for byte, at most MaxPrefix; see TakesPrefix
}

// FilterConditions are those of a filter that are not its type, class or path.
type FilterConditions uint8

const (
	FilterUID     FilterConditions = 1
	FilterCgroup  FilterConditions = 2
	FilterProgram FilterConditions = 4

	filterConditions = FilterUID | FilterCgroup | FilterProgram
)

// TakesPrefix reports whether a filter of this type can name a path: its records
// are of one file, and its hook is told the mount, so that the path is from the root.
func (t EventType) TakesPrefix() bool {
	switch t {
	case FileOpen, MmapFile, FileIoctl, FileIoctlCompat, FileLock, FileFcntl, FileReceive, FileMprotect, UringCmd, InodeGetattr:
		return true
	}
	return false
}

// Check says why a filter cannot stand.
func (f *Filter) Check() error {
	switch {
	case f.Type != 0 && !f.Type.Known():
		return fmt.Errorf("type %d is not known: %w", uint16(f.Type), ErrInvalid)
	case f.Type != 0 && f.Type.Class() != Bulk:
		return fmt.Errorf("%s is critical: programs are told by it, or what intruders do, so it cannot be filtered: %w", f.Type, ErrInvalid)
	case f.Class != Bulk:
		return fmt.Errorf("class %d cannot be filtered, bulk alone can: %w", uint8(f.Class), ErrInvalid)
	case f.Conditions&^filterConditions != 0:
		return fmt.Errorf("conditions %#x: %w", uint8(f.Conditions), ErrInvalid)
	case f.Conditions == 0 && (f.Path == "" || f.Path == "/"):
		return fmt.Errorf("without a condition it leaves out every record of its kind; a profile says which are made: %w", ErrInvalid)
	case f.Conditions&FilterUID == 0 && f.UID != 0, f.Conditions&FilterCgroup == 0 && f.Cgroup != 0,
		f.Conditions&FilterProgram == 0 && f.Program != [32]byte{}:
		return fmt.Errorf("it holds what is no condition of it: %w", ErrInvalid)
	}
	return f.checkPath()
}

func (f *Filter) checkPath() error {
	switch {
	case f.Path == "":
		return nil
	case len(f.Path) > MaxPrefix:
		return fmt.Errorf("path of %d bytes, limit %d: %w", len(f.Path), MaxPrefix, ErrTooLong)
	case f.Path[0] != '/' || bytes.IndexByte([]byte(f.Path), 0) >= 0:
		return fmt.Errorf("path %q is not absolute: %w", f.Path, ErrInvalid)
	case f.Type != 0 && !f.Type.TakesPrefix():
		return fmt.Errorf("records of %s have no path from the root that a filter could name: %w", f.Type, ErrInvalid)
	}
	return nil
}

// String says what f leaves out: "file_open path=/var/log/ uid=33".
func (f Filter) String() string {
	text := f.Class.String()
	if f.Type != 0 {
		text = f.Type.String()
	}
	if f.Path != "" {
		text += " path=" + f.Path
	}
	if f.Conditions&FilterUID != 0 {
		text += fmt.Sprintf(" uid=%d", f.UID)
	}
	if f.Conditions&FilterCgroup != 0 {
		text += fmt.Sprintf(" cgroup=%d", f.Cgroup)
	}
	if f.Conditions&FilterProgram != 0 {
		text += fmt.Sprintf(" program=%x", f.Program)
	}
	return text
}

func (f *Filter) append(b []byte) []byte {
	b = le.AppendUint16(b, uint16(f.Type))
	b = append(b, byte(f.Class), byte(f.Conditions))
	b = le.AppendUint32(b, f.UID)
	b = le.AppendUint64(b, f.Cgroup)
	b = append(b, f.Program[:]...)
	b = le.AppendUint16(b, uint16(len(f.Path)))
	b = append(b, 0, 0, 0, 0, 0, 0)
	var path [MaxPrefix]byte
	copy(path[:], f.Path)
	return append(b, path[:]...)
}

func (r *reader) filter() (f Filter) {
	f.Type, f.Class, f.Conditions = EventType(r.u16()), Class(r.u8()), FilterConditions(r.u8())
	f.UID, f.Cgroup = r.u32(), r.u64()
	copy(f.Program[:], r.take(len(f.Program)))
	n := int(r.u16())
	r.zero(6)
	path := r.take(MaxPrefix)
	if r.err != nil {
		return Filter{}
	}
	if n > MaxPrefix {
		r.err = fmt.Errorf("path of %d bytes, limit %d: %w", n, MaxPrefix, ErrTooLong)
		return Filter{}
	}
	f.Path = string(path[:n])
	for _, c := range path[n:] {
		r.reserved(uint64(c))
	}
	if r.err == nil {
		r.err = f.Check()
	}
	return f
}

// Filtering is what a heartbeat says of filters.
type Filtering struct {
	Number   uint64 // of the policy whose filters are in force; 0: none are
	Filtered uint64 // records that were left out since the boot
}
