package vsockproto

import "fmt"

// ParseHeader reads the record header at the start of b and checks that the
// whole record is there.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < RecordHeaderSize {
		return Header{}, fmt.Errorf("record header: %w", ErrShort)
	}
	h := Header{
		Length:   le.Uint32(b),
		Type:     EventType(le.Uint16(b[4:])),
		Class:    Class(b[7]),
		CPU:      le.Uint32(b[8:]),
		Flags:    le.Uint32(b[12:]),
		Sequence: le.Uint64(b[16:]),
		BootNs:   le.Uint64(b[24:]),
	}
	switch {
	case b[6] != Version:
		return Header{}, fmt.Errorf("record version %d: %w", b[6], ErrVersion)
	case h.Length < RecordFixed || h.Length%8 != 0:
		return Header{}, fmt.Errorf("record length %d: %w", h.Length, ErrInvalid)
	case h.Length > MaxRecord:
		return Header{}, fmt.Errorf("record length %d, limit %d: %w", h.Length, MaxRecord, ErrTooLong)
	case int(h.Length) > len(b):
		return Header{}, fmt.Errorf("record of %d bytes: %w", h.Length, ErrShort)
	case !h.Class.valid() || h.CPU >= MaxCPUs || h.Sequence == 0:
		return Header{}, fmt.Errorf("record of cpu %d, class %d, sequence %d: %w", h.CPU, h.Class, h.Sequence, ErrInvalid)
	case h.Flags&^FlagCanary != 0:
		return Header{}, fmt.Errorf("record flags %#x: %w", h.Flags, ErrReserved)
	}
	return h, nil
}

// Parse reads the record at the start of b into e and returns what follows it.
// Tails alias b. A type that this version does not know is no error: its bytes
// after the subject are Unknown.
func (e *Event) Parse(b []byte) (rest []byte, err error) {
	*e = Event{}
	h, err := ParseHeader(b)
	if err != nil {
		return nil, err
	}
	r := reader{b: b[RecordHeaderSize:h.Length]}
	e.Header = h
	e.Subject.parse(&r, (*[SubjectSize]byte)(r.take(SubjectSize))) // ParseHeader saw that it is there
	if h.Type.Known() {
		e.parseBody(&r)
		e.parseTails(&r)
	} else {
		e.Unknown = r.take(len(r.b))
	}
	if err := r.end(); err != nil {
		*e = Event{}
		return nil, fmt.Errorf("%s: %w", h.Type, err)
	}
	return b[h.Length:], nil
}

// Append appends e as a record and sets e.Length. Fields that e.Type does not
// have are left out. A record over MaxRecord is ErrTooLong.
func (e *Event) Append(b []byte) ([]byte, error) {
	start := len(b)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint16(b, uint16(e.Type))
	b = append(b, Version, byte(e.Class))
	b = le.AppendUint32(b, e.CPU)
	b = le.AppendUint32(b, e.Header.Flags)
	b = le.AppendUint64(b, e.Sequence)
	b = le.AppendUint64(b, e.BootNs)
	b = e.Subject.append(b)
	if e.Type.Known() {
		b = e.appendBody(b)
		b = e.appendTails(b)
	} else {
		b = append(b, e.Unknown...)
	}
	n := len(b) - start
	if n > MaxRecord || n%8 != 0 {
		return b[:start], fmt.Errorf("%s of %d bytes: %w", e.Type, n, ErrTooLong)
	}
	e.Length = uint32(n)
	le.PutUint32(b[start:], e.Length)
	return b, nil
}

