package link

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"time"

	"github.com/outguard/outguard/vsockproto"
)

// AgentOptions are an agent's; nil and zero mean the defaults.
type AgentOptions struct {
	Hold      int           // bytes of frames held until recorded; default 1 MiB, at least MaxFrame
	Frames    int           // frames held until recorded; default any number
	Handshake time.Duration // how long the handshake may take; default 10 s
	Journal   Journal       // default none: a process that ends takes with it what it holds

	// Patience is how long a host may leave frames unanswered, and say nothing at
	// all, until the connection is given up as dead: not every transport tells
	// that its other end has gone. It is five heartbeats at least. Default: for ever.
	Patience time.Duration
}

// Journal remembers, beyond the process, what is in each frame that is held, so
// that a process that goes on with the session knows what the host has. Its
// methods are called one at a time and must not call the Agent.
type Journal interface {
	// Sent is called before a frame can leave.
	Sent(seq uint64, t vsockproto.FrameType)
	// Acked: the host has every frame up to seq.
	Acked(seq uint64)
	// Begin: the frames that are held are those of a new session, from 1 on.
	Begin()
	// Resume is called once in a process that goes on with another's session:
	// the host has every frame before next. False: it is not known what is in them.
	Resume(next uint64) bool
}

// noJournal is for who does not go on in another process, or knows how by himself.
type noJournal struct{}

func (noJournal) Sent(uint64, vsockproto.FrameType) {}
func (noJournal) Acked(uint64)                      {}
func (noJournal) Begin()                            {}
func (noJournal) Resume(uint64) bool                { return true }

// State is what a session needs to go on in another process of the same boot.
// Without it an agent that starts again begins a new session with its key.
type State struct {
	Session [16]byte
	Secret  [vsockproto.KeySize]byte
}

// Handler takes what the host sends. Its methods are called from Run.
type Handler interface {
	// Welcome is called when the host has accepted the agent and proven the
	// key, before anything may be sent. resumed: the session goes on.
	Welcome(ack vsockproto.HelloAck, resumed bool)
	Policy(p vsockproto.Policy)
	Canary(c vsockproto.Canary)
	Command(c vsockproto.Command)
}

// Agent is the guest's end of a session, over as many connections as it takes.
// A frame that was sent is held until the host has recorded it, and sent again
// on the next connection. Send* may be called from several goroutines.
type Agent struct {
	key       [vsockproto.KeySize]byte
	handshake time.Duration
	frames    int

	mu        sync.Mutex // guards what follows; never held while writing
	changed   sync.Cond
	hold      hold
	journal   Journal
	state     State
	begun     bool   // state names a session
	restored  bool   // begun by another process: its numbering is the host's to tell
	over      bool   // Bye was sent
	connected bool   // between Welcome and the end of the connection
	written   uint64 // offset up to which bytes were given out to be written
	sent      uint64 // and up to which they are: what lies between is being read
	recorded  uint64 // the host has every frame before this one
	base      uint64 // offset at which this connection's credit counts from
	limit     uint64 // offset up to which credit reaches
	withheld  bool   // the host wants no bulk
	patience  time.Duration
	beat      time.Duration // between heartbeats, as the host asked
	heard     time.Time     // when the last frame of this connection came
	scratch   []byte
}

// NewAgent makes the guest's end with the enrolled key. It starts nothing.
func NewAgent(key [vsockproto.KeySize]byte, o *AgentOptions) *Agent {
	if o == nil {
		o = &AgentOptions{}
	}
	a := &Agent{
		key:       key,
		handshake: orDefault(o.Handshake, defaultHandshake),
		frames:    orDefault(o.Frames, math.MaxInt),
		hold:      newHold(max(orDefault(o.Hold, 1<<20), vsockproto.MaxFrame)),
		journal:   o.Journal,
		patience:  o.Patience,
	}
	if a.journal == nil {
		a.journal = noJournal{}
	}
	a.changed.L = &a.mu
	return a
}

// Restore makes the next connection go on with a session of an earlier process.
// It belongs before the first Run.
func (a *Agent) Restore(s State) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state, a.begun, a.restored = s, true, true
}

// State returns the session, false before the first one has begun.
func (a *Agent) State() (State, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state, a.begun
}

