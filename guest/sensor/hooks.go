// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

//go:generate go test -count=1 -run ^TestHooksDocument$ . -args -update

// hook is one program of ours and where it belongs.
type hook struct {
	program string               // in guest/bpf
	kernel  string               // the function whose type the kernel describes
	event   vsockproto.EventType // what it reports; 0: it only keeps books
	needed  bool                 // without it what others report would be wrong
	serves  hookSet              // it is attached while one of these is wanted; none: always
}

// hooks stand in the order in which they are attached: those that end a cached
// digest's life come before those that begin one.
var hooks = append([]hook{
	{setattr, "bpf_lsm_inode_setattr", 0, true, hookSet{}},
	{fileOpen, "bpf_lsm_file_open", vsockproto.FileOpen, true, hookSet{}},
	{postOpen, "bpf_lsm_file_post_open", 0, false, setOf(vsockproto.FileOpen)},
	{"socket_post_create", "bpf_lsm_socket_post_create", 0, false, ofSockets},
	{"bprm_committed_creds", "bpf_lsm_bprm_committed_creds", vsockproto.BprmCommittedCreds, false, hookSet{}},
	lsm(vsockproto.MmapFile),
	lsm(vsockproto.SocketCreate),
	lsm(vsockproto.SocketBind),
	lsm(vsockproto.SocketConnect),
	lsm(vsockproto.SocketListen),
	lsm(vsockproto.SocketAccept),
	lsm(vsockproto.TaskKill),
	{"sched_process_exec", "btf_trace_sched_process_exec", 0, false, hookSet{}},
	{"task_newtask", "btf_trace_task_newtask", vsockproto.TaskNewtask, false, hookSet{}},
	{"sched_process_exit", "btf_trace_sched_process_exit", vsockproto.SchedProcessExit, false, setOf(vsockproto.SchedProcessExit)},
	{"cgroup_mkdir", "btf_trace_cgroup_mkdir", vsockproto.CgroupMkdir, false, hookSet{}},
	{"cgroup_rmdir", "btf_trace_cgroup_rmdir", vsockproto.CgroupRmdir, false, hookSet{}},
	{"cgroup_attach_task", "btf_trace_cgroup_attach_task", vsockproto.CgroupAttachTask, false, hookSet{}},
}, further()...)

// lsm is the hook whose program has its name and does nothing but report.
func lsm(t vsockproto.EventType) hook {
	return hook{t.String(), "bpf_lsm_" + t.String(), t, false, setOf(t)}
}

// ipcBooks are the programs that say who made a System V object: those that end a
// label before those that begin one.
var ipcBooks = []string{
	"shm_free_security", "sem_free_security", "msg_queue_free_security",
	"shm_alloc_security", "sem_alloc_security", "msg_queue_alloc_security",
}

// further are the hooks that are attached only when the host asks for them.
func further() (all []hook) {
	for _, name := range ipcBooks {
		all = append(all, hook{name, "bpf_lsm_" + name, 0, false, ofIPC})
	}
	for _, t := range vsockproto.PolicyTypes()[len(vsockproto.StartTypes()):] {
		h := lsm(t)
		if t == vsockproto.InodeSetattr {
			h.program = reportSetattr
		}
		all = append(all, h)
	}
	return all
}

// ofSockets are the types whose records say who made a socket, ofIPC those that say
// it of a System V object.
var ofSockets, ofIPC = with(vsockproto.PartSocket), with(vsockproto.PartIPC)

func with(part vsockproto.Parts) (s hookSet) {
	for _, t := range vsockproto.EventTypes() {
		if t.Has(part) {
			s.add(t)
		}
	}
	return s
}

// hookSet is a set of event types.
type hookSet [len(bpf.ProbeAgentConfig{}.Hooks) / 64]uint64

func setOf(types ...vsockproto.EventType) (s hookSet) {
	for _, t := range types {
		s.add(t)
	}
	return s
}

func (s *hookSet) add(t vsockproto.EventType) { s[t/64] |= 1 << (t % 64) }

func (s hookSet) has(t vsockproto.EventType) bool { return s[t/64]&(1<<(t%64)) != 0 }

func (s hookSet) empty() bool { return s == hookSet{} }

func (s hookSet) meets(other hookSet) bool {
	for i := range s {
		if s[i]&other[i] != 0 {
			return true
		}
	}
	return false
}

// wanted reports whether h is to be attached where want is reported.
func (h *hook) wanted(want hookSet) bool { return h.serves.empty() || h.serves.meets(want) }

const (
	fileOpen     = "file_open"
	postOpen     = "file_post_open"
	setattr      = "inode_setattr"
	setattrIDMap = "inode_setattr_idmap"
	// inode_setattr keeps books; another program reports.
	reportSetattr = "setattr"
	mmapFile      = "mmap_file"
	perfEventOpen = "perf_event_open"
	snapshot      = "task_snapshot"
	adopter       = "adopt"
	// A function of the kernel that follows pointers, from 6.2 on.
	rdonlyCast = "bpf_rdonly_cast"
)

// describes reports whether the kernel has what a hook stands for.
func describes(kernel *btf.Spec, name string) bool {
	_, err := kernel.AnyTypesByName(name)
	return err == nil
}

// arguments is how many a hook has here.
func arguments(kernel *btf.Spec, hook string) (int, error) {
	var f *btf.Func
	if err := kernel.TypeByName("bpf_lsm_"+hook, &f); err != nil {
		return 0, fmt.Errorf("find hook %s: %w", hook, err)
	}
	p, ok := f.Type.(*btf.FuncProto)
	if !ok {
		return 0, fmt.Errorf("find hook %s: %w", hook, errors.ErrUnsupported)
	}
	return len(p.Params), nil
}

func tagOf(p *ebpf.Program) (tag [8]byte, err error) {
	info, err := p.Info()
	if err != nil {
		return tag, fmt.Errorf("program info: %w", err)
	}
	b, err := hex.DecodeString(info.Tag)
	if err != nil || len(b) != len(tag) {
		return tag, fmt.Errorf("program tag %q: %w", info.Tag, errors.ErrUnsupported)
	}
	return [8]byte(b), nil
}

// attach puts p where its section says.
func attach(p *ebpf.Program) (link.Link, error) {
	if p.Type() == ebpf.LSM {
		return link.AttachLSM(link.LSMOptions{Program: p})
	}
	return link.AttachTracing(link.TracingOptions{Program: p})
}

// linked returns the program behind a link.
func linked(l link.Link) (*ebpf.Program, error) {
	info, err := l.Info()
	if err != nil {
		return nil, fmt.Errorf("link info: %w", err)
	}
	return ebpf.NewProgramFromID(info.Program)
}
