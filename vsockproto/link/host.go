package link

import (
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/outguard/outguard/vsockproto"
)

// HostOptions are a host's; nil and zero mean the defaults.
type HostOptions struct {
	Handshake time.Duration // how long the handshake may take in all; default 10 s
	Write     time.Duration // how long one write may take; default 10 s

	// Tap is given every byte that was received, before anything else is done
	// with it: whole frames, and once at most what is left of a frame that
	// broke off or has no valid header. An error ends the reading.
	Tap func(b []byte, whole bool) error
}

// Host is the host's end of one connection: ReadHello, Challenge, Accept, and
// then Read until it fails. The agent's bytes are bounded by MaxHello until it
// has proven a key, by MaxFrame and its credit afterwards. Ack, Policy, Reject
// and Close may be called from other goroutines.
type Host struct {
	conn   net.Conn
	r      frameReader
	write  time.Duration
	hello  []byte // payload, for the MACs
	mac    [32]byte
	next   uint64 // sequence of the agent's next frame
	taken  uint64 // bytes of frames since Accept
	proven bool

	owed  int    // frames since the last Ack; like acked, Read's and Due's
	acked uint64 // taken, at the last Ack

	wmu      sync.Mutex // one writer at a time; guards what follows
	accepted bool
	seq      uint64 // sequence of our next frame
	credit   uint64
	out      []byte
}

// NewHost makes the host's end over conn and starts the handshake's clock.
func NewHost(conn net.Conn, o *HostOptions) *Host {
	if o == nil {
		o = &HostOptions{}
	}
	_ = conn.SetReadDeadline(time.Now().Add(orDefault(o.Handshake, defaultHandshake)))
	return &Host{
		conn:  conn,
		r:     frameReader{src: conn, tap: o.Tap},
		write: orDefault(o.Write, 10*time.Second),
		seq:   1,
	}
}

// ReadHello reads the agent's Hello. A version range that does not include ours
// is vsockproto.ErrVersion, beside the Hello.
func (h *Host) ReadHello() (vsockproto.Hello, error) {
	f, err := h.handshake(vsockproto.FrameHello)
	if err != nil {
		return vsockproto.Hello{}, err
	}
	h.hello = append([]byte(nil), f.Payload...)
	hello, err := vsockproto.ParseHello(h.hello)
	if err != nil {
		return vsockproto.Hello{}, err
	}
	if hello.MinVersion > vsockproto.Version || hello.MaxVersion < vsockproto.Version {
		return hello, fmt.Errorf("versions %d to %d: %w", hello.MinVersion, hello.MaxVersion, vsockproto.ErrVersion)
	}
	return hello, nil
}

// Challenge asks the agent to prove key, and checks its proof: ErrProof. In a
// new session (vsockproto.SecretKey) it returns the secret to resume it with.
func (h *Host) Challenge(session [16]byte, which vsockproto.Secret, key *[vsockproto.KeySize]byte) (secret [vsockproto.KeySize]byte, err error) {
	c := vsockproto.Challenge{Session: session, Secret: which}
	if _, err := rand.Read(c.Nonce[:]); err != nil {
		return secret, fmt.Errorf("challenge: %w", err)
	}
	payload := vsockproto.AppendChallenge(nil, &c)
	if err := h.send(vsockproto.FrameChallenge, payload); err != nil {
		return secret, err
	}
	f, err := h.handshake(vsockproto.FrameProof)
	if err != nil {
		return secret, err
	}
	p, err := vsockproto.ParseProof(f.Payload)
	if err != nil {
		return secret, err
	}
	want := vsockproto.AgentProof(key, h.hello, payload)
	if !hmac.Equal(want[:], p.MAC[:]) {
		return secret, fmt.Errorf("agent's: %w", ErrProof)
	}
	h.proven = true
	h.mac = vsockproto.HostProof(key, h.hello, payload)
	return vsockproto.SessionSecret(key, h.hello, payload), nil
}

// Accept sends the HelloAck, whose version and MAC it fills in, and ends the
// handshake: frames are expected from a.Next on.
func (h *Host) Accept(a *vsockproto.HelloAck) error {
	if !h.proven {
		return fmt.Errorf("accept: %w", ErrProof)
	}
	a.Version, a.MAC = vsockproto.Version, h.mac
	h.next = a.Next
	h.wmu.Lock()
	h.credit = a.Credit
	h.wmu.Unlock()
	if err := h.send(vsockproto.FrameHelloAck, vsockproto.AppendHelloAck(nil, a)); err != nil {
		return err
	}
	return h.conn.SetReadDeadline(time.Time{})
}

// handshake reads a frame of the handshake.
func (h *Host) handshake(want vsockproto.FrameType) (Frame, error) {
	f, err := h.r.next(vsockproto.MaxHello)
	switch {
	case err != nil:
		return Frame{}, err
	case f.Type != want:
		return Frame{}, fmt.Errorf("%s where %s belongs: %w", f.Type, want, ErrUnexpected)
	case f.Sequence != 0:
		return Frame{}, &OrderError{Want: 0, Got: f.Sequence}
	}
	return f, nil
}

