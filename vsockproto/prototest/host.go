package prototest

import (
	"crypto/rand"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
)

// HostOptions are a host's; nil and zero mean the defaults. The functions are
// called from Serve, one at a time; what they are given is valid until they return.
type HostOptions struct {
	Key       [vsockproto.KeySize]byte // default Key
	Credit    uint64                   // bytes in flight; default 4 MiB
	Heartbeat time.Duration            // default 1 s
	Policy    *vsockproto.Policy       // sent after the HelloAck; default none

	OnHello     func(h *vsockproto.Hello)
	OnEvent     func(e *vsockproto.Event)
	OnHeartbeat func(h *vsockproto.Heartbeat)
	OnPolicyAck func(a *vsockproto.PolicyAck)
	OnCanaryAck func(a *vsockproto.CanaryAck)
	OnBye       func(y *vsockproto.Bye)
}

// Host takes one agent's connections, one after another, and holds it to the
// protocol: order, credit, layout, and the account.
type Host struct {
	o HostOptions

	session [16]byte
	secret  [vsockproto.KeySize]byte
	next    uint64
	over    bool // Bye came: the session is not gone on with
	ledger  *link.Ledger
	event   vsockproto.Event
	beat    vsockproto.Heartbeat

	withheld atomic.Bool

	serving sync.Mutex // held by Serve: a connection's end is seen before the next begins

	mu   sync.Mutex
	live *link.Host
}

// NewHost makes a host.
func NewHost(o *HostOptions) *Host {
	h := &Host{ledger: link.NewLedger(nil), next: 1}
	if o != nil {
		h.o = *o
	}
	if h.o.Key == [vsockproto.KeySize]byte{} {
		h.o.Key = Key
	}
	if h.o.Credit == 0 {
		h.o.Credit = 4 << 20
	}
	if h.o.Heartbeat == 0 {
		h.o.Heartbeat = time.Second
	}
	return h
}

// Serve speaks with the agent until the connection ends: nil after a Bye. What
// the agent does wrong is the error, and is answered with a Reject. It waits
// for the end of a connection that is served already.
func (h *Host) Serve(conn net.Conn) error {
	h.serving.Lock()
	defer h.serving.Unlock()
	l := link.NewHost(conn, nil)
	defer l.Close()
	h.setLive(l) // before the agent can know that it is welcome, so that Break breaks it
	defer h.setLive(nil)
	if err := h.greet(l); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	if h.o.Policy != nil {
		if err := l.Policy(h.o.Policy); err != nil {
			return err
		}
	}
	for {
		f, err := l.Read()
		if err != nil {
			return err
		}
		bye, err := h.take(f)
		if err != nil {
			_ = l.Reject(vsockproto.RejectProtocol, err.Error())
			return err
		}
		h.next, h.over = l.Next(), bye
		if h.broken(l) {
			return net.ErrClosed
		}
		if !bye && !l.Due(int(h.o.Credit)) {
			continue
		}
		if err := l.Ack(f.Sequence, l.Taken()+h.o.Credit, h.withheld.Load()); err != nil || bye {
			return err
		}
	}
}

func (h *Host) setLive(l *link.Host) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.live = l
}

// SendPolicy sends p on the live connection.
func (h *Host) SendPolicy(p *vsockproto.Policy) error {
	h.mu.Lock()
	l := h.live
	h.mu.Unlock()
	if l == nil {
		return net.ErrClosed
	}
	return l.Policy(p)
}

// Withhold says with the next ack whether bulk is wanted.
func (h *Host) Withhold(withheld bool) { h.withheld.Store(withheld) }

// SendCanary sends c on the live connection.
func (h *Host) SendCanary(c *vsockproto.Canary) error {
	h.mu.Lock()
	l := h.live
	h.mu.Unlock()
	if l == nil {
		return net.ErrClosed
	}
	return l.Canary(c)
}

// Break closes the live connection, as a transport that fails would.
func (h *Host) Break() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.live != nil {
		h.live.Close()
		h.live = nil
	}
}

// broken reports whether what has come is the last that was heard, Break in between.
func (h *Host) broken(l *link.Host) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.live != l
}

// Accounts tells where every (CPU, class) stands; not while Serve runs.
func (h *Host) Accounts() []link.Account { return h.ledger.Accounts() }

func (h *Host) greet(l *link.Host) error {
	hello, err := l.ReadHello()
	if err != nil {
		return err
	}
	if h.o.OnHello != nil {
		h.o.OnHello(&hello)
	}
	if hello.Flags&vsockproto.HelloResume != 0 && hello.Resume == h.session && !h.over {
		_, err = l.Challenge(h.session, vsockproto.SecretSession, &h.secret)
	} else {
		h.next, h.over = 1, false
		_, _ = rand.Read(h.session[:])
		h.secret, err = l.Challenge(h.session, vsockproto.SecretKey, &h.o.Key)
	}
	if err != nil {
		_ = l.Reject(vsockproto.RejectProof, err.Error())
		return err
	}
	return l.Accept(&vsockproto.HelloAck{
		HeartbeatMs: uint32(h.o.Heartbeat.Milliseconds()), Next: h.next, Credit: h.o.Credit, Withheld: h.withheld.Load(),
	})
}

func (h *Host) take(f link.Frame) (bye bool, err error) {
	switch f.Type {
	case vsockproto.FrameEvents:
		return false, h.events(f.Payload)
	case vsockproto.FrameHeartbeat:
		if err := vsockproto.ParseHeartbeat(f.Payload, &h.beat); err != nil {
			return false, err
		}
		if h.o.OnHeartbeat != nil {
			h.o.OnHeartbeat(&h.beat)
		}
		return false, h.ledger.Settle(h.beat.Counters)
	case vsockproto.FramePolicyAck:
		a, err := vsockproto.ParsePolicyAck(f.Payload)
		if err == nil && h.o.OnPolicyAck != nil {
			h.o.OnPolicyAck(&a)
		}
		return false, err
	case vsockproto.FrameCanaryAck:
		a, err := vsockproto.ParseCanaryAck(f.Payload)
		if err == nil && h.o.OnCanaryAck != nil {
			h.o.OnCanaryAck(&a)
		}
		return false, err
	default:
		y, err := vsockproto.ParseBye(f.Payload)
		if err != nil {
			return false, err
		}
		if h.o.OnBye != nil {
			h.o.OnBye(&y)
		}
		return true, h.ledger.Settle(y.Counters)
	}
}

func (h *Host) events(payload []byte) error {
	es, err := vsockproto.ParseEvents(payload)
	if err != nil {
		return err
	}
	rest := es.Records
	for range es.Count {
		if rest, err = h.event.Parse(rest); err != nil {
			return err
		}
		if err := h.ledger.Seen(h.event.CPU, h.event.Class, h.event.Sequence); err != nil {
			return err
		}
		if h.o.OnEvent != nil {
			h.o.OnEvent(&h.event)
		}
	}
	if len(rest) != 0 {
		return fmt.Errorf("events: %w", vsockproto.ErrTrailing)
	}
	return nil
}
