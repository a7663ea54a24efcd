// Package serial makes connections of a virtio-serial port: a byte stream that
// outlives whoever has either end of it open. What one process wrote, another
// may read; a write may be cut anywhere; a host's second client is served, with
// all that it has written meanwhile, when the first has gone. So what crosses is
// cut into packets, each with the nonces of the two processes that speak:
//
//	 0  4  magic     f5 4f 47 01
//	 4  1  type      1 hello, 2 open, 3 accept, 4 data, 5 close
//	 5  1  zero
//	 6  2  length    of the payload, at most 16384; 0 in all but data
//	 8  8  guest     nonce of the guest's end; 0 in hello
//	16  8  host      nonce of the host's end; 0 in an open that asks for it
//	24  4  sum       CRC-32C of the payload
//	28  4  check     CRC-32C of the bytes before
//	32     payload
//
//	guest                             host
//	  |            zeros, hello(0,H) <--|   when it has connected
//	  |--> zeros, open(G,0)             |   who is there?
//	  |                   hello(0,H) <--|
//	  |--> open(G,H)                    |
//	  |                  accept(G,H) <--|
//	  |<==> data(G,H), close(G,H) <====>|
//
// A receiver takes what has its own nonce and the other end's, skips what is no
// packet, and passes over packets of others. Whoever begins sends zeros first,
// as many as a packet is long at most, so that one which an earlier process left
// unfinished comes to its end, is seen to be wrong, and hides nothing.
//
// PROTOCOL.md, section 12, is the specification.
package serial

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/outguard/outguard/vsockproto"
)

// Sizes in bytes.
const (
	HeaderSize = 32
	MaxPayload = 16 << 10
	maxPacket  = HeaderSize + MaxPayload
)

// Type says what a packet is. Numbers are never used again.
type Type uint8

// Types of packets.
const (
	Hello  Type = 1 // host: this is who has the host's end
	Open   Type = 2 // guest: a connection is wanted, with that host or whoever is there
	Accept Type = 3 // host: there is one
	Data   Type = 4 // both
	Close  Type = 5 // both: it has ended
)

var typeNames = [...]string{Hello: "hello", Open: "open", Accept: "accept", Data: "data", Close: "close"}

func (t Type) String() string {
	if int(t) < len(typeNames) && typeNames[t] != "" {
		return typeNames[t]
	}
	return fmt.Sprintf("packet(%d)", uint8(t))
}

// Header is the fixed start of a packet.
type Header struct {
	Type   Type
	Length int    // of the payload, bytes
	Guest  uint64 // nonce of the guest's end
	Host   uint64 // and of the host's
	Sum    uint32 // CRC-32C of the payload
}

// ErrNoPacket: the bytes are not the start of a packet.
var ErrNoPacket = errors.New("no packet")

var (
	magic      = [4]byte{0xf5, 'O', 'G', 1}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
)

// AppendPacket appends a packet of at most MaxPayload bytes of payload.
func AppendPacket(b []byte, t Type, guest, host uint64, payload []byte) []byte {
	at := len(b)
	b = append(b, magic[:]...)
	b = append(b, byte(t), 0)
	b = le.AppendUint16(b, uint16(len(payload)))
	b = le.AppendUint64(b, guest)
	b = le.AppendUint64(b, host)
	b = le.AppendUint32(b, crc32.Checksum(payload, castagnoli))
	b = le.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
	return append(b, payload...)
}

// ParseHeader reads the header at the start of b. Whatever is not one is
// ErrNoPacket, or vsockproto.ErrShort where b has less than HeaderSize bytes.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, fmt.Errorf("header of %d bytes: %w", len(b), vsockproto.ErrShort)
	}
	h, ok := parse(b)
	if !ok {
		return Header{}, fmt.Errorf("% x: %w", b[:8], ErrNoPacket)
	}
	return h, nil
}

// parse is ParseHeader without a cause: a receiver goes through noise with it.
func parse(b []byte) (h Header, ok bool) {
	if [4]byte(b) != magic || b[5] != 0 || le.Uint32(b[28:]) != crc32.Checksum(b[:28], castagnoli) {
		return Header{}, false
	}
	h = Header{Type: Type(b[4]), Length: int(le.Uint16(b[6:])), Guest: le.Uint64(b[8:]), Host: le.Uint64(b[16:]), Sum: le.Uint32(b[24:])}
	if !h.sound() {
		return Header{}, false
	}
	return h, true
}

// sound holds what each type may say.
func (h *Header) sound() bool {
	switch h.Type {
	case Data:
		return h.Guest != 0 && h.Host != 0 && h.Length > 0 && h.Length <= MaxPayload
	case Hello:
		return h.Guest == 0 && h.Host != 0 && h.Length == 0 && h.Sum == 0
	case Open:
		return h.Guest != 0 && h.Length == 0 && h.Sum == 0
	case Accept, Close:
		return h.Guest != 0 && h.Host != 0 && h.Length == 0 && h.Sum == 0
	}
	return false
}

// nonce is a new one, never 0.
func nonce() uint64 {
	var b [8]byte
	for {
		_, _ = rand.Read(b[:]) // never fails
		if n := le.Uint64(b[:]); n != 0 {
			return n
		}
	}
}