// Read returns the agent's next frame, in strict order: a gap or a repeat is an
// *OrderError, bytes beyond the credit are ErrCredit. It allocates nothing once
// its buffer has grown.
func (h *Host) Read() (Frame, error) {
	f, err := h.r.next(vsockproto.MaxFrame)
	if err != nil {
		return Frame{}, err
	}
	switch f.Type {
	case vsockproto.FrameEvents, vsockproto.FrameHeartbeat, vsockproto.FramePolicyAck, vsockproto.FrameCanaryAck, vsockproto.FrameCommandAck, vsockproto.FrameBye:
	default:
		return Frame{}, fmt.Errorf("%s from the agent: %w", f.Type, ErrUnexpected)
	}
	if f.Sequence != h.next {
		return Frame{}, &OrderError{Want: h.next, Got: f.Sequence}
	}
	h.taken += uint64(f.Length)
	h.wmu.Lock()
	credit := h.credit
	h.wmu.Unlock()
	if h.taken > credit {
		return Frame{}, fmt.Errorf("%d bytes of %d: %w", h.taken, credit, ErrCredit)
	}
	h.next++
	return f, nil
}

// Waiting reports whether a whole frame is there already, so that Read does not block.
func (h *Host) Waiting() bool { return h.r.waiting() }

// ackFrames is how many frames are taken at most before an Ack is due, while more
// are waiting.
const ackFrames = 32

// Due reports whether an Ack is due after the frame that was read last, and counts on
// it that one is sent then. Credit is what the guest may have under way.
func (h *Host) Due(credit int) bool {
	h.owed++
	due := !h.Waiting() || h.owed >= ackFrames || h.taken-h.acked > uint64(credit/4)
	if due {
		h.owed, h.acked = 0, h.taken
	}
	return due
}

// Arrived is when the last byte arrived that the tap was given, or at the
// latest then: a frame that waited for Read had arrived before it.
func (h *Host) Arrived() time.Time { return h.r.at }

// Begun is how many bytes have arrived of frames that were not read yet. It may
// be called from any goroutine; while Read blocks they are of one frame that
// has not come to its end.
func (h *Host) Begun() int { return int(h.r.unread.Load()) }

// Next is the sequence of the frame that Read returns next.
func (h *Host) Next() uint64 { return h.next }

// Taken counts the bytes of the frames read since Accept.
func (h *Host) Taken() uint64 { return h.taken }

// Ack tells that every frame up to seq is recorded, and that credit bytes in
// all may have been sent on this connection. A credit below the one before is
// raised to it. Withheld: no bulk is wanted for now.
func (h *Host) Ack(seq, credit uint64, withheld bool) error {
	h.wmu.Lock()
	h.credit = max(h.credit, credit)
	a := vsockproto.Ack{Sequence: seq, Credit: h.credit, Withheld: withheld}
	h.wmu.Unlock()
	var b [24]byte
	return h.send(vsockproto.FrameAck, vsockproto.AppendAck(b[:0], &a))
}

// Policy sends p.
func (h *Host) Policy(p *vsockproto.Policy) error {
	return h.send(vsockproto.FramePolicy, vsockproto.AppendPolicy(nil, p))
}

// Canary sends c.
func (h *Host) Canary(c *vsockproto.Canary) error {
	return h.send(vsockproto.FrameCanary, vsockproto.AppendCanary(nil, c))
}

// Command sends c.
func (h *Host) Command(c *vsockproto.Command) error {
	return h.send(vsockproto.FrameCommand, vsockproto.AppendCommand(nil, c))
}

// Reject says why the connection ends, and closes it.
func (h *Host) Reject(code vsockproto.RejectCode, reason string) error {
	reason = reason[:min(len(reason), vsockproto.MaxText)]
	err := h.send(vsockproto.FrameReject, vsockproto.AppendReject(nil, &vsockproto.Reject{Code: code, Reason: reason}))
	return errors.Join(err, h.Close())
}

// Rest hands what was received and not read to the tap. It is called by the
// reader when it will read no more.
func (h *Host) Rest() error { return h.r.broken(nil) }

// Close closes the connection.
func (h *Host) Close() error { return h.conn.Close() }

// send writes one frame. Ours are numbered once the agent was accepted.
func (h *Host) send(t vsockproto.FrameType, payload []byte) error {
	h.wmu.Lock()
	defer h.wmu.Unlock()
	seq := uint64(0)
	if t != vsockproto.FrameChallenge && t != vsockproto.FrameHelloAck && h.accepted {
		seq = h.seq
		h.seq++
	}
	h.out = vsockproto.AppendFrame(h.out[:0], t, seq, len(payload))
	h.out = append(h.out, payload...)
	if err := h.conn.SetWriteDeadline(time.Now().Add(h.write)); err != nil {
		return fmt.Errorf("write %s: %w", t, err)
	}
	if _, err := h.conn.Write(h.out); err != nil {
		return fmt.Errorf("write %s: %w", t, err)
	}
	if t == vsockproto.FrameHelloAck {
		h.accepted = true
	}
	return nil
}
