// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/klauspost/compress/zstd"
)

// kernelLines are the stock kernels that guests are run on, and where make
// install-kernels unpacks them.
var kernelLines = []string{"6.1", "6.12", "7.2"}

const kernelCache = "/var/cache/outguard/kernel"

// kernelHook is what one kernel has of a function that hooks stand for.
type kernelHook struct {
	takes     string // types of its arguments
	arguments int
	sleepable bool // the kernel lets programs on it sleep
}

// kernelHooks are those of a kernel, by the function's name; one that it has not
// is not among them.
type kernelHooks map[string]kernelHook

func (k kernelHooks) text() []byte {
	var b bytes.Buffer
	for _, name := range kernelFunctions() {
		h, ok := k[name]
		if !ok {
			continue
		}
		fmt.Fprintf(&b, "%s(%s)", name, h.takes)
		if h.sleepable {
			b.WriteString(" sleepable")
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

func listPath(line string) string { return filepath.Join("testdata", "hooks-"+line+".txt") }

// committedHooks reads the list of a kernel.
func committedHooks(t *testing.T, line string) kernelHooks {
	t.Helper()
	f, err := os.Open(listPath(line))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := kernelHooks{}
	for s := bufio.NewScanner(f); s.Scan(); {
		name, rest, ok := strings.Cut(s.Text(), "(")
		takes, flag, ok2 := strings.Cut(rest, ")")
		if !ok || !ok2 || flag != "" && flag != " sleepable" {
			t.Fatalf("%s: %q", f.Name(), s.Text())
		}
		h := kernelHook{takes: takes, sleepable: flag != ""}
		if takes != "" {
			h.arguments = strings.Count(takes, ",") + 1
		}
		all[name] = h
	}
	return all
}

// kernelFunctions are all that hooks stand for, sorted.
func kernelFunctions() []string {
	all := []string{snapshotIterator}
	for _, h := range hooks {
		all = append(all, h.kernel)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// snapshotIterator stands for the snapshot's records.
const snapshotIterator = "bpf_iter_task"

// TestKernelHooks holds the committed lists against the kernels, where they are.
func TestKernelHooks(t *testing.T) {
	for _, line := range kernelLines {
		t.Run(line, func(t *testing.T) {
			k, err := readKernel(line)
			if errors.Is(err, fs.ErrNotExist) {
				if slices.Contains(strings.Split(os.Getenv("OUTGUARD_REQUIRE"), ","), "matrix") {
					t.Fatal(err)
				}
				t.Skipf("kernel %s is not in %s (make install-kernels): %v", line, kernelCache, err)
			}
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(listPath(line))
			if err != nil {
				t.Fatal(err)
			}
			if got := k.text(); !bytes.Equal(got, want) {
				t.Errorf("%s is not what this kernel has: go generate ./guest/sensor. It has:\n%s", listPath(line), got)
			}
		})
	}
}

// TestKernelsLetProgramsSleep: what is loaded to sleep each kernel lets.
func TestKernelsLetProgramsSleep(t *testing.T) {
	first, further := objectsOf(t)
	for _, line := range kernelLines {
		all := committedHooks(t, line)
		for _, h := range hooks {
			p := further.Programs[h.program]
			if p == nil {
				p = first.Programs[h.program]
			}
			if k, ok := all[h.kernel]; ok && sleeps(p) && !k.sleepable {
				t.Errorf("%s: %s lets no program sleep, and ours is to", line, h.kernel)
			}
		}
	}
}

// updateKernels writes the lists of those kernels that are here anew.
func updateKernels(t *testing.T) {
	t.Helper()
	for _, line := range kernelLines {
		k, err := readKernel(line)
		if errors.Is(err, fs.ErrNotExist) {
			t.Logf("kernel %s is not here, and its list stays: %v", line, err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(listPath(line), k.text(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// readKernel reads out of a kernel's file what it has of the hooks.
func readKernel(line string) (kernelHooks, error) {
	var found []string
	for _, pattern := range []string{"boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz"} {
		paths, err := filepath.Glob(filepath.Join(kernelCache, line, pattern))
		if err != nil {
			return nil, err
		}
		found = append(found, paths...)
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("kernel %s: %d files vmlinuz: %w", line, len(found), fs.ErrNotExist)
	}
	image, err := os.ReadFile(found[0])
	if err == nil {
		image, err = unpackKernel(image)
	}
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", found[0], err)
	}
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	types, err := section(f, ".BTF")
	if err != nil {
		return nil, err
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(types))
	if err != nil {
		return nil, err
	}
	sets, err := section(f, ".BTF_ids")
	if err != nil {
		return nil, err
	}
	return hooksOf(spec, sets)
}

func section(f *elf.File, name string) ([]byte, error) {
	s := f.Section(name)
	if s == nil {
		return nil, fmt.Errorf("section %s: %w", name, errors.ErrUnsupported)
	}
	return s.Data()
}

// unpackKernel takes the kernel out of what boots. Source: the kernel's
// Documentation/arch/x86/boot.rst, setup_sects, payload_offset and payload_length.
func unpackKernel(b []byte) ([]byte, error) {
	if len(b) < 0x250 || string(b[0x202:0x206]) != "HdrS" {
		return nil, errors.ErrUnsupported
	}
	le, setup := binary.LittleEndian, int(b[0x1f1])
	if setup == 0 {
		setup = 4
	}
	from := (setup+1)*512 + int(le.Uint32(b[0x248:]))
	to := from + int(le.Uint32(b[0x24c:])) - 4 // its size when it is unpacked
	if from > to || to > len(b) {
		return nil, errors.ErrUnsupported
	}
	packed := b[from:to]
	switch {
	case bytes.HasPrefix(packed, []byte("\x28\xb5\x2f\xfd")):
		d, err := zstd.NewReader(nil)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return d.DecodeAll(packed, nil)
	case bytes.HasPrefix(packed, []byte("\xfd7zXZ")):
		c := exec.Command("xz", "--decompress", "--stdout")
		c.Stdin = bytes.NewReader(packed)
		return c.Output()
	}
	return nil, fmt.Errorf("packed as %x: %w", packed[:4], errors.ErrUnsupported)
}

func hooksOf(spec *btf.Spec, sets []byte) (kernelHooks, error) {
	sleepable, err := sleepableHooks(spec, sets)
	if err != nil {
		return nil, err
	}
	all := kernelHooks{}
	for _, name := range kernelFunctions() {
		found, err := spec.AnyTypesByName(name)
		if errors.Is(err, btf.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		// A structure may have a function's name.
		if i := slices.IndexFunc(found, isFunction); i > 0 {
			found = found[i:]
		}
		params, err := parameters(found[0])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		var takes []string
		for _, p := range params {
			takes = append(takes, inC(p.Type))
		}
		id, err := spec.TypeID(found[0])
		if err != nil {
			return nil, err
		}
		all[name] = kernelHook{strings.Join(takes, ", "), len(takes), sleepable[id]}
	}
	return all, nil
}

func isFunction(t btf.Type) bool {
	_, err := parameters(t)
	return err == nil
}

// parameters are those of a function, or of what a tracepoint's name points to,
// where the first is the kernel's own.
func parameters(t btf.Type) ([]btf.FuncParam, error) {
	switch t := t.(type) {
	case *btf.Func:
		if p, ok := t.Type.(*btf.FuncProto); ok {
			return p.Params, nil
		}
	case *btf.Typedef:
		if p, ok := t.Type.(*btf.Pointer); ok {
			if f, ok := p.Target.(*btf.FuncProto); ok && len(f.Params) > 0 {
				return f.Params[1:], nil
			}
		}
	}
	return nil, fmt.Errorf("%v: %w", t, errors.ErrUnsupported)
}

// inC names a type as C does.
func inC(t btf.Type) string {
	switch t := t.(type) {
	case *btf.Pointer:
		return strings.TrimSuffix(inC(t.Target), " ") + " *"
	case *btf.Const:
		return "const " + inC(t.Type)
	case *btf.Void:
		return "void"
	case *btf.Struct:
		return "struct " + t.Name
	case *btf.Union:
		return "union " + t.Name
	case *btf.Enum:
		return "enum " + t.Name
	}
	return t.TypeName()
}

// sleepableHooks finds the kernel's set of hooks whose programs may sleep. Among
// its sets of functions (a count, and that many numbers, ascending) it is the one
// of nothing but hooks that has file_open and not file_mprotect, which the set of
// all hooks has too. Source: kernel/bpf/bpf_lsm.c, sleepable_lsm_hooks.
func sleepableHooks(spec *btf.Spec, sets []byte) (map[btf.TypeID]bool, error) {
	names := map[btf.TypeID]string{} // of what may be in a set: to read all types would take long
	for at := 0; at+4 <= len(sets); at += 4 {
		id := btf.TypeID(binary.LittleEndian.Uint32(sets[at:]))
		t, err := spec.TypeByID(id)
		if errors.Is(err, btf.ErrNotFound) {
			continue // a count, or a flag
		}
		if err != nil {
			return nil, err
		}
		name, isHook := strings.CutPrefix(t.TypeName(), "bpf_lsm_")
		if _, ok := t.(*btf.Func); ok && isHook {
			names[id] = name
		}
	}
	var found []map[btf.TypeID]bool
	for at := 0; at+4 <= len(sets); at += 4 {
		set := hookNumbers(sets[at:], names)
		has := map[string]bool{}
		for id := range set {
			has[names[id]] = true
		}
		if has["file_open"] && !has["file_mprotect"] {
			found = append(found, set)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%d sets that could be the sleepable hooks: %w", len(found), errors.ErrUnsupported)
	}
	return found[0], nil
}

// hookNumbers reads a set at the start of b; nil if it is none of hooks alone.
func hookNumbers(b []byte, names map[btf.TypeID]string) map[btf.TypeID]bool {
	n := binary.LittleEndian.Uint32(b)
	if n < 2 || uint64(n)*4+4 > uint64(len(b)) {
		return nil
	}
	set := map[btf.TypeID]bool{}
	for last := btf.TypeID(0); len(set) < int(n); {
		id := btf.TypeID(binary.LittleEndian.Uint32(b[4+4*len(set):]))
		if names[id] == "" || id <= last {
			return nil
		}
		set[id], last = true, id
	}
	return set
}