// parseBody reads the fixed body, whose size is checked once for all fields.
func (e *Event) parseBody(r *reader) {
	b := r.take(bodySize[e.Type])
	if r.err != nil {
		return
	}
	switch e.Type {
	case BprmCommittedCreds:
		e.File.parse(r, (*[fileSize]byte)(b))
		t := (*[16]byte)(b[fileSize:])
		e.Argc, e.Envc, e.SecureExec = le.Uint32(t[0:]), le.Uint32(t[4:]), r.bool(t[8])
		r.reserved(le.Uint64(t[8:]) >> 8)
	case FileOpen, TaskSnapshot:
		e.File.parse(r, (*[fileSize]byte)(b))
	case MmapFile:
		e.File.parse(r, (*[fileSize]byte)(b))
		t := (*[16]byte)(b[fileSize:])
		e.ReqProt, e.Prot, e.MapFlags, e.HasFile = le.Uint32(t[0:]), le.Uint32(t[4:]), le.Uint32(t[8:]), r.bool(t[12])
		r.reserved(uint64(le.Uint32(t[12:]) >> 8))
		if !e.HasFile && e.File != (File{}) && r.err == nil {
			r.err = fmt.Errorf("a file where there is none: %w", ErrReserved)
		}
	case SocketCreate:
		t := (*[16]byte)(b)
		e.Socket = Socket{Family: le.Uint32(t[0:]), Type: le.Uint32(t[4:]), Protocol: le.Uint32(t[8:]), Kernel: r.bool(t[12])}
		r.reserved(uint64(le.Uint32(t[12:]) >> 8))
	case SocketBind, SocketConnect, SocketAccept:
		e.Socket.parse(r, (*[socketSize]byte)(b))
		e.Address.parse(r, (*[addressSize]byte)(b[socketSize:]))
	case SocketListen:
		e.Socket.parse(r, (*[socketSize]byte)(b))
		t := (*[8]byte)(b[socketSize:])
		e.Backlog = le.Uint32(t[0:])
		r.reserved(uint64(le.Uint32(t[4:])))
	case TaskKill:
		t := (*[32]byte)(b)
		e.Target.parse((*[taskSize]byte)(t[0:]))
		e.TargetExecID, e.Signal = le.Uint32(t[16:]), le.Uint32(t[20:])
		r.reserved(le.Uint64(t[24:]))
	case TaskNewtask:
		t := (*[48]byte)(b)
		e.Child.parse((*[taskSize]byte)(t[0:]))
		e.ChildLeaderStartNs, e.ChildExecID = le.Uint64(t[16:]), le.Uint32(t[24:])
		e.CloneFlags = le.Uint64(t[32:])
		r.reserved(uint64(le.Uint32(t[28:])) | le.Uint64(t[40:]))
	case SchedProcessExit:
		t := (*[8]byte)(b)
		e.ExitCode, e.GroupDead = le.Uint32(t[0:]), r.bool(t[4])
		r.reserved(uint64(le.Uint32(t[4:]) >> 8))
	case CgroupMkdir, CgroupRmdir, CgroupSnapshot:
		t := (*[16]byte)(b)
		e.Cgroup = Cgroup{ID: le.Uint64(t[0:]), Level: le.Uint32(t[8:])}
		r.reserved(uint64(le.Uint32(t[12:])))
	case CgroupAttachTask:
		t := (*[32]byte)(b)
		e.Cgroup.ID = le.Uint64(t[0:])
		e.Target.parse((*[taskSize]byte)(t[8:]))
		e.ThreadGroup = r.bool(t[24])
		r.reserved(le.Uint64(t[24:]) >> 8)
	default:
		e.parseShape(r, b)
	}
}

func (e *Event) appendBody(b []byte) []byte {
	switch e.Type {
	case BprmCommittedCreds:
		b = e.File.append(b)
		b = le.AppendUint32(b, e.Argc)
		b = le.AppendUint32(b, e.Envc)
		b = append(b, flag(e.SecureExec), 0, 0, 0, 0, 0, 0, 0)
	case FileOpen, TaskSnapshot:
		b = e.File.append(b)
	case MmapFile:
		b = e.File.append(b)
		b = le.AppendUint32(b, e.ReqProt)
		b = le.AppendUint32(b, e.Prot)
		b = le.AppendUint32(b, e.MapFlags)
		b = append(b, flag(e.HasFile), 0, 0, 0)
	case SocketCreate:
		b = le.AppendUint32(b, e.Socket.Family)
		b = le.AppendUint32(b, e.Socket.Type)
		b = le.AppendUint32(b, e.Socket.Protocol)
		b = append(b, flag(e.Socket.Kernel), 0, 0, 0)
	case SocketBind, SocketConnect, SocketAccept:
		b = e.Socket.append(b)
		b = e.Address.append(b)
	case SocketListen:
		b = e.Socket.append(b)
		b = le.AppendUint32(b, e.Backlog)
		b = append(b, 0, 0, 0, 0)
	case TaskKill:
		b = e.Target.append(b)
		b = le.AppendUint32(b, e.TargetExecID)
		b = le.AppendUint32(b, e.Signal)
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	case TaskNewtask:
		b = e.Child.append(b)
		b = le.AppendUint64(b, e.ChildLeaderStartNs)
		b = le.AppendUint32(b, e.ChildExecID)
		b = append(b, 0, 0, 0, 0)
		b = le.AppendUint64(b, e.CloneFlags)
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	case SchedProcessExit:
		b = le.AppendUint32(b, e.ExitCode)
		b = append(b, flag(e.GroupDead), 0, 0, 0)
	case CgroupMkdir, CgroupRmdir, CgroupSnapshot:
		b = le.AppendUint64(b, e.Cgroup.ID)
		b = le.AppendUint32(b, e.Cgroup.Level)
		b = append(b, 0, 0, 0, 0)
	case CgroupAttachTask:
		b = le.AppendUint64(b, e.Cgroup.ID)
		b = e.Target.append(b)
		b = append(b, flag(e.ThreadGroup), 0, 0, 0, 0, 0, 0, 0)
	default:
		b = e.appendShape(b)
	}
	return b
}

