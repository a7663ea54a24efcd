package vsockproto

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Version is the protocol version that this package speaks.
const Version = 1

// Port is the vsock port at which the host listens.
const Port = 6820

// Limits on every length that a peer can claim, in bytes.
const (
	FrameHeaderSize = 16
	MaxFrame        = 256 << 10 // a whole frame, header included
	MaxHello        = 16 << 10  // a whole frame before the key is proven
	MaxText         = 256       // a kernel release, a build, a reason
)

// FrameType says what a frame's payload is. Numbers are never used again.
type FrameType uint16

// Frames from the guest to the host are below 128, the others above.
const (
	FrameHello     FrameType = 1
	FrameProof     FrameType = 2
	FrameEvents    FrameType = 3
	FrameHeartbeat FrameType = 4
	FramePolicyAck FrameType = 5
	FrameBye       FrameType = 6
	FrameCanaryAck FrameType = 7

	FrameCommandAck FrameType = 8

	FrameChallenge FrameType = 129
	FrameHelloAck  FrameType = 130
	FrameAck       FrameType = 131
	FramePolicy    FrameType = 132
	FrameReject    FrameType = 133
	FrameCanary    FrameType = 134
	FrameCommand   FrameType = 135
)

var frameNames = map[FrameType]string{
	FrameHello: "hello", FrameProof: "proof", FrameEvents: "events",
	FrameHeartbeat: "heartbeat", FramePolicyAck: "policy-ack", FrameBye: "bye",
	FrameCanaryAck: "canary-ack", FrameCanary: "canary",
	FrameChallenge: "challenge", FrameHelloAck: "hello-ack", FrameAck: "ack",
	FramePolicy: "policy", FrameReject: "reject",
	FrameCommand: "command", FrameCommandAck: "command-ack",
}

func (t FrameType) String() string {
	if s, ok := frameNames[t]; ok {
		return s
	}
	return fmt.Sprintf("frame(%d)", uint16(t))
}

// Errors to branch on. What wraps them says which field and which value.
var (
	ErrShort    = errors.New("short")                 // more bytes are needed
	ErrTooLong  = errors.New("longer than the limit") // a length beyond its bound
	ErrReserved = errors.New("reserved bits set")     // a byte that must be zero is not
	ErrInvalid  = errors.New("invalid value")         // a value that its field cannot have
	ErrTrailing = errors.New("trailing bytes")        // bytes after the end of a payload
	ErrVersion  = errors.New("unsupported version")   // not Version
)

var le = binary.LittleEndian

// FrameHeader is the fixed start of every frame.
type FrameHeader struct {
	Length   uint32 // whole frame in bytes, header included; a multiple of 8
	Type     FrameType
	Sequence uint64 // 0 in the handshake; see PROTOCOL.md, "Frames"
}

// AppendFrame appends a header for a payload of n bytes, which the caller
// appends next. n is a multiple of 8 and at most MaxFrame-FrameHeaderSize.
func AppendFrame(b []byte, t FrameType, seq uint64, n int) []byte {
	b = le.AppendUint32(b, uint32(FrameHeaderSize+n))
	b = le.AppendUint16(b, uint16(t))
	b = append(b, Version, 0)
	return le.AppendUint64(b, seq)
}

// ParseFrameHeader reads the header at the start of b. A length beyond limit
// is ErrTooLong, so that a reader can refuse it before it allocates.
func ParseFrameHeader(b []byte, limit int) (FrameHeader, error) {
	if len(b) < FrameHeaderSize {
		return FrameHeader{}, fmt.Errorf("frame header: %w", ErrShort)
	}
	h := FrameHeader{
		Length:   le.Uint32(b),
		Type:     FrameType(le.Uint16(b[4:])),
		Sequence: le.Uint64(b[8:]),
	}
	switch {
	case b[6] != Version:
		return FrameHeader{}, fmt.Errorf("frame version %d: %w", b[6], ErrVersion)
	case b[7] != 0:
		return FrameHeader{}, fmt.Errorf("frame header: %w", ErrReserved)
	case h.Length < FrameHeaderSize || h.Length%8 != 0:
		return FrameHeader{}, fmt.Errorf("frame length %d: %w", h.Length, ErrInvalid)
	case uint64(h.Length) > uint64(limit):
		return FrameHeader{}, fmt.Errorf("frame length %d, limit %d: %w", h.Length, limit, ErrTooLong)
	}
	return h, nil
}

// reader takes fields from the front of a payload; the first error stays.
type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n int) []byte {
	if r.err != nil {
		return nil
	}
	if len(r.b) < n {
		r.err = ErrShort
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) u8() uint8 {
	if v := r.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if v := r.take(2); v != nil {
		return le.Uint16(v)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if v := r.take(4); v != nil {
		return le.Uint32(v)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if v := r.take(8); v != nil {
		return le.Uint64(v)
	}
	return 0
}

// fail keeps err if it is the first.
func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// reserved takes bits that must be zero.
func (r *reader) reserved(bits uint64) {
	if bits != 0 {
		r.fail(ErrReserved)
	}
}

// bool takes a byte that is 0 or 1.
func (r *reader) bool(v byte) bool {
	if v > 1 {
		r.fail(ErrInvalid)
	}
	return v == 1
}

func (r *reader) zero(n int) {
	for _, c := range r.take(n) {
		if c != 0 && r.err == nil {
			r.err = ErrReserved
		}
	}
}

func (r *reader) end() error {
	if r.err == nil && len(r.b) != 0 {
		r.err = ErrTrailing
	}
	return r.err
}
