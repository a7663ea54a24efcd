package bundle

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// elfNote is an ELF note.
func elfNote(name string, kind uint32, content []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(name)+1))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(content)))
	b = append(binary.LittleEndian.AppendUint32(b, kind), name...)
	b = append(b, make([]byte, int(padded(uint64(len(name)+1)))-len(name))...)
	return append(append(b, content...), make([]byte, int(padded(uint64(len(content))))-len(content))...)
}

// numbered is so many words that say which they are, behind some bytes.
func numbered(before, n int, first uint64) []byte {
	b := make([]byte, before)
	for i := range n {
		b = binary.LittleEndian.AppendUint64(b, first+uint64(i))
	}
	return append(b, make([]byte, 8)...)
}

// exampleCore is a core as QEMU writes it: notes, then memory.
func exampleCore(notes ...[]byte) []byte {
	all := bytes.Join(notes, nil)
	le := binary.LittleEndian
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	b = le.AppendUint32(le.AppendUint16(le.AppendUint16(b, 4), 62), 1) // ET_CORE, EM_X86_64
	b = le.AppendUint64(le.AppendUint64(le.AppendUint64(b, 0), 64), 0) // entry, program headers, section headers
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 2, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	segment := func(kind uint32, offset, size uint64) {
		b = le.AppendUint32(le.AppendUint32(b, kind), 0)
		for _, v := range []uint64{offset, 0, 0, size, size, 0} {
			b = le.AppendUint64(b, v)
		}
	}
	segment(4, 64+2*56, uint64(len(all)))
	segment(1, 64+2*56+uint64(len(all)), 4096)
	return append(append(b, all...), make([]byte, 4096)...)
}

var (
	cpu0   = elfNote("CORE", 1, numbered(prstatusRegs, len(prstatusNames), 0x100))
	cpu1   = elfNote("CORE", 1, numbered(prstatusRegs, len(prstatusNames), 0x200))
	state0 = elfNote("QEMU", 0, numbered(8, 54, 0x1000))
	state1 = elfNote("QEMU", 0, numbered(8, 54, 0x2000))
	info   = elfNote("VMCOREINFO", 0, []byte("OSRELEASE=6.12.0\nKERNELOFFSET=1a000000\n"))
)

func TestCore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "core")
	if err := os.WriteFile(path, exampleCore(cpu0, cpu1, state0, state1, elfNote("OTHER", 9, []byte("abc")), info), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := ReadCore(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.CPUs) != 2 || c.Memory != 4096 || c.VMCoreInfo != "OSRELEASE=6.12.0\nKERNELOFFSET=1a000000\n" {
		t.Errorf("%+v", c)
	}
	want := map[string]Hex64{"r15": 0x200, "rip": 0x210, "rsp": 0x213, "gs": 0x21a,
		"ldt_base": 0x2000 + 18 + 3*6 + 2, "idt_base": 0x2000 + 18 + 3*9 + 2, "cr0": 0x2000 + 48, "cr3": 0x2000 + 51, "cr4": 0x2000 + 52, "kernel_gs_base": 0x2000 + 53}
	for _, r := range c.CPUs[1].Registers {
		if w, ok := want[r.Name]; ok && r.Value != w {
			t.Errorf("%s is %#x, want %#x", r.Name, uint64(r.Value), uint64(w))
		}
		delete(want, r.Name)
	}
	if len(want) != 0 {
		t.Errorf("not there: %v", want)
	}
	text, err := json.Marshal(c.CPUs[0].Registers[0])
	if err != nil || string(text) != `{"name":"r15","value":"0x0000000000000100"}` {
		t.Errorf("%s, %v", text, err)
	}
}

func TestCoreRefuses(t *testing.T) {
	for what, b := range map[string][]byte{
		"nothing":             nil,
		"no ELF":              []byte(strings.Repeat("x", 4096)),
		"a program":           bytes.Replace(exampleCore(cpu0), []byte{4, 0, 62, 0}, []byte{2, 0, 62, 0}, 1),
		"another machine":     bytes.Replace(exampleCore(cpu0), []byte{4, 0, 62, 0}, []byte{4, 0, 183, 0}, 1),
		"too few registers":   exampleCore(elfNote("CORE", 1, make([]byte, 100))),
		"a state of no vCPU":  exampleCore(state0),
		"a state too short":   exampleCore(cpu0, elfNote("QEMU", 0, make([]byte, 100))),
		"a note that is long": exampleCore(cpu0[:len(cpu0)-100]),
		"half a note":         exampleCore(cpu0, []byte{1, 2, 3}),
	} {
		if c, err := readCore(bytes.NewReader(b)); !errors.Is(err, ErrCore) {
			t.Errorf("%s: %+v, %v", what, c, err)
		}
	}
}

func FuzzCore(f *testing.F) {
	f.Add(exampleCore(cpu0, cpu1, state0, state1, info))
	f.Add(exampleCore(info))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := readCore(bytes.NewReader(b))
		if (c == nil) != (err != nil) {
			t.Errorf("%+v beside %v", c, err)
		}
		if c != nil && (len(c.CPUs) > maxCPUs || len(c.VMCoreInfo) > maxVMCoreInfo) {
			t.Errorf("%d vCPUs, %d bytes", len(c.CPUs), len(c.VMCoreInfo))
		}
	})
}