// tail returns where a tag belongs in a record of e's type, nil if it does not.
func (e *Event) tail(tag Tag) *Tail {
	if tag >= 64 || !tagsOf[e.Type].has(tag) {
		return nil
	}
	switch tag {
	case TagPath:
		return &e.Path
	case TagArgv:
		return &e.Argv
	case TagAddress:
		return &e.RawAddr
	case TagFilename:
		return &e.Filename
	case TagPath2:
		return &e.Path2
	case TagName:
		return &e.Name
	case TagValue:
		return &e.Value
	case TagCred:
		return &e.Cred
	case TagOwner:
		return &e.Owner
	case TagReceiver:
		return &e.Receiver
	}
	return nil
}

// recordTags are the tags of records in the order in which they must stand.
var recordTags = [...]Tag{TagPath, TagArgv, TagAddress, TagFilename, TagPath2, TagName, TagValue, TagCred, TagOwner, TagReceiver}

// parseTails takes tails in ascending order of their tags, each at most once
// and none empty without a flag, so that an event has one encoding only.
func (e *Event) parseTails(r *reader) {
	last := Tag(0)
	for r.err == nil && len(r.b) > 0 {
		tag, t, rest, err := parseTail(r.b)
		if err != nil {
			r.err = err
			return
		}
		at := e.tail(tag)
		if at == nil || tag <= last || (len(t.Data) == 0 && t.Flags == 0) || tag >= TagCred && !wellFormed(tag, t) {
			r.err = fmt.Errorf("tail %d of %d bytes: %w", tag, len(t.Data), ErrInvalid)
			return
		}
		*at, last, r.b = t, tag, rest
	}
}

func (e *Event) appendTails(b []byte) []byte {
	for _, tag := range recordTags {
		if t := e.tail(tag); t != nil && (len(t.Data) > 0 || t.Flags != 0) {
			b = appendTail(b, tag, *t)
		}
	}
	return b
}

func (t *Task) parse(b *[taskSize]byte) {
	t.PID, t.TGID, t.StartNs = le.Uint32(b[0:]), le.Uint32(b[4:]), le.Uint64(b[8:])
}

func (t *Task) append(b []byte) []byte {
	b = le.AppendUint32(b, t.PID)
	b = le.AppendUint32(b, t.TGID)
	return le.AppendUint64(b, t.StartNs)
}

func (s *Subject) parse(r *reader, b *[SubjectSize]byte) {
	s.Task.parse((*[taskSize]byte)(b[0:]))
	s.LeaderStartNs = le.Uint64(b[16:])
	s.ParentTGID, s.ExecID = le.Uint32(b[24:]), le.Uint32(b[28:])
	s.ParentStartNs, s.CgroupID = le.Uint64(b[32:]), le.Uint64(b[40:])
	s.MntNS, s.PidNS = le.Uint32(b[48:]), le.Uint32(b[52:])
	s.UserNS, s.NetNS = le.Uint32(b[56:]), le.Uint32(b[60:])
	s.UID, s.EUID = le.Uint32(b[64:]), le.Uint32(b[68:])
	s.SUID, s.GID = le.Uint32(b[72:]), le.Uint32(b[76:])
	s.EGID, s.SGID = le.Uint32(b[80:]), le.Uint32(b[84:])
	s.FSUID, s.FSGID = le.Uint32(b[88:]), le.Uint32(b[92:])
	s.CapEff = le.Uint64(b[96:])
	s.Securebits, s.KernelThread = le.Uint32(b[104:]), r.bool(b[108])
	r.reserved(uint64(le.Uint32(b[108:]) >> 8))
	s.Comm = [16]byte(b[112:])
}

