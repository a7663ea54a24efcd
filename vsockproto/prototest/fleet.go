package prototest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/outguard/outguard/vsockproto"
)

// Fleet is many agents, each of a VM of its own.
type Fleet struct{ Agents []*Agent }

// NewFleet makes n agents of the same options. It starts nothing.
func NewFleet(n int, o *AgentOptions) *Fleet {
	f := &Fleet{Agents: make([]*Agent, n)}
	for i := range f.Agents {
		f.Agents[i] = NewAgent(o)
	}
	return f
}

// atOnce is how many agents connect for the first time at once: a host has
// bounds for those who have proven nothing.
const atOnce = 64

// redial is how long an agent waits before it connects again.
const redial = 20 * time.Millisecond

// Run keeps every agent connected, by dial with its place in the fleet, until
// ctx ends. An agent whose connection ends connects again and goes on.
func (f *Fleet) Run(ctx context.Context, dial func(i int) (net.Conn, error)) {
	var wg sync.WaitGroup
	for i, a := range f.Agents {
		if i >= atOnce {
			select {
			case <-f.Agents[i-atOnce].Up():
			case <-ctx.Done():
			}
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				if conn, err := dial(i); err == nil {
					_ = a.Run(ctx, conn) // it ends, and begins again
				}
				select {
				case <-ctx.Done():
				case <-time.After(redial):
				}
			}
		})
	}
	wg.Wait()
}

// Up returns when a host has accepted every agent once, or with ctx.
func (f *Fleet) Up(ctx context.Context) error {
	for i, a := range f.Agents {
		select {
		case <-a.Up():
		case <-ctx.Done():
			return fmt.Errorf("agent %d of %d: %w", i, len(f.Agents), ctx.Err())
		}
	}
	return nil
}

// ShakeHands does an honest handshake with the host at the other end of c, for
// who does without an Agent from then on because he means to break its rules.
// The host's first frame may be on its way already; ours is number 1.
func ShakeHands(c net.Conn) error {
	hello := vsockproto.AppendHello(nil, NewAgent(nil).Hello())
	challenge := make([]byte, vsockproto.FrameHeaderSize+56)
	_, err := c.Write(FrameOf(vsockproto.FrameHello, 0, hello))
	if err == nil {
		_, err = io.ReadFull(c, challenge)
	}
	p := vsockproto.Proof{MAC: vsockproto.AgentProof(&Key, hello, challenge[vsockproto.FrameHeaderSize:])}
	if err == nil {
		_, err = c.Write(FrameOf(vsockproto.FrameProof, 0, vsockproto.AppendProof(nil, &p)))
	}
	ack := make([]byte, vsockproto.FrameHeaderSize+64)
	if err == nil {
		_, err = io.ReadFull(c, ack)
	}
	if err == nil && vsockproto.FrameType(ack[4]) != vsockproto.FrameHelloAck {
		err = errors.New("the host did not accept")
	}
	if err != nil {
		return fmt.Errorf("shake hands: %w", err)
	}
	return nil
}

// FrameOf is one whole frame.
func FrameOf(t vsockproto.FrameType, seq uint64, payload []byte) []byte {
	return append(vsockproto.AppendFrame(nil, t, seq, len(payload)), payload...)
}
