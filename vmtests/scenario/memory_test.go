package scenario

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

var markedLine = regexp.MustCompile(`marked pid (\d+) virtual 0x[0-9a-f]+ physical 0x([0-9a-f]+) length (\d+)`)

// memory opens a capture's memory as any tool does that knows ELF: the kernel has
// left its VMCOREINFO, there are registers for each vCPU, and what a process of
// the guest's said that it put into its memory is there, at its place.
func (w *world) memory(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 3, "memory FILE SAID PREFIX")
	said := markedLine.FindStringSubmatch(ts.ReadFile(args[1]))
	if said == nil {
		ts.Fatalf("%s says nothing of a mark", args[1])
	}
	at, err := strconv.ParseUint(said[2], 16, 64)
	ts.Check(err)
	length, err := strconv.Atoi(said[3])
	ts.Check(err)
	f, err := elf.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	info, cpus, err := notesOf(f)
	ts.Check(err)
	if !strings.HasPrefix(info, "OSRELEASE="+w.kernel) || !strings.Contains(info, "\nKERNELOFFSET=") {
		ts.Fatalf("VMCOREINFO is %.100q", info)
	}
	if cpus == 0 {
		ts.Fatalf("no registers are in it")
	}
	b, err := physical(f, at, length)
	ts.Check(err)
	if !strings.HasPrefix(string(b), args[2]) {
		ts.Fatalf("at %#x is %q, want %q...", at, b, args[2])
	}
	ts.Logf("%d vCPUs, VMCOREINFO of %d bytes, %q of pid %s at %#x", cpus, len(info), b, said[1], at)
}

// notesOf returns the text of the note VMCOREINFO, and how many vCPUs have their
// registers there.
func notesOf(f *elf.File) (info string, cpus int, err error) {
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		b, err := io.ReadAll(p.Open())
		if err != nil {
			return "", 0, err
		}
		for len(b) >= 12 {
			name, size := int(binary.LittleEndian.Uint32(b)), int(binary.LittleEndian.Uint32(b[4:]))
			at := 12 + (name+3)&^3
			if name < 0 || size < 0 || at+size > len(b) {
				return "", 0, fmt.Errorf("a note of %d and %d bytes", name, size)
			}
			switch string(bytes.TrimRight(b[12:12+name], "\x00")) {
			case "VMCOREINFO":
				info = string(b[at : at+size])
			case "CORE":
				cpus++
			}
			b = b[min(at+(size+3)&^3, len(b)):]
		}
	}
	return info, cpus, nil
}

// physical reads memory at its place in the machine.
func physical(f *elf.File, at uint64, n int) ([]byte, error) {
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && at >= p.Paddr && at+uint64(n) <= p.Paddr+p.Filesz {
			b := make([]byte, n)
			_, err := p.ReadAt(b, int64(at-p.Paddr))
			return b, err
		}
	}
	return nil, fmt.Errorf("no segment has %#x", at)
}