// Run carries the session over conn until the connection ends, and closes it.
// It fills in what h needs for the handshake: versions, flags, nonce, resume;
// the rest is the caller's. A *RejectError says what the host said; ErrProof is
// a host that does not know the key.
func (a *Agent) Run(ctx context.Context, conn net.Conn, h *vsockproto.Hello, to Handler) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	r := &frameReader{src: conn}
	if err := a.greet(conn, r, h, to); err != nil {
		return a.because(ctx, err)
	}
	var wg sync.WaitGroup
	var werr error
	wg.Go(func() {
		if werr = a.pump(conn); werr != nil {
			conn.Close()
		}
	})
	watch := a.watch(conn)
	err := a.receive(r, to)
	if watch() {
		err = ErrUnanswered
	}
	a.disconnect()
	conn.Close()
	wg.Wait()
	var rejected *RejectError
	if werr != nil && !errors.As(err, &rejected) {
		err = werr
	}
	return a.because(ctx, err)
}

// watch closes conn when the host has left frames unanswered for too long. The
// function that it returns ends the watch and tells whether it has done so.
func (a *Agent) watch(conn net.Conn) (stop func() bool) {
	a.mu.Lock()
	patience := max(a.patience, 5*a.beat)
	a.heard = time.Now()
	a.mu.Unlock()
	if a.patience == 0 {
		return func() bool { return false }
	}
	ended, dead := make(chan struct{}), make(chan bool)
	go func() {
		tick := time.NewTicker(patience / 4)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				dead <- false
				return
			case <-tick.C:
			}
			if a.unanswered() > patience {
				conn.Close()
				<-ended
				dead <- true
				return
			}
		}
	}()
	return func() bool { close(ended); return <-dead }
}

// unanswered is how long nothing has come from the host, if it owes an answer.
func (a *Agent) unanswered() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.hold.count == 0 {
		a.heard = time.Now()
	}
	return time.Since(a.heard)
}

func (a *Agent) because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (a *Agent) greet(conn net.Conn, r *frameReader, h *vsockproto.Hello, to Handler) error {
	if err := conn.SetDeadline(time.Now().Add(a.handshake)); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	ack, resumed, err := a.shake(conn, r, h)
	if err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	to.Welcome(ack, resumed)
	a.mu.Lock()
	a.connected = true
	a.changed.Broadcast()
	a.mu.Unlock()
	return nil
}

func (a *Agent) shake(conn net.Conn, r *frameReader, h *vsockproto.Hello) (ack vsockproto.HelloAck, resumed bool, err error) {
	state, begun := a.State()
	h.MinVersion, h.MaxVersion = vsockproto.Version, vsockproto.Version
	h.Flags, h.Resume = 0, [16]byte{}
	if begun {
		h.Flags, h.Resume = vsockproto.HelloResume, state.Session
	}
	if _, err := rand.Read(h.Nonce[:]); err != nil {
		return ack, false, err
	}
	hello := vsockproto.AppendHello(nil, h)
	if err := writeFrame(conn, vsockproto.FrameHello, 0, hello); err != nil {
		return ack, false, err
	}
	f, err := expect(r, vsockproto.FrameChallenge)
	if err != nil {
		return ack, false, err
	}
	challenge := append([]byte(nil), f.Payload...)
	c, err := vsockproto.ParseChallenge(challenge)
	if err != nil {
		return ack, false, err
	}
	key := a.key
	if resumed = c.Secret == vsockproto.SecretSession; resumed {
		if !begun || c.Session != state.Session {
			return ack, false, fmt.Errorf("challenge for another session: %w", ErrUnexpected)
		}
		key = state.Secret
	}
	proof := vsockproto.Proof{MAC: vsockproto.AgentProof(&key, hello, challenge)}
	if err := writeFrame(conn, vsockproto.FrameProof, 0, vsockproto.AppendProof(nil, &proof)); err != nil {
		return ack, false, err
	}
	if f, err = expect(r, vsockproto.FrameHelloAck); err != nil {
		return ack, false, err
	}
	if ack, err = vsockproto.ParseHelloAck(f.Payload); err != nil {
		return ack, false, err
	}
	want := vsockproto.HostProof(&key, hello, challenge)
	if !hmac.Equal(want[:], ack.MAC[:]) {
		return ack, false, fmt.Errorf("host's: %w", ErrProof)
	}
	if ack.Version != vsockproto.Version {
		return ack, false, fmt.Errorf("version %d: %w", ack.Version, vsockproto.ErrVersion)
	}
	if !resumed {
		state = State{Session: c.Session, Secret: vsockproto.SessionSecret(&key, hello, challenge)}
	}
	return ack, resumed, a.begin(state, &ack, resumed)
}

