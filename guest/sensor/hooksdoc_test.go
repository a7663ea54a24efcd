// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

var update = flag.Bool("update", false, "write guest/HOOKS.md anew")

// TestHooksDocument holds guest/HOOKS.md against the code.
func TestHooksDocument(t *testing.T) {
	const path = "../HOOKS.md"
	want := hooksDocument(t)
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("guest/HOOKS.md is not what the code says: go generate ./guest/sensor")
	}
}

// Every hook has a program, in the object that it is loaded from.
func TestEveryHookHasAProgram(t *testing.T) {
	first, further := objectsOf(t)
	for _, h := range hooks {
		from := first
		if isFurther(h.program) {
			from = further
		}
		if from.Programs[h.program] == nil {
			t.Errorf("%s: no program %s", h.event, h.program)
		}
	}
	for name := range further.Programs {
		if !isFurther(name) {
			t.Errorf("program %s is no hook's", name)
		}
	}
	for _, s := range []*ebpf.CollectionSpec{first, further} {
		for _, name := range slices.Concat(pinned, privateMaps) {
			if s.Maps[name] == nil {
				t.Errorf("an object without the map %s", name)
			}
		}
	}
}

func objectsOf(t *testing.T) (first, further *ebpf.CollectionSpec) {
	t.Helper()
	first, err := bpf.LoadProbe()
	if err != nil {
		t.Fatal(err)
	}
	if further, err = bpf.LoadFurther(); err != nil {
		t.Fatal(err)
	}
	return first, further
}

func hooksDocument(t *testing.T) []byte {
	first, further := objectsOf(t)
	var b bytes.Buffer
	b.WriteString(hooksHead)
	for _, typ := range vsockproto.PolicyTypes() {
		name := typ.String()
		for _, h := range hooks {
			if h.event == typ {
				name = h.program
			}
		}
		p := further.Programs[name]
		if p == nil {
			p = first.Programs[name]
		}
		var in []string
		for _, profile := range vsockproto.ProfileNames() {
			types, err := vsockproto.ParseProfile(profile)
			if err != nil {
				t.Fatal(err)
			}
			if slices.Contains(types, typ) {
				in = append(in, profile)
			}
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s | %s | %s | %s |\n", typ, typ, typ.Class(),
			strings.Join(fieldsOf(typ), ", "), yes(p.Flags&unix.BPF_F_SLEEPABLE != 0), yes(slices.Contains(in, vsockproto.DefaultProfile)), in[0])
	}
	b.WriteString(hooksFoot)
	fmt.Fprintf(&b, "\nThat these run is shown by canaries, at random times: %s.\nExecutions, starts and ends of tasks are counted by the kernel as well.\n", names(vsockproto.CanaryTypes()))
	return b.Bytes()
}

// names lists types, in lines that are not too long.
func names(types []vsockproto.EventType) string {
	var b strings.Builder
	for i, t := range types {
		if i > 0 {
			b.WriteString(", ")
		}
		if i == len(types)/2 {
			b.WriteString("\n")
		}
		b.WriteString(t.String())
	}
	return strings.ReplaceAll(b.String(), " \n", "\n")
}

func yes(is bool) string {
	if is {
		return "yes"
	}
	return "no"
}

// fieldsOf are what records of a type hold beside header and subject.
func fieldsOf(t vsockproto.EventType) (fields []string) {
	for _, part := range []struct {
		part vsockproto.Parts
		name string
	}{
		{vsockproto.PartTarget, "target"}, {vsockproto.PartFile, "file, path"}, {vsockproto.PartFile2, "second file, path2"},
		{vsockproto.PartSocket, "socket"}, {vsockproto.PartSocket2, "other socket"}, {vsockproto.PartAddress, "address"},
		{vsockproto.PartIPC, "ipc"},
	} {
		if t.Has(part.part) {
			fields = append(fields, part.name)
		}
	}
	if t.Has(vsockproto.PartIPC) {
		fields = append(fields, "owner")
	}
	fields = append(fields, own[t]...)
	return append(fields, t.ArgNames()...)
}

