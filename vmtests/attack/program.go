package attack

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/outguard/outguard/vmtests/tiny"
)

// greeting is what the program says when it has reached the attacker.
const greeting = "in\n"

// Program returns a static ELF for x86-64 Linux that connects to an IPv4
// address, says greeting, waits for one read and ends. The salt, never
// executed, makes its digest one that nobody has seen.
func Program(to netip.AddrPort, salt []byte) ([]byte, error) {
	if !to.Addr().Is4() {
		return nil, errors.New("program: the attacker's address is not IPv4")
	}
	return tiny.ELF(append(assemble(to), salt...)), nil
}

// assemble returns the program's code and data.
func assemble(to netip.AddrPort) []byte {
	var a assembler
	a.bytes(0xb8, 41, 0, 0, 0) // mov eax, SYS_socket
	a.bytes(0xbf, 2, 0, 0, 0)  // mov edi, AF_INET
	a.bytes(0xbe, 1, 0, 0, 0)  // mov esi, SOCK_STREAM
	a.bytes(0x31, 0xd2)        // xor edx, edx
	a.bytes(0x0f, 0x05)        // syscall
	a.bytes(0x89, 0xc7)        // mov edi, eax
	a.leaRSI("address")
	a.bytes(0xba, 16, 0, 0, 0) // mov edx, sizeof(sockaddr_in)
	a.bytes(0xb8, 42, 0, 0, 0) // mov eax, SYS_connect
	a.bytes(0x0f, 0x05)        // syscall
	a.bytes(0x85, 0xc0)        // test eax, eax
	a.bytes(0x0f, 0x85)        // jnz exit
	a.relative("exit")
	a.leaRSI("greeting")
	a.bytes(0xba, byte(len(greeting)), 0, 0, 0)             // mov edx, length
	a.bytes(0xb8, 1, 0, 0, 0)                               // mov eax, SYS_write
	a.bytes(0x0f, 0x05)                                     // syscall
	a.bytes(0x48, 0x8d, 0xb4, 0x24, 0x00, 0xff, 0xff, 0xff) // lea rsi, [rsp-256]
	a.bytes(0xba, 64, 0, 0, 0)                              // mov edx, 64
	a.bytes(0x31, 0xc0)                                     // xor eax, eax: SYS_read
	a.bytes(0x0f, 0x05)                                     // syscall
	a.label("exit")                                         //
	a.bytes(0x31, 0xff)                                     // xor edi, edi
	a.bytes(0xb8, 60, 0, 0, 0)                              // mov eax, SYS_exit
	a.bytes(0x0f, 0x05)                                     // syscall
	a.label("address")                                      //
	a.bytes(2, 0, byte(to.Port()>>8), byte(to.Port()))      // AF_INET, port
	a.bytes(to.Addr().AsSlice()...)                         // address
	a.bytes(0, 0, 0, 0, 0, 0, 0, 0)                         // padding
	a.label("greeting")
	a.bytes([]byte(greeting)...)
	return a.link()
}

// assembler puts code together and fills in distances at the end.
type assembler struct {
	b      []byte
	labels map[string]int
	holes  map[int]string // offset of four bytes: the label that they lead to
}

func (a *assembler) bytes(b ...byte) { a.b = append(a.b, b...) }

func (a *assembler) label(name string) {
	if a.labels == nil {
		a.labels = map[string]int{}
	}
	a.labels[name] = len(a.b)
}

// leaRSI loads the address of a label into rsi.
func (a *assembler) leaRSI(label string) {
	a.bytes(0x48, 0x8d, 0x35)
	a.relative(label)
}

func (a *assembler) relative(label string) {
	if a.holes == nil {
		a.holes = map[int]string{}
	}
	a.holes[len(a.b)] = label
	a.bytes(0, 0, 0, 0)
}

func (a *assembler) link() []byte {
	for at, label := range a.holes {
		binary.LittleEndian.PutUint32(a.b[at:], uint32(a.labels[label]-(at+4)))
	}
	return a.b
}
