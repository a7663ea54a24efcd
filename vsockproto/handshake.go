package vsockproto

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
)

// KeySize is the size of the enrolled key and of a session's secret, in bytes.
const KeySize = 32

// HelloResume is set in Hello.Flags when Hello.Resume names a session.
const HelloResume uint32 = 1 << 0

// MaxHooks bounds the hooks that a Hello or a Policy lists.
const MaxHooks = 256

// Hello opens a connection: what the agent claims. None of it is believed
// for identity; which domain speaks is known from the transport.
type Hello struct {
	MinVersion, MaxVersion uint16
	Flags                  uint32
	BootID                 [16]byte // /proc/sys/kernel/random/boot_id
	Nonce                  [32]byte // fresh for each connection
	Resume                 [16]byte // session to go on with; zero without HelloResume
	BootNs                 uint64   // CLOCK_BOOTTIME when sent, ns
	RealNs                 uint64   // CLOCK_REALTIME when sent, ns since 1970
	CPUs                   uint32   // possible CPUs, 1 to MaxCPUs
	Kernel, Build          string   // at most MaxText bytes each
	Hooks                  []Hook
}

// Hook tells what became of one hook in this guest.
type Hook struct {
	Type      EventType // the record type that it reports
	Available bool      // the kernel has it
	Attached  bool      // a program of ours is attached
	Tag       [8]byte   // the program's tag as the kernel computed it
}

const hookSize = 16

// AppendHello appends h as a Hello payload.
func AppendHello(b []byte, h *Hello) []byte {
	b = le.AppendUint16(b, h.MinVersion)
	b = le.AppendUint16(b, h.MaxVersion)
	b = le.AppendUint32(b, h.Flags)
	b = append(b, h.BootID[:]...)
	b = append(b, h.Nonce[:]...)
	b = append(b, h.Resume[:]...)
	b = le.AppendUint64(b, h.BootNs)
	b = le.AppendUint64(b, h.RealNs)
	b = le.AppendUint32(b, h.CPUs)
	b = le.AppendUint32(b, uint32(len(h.Hooks)))
	for _, k := range h.Hooks {
		b = le.AppendUint16(b, uint16(k.Type))
		b = append(b, flag(k.Available), flag(k.Attached), 0, 0, 0, 0)
		b = append(b, k.Tag[:]...)
	}
	b = appendTail(b, TagKernel, Tail{Data: []byte(h.Kernel)})
	return appendTail(b, TagBuild, Tail{Data: []byte(h.Build)})
}

// ParseHello reads a Hello payload.
func ParseHello(b []byte) (Hello, error) {
	r := reader{b: b}
	h := Hello{MinVersion: r.u16(), MaxVersion: r.u16(), Flags: r.u32()}
	copy(h.BootID[:], r.take(16))
	copy(h.Nonce[:], r.take(32))
	copy(h.Resume[:], r.take(16))
	h.BootNs, h.RealNs, h.CPUs = r.u64(), r.u64(), r.u32()
	n := r.u32()
	if r.err == nil && n > MaxHooks {
		r.err = fmt.Errorf("%d hooks, limit %d: %w", n, MaxHooks, ErrTooLong)
	}
	if r.err == nil && int(n)*hookSize > len(r.b) {
		r.err = ErrShort
	}
	for i := uint32(0); i < n && r.err == nil; i++ {
		k := Hook{Type: EventType(r.u16()), Available: r.flag(), Attached: r.flag()}
		r.zero(4)
		copy(k.Tag[:], r.take(8))
		h.Hooks = append(h.Hooks, k)
	}
	h.Kernel = r.text(TagKernel)
	h.Build = r.text(TagBuild)
	switch {
	case r.err != nil:
	case h.Flags&^HelloResume != 0:
		r.err = ErrReserved
	case h.Flags&HelloResume == 0 && h.Resume != [16]byte{}:
		r.err = fmt.Errorf("resume without its flag: %w", ErrReserved)
	case h.CPUs == 0 || h.CPUs > MaxCPUs:
		r.err = fmt.Errorf("%d cpus: %w", h.CPUs, ErrInvalid)
	case h.MinVersion > h.MaxVersion:
		r.err = fmt.Errorf("versions %d to %d: %w", h.MinVersion, h.MaxVersion, ErrInvalid)
	}
	if err := r.end(); err != nil {
		return Hello{}, fmt.Errorf("hello: %w", err)
	}
	return h, nil
}

// Challenge asks for the proof of a key.
type Challenge struct {
	Nonce   [32]byte // fresh for each connection
	Session [16]byte // the session that will go on, or a new one
	Secret  Secret   // which secret the proof is made with
}

// Secret names the key of a proof.
type Secret uint8

const (
	SecretKey     Secret = 1 // the enrolled key: the first session of a boot
	SecretSession Secret = 2 // the secret of the session named
)

// AppendChallenge appends c as a Challenge payload.
func AppendChallenge(b []byte, c *Challenge) []byte {
	b = append(b, c.Nonce[:]...)
	b = append(b, c.Session[:]...)
	return append(b, byte(c.Secret), 0, 0, 0, 0, 0, 0, 0)
}

