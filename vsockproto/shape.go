package vsockproto

import "bytes"

// parseShape reads the body of a type beyond the first twelve, whose size has
// been checked.
func (e *Event) parseShape(r *reader, b []byte) {
	switch layouts[e.Type] {
	case layoutArgs:
	case layoutTask:
		e.Target.parse((*[taskSize]byte)(b))
		e.TargetExecID = le.Uint32(b[taskSize:])
		r.reserved(uint64(le.Uint32(b[taskSize+4:])))
	case layoutFile:
		e.File.parse(r, (*[fileSize]byte)(b))
	case layoutFiles:
		e.File.parse(r, (*[fileSize]byte)(b))
		e.File2.parse(r, (*[fileSize]byte)(b[fileSize:]))
	case layoutSocket:
		e.Socket.parse(r, (*[socketSize]byte)(b))
	case layoutSockets:
		e.Socket.parse(r, (*[socketSize]byte)(b))
		e.Socket2.parse(r, (*[socketSize]byte)(b[socketSize:]))
		return
	case layoutIPC:
		e.IPC.parse(r, (*[ipcSize]byte)(b))
	case layoutAddress:
		e.Socket.parse(r, (*[socketSize]byte)(b))
		e.Address.parse(r, (*[addressSize]byte)(b[socketSize:]))
		return
	}
	e.parseArgs(r, (*[argsSize]byte)(b[len(b)-argsSize:]))
}

// parseArgs reads the integers that end a body; those without a name are zero.
func (e *Event) parseArgs(r *reader, b *[argsSize]byte) {
	for i := range e.Args {
		e.Args[i] = le.Uint64(b[8*i:])
	}
	for _, v := range e.Args[len(argNames[e.Type]):] {
		r.reserved(v)
	}
}

func (e *Event) appendShape(b []byte) []byte {
	switch layouts[e.Type] {
	case layoutTask:
		b = e.Target.append(b)
		b = le.AppendUint32(b, e.TargetExecID)
		b = append(b, 0, 0, 0, 0)
	case layoutFile:
		b = e.File.append(b)
	case layoutFiles:
		b = e.File2.append(e.File.append(b))
	case layoutSocket:
		b = e.Socket.append(b)
	case layoutSockets:
		return e.Socket2.append(e.Socket.append(b))
	case layoutIPC:
		b = e.IPC.append(b)
	case layoutAddress:
		return e.Address.append(e.Socket.append(b))
	}
	n := len(argNames[e.Type])
	for i, v := range e.Args {
		if i >= n {
			v = 0
		}
		b = le.AppendUint64(b, v)
	}
	return b
}

func (p *IPC) parse(r *reader, b *[ipcSize]byte) {
	p.Key, p.ID = le.Uint32(b[0:]), le.Uint32(b[4:])
	p.UID, p.GID = le.Uint32(b[8:]), le.Uint32(b[12:])
	p.CUID, p.CGID = le.Uint32(b[16:]), le.Uint32(b[20:])
	p.Mode = le.Uint16(b[24:])
	r.reserved(le.Uint64(b[24:]) >> 16)
}

func (p *IPC) append(b []byte) []byte {
	for _, v := range [...]uint32{p.Key, p.ID, p.UID, p.GID, p.CUID, p.CGID, uint32(p.Mode), 0} {
		b = le.AppendUint32(b, v)
	}
	return b
}

// Fileless tells of the program of a bprm_committed_creds, task_snapshot or
// bprm_check_security that no name leads to: "memfd", or "deleted"; else "".
func (e *Event) Fileless() string {
	switch {
	case e.File.Links != 0 || e.File.Inode == 0:
		return ""
	case bytes.HasPrefix(e.Path.Data, []byte(memfdPath)) && e.Path.Flags&TailUnreachable != 0:
		return "memfd"
	}
	return "deleted"
}

// Arg returns the argument of that name, false where the type has none.
func (e *Event) Arg(name string) (uint64, bool) {
	for i, n := range e.Type.ArgNames() {
		if n == name {
			return e.Args[i], true
		}
	}
	return 0, false
}

// wellFormed reports whether a tail with a layout of its own has that.
func wellFormed(tag Tag, t Tail) bool {
	size := makerSize
	if tag == TagCred {
		size = credSize
	}
	return t.Flags == 0 && len(t.Data) == size && le.Uint32(t.Data[size-4:]) == 0
}

// Creds are the credentials in question, false where the record tells of none: the
// target's of task_prlimit, those that a key is made or asked for with.
func (e *Event) Creds() (c Cred, is bool) {
	b := e.Cred.Data
	if len(b) != credSize {
		return Cred{}, false
	}
	for i, at := range [...]*uint32{&c.UID, &c.EUID, &c.SUID, &c.GID, &c.EGID, &c.SGID, &c.FSUID, &c.FSGID} {
		*at = le.Uint32(b[4*i:])
	}
	c.CapEff, c.Securebits = le.Uint64(b[32:]), le.Uint32(b[40:])
	return c, true
}

// AppendCred appends a tail's bytes.
func AppendCred(b []byte, c *Cred) []byte {
	for _, v := range [...]uint32{c.UID, c.EUID, c.SUID, c.GID, c.EGID, c.SGID, c.FSUID, c.FSGID} {
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint64(b, c.CapEff)
	b = le.AppendUint32(b, c.Securebits)
	return append(b, 0, 0, 0, 0)
}

// Maker is the task that made the System V object, and its exec id then; false where
// nobody knows: it was there before the hook was.
func (e *Event) Maker() (t Task, execID uint32, is bool) { return taskIn(e.Owner.Data) }

// Receives is the task that gets the message of a msg_queue_msgrcv, which need not
// be the subject, and its exec id; false where the record does not say.
func (e *Event) Receives() (t Task, execID uint32, is bool) { return taskIn(e.Receiver.Data) }

func taskIn(b []byte) (t Task, execID uint32, is bool) {
	if len(b) != makerSize {
		return Task{}, 0, false
	}
	t.parse((*[taskSize]byte)(b))
	return t, le.Uint32(b[taskSize:]), true
}

// AppendTask appends a tail's bytes.
func AppendTask(b []byte, t Task, execID uint32) []byte {
	return append(le.AppendUint32(t.append(b), execID), 0, 0, 0, 0)
}
