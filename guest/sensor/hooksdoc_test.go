// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

var update = flag.Bool("update", false, "write guest/HOOKS.md anew")

// TestHooksDocument holds guest/HOOKS.md against the code.
func TestHooksDocument(t *testing.T) {
	const path = "../HOOKS.md"
	if *update {
		updateKernels(t)
	}
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
			if s.Maps[name] == nil && (s == first || name != named) {
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
	kernels := committedKernels(t)
	var b bytes.Buffer
	b.WriteString(hooksHead)
	fmt.Fprintf(&b, "| | hook | class | fields | %s | may sleep | default | from |\n|---:|---|---|---|%s---|---|---|\n",
		strings.Join(kernelLines, " | "), strings.Repeat("---|", len(kernelLines)))
	writers := writersOf(t)
	for _, typ := range vsockproto.EventTypes() {
		w := writers[typ]
		on, from := "on", "always"
		if slices.Contains(vsockproto.PolicyTypes(), typ) {
			in := profilesOf(t, typ)
			on, from = "off", in[0]
			if slices.Contains(in, vsockproto.DefaultProfile) {
				on = "on"
			}
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s | %s | %s | %s | %s |\n", typ, typ, typ.Class(),
			strings.Join(fieldsOf(t, typ, writers), ", "), kernels.cells(w[0].kernel), yes(slices.ContainsFunc(w, writer.sleeps)), on, from)
	}
	fmt.Fprintf(&b, hooksBooks, strings.Join(kernelLines, " | "), strings.Repeat("---|", len(kernelLines)))
	first, further := objectsOf(t)
	for _, h := range hooks {
		if h.event != 0 {
			continue
		}
		p := cmp.Or(first.Programs[h.program], further.Programs[h.program])
		if books[h.program] == "" {
			t.Errorf("%s: nothing says what it is for", h.program)
		}
		while := "always"
		switch h.serves {
		case hookSet{}:
		case setOf(vsockproto.FileOpen):
			while = "with file_open"
		case ofSockets:
			while = "with any hook whose records have a socket"
		case ofIPC:
			while = "with any hook whose records have a System V object"
		default:
			t.Errorf("%s: no words for when it is attached", h.program)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", h.program, kernels.cells(h.kernel), yes(sleeps(p)), while, books[h.program])
	}
	fmt.Fprintf(&b, "\nWhatever a policy asks for, these stay attached: %s.\nWhy, and what that costs, is in [CONFIG.md](../docs/CONFIG.md).\n", strings.Join(alwaysAttached(), ", "))
	b.WriteString(hooksDiffer)
	kernels.differences(&b)
	b.WriteString(hooksFoot)
	fmt.Fprintf(&b, "\nThat these run is shown by canaries, at random times: %s.\nExecutions, starts and ends of tasks are counted by the kernel as well.\n", names(vsockproto.CanaryTypes()))
	return b.Bytes()
}

// profilesOf are those that a type is in, from the smallest on.
func profilesOf(t *testing.T, typ vsockproto.EventType) (in []string) {
	t.Helper()
	for _, profile := range vsockproto.ProfileNames() {
		types, err := vsockproto.ParseProfile(profile)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(types, typ) {
			in = append(in, profile)
		}
	}
	return in
}

// books says what those programs are for that report nothing of their own.
var books = map[string]string{
	setattr:              "a file's content changes: its digest is known no longer",
	postOpen:             "reports file_open where there is this hook, with the digest",
	"socket_post_create": "who made a socket",
	"sched_process_exec": "executions that bprm_committed_creds did not see",

	"shm_alloc_security":       "who made a shared memory segment",
	"sem_alloc_security":       "who made a set of semaphores",
	"msg_queue_alloc_security": "who made a message queue",
	"shm_free_security":        "a shared memory segment is gone, and who made it is forgotten",
	"sem_free_security":        "the same of a set of semaphores",
	"msg_queue_free_security":  "the same of a message queue",
}

// kernelList are the committed lists, in kernelLines' order.
type kernelList []kernelHooks

func committedKernels(t *testing.T) (all kernelList) {
	for _, line := range kernelLines {
		all = append(all, committedHooks(t, line))
	}
	return all
}

// cells are what each kernel has of a function.
func (l kernelList) cells(function string) string {
	var cells []string
	for _, k := range l {
		h, ok := k[function]
		switch {
		case !ok:
			cells = append(cells, "—")
		case h.sleepable:
			cells = append(cells, fmt.Sprint(h.arguments, " s"))
		default:
			cells = append(cells, fmt.Sprint(h.arguments))
		}
	}
	return strings.Join(cells, " | ")
}

// having names the kernels that have a function; "" if all do.
func (l kernelList) having(function string) string {
	var in []string
	for i, k := range l {
		if _, ok := k[function]; ok {
			in = append(in, kernelLines[i])
		}
	}
	if len(in) == len(l) {
		return ""
	}
	return strings.Join(in, ", ")
}

// differences writes a row for each function that is not the same on all kernels.
func (l kernelList) differences(b *bytes.Buffer) {
	fmt.Fprintf(b, "| | %s |\n|---|%s\n", strings.Join(kernelLines, " | "), strings.Repeat("---|", len(l)))
	for _, function := range kernelFunctions() {
		var cells []string
		for i, k := range l {
			cell := "—"
			if h, ok := k[function]; ok {
				cell = "(" + strings.ReplaceAll(h.takes, "*", `\*`) + ")"
				if h.sleepable {
					cell += " s"
				}
			}
			if i > 0 && k[function] == l[i-1][function] {
				cell = "the same"
			}
			cells = append(cells, cell)
		}
		if slices.ContainsFunc(cells[1:], func(c string) bool { return c != "the same" }) {
			name := strings.TrimPrefix(strings.TrimPrefix(function, "bpf_lsm_"), "btf_trace_")
			fmt.Fprintf(b, "| %s | %s |\n", name, strings.Join(cells, " | "))
		}
	}
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

// sleeps reports whether a program is loaded to sleep.
func sleeps(p *ebpf.ProgramSpec) bool { return p.Flags&unix.BPF_F_SLEEPABLE != 0 }

func yes(is bool) string {
	if is {
		return "yes"
	}
	return "no"
}

// writer is a program that writes records of a type, and what it stands for.
type writer struct {
	kernel  string
	program *ebpf.ProgramSpec
}

func (w writer) sleeps() bool { return sleeps(w.program) }

// writersOf are the programs that write the records of each type. A file_open is
// written by whichever of two the kernel has.
func writersOf(t *testing.T) map[vsockproto.EventType][]writer {
	t.Helper()
	first, further := objectsOf(t)
	all := map[vsockproto.EventType][]writer{}
	for _, h := range hooks {
		p := further.Programs[h.program]
		if p == nil {
			p = first.Programs[h.program]
		}
		event := h.event
		if h.program == postOpen {
			event = vsockproto.FileOpen
		}
		if event != 0 {
			all[event] = append(all[event], writer{h.kernel, p})
		}
	}
	for _, s := range []vsockproto.EventType{vsockproto.TaskSnapshot, vsockproto.CgroupSnapshot} {
		all[s] = []writer{{snapshotIterator, first.Programs[snapshot]}}
	}
	return all
}

// does reports whether a program has a function, or a line of its own or of one
// that it calls, that says so. The objects hold what was compiled of each.
func (w writer) does(what ...string) bool {
	for _, ins := range w.program.Instructions {
		line := ins.Symbol()
		if s := ins.Source(); s != nil {
			line += " " + s.String()
		}
		if slices.ContainsFunc(what, func(w string) bool { return strings.Contains(line, w) }) {
			return true
		}
	}
	return false
}

// digests reports whether it has the kernel digest, or passes on what is known.
func (w writer) digests() bool {
	asks := slices.ContainsFunc(w.program.Instructions, func(ins asm.Instruction) bool {
		return ins.IsBuiltinCall() && asm.BuiltinFunc(ins.Constant) == asm.FnImaFileHash
	})
	return asks || w.does("r->file.digested = DIGEST_SHA256")
}

// fieldsOf are what records of a type hold beside header and subject: of what the
// protocol has room for that which the programs write.
func fieldsOf(t *testing.T, typ vsockproto.EventType, writers map[vsockproto.EventType][]writer) (fields []string) {
	has := fieldsOnTheWire(t, typ)
	add := func(field string, writes func(writer) bool) {
		in, which := 0, ""
		for _, w := range writers[typ] {
			if writes(w) {
				in, which = in+1, committedKernels(t).having(w.kernel)
			}
		}
		if m := means[typ][field]; m != "" {
			field += ": " + m
		}
		switch {
		case in == 0:
		case which == "" || in == len(writers[typ]):
			fields = append(fields, field)
		default:
			fields = append(fields, field+" ("+which+")")
		}
	}
	always := func(writer) bool { return true }
	for _, f := range wireFields {
		if !has[f.field] {
			continue
		}
		switch f.field {
		case "Address", "RawAddr":
			if f.field == "Address" || !has["Address"] { // the raw one is part of it
				add("address", func(w writer) bool { return w.does("a->family = ", "put_unix") })
			}
		case "Name":
			add("name", func(w writer) bool { return w.does("TAG_NAME") })
		case "Value":
			add("value", func(w writer) bool { return w.does("TAG_VALUE") })
		default:
			add(f.name, always)
		}
		if f.field == "Path" && has["File"] {
			add("digest", writer.digests)
		}
	}
	return append(fields, typ.ArgNames()...)
}

// wireFields name Event's fields, in the order in which they are told.
var wireFields = []struct{ field, name string }{
	{"Target", "target"}, {"Cgroup.ID", "cgroup's id"}, {"Cgroup.Level", "level"}, {"ThreadGroup", "whole group"},
	{"File", "file"}, {"Path", "path"}, {"File2", "second file"}, {"Path2", "path2"},
	{"Socket.Cookie", "socket"}, {"Socket", "family, type, protocol, kernel"}, {"Socket2", "other socket"},
	{"Address", "address"}, {"RawAddr", "address"}, {"IPC", "ipc"},
	{"Argv", "argv"}, {"Filename", "filename"}, {"Argc", "argc"}, {"Envc", "envc"}, {"SecureExec", "secureexec"},
	{"ReqProt", "reqprot"}, {"Prot", "prot"}, {"MapFlags", "flags"}, {"Backlog", "backlog"}, {"Signal", "signal"},
	{"Child", "child"}, {"CloneFlags", "clone flags"}, {"ExitCode", "exit code"}, {"GroupDead", "last of its group"},
	{"Name", "name"}, {"Value", "value"}, {"Cred", "cred"}, {"Owner", "owner"}, {"Receiver", "receiver"},
}

// Fields of Event that are part of others, or told otherwise.
var wireFieldsToo = []string{"Header", "Subject", "TargetExecID", "HasFile", "ChildLeaderStartNs", "ChildExecID", "Cgroup", "Args", "Unknown"}

// fieldsOnTheWire are the fields of Event, by their names, that come through a
// record of a type.
func fieldsOnTheWire(t *testing.T, typ vsockproto.EventType) map[string]bool {
	t.Helper()
	var full, got vsockproto.Event
	fill(reflect.ValueOf(&full).Elem())
	full.Type, full.Class, full.Sequence, full.CPU, full.Header.Flags = typ, typ.Class(), 1, 0, 0
	full.Cred.Data = vsockproto.AppendCred(nil, &vsockproto.Cred{UID: 1})
	full.Owner.Data = vsockproto.AppendTask(nil, vsockproto.Task{PID: 1}, 1)
	full.Receiver = full.Owner
	b, err := full.Append(nil)
	if err == nil {
		_, err = got.Parse(b)
	}
	if err != nil {
		t.Fatalf("%s: %v", typ, err)
	}
	has := map[string]bool{"Cgroup.ID": got.Cgroup.ID != 0, "Cgroup.Level": got.Cgroup.Level != 0, "Socket.Cookie": got.Socket.Cookie != 0}
	for v, i := reflect.ValueOf(got), 0; i < v.NumField(); i++ {
		name := v.Type().Field(i).Name
		has[name] = !v.Field(i).IsZero()
		if !slices.Contains(wireFieldsToo, name) && !slices.ContainsFunc(wireFields, func(f struct{ field, name string }) bool { return f.field == name }) {
			t.Errorf("Event.%s has no name in guest/HOOKS.md", name)
		}
	}
	has["Socket"] = has["Socket"] && !has["Socket.Cookie"] // then the cookie stands for all of it
	return has
}

// fill makes every field something that a record may hold.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[vsockproto.Tail]() {
			v.Set(reflect.ValueOf(vsockproto.Tail{Data: []byte("tail")}))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i))
		}
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(1) // a path from the root, a digest, a known owner
	}
}