// own are the fields of the types that have a body of their own.
var own = map[vsockproto.EventType][]string{
	vsockproto.KernelModuleRequest: {"name"},
	vsockproto.SbMount:             {"name: device", "value: type"},
	vsockproto.SbRemount:           {"value: type"},
	vsockproto.InodeSymlink:        {"name: where it leads"},
	vsockproto.InodeSetxattr:       {"name", "value"},
	vsockproto.InodeGetxattr:       {"name"},
	vsockproto.InodeRemovexattr:    {"name"},
	vsockproto.TaskPrlimit:         {"cred: the target's"},
	vsockproto.MsgQueueMsgrcv:      {"receiver"},
	vsockproto.KeyAlloc:            {"name: type", "value: description", "cred"},
	vsockproto.KeyPermission:       {"name: type", "value: description", "cred"},
	vsockproto.BPFMap:              {"name"},
	vsockproto.BPFProg:             {"name"},

	vsockproto.BprmCommittedCreds: {"digest", "argv, filename", "argc", "envc", "secureexec"},
	vsockproto.FileOpen:           {"digest (from 6.9 on)"},
	vsockproto.MmapFile:           {"digest", "reqprot", "prot", "flags"},
	vsockproto.SocketCreate:       {"family", "type", "protocol", "kernel"},
	vsockproto.SocketListen:       {"backlog"},
	vsockproto.TaskKill:           {"signal"},
	vsockproto.TaskNewtask:        {"child", "clone flags"},
	vsockproto.SchedProcessExit:   {"exit code", "last of its group"},
	vsockproto.TaskSnapshot:       {"digest"},
	vsockproto.KernelReadFile:     {"digest"},
	vsockproto.BprmCheckSecurity:  {"digest", "name: what execve was asked for"},
}

const hooksHead = `# The hooks

Generated from the code by ` + "`go generate ./guest/sensor`" + `, and held against it by a test. What the fields are, byte by byte, is in
[PROTOCOL.md](../vsockproto/PROTOCOL.md); which hooks a VM has is its profile's to say, see
[CONFIG.md](../docs/CONFIG.md). *May sleep*: the program runs where the kernel lets it wait, which a digest needs. *From*: the
smallest profile that has it.

Debian's kernels 6.1, 6.12 and 7.2 have every hook of this list. One that a guest's kernel does not have is said to be
missing in Hello, in a finding and in ` + "`outguard vms`" + `.

| | hook | class | fields | may sleep | default | from |
|---:|---|---|---|---|---|---|
`

const hooksFoot = `
Beside these the agent keeps programs that report nothing: on inode_setattr (a file's content changes), socket_post_create
(who made a socket), while System V objects are reported on shm_, sem_ and msg_queue_alloc_security and _free_security
(who made them), file_post_open (on kernels from 6.9 on it reports file_open, with the digest) and sched_process_exec
(executions that bprm_committed_creds did not see).

What differs between the three kernels: before 6.9 file_open's records have no digest. inode_setattr is given the mount's id
map from 6.8 on, perf_event_open the event's attributes on 6.1. From 6.9 on an open that no path leads to is not reported:
of a message queue by mq_open, of a terminal by TIOCGPTPEER, of a namespace by ioctl; one of a file that is made without a name
(O_TMPFILE) is. Everything else is one program that runs on all of them.

What a record says is what the kernel acted on, and never what the task's memory, or a name, says at another moment: paths
are of the file that was opened, names and addresses the kernel's own copies, arguments those on the new program's stack.
So it makes no difference which thread changes them meanwhile, nor whether a system call of 64 or of 32 bits, io_uring, its
worker or its poller asks; the scenario 91-acted tries all of it.

* A path is the one that the file has when the hook runs, as the task's root, mounts and namespace show it. *unlinked*: the
  name no longer leads to the file; *unreachable*: the file is not below the task's root, or in no mount of its namespace.
  A mount can put a file under any name: device, inode and digest say which it is.
* A path of 4096 bytes or more is left out and *truncated*; inode and digest are there.
* An exec's file is the program that runs. Of a script that is its interpreter; the script is the filename that was asked for,
  its content in the records of file_open (from 6.9 on) and bprm_check_security. A program that a loader runs
  (ld.so PROGRAM), or a library that it brings along (LD_PRELOAD), is in the records of mmap_file, with its digest.
`