// begin takes the host's word for where the session stands.
func (a *Agent) begin(s State, ack *vsockproto.HelloAck, resumed bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := &a.hold
	switch {
	case !resumed && ack.Next != 1:
		return fmt.Errorf("next frame %d of a new session: %w", ack.Next, ErrUnexpected)
	case !resumed:
		h.renumber(1)
		a.journal.Begin()
	case a.restored && a.journal.Resume(ack.Next):
		h.renumber(ack.Next)
	case a.restored:
		a.begun, a.restored = false, false
		return fmt.Errorf("host expects frame %d, which is not on record here: %w", ack.Next, ErrResume)
	case ack.Next < h.seq || ack.Next > h.next():
		// The two ends remember different pasts: one of them was set back.
		a.begun = false
		return fmt.Errorf("host expects frame %d, held are %d to %d: %w", ack.Next, h.seq, h.next()-1, ErrResume)
	default:
		a.sent = h.last // nothing is being written
		a.release(ack.Next)
	}
	a.over = a.over && (resumed || h.count > 0) // a new session, unless a Bye is still to be sent
	a.state, a.begun, a.restored = s, true, false
	a.written, a.sent, a.base, a.recorded = h.first, h.first, h.first, h.seq
	a.limit = a.base + min(ack.Credit, 1<<62)
	a.withheld = ack.Withheld
	a.beat = time.Duration(ack.HeartbeatMs) * time.Millisecond
	return nil
}

// expect reads a frame of the handshake; a Reject is a *RejectError.
func expect(r *frameReader, want vsockproto.FrameType) (Frame, error) {
	f, err := r.next(vsockproto.MaxHello)
	switch {
	case err != nil:
		return Frame{}, fmt.Errorf("wait for %s: %w", want, err)
	case f.Type == vsockproto.FrameReject:
		return Frame{}, rejection(f.Payload)
	case f.Type != want:
		return Frame{}, fmt.Errorf("%s where %s belongs: %w", f.Type, want, ErrUnexpected)
	case f.Sequence != 0:
		return Frame{}, &OrderError{Want: 0, Got: f.Sequence}
	}
	return f, nil
}

func rejection(payload []byte) error {
	j, err := vsockproto.ParseReject(payload)
	if err != nil {
		return err
	}
	return &RejectError{Code: j.Code, Reason: j.Reason}
}

func writeFrame(conn net.Conn, t vsockproto.FrameType, seq uint64, payload []byte) error {
	b := vsockproto.AppendFrame(make([]byte, 0, vsockproto.FrameHeaderSize+len(payload)), t, seq, len(payload))
	if _, err := conn.Write(append(b, payload...)); err != nil {
		return fmt.Errorf("write %s: %w", t, err)
	}
	return nil
}

// maxWrite bounds one write. From Linux 6.12 a larger one can become a packet
// that vhost-device-vsock 0.3.0 chokes on, and the connection stands still.
const maxWrite = 16 << 10

// pump writes what is held and within credit, until the connection ends.
func (a *Agent) pump(conn net.Conn) error {
	for n := 0; ; {
		b := a.due(n)
		if b == nil {
			return nil
		}
		var err error
		if n, err = conn.Write(b); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
}

// due takes n bytes as written and waits for the next, nil when the connection has
// ended. They are whole frames together, but may come in parts: what was written
// only in part is sent again on the next connection.
func (a *Agent) due(n int) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sent += uint64(n)
	if a.recorded > a.hold.seq {
		a.release(a.recorded)
		a.changed.Broadcast()
	}
	for a.connected {
		if a.sent == a.written {
			a.written = a.hold.within(a.written, a.limit)
		}
		if a.sent < a.written {
			return a.hold.chunk(a.sent, min(a.written, a.sent+maxWrite))
		}
		a.changed.Wait()
	}
	return nil
}

func (a *Agent) disconnect() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.connected = false
	a.changed.Broadcast()
}