func (s *Subject) append(b []byte) []byte {
	b = s.Task.append(b)
	b = le.AppendUint64(b, s.LeaderStartNs)
	b = le.AppendUint32(b, s.ParentTGID)
	b = le.AppendUint32(b, s.ExecID)
	b = le.AppendUint64(b, s.ParentStartNs)
	b = le.AppendUint64(b, s.CgroupID)
	for _, v := range [...]uint32{
		s.MntNS, s.PidNS, s.UserNS, s.NetNS,
		s.UID, s.EUID, s.SUID, s.GID, s.EGID, s.SGID, s.FSUID, s.FSGID,
	} {
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint64(b, s.CapEff)
	b = le.AppendUint32(b, s.Securebits)
	b = append(b, flag(s.KernelThread), 0, 0, 0)
	return append(b, s.Comm[:]...)
}

func (f *File) parse(r *reader, b *[fileSize]byte) {
	f.Inode, f.Generation = le.Uint64(b[0:]), le.Uint32(b[8:])
	f.Dev, f.Flags = le.Uint32(b[12:]), le.Uint32(b[16:])
	f.UID, f.GID, f.Mode = le.Uint32(b[20:]), le.Uint32(b[24:]), le.Uint16(b[28:])
	f.PathKind, f.Digested = PathKind(b[30]), DigestState(b[31])
	f.Magic, f.Links, f.Size = le.Uint32(b[32:]), le.Uint32(b[36:]), le.Uint64(b[40:])
	f.FSID, f.UUID, f.Digest = [32]byte(b[48:]), [16]byte(b[80:]), [32]byte(b[96:])
	if f.PathKind > pathHighest || f.Digested > digestHighest {
		r.fail(fmt.Errorf("path kind %d, digest state %d: %w", f.PathKind, f.Digested, ErrInvalid))
	}
	if f.Digested != DigestSHA256 && f.Digest != [32]byte{} {
		r.fail(fmt.Errorf("a digest in state %d: %w", f.Digested, ErrReserved))
	}
}

func (f *File) append(b []byte) []byte {
	b = le.AppendUint64(b, f.Inode)
	b = le.AppendUint32(b, f.Generation)
	b = le.AppendUint32(b, f.Dev)
	b = le.AppendUint32(b, f.Flags)
	b = le.AppendUint32(b, f.UID)
	b = le.AppendUint32(b, f.GID)
	b = le.AppendUint16(b, f.Mode)
	b = append(b, byte(f.PathKind), byte(f.Digested))
	b = le.AppendUint32(b, f.Magic)
	b = le.AppendUint32(b, f.Links)
	b = le.AppendUint64(b, f.Size)
	b = append(b, f.FSID[:]...)
	b = append(b, f.UUID[:]...)
	return append(b, f.Digest[:]...)
}

func (s *Socket) parse(r *reader, b *[socketSize]byte) {
	s.Family, s.Type, s.Protocol = le.Uint32(b[0:]), le.Uint32(b[4:]), le.Uint32(b[8:])
	s.Kernel, s.Owned = r.bool(b[12]), OwnerState(b[13])
	s.Cookie = le.Uint64(b[16:])
	s.Owner.parse((*[taskSize]byte)(b[24:]))
	s.OwnerExecID = le.Uint32(b[40:])
	r.reserved(uint64(le.Uint16(b[14:])) | uint64(le.Uint32(b[44:])))
	if s.Owned > OwnerLabelled {
		r.fail(fmt.Errorf("owner state %d: %w", s.Owned, ErrInvalid))
	}
	if s.Owned == OwnerUnknown && (s.Owner != Task{} || s.OwnerExecID != 0) {
		r.fail(fmt.Errorf("an owner where none is known: %w", ErrReserved))
	}
}

func (s *Socket) append(b []byte) []byte {
	b = le.AppendUint32(b, s.Family)
	b = le.AppendUint32(b, s.Type)
	b = le.AppendUint32(b, s.Protocol)
	b = append(b, flag(s.Kernel), byte(s.Owned), 0, 0)
	b = le.AppendUint64(b, s.Cookie)
	b = s.Owner.append(b)
	b = le.AppendUint32(b, s.OwnerExecID)
	return append(b, 0, 0, 0, 0)
}

func (a *Address) parse(r *reader, b *[addressSize]byte) {
	a.Family, a.Length = le.Uint16(b[0:]), le.Uint16(b[2:])
	a.Port, a.Addr4 = [2]byte(b[4:]), [4]byte(b[8:])
	a.FlowInfo = le.Uint32(b[12:])
	a.Addr6 = [16]byte(b[16:])
	a.Scope = le.Uint32(b[32:])
	r.reserved(uint64(le.Uint16(b[6:])) | uint64(le.Uint32(b[36:])))
}

func (a *Address) append(b []byte) []byte {
	b = le.AppendUint16(b, a.Family)
	b = le.AppendUint16(b, a.Length)
	b = append(b, a.Port[:]...)
	b = append(b, 0, 0)
	b = append(b, a.Addr4[:]...)
	b = le.AppendUint32(b, a.FlowInfo)
	b = append(b, a.Addr6[:]...)
	b = le.AppendUint32(b, a.Scope)
	return append(b, 0, 0, 0, 0)
}
