package serial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// Errors of Dial to branch on.
var (
	ErrNobody  = errors.New("nobody has the host's end of the port open")
	ErrRefused = errors.New("the host closed the connection at once")
)

const (
	dialTime = 30 * time.Second // for a host to answer
	askAgain = time.Second      // between two attempts to be heard
	partTime = 100 * time.Millisecond
)

// Dial makes a connection over the guest's end of a port, which it takes over:
// with the connection, or an error, s is closed. It waits for up to half a
// minute for a host that answers.
func Dial(ctx context.Context, s Stream) (net.Conn, error) {
	g := &guest{port: port{s: s, r: reader{src: s}}, nonce: nonce()}
	stop := context.AfterFunc(ctx, func() { s.SetReadDeadline(past); s.SetWriteDeadline(past) })
	err := g.dial(ctx, time.Now().Add(dialTime))
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open a connection: %w", err), s.Close())
	}
	c := &conn{p: &g.port, guest: g.nonce, host: g.host, other: g.other, end: g.end}
	g.owner = c
	return c, errors.Join(s.SetReadDeadline(time.Time{}), s.SetWriteDeadline(time.Time{}))
}

// guest is the guest's end, for one connection.
type guest struct {
	port
	nonce, host uint64
}

// dial asks until the host has accepted.
func (g *guest) dial(ctx context.Context, until time.Time) error {
	if err := g.begin(until); err != nil {
		return err
	}
	for ctx.Err() == nil && time.Now().Before(until) {
		again := time.Now().Add(askAgain)
		if err := g.ask(again); err != nil {
			return err
		}
		accepted, err := g.listen(again)
		if accepted || err != nil {
			return err
		}
	}
	return fmt.Errorf("no answer: %w", os.ErrDeadlineExceeded)
}

// begin waits for a host, and ends what an earlier process left unfinished.
func (g *guest) begin(until time.Time) error {
	g.wmu.Lock()
	defer g.wmu.Unlock()
	if err := g.s.SetWriteDeadline(until); err != nil {
		return err
	}
	err := g.zeros()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = ErrNobody
	}
	return err
}

// ask sends an open. That it finds no room is no error: it is asked again.
func (g *guest) ask(until time.Time) error {
	g.wmu.Lock()
	defer g.wmu.Unlock()
	if err := g.s.SetWriteDeadline(until); err != nil {
		return err
	}
	if err := g.put(Open, g.nonce, g.host, nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// listen takes what the host says, until it has accepted, or said who it is.
func (g *guest) listen(until time.Time) (accepted bool, err error) {
	g.rmu.Lock()
	defer g.rmu.Unlock()
	if err := g.s.SetReadDeadline(until); err != nil {
		return false, err
	}
	for {
		h, _, err := g.r.next(0, 0)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false, nil
		case errors.Is(err, io.EOF):
			return false, ErrNobody
		case err != nil:
			return false, err
		case h.Type == Hello && h.Host != g.host:
			g.host = h.Host
			return false, nil
		case h.Guest != g.nonce || h.Host != g.host:
			g.r.counts.Stale++
		case h.Type == Accept:
			return true, nil
		case h.Type == Close:
			return false, ErrRefused
		}
	}
}

// other ends the connection when the host closes it, or is another by now.
func (g *guest) other(h Header) bool {
	switch h.Type {
	case Hello:
		return h.Host != g.host
	case Close:
		return h.Guest == g.nonce && h.Host == g.host
	}
	return false
}

// end tells the host, if there is room to, and closes the port.
func (g *guest) end() error {
	g.wmu.Lock()
	defer g.wmu.Unlock()
	if g.s.SetWriteDeadline(time.Now().Add(partTime)) == nil {
		_ = g.put(Close, g.nonce, g.host, nil) // a host that is away finds out by itself
	}
	return g.s.Close()
}
