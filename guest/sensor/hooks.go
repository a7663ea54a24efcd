// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"github.com/outguard/outguard/vsockproto"
)

// hook is one program of ours and where it belongs.
type hook struct {
	program string               // in guest/bpf/probe.bpf.c
	kernel  string               // the function whose type the kernel describes
	event   vsockproto.EventType // what it reports; 0: it only keeps books
	needed  bool                 // without it what others report would be wrong
}

// hooks stand in the order in which they are attached: those that end a cached
// digest's life come before those that begin one.
var hooks = []hook{
	{"inode_setattr", "bpf_lsm_inode_setattr", 0, true},
	{fileOpen, "bpf_lsm_file_open", vsockproto.FileOpen, true},
	{postOpen, "bpf_lsm_file_post_open", 0, false},
	{"socket_post_create", "bpf_lsm_socket_post_create", 0, false},
	{"bprm_committed_creds", "bpf_lsm_bprm_committed_creds", vsockproto.BprmCommittedCreds, false},
	{"mmap_file", "bpf_lsm_mmap_file", vsockproto.MmapFile, false},
	{"socket_create", "bpf_lsm_socket_create", vsockproto.SocketCreate, false},
	{"socket_bind", "bpf_lsm_socket_bind", vsockproto.SocketBind, false},
	{"socket_connect", "bpf_lsm_socket_connect", vsockproto.SocketConnect, false},
	{"socket_listen", "bpf_lsm_socket_listen", vsockproto.SocketListen, false},
	{"socket_accept", "bpf_lsm_socket_accept", vsockproto.SocketAccept, false},
	{"task_kill", "bpf_lsm_task_kill", vsockproto.TaskKill, false},
	{"sched_process_exec", "btf_trace_sched_process_exec", 0, false},
	{"task_newtask", "btf_trace_task_newtask", vsockproto.TaskNewtask, false},
	{"sched_process_exit", "btf_trace_sched_process_exit", vsockproto.SchedProcessExit, false},
	{"cgroup_mkdir", "btf_trace_cgroup_mkdir", vsockproto.CgroupMkdir, false},
	{"cgroup_rmdir", "btf_trace_cgroup_rmdir", vsockproto.CgroupRmdir, false},
	{"cgroup_attach_task", "btf_trace_cgroup_attach_task", vsockproto.CgroupAttachTask, false},
}

const (
	fileOpen     = "file_open"
	postOpen     = "file_post_open"
	setattr      = "inode_setattr"
	setattrIDMap = "inode_setattr_idmap"
	snapshot     = "task_snapshot"
)

// describes reports whether the kernel has what a hook stands for.
func describes(kernel *btf.Spec, name string) bool {
	_, err := kernel.AnyTypesByName(name)
	return err == nil
}

// setattrTakesIDMap tells which of the two shapes inode_setattr has here.
func setattrTakesIDMap(kernel *btf.Spec) (bool, error) {
	var f *btf.Func
	if err := kernel.TypeByName("bpf_lsm_"+setattr, &f); err != nil {
		return false, fmt.Errorf("find hook %s: %w", setattr, err)
	}
	p, ok := f.Type.(*btf.FuncProto)
	return ok && len(p.Params) == 3, nil
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
