package engine

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

func TestSeccompFilter(t *testing.T) {
	const arch = unix.AUDIT_ARCH_X86_64
	var program []bpf.Instruction
	for _, f := range seccompFilter(arch) {
		program = append(program, bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K}.Disassemble())
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		call, arch, arg0 uint32
		allowed          bool
	}{
		"read":           {unix.SYS_READ, arch, 0, true},
		"local socket":   {unix.SYS_SOCKET, arch, unix.AF_UNIX, true},
		"inet socket":    {unix.SYS_SOCKET, arch, unix.AF_INET, false},
		"vsock socket":   {unix.SYS_SOCKET, arch, unix.AF_VSOCK, false},
		"execve":         {unix.SYS_EXECVE, arch, 0, false},
		"last of all":    {refused[len(refused)-1], arch, 0, false},
		"other arch":     {unix.SYS_READ, unix.AUDIT_ARCH_I386, 0, false},
		"x32":            {unix.SYS_READ | x32Bit, arch, 0, false},
		"unknown number": {5000, arch, 0, true},
	} {
		data := make([]byte, 64) // struct seccomp_data; the VM reads big endian
		binary.BigEndian.PutUint32(data[dataNumber:], c.call)
		binary.BigEndian.PutUint32(data[dataArch:], c.arch)
		binary.BigEndian.PutUint32(data[dataArg0:], c.arg0)
		got, err := vm.Run(data)
		if allowed := uint32(got) == unix.SECCOMP_RET_ALLOW; err != nil || allowed != c.allowed {
			t.Errorf("%s: %#x, error %v", name, got, err)
		}
	}
}
