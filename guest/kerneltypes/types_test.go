// SPDX-License-Identifier: Apache-2.0

package kerneltypes

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// sample is a small kernel: a task with what it holds and points to, hooks, and
// much that nobody asks for.
func sample(t testing.TB) ([]byte, *btf.Spec) {
	t.Helper()
	u32 := &btf.Int{Name: "u32", Size: 4}
	name := &btf.Array{Index: u32, Type: &btf.Int{Name: "char", Size: 1}, Nelems: 16}
	state := &btf.Enum{Name: "state", Size: 4, Values: []btf.EnumValue{{Name: "RUNS", Value: 1}, {Name: "SLEEPS", Value: 2}}}
	mm := &btf.Struct{Name: "mm_struct", Size: 8, Members: []btf.Member{{Name: "users", Type: u32}, {Name: "pins", Type: u32, Offset: 32}}}
	list := &btf.Struct{Name: "list_head", Size: 16}
	list.Members = []btf.Member{{Name: "next", Type: &btf.Pointer{Target: list}}, {Name: "prev", Type: &btf.Pointer{Target: list}, Offset: 64}}
	inner := &btf.Union{Size: 4, Members: []btf.Member{{Name: "flags", Type: &btf.Volatile{Type: u32}}, {Name: "bits", Type: u32}}}
	task := &btf.Struct{Name: "task_struct", Size: 64, Members: []btf.Member{
		{Name: "mm", Type: &btf.Pointer{Target: &btf.Const{Type: mm}}},
		{Name: "tasks", Type: &btf.Typedef{Name: "list_t", Type: list}, Offset: 64},
		{Name: "", Type: inner, Offset: 192},
		{Name: "comm", Type: name, Offset: 224},
		{Name: "state", Type: state, Offset: 352},
	}}
	hook := &btf.Func{Name: "bpf_lsm_task_kill", Linkage: btf.GlobalFunc, Type: &btf.FuncProto{Return: u32, Params: []btf.FuncParam{
		{Name: "p", Type: &btf.Pointer{Target: task}}, {Name: "sig", Type: u32},
	}}}
	var types []btf.Type
	for i := range 200 {
		types = append(types, &btf.Struct{Name: fmt.Sprintf("other_%d", i), Size: 4, Members: []btf.Member{{Name: "x", Type: u32}}, Tags: []string{"tag"}})
	}
	types = slices.Insert(types, 100, []btf.Type{task, hook,
		&btf.Typedef{Name: "btf_trace_exec", Type: &btf.Pointer{Target: hook.Type}},
		&btf.Enum{Name: "wide", Size: 8, Values: []btf.EnumValue{{Name: "W", Value: 1 << 40}}},
		&btf.Struct{Name: "task_struct", Size: 4, Members: []btf.Member{{Name: "another", Type: u32}}},
	}...)
	b, err := btf.NewBuilder(types, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := b.Marshal(nil, &btf.MarshalOptions{Order: binary.LittleEndian})
	if err != nil {
		t.Fatal(err)
	}
	return raw, load(t, raw)
}

func load(t testing.TB, raw []byte) *btf.Spec {
	t.Helper()
	s, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func set(names ...string) map[string]bool {
	m := map[string]bool{}
	for _, n := range names {
		m[n] = true
	}
	return m
}

func TestTrimKeepsWhatWasAskedFor(t *testing.T) {
	raw, all := sample(t)
	names := set("task_struct", "bpf_lsm_task_kill", "btf_trace_exec", "wide", "not_there")
	small, err := Trim(bytes.NewReader(raw), names)
	if err != nil {
		t.Fatal(err)
	}
	if len(small) > len(raw)/2 {
		t.Errorf("%d bytes of %d are left", len(small), len(raw))
	}
	left := load(t, small)
	for name := range names {
		sameTypes(t, all, left, name)
	}
	if _, err := left.AnyTypesByName("other_3"); !errors.Is(err, btf.ErrNotFound) {
		t.Errorf("other_3: %v, want ErrNotFound", err)
	}
	var mm *btf.Struct // is pointed to
	if err := left.TypeByName("mm_struct", &mm); err != nil || mm.Size != 8 || len(mm.Members) != 0 {
		t.Errorf("mm_struct = %+v, %v, want its size and no members", mm, err)
	}
}

// sameTypes holds the types of a name in left against those in all: the numbers
// that the kernel knows them by, their layout, arguments and values.
func sameTypes(t *testing.T, all, left *btf.Spec, name string) {
	t.Helper()
	want, errWant := all.AnyTypesByName(name)
	got, errGot := left.AnyTypesByName(name)
	if errors.Is(errWant, btf.ErrNotFound) && errors.Is(errGot, btf.ErrNotFound) {
		return
	}
	if errWant != nil || errGot != nil || len(got) != len(want) {
		t.Errorf("%s: %d types, %v, want %d, %v", name, len(got), errGot, len(want), errWant)
		return
	}
	for i := range want {
		a, errA := all.TypeID(want[i])
		b, errB := left.TypeID(got[i])
		if errA != nil || errB != nil || a != b {
			t.Errorf("%s: type %d, %v, want %d, %v", name, b, errB, a, errA)
		}
		if w, g := layout(want[i], 0), layout(got[i], 0); w != g {
			t.Errorf("%s is\n%s\nwant\n%s", name, g, w)
		}
	}
}

// layout tells what programs are fitted by: everything that a type holds, but of
// what it points to the kind and name.
func layout(t btf.Type, depth int) string {
	members := func(list []btf.Member) (s string) {
		for _, m := range list {
			s += fmt.Sprintf("\n%*s%s at %d, %d bits: %s", depth*2, "", m.Name, m.Offset, m.BitfieldSize, layout(m.Type, depth+1))
		}
		return s
	}
	switch t := t.(type) {
	case *btf.Struct:
		return fmt.Sprintf("struct %s of %d", t.Name, t.Size) + members(t.Members)
	case *btf.Union:
		return fmt.Sprintf("union %s of %d", t.Name, t.Size) + members(t.Members)
	case *btf.Enum:
		if depth > 0 {
			return fmt.Sprintf("enum %s of %d", t.Name, t.Size)
		}
		return fmt.Sprintf("enum %s of %d, %v: %v", t.Name, t.Size, t.Signed, t.Values)
	case *btf.Array:
		return fmt.Sprintf("%d of %s", t.Nelems, layout(t.Type, depth+1))
	case *btf.Typedef:
		return t.Name + " is " + layout(t.Type, depth)
	case *btf.Pointer:
		u := btf.UnderlyingType(t.Target)
		return fmt.Sprintf("to %T %s", u, u.TypeName())
	case *btf.Func:
		s := "func " + t.Name
		for _, p := range t.Type.(*btf.FuncProto).Params {
			s += ", " + layout(p.Type, depth+1)
		}
		return s
	case *btf.Const, *btf.Volatile, *btf.Restrict:
		return layout(btf.UnderlyingType(t), depth)
	case *btf.Int:
		return fmt.Sprintf("%s of %d, %v", t.Name, t.Size, t.Encoding)
	}
	return fmt.Sprintf("%T %s", t, t.TypeName())
}

// TestTrimOfThisKernel holds what is left of the types of the kernel that the test
// runs on against all of them.
func TestTrimOfThisKernel(t *testing.T) {
	f, err := os.Open(vmlinux)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("this kernel does not describe its types: " + vmlinux)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	names := set("task_struct", "file", "inode", "linux_binprm", "sock", "bpf_lsm_file_open", "bpf_lsm_mmap_file",
		"btf_trace_sched_process_exec", "bpf_iter_task", "bpf_rdonly_cast", "pid_type", "kernfs_node", "path")
	raw, err := Trim(f, names)
	if err != nil {
		t.Fatal(err)
	}
	left := load(t, raw)
	for name := range names {
		sameTypes(t, all, left, name)
	}
	for _, err := range left.All() { // every one can be read
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestTheLibraryTakesTheTypes: a cache that was filled does not read the kernel's.
func TestTheLibraryTakesTheTypes(t *testing.T) {
	_, spec := sample(t)
	types := &Types{spec, btf.NewCache()}
	if err := types.fill(); err != nil {
		t.Fatal(err)
	}
	if got, err := types.Cache.Kernel(); err != nil || got != spec {
		t.Errorf("Kernel = %p, %v, want %p", got, err, spec)
	}
}

func TestTrimRefuses(t *testing.T) {
	raw, _ := sample(t)
	names := set("task_struct")
	tests := map[string][]byte{
		"nothing":            nil,
		"another file":       []byte("\x7fELF, which is no description of types"),
		"version 2":          slices.Concat(raw[:2], []byte{2}, raw[3:]),
		"an end too early":   raw[:len(raw)-40],
		"a kind that is not": slices.Concat(raw[:headerSize+4], []byte{0, 0, 0, 31}, raw[headerSize+8:]),
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			if got, err := Trim(bytes.NewReader(b), names); err == nil || got != nil {
				t.Errorf("Trim = %d bytes, %v, want an error", len(got), err)
			}
		})
	}
}

func FuzzTrim(f *testing.F) {
	raw, _ := sample(f)
	f.Add(raw)
	f.Add(raw[:100])
	names := set("task_struct", "bpf_lsm_task_kill", "btf_trace_exec", "wide")
	f.Fuzz(func(t *testing.T, b []byte) {
		small, err := Trim(bytes.NewReader(b), names)
		if err != nil {
			return
		}
		again, err := Trim(bytes.NewReader(small), names)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again, small) {
			t.Error("what was left is not left as it is")
		}
	})
}
