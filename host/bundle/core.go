package bundle

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// CPU is one virtual processor as it stood.
type CPU struct {
	Number    int        `json:"number"`
	Registers []Register `json:"registers"`
}

// Register is a register's name and value.
type Register struct {
	Name  string `json:"name"`
	Value Hex64  `json:"value"`
}

// Hex64 is written in JSON as "0x" and 16 digits: programs that take numbers for
// floating point would lose the end of a register.
type Hex64 uint64

// MarshalText writes it.
func (h Hex64) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "0x%016x", uint64(h)), nil }

// Core is what a guest's ELF core says beside its memory.
type Core struct {
	CPUs       []CPU
	VMCoreInfo string // what the guest's kernel says of itself, "" where it left none: the guest's word
	Memory     uint64 // bytes of memory that it has
}

// ErrCore is what every error about a core's content wraps.
var ErrCore = errors.New("not an ELF core of a guest")

const (
	maxNotes      = 16 << 20
	maxCPUs       = 1024
	maxVMCoreInfo = 64 << 10
)

// ReadCore reads the notes of a guest's core, as QEMU's dump-guest-memory writes
// it for x86-64: NT_PRSTATUS and "QEMU" for each vCPU, "VMCOREINFO" where the
// guest has left it with its vmcoreinfo device.
// Source: QEMU, target/i386/arch_dump.c and dump/dump.c.
func ReadCore(path string) (*Core, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, fmt.Errorf("read core: %w", err)
	}
	defer f.Close()
	c, err := readCore(f)
	if err != nil {
		return nil, fmt.Errorf("read core %s: %w", path, err)
	}
	return c, nil
}

func readCore(r io.ReaderAt) (*Core, error) {
	e, err := elf.NewFile(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCore, err)
	}
	if e.Type != elf.ET_CORE || e.Machine != elf.EM_X86_64 || e.Class != elf.ELFCLASS64 {
		return nil, fmt.Errorf("%w: it is %s for %s", ErrCore, e.Type, e.Machine)
	}
	c := &Core{}
	for _, p := range e.Progs {
		switch p.Type {
		case elf.PT_LOAD:
			c.Memory += p.Filesz
		case elf.PT_NOTE:
			b, err := io.ReadAll(io.LimitReader(p.Open(), maxNotes+1))
			if err != nil || len(b) > maxNotes {
				return nil, fmt.Errorf("%w: notes of %d bytes: %w", ErrCore, p.Filesz, err)
			}
			if err := c.parseNotes(b); err != nil {
				return nil, err
			}
		}
	}
	return c, nil
}

// parseNotes reads notes: lengths of name and content, a type, then both, each
// padded to four bytes.
func (c *Core) parseNotes(b []byte) error {
	for len(b) > 0 {
		if len(b) < 12 {
			return fmt.Errorf("%w: a note of %d bytes", ErrCore, len(b))
		}
		name, size, kind := uint64(binary.LittleEndian.Uint32(b)), uint64(binary.LittleEndian.Uint32(b[4:])), binary.LittleEndian.Uint32(b[8:])
		b = b[12:]
		end := padded(name) + padded(size)
		if uint64(len(b)) < padded(name)+size {
			return fmt.Errorf("%w: a note of %d and %d bytes in %d", ErrCore, name, size, len(b))
		}
		content := b[padded(name):][:size]
		if err := c.note(strings.TrimRight(string(b[:name]), "\x00"), kind, content); err != nil {
			return err
		}
		b = b[min(end, uint64(len(b))):]
	}
	return nil
}

func padded(n uint64) uint64 { return (n + 3) &^ 3 }

const ntPRStatus = 1

func (c *Core) note(name string, kind uint32, b []byte) error {
	switch {
	case name == "CORE" && kind == ntPRStatus:
		if len(b) < prstatusRegs+8*len(prstatusNames) || len(c.CPUs) == maxCPUs {
			return fmt.Errorf("%w: registers of %d bytes for vCPU %d", ErrCore, len(b), len(c.CPUs))
		}
		c.CPUs = append(c.CPUs, CPU{Number: len(c.CPUs), Registers: words(b[prstatusRegs:], prstatusNames)})
	case name == "QEMU" && kind == 0:
		return c.system(b)
	case name == "VMCOREINFO" && kind == 0:
		c.VMCoreInfo = strings.TrimRight(string(b[:min(len(b), maxVMCoreInfo)]), "\x00")
	}
	return nil
}

// struct elf_prstatus, x86-64: the registers are behind 112 bytes.
const prstatusRegs = 112

var prstatusNames = []string{
	"r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp",
	"ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
}

// struct QEMUCPUState: version and size, 18 registers, ten segments of a
// selector, a limit, flags, padding and a base, then cr0 to cr4 and the kernel's
// GS base.
const (
	qemuTable  = 8 + 18*8 + 6*24 // behind cs, ds, es, fs, gs and ss, which NT_PRSTATUS has
	qemuSystem = qemuTable + 4*24
)

var (
	qemuTables = []string{"ldt_base", "tr_base", "gdt_base", "idt_base"}
	qemuNames  = []string{"cr0", "cr1", "cr2", "cr3", "cr4", "kernel_gs_base"}
)

// system adds to the vCPUs, one after the other, what only the kernel sees.
func (c *Core) system(b []byte) error {
	if len(b) < qemuSystem+8*5 {
		return fmt.Errorf("%w: QEMU's state of %d bytes", ErrCore, len(b))
	}
	for i := range c.CPUs {
		cpu := &c.CPUs[i]
		if len(cpu.Registers) > len(prstatusNames) {
			continue // has it
		}
		for n, name := range qemuTables {
			cpu.Registers = append(cpu.Registers, Register{name, Hex64(binary.LittleEndian.Uint64(b[qemuTable+24*n+16:]))})
		}
		cpu.Registers = append(cpu.Registers, words(b[qemuSystem:], qemuNames[:min(len(qemuNames), (len(b)-qemuSystem)/8)])...)
		return nil
	}
	return fmt.Errorf("%w: QEMU's state of more vCPUs than there are", ErrCore)
}

func words(b []byte, names []string) (out []Register) {
	for i, name := range names {
		out = append(out, Register{name, Hex64(binary.LittleEndian.Uint64(b[8*i:]))})
	}
	return out
}