// ParseChallenge reads a Challenge payload.
func ParseChallenge(b []byte) (Challenge, error) {
	r := reader{b: b}
	var c Challenge
	copy(c.Nonce[:], r.take(32))
	copy(c.Session[:], r.take(16))
	c.Secret = Secret(r.u8())
	r.zero(7)
	if r.err == nil && c.Secret != SecretKey && c.Secret != SecretSession {
		r.err = fmt.Errorf("secret %d: %w", c.Secret, ErrInvalid)
	}
	if err := r.end(); err != nil {
		return Challenge{}, fmt.Errorf("challenge: %w", err)
	}
	return c, nil
}

// Proof answers a Challenge: MAC is AgentProof of both payloads.
type Proof struct{ MAC [32]byte }

// AppendProof appends p as a Proof payload.
func AppendProof(b []byte, p *Proof) []byte { return append(b, p.MAC[:]...) }

// ParseProof reads a Proof payload.
func ParseProof(b []byte) (Proof, error) {
	r := reader{b: b}
	var p Proof
	copy(p.MAC[:], r.take(32))
	if err := r.end(); err != nil {
		return Proof{}, fmt.Errorf("proof: %w", err)
	}
	return p, nil
}

// HelloAck accepts the agent. The host proves the key as well.
type HelloAck struct {
	Version      uint16   // the protocol version that both will speak
	HeartbeatMs  uint32   // time between heartbeats
	Next         uint64   // the frame sequence that the host expects next; 1 in a new session
	Credit       uint64   // bytes of frames that the agent may send after this, on this connection
	PolicyNumber uint64   // the policy in force on the host; a Policy frame follows
	Withheld     bool     // bulk is not to be sent until an Ack says otherwise
	MAC          [32]byte // HostProof of the same two payloads
}

// AppendHelloAck appends a as a HelloAck payload.
func AppendHelloAck(b []byte, a *HelloAck) []byte {
	b = le.AppendUint16(b, a.Version)
	b = append(b, flag(a.Withheld), 0)
	b = le.AppendUint32(b, a.HeartbeatMs)
	b = le.AppendUint64(b, a.Next)
	b = le.AppendUint64(b, a.Credit)
	b = le.AppendUint64(b, a.PolicyNumber)
	return append(b, a.MAC[:]...)
}

// ParseHelloAck reads a HelloAck payload.
func ParseHelloAck(b []byte) (HelloAck, error) {
	r := reader{b: b}
	a := HelloAck{Version: r.u16(), Withheld: r.bool(r.u8())}
	r.zero(1)
	a.HeartbeatMs, a.Next, a.Credit, a.PolicyNumber = r.u32(), r.u64(), r.u64(), r.u64()
	copy(a.MAC[:], r.take(32))
	if r.err == nil && (a.HeartbeatMs == 0 || a.Next == 0) {
		r.err = fmt.Errorf("heartbeat %d ms, next %d: %w", a.HeartbeatMs, a.Next, ErrInvalid)
	}
	if err := r.end(); err != nil {
		return HelloAck{}, fmt.Errorf("hello-ack: %w", err)
	}
	return a, nil
}

// The labels keep the two proofs and the session's secret apart.
const (
	labelAgent   = "outguard/1 agent proof\x00"
	labelHost    = "outguard/1 host proof\x00"
	labelSession = "outguard/1 session secret\x00"
)

func transcriptMAC(key *[KeySize]byte, label string, hello, challenge []byte) (out [32]byte) {
	th := sha256.New()
	th.Write(hello)
	th.Write(challenge)
	m := hmac.New(sha256.New, key[:])
	m.Write([]byte(label))
	m.Write(th.Sum(nil))
	m.Sum(out[:0])
	return out
}

// AgentProof is the agent's answer to a challenge, from the payloads of the
// Hello and the Challenge as they crossed the wire.
func AgentProof(key *[KeySize]byte, hello, challenge []byte) [32]byte {
	return transcriptMAC(key, labelAgent, hello, challenge)
}

// HostProof is the host's, in HelloAck.
func HostProof(key *[KeySize]byte, hello, challenge []byte) [32]byte {
	return transcriptMAC(key, labelHost, hello, challenge)
}

// SessionSecret is what a reconnect of this session proves instead of the key.
func SessionSecret(key *[KeySize]byte, hello, challenge []byte) [KeySize]byte {
	return transcriptMAC(key, labelSession, hello, challenge)
}

func flag(v bool) byte {
	if v {
		return 1
	}
	return 0
}

func (r *reader) flag() bool { return r.bool(r.u8()) }

// text takes a tail that must carry the tag and hold at most MaxText bytes.
func (r *reader) text(want Tag) string {
	if r.err != nil {
		return ""
	}
	tag, t, rest, err := parseTail(r.b)
	switch {
	case err != nil:
		r.err = err
	case tag != want || t.Flags != 0:
		r.err = fmt.Errorf("tail %d where %d belongs: %w", tag, want, ErrInvalid)
	case len(t.Data) > MaxText:
		r.err = fmt.Errorf("text of %d bytes: %w", len(t.Data), ErrTooLong)
	default:
		r.b = rest
		return string(t.Data)
	}
	return ""
}