// means says what a name or a value is of.
var means = map[vsockproto.EventType]map[string]string{
	vsockproto.SbMount:           {"name": "device", "value": "type"},
	vsockproto.SbRemount:         {"value": "type"},
	vsockproto.SbKernMount:       {"value": "type"},
	vsockproto.Quotactl:          {"value": "type"},
	vsockproto.InodeSymlink:      {"name": "where it leads"},
	vsockproto.TaskPrlimit:       {"cred": "the target's"},
	vsockproto.KeyAlloc:          {"name": "type", "value": "description"},
	vsockproto.KeyPermission:     {"name": "type", "value": "description"},
	vsockproto.BprmCheckSecurity: {"name": "what execve was asked for"},
	vsockproto.SocketAccept:      {"address": "of the listening socket"},
	vsockproto.SockGraft:         {"address": "the peer's"},
}

// TestMeaningsAreOfFields: a record has what something is said of.
func TestMeaningsAreOfFields(t *testing.T) {
	writers := writersOf(t)
	for typ, all := range means {
		for field, m := range all {
			if want := field + ": " + m; !slices.Contains(fieldsOf(t, typ, writers), want) {
				t.Errorf("%s has no %q", typ, want)
			}
		}
	}
}

const hooksHead = `# The hooks

Generated from the code by ` + "`go generate ./guest/sensor`" + `, and held against it by a test. What the fields are, byte by byte, is in
[PROTOCOL.md](../vsockproto/PROTOCOL.md); which hooks a VM has is its profile's to say, see
[CONFIG.md](../docs/CONFIG.md).

* *fields*: beside the header and the task, which every record has. Read from what the protocol's parser takes and from what
  the compiled programs write; with kernels behind a field, on those alone.
* *6.1, 6.12, 7.2*: Debian's kernels; how many arguments the kernel gives the hook, *s* where it lets a program sleep there,
  — where it has no such hook. This is read from the kernels themselves, into the lists in ` + "`guest/sensor/testdata`" + `,
  wherever ` + "`make install-kernels`" + ` has been.
* *may sleep*: the agent's program does so, which a digest needs.
* *default*: on or off in the profile that an agent has until the host says otherwise. *From*: the smallest profile that has
  it; *always* is beyond any profile.

One that a guest's kernel does not have is said to be missing in Hello, in a finding and in ` + "`outguard vms`" + `.

`

const hooksBooks = `
Beside these the agent keeps programs that report nothing of their own:

| | %s | may sleep | attached | for |
|---|%s---|---|---|
`

const hooksDiffer = `
What differs between the three kernels in what they give a hook, and in which may sleep (*s*):

`

const hooksFoot = `
The agent finds out what its kernel has and picks the program that fits, of two, for inode_setattr, setattr and
perf_event_open; everything else is one program that runs on all of them. From 6.9 on an open that no path leads to is not reported:
of a message queue by mq_open, of a terminal by TIOCGPTPEER, of a namespace by ioctl; one of a file that is made without a name
(O_TMPFILE) is, without a digest.

What a record says is what the kernel acted on, and never what the task's memory, or a name, says at another moment: paths
are of the file that was opened, names and addresses the kernel's own copies, arguments those on the new program's stack.
So it makes no difference which thread changes them meanwhile, nor whether a system call of 64 or of 32 bits, io_uring, its
worker or its poller asks; the scenario 91-acted tries all of it.

* A path is the one that the file has when the hook runs, as the task's root, mounts and namespace show it. *unlinked*: the
  name no longer leads to the file; *unreachable*: the file is not below the task's root, or in no mount of its namespace;
  *foreign*: a file that is opened, mapped or run is in the machine's mount namespace, and the task in another.
  A mount can put a file under any name: device, inode and digest say which it is.
* A path of 4096 bytes or more is left out and *truncated*; inode and digest are there.
* The digests in the snapshot the agent computes, of up to 1 GiB of programs and 4,096 of them; all other digests are the
  kernel's.
* An exec's file is the program that runs. Of a script that is its interpreter; the script is the filename that was asked for,
  its content in the records of file_open (from 6.9 on) and bprm_check_security. A program that a loader runs
  (ld.so PROGRAM), or a library that it brings along (LD_PRELOAD), is in the records of mmap_file, with its digest.
`
