// Package link is one live end of the protocol over a net.Conn: the handshake,
// numbered frames, what is held until it is recorded, credit, and the proof
// that nothing is missing.
//
// Agent is the guest's end. It lives as long as its session: over it, Run is
// called once for each connection. Host is the host's end of one connection.
// Ledger is the host's account of every (CPU, class).
//
// Nothing here knows what an event means, keeps evidence, or decides.
package link

import (
	"errors"
	"fmt"
	"time"

	"github.com/outguard/outguard/vsockproto"
)

// Errors to branch on, beside those of vsockproto.
var (
	ErrProof      = errors.New("wrong proof")          // a MAC that the key did not make
	ErrNoRoom     = errors.New("may not send now")     // no connection, no credit, or too much is held
	ErrUnexpected = errors.New("frame out of place")   // a type that does not belong here
	ErrResume     = errors.New("session cannot go on") // the host expects a frame that is no longer held
	ErrCredit     = errors.New("more than the credit") // the agent sent what it had no credit for
	ErrUnanswered = errors.New("no answer")            // the host has said nothing for too long
	ErrBackwards  = errors.New("goes back")            // a cumulative number that shrank
)

// OrderError reports a frame whose sequence is not the next one.
type OrderError struct{ Want, Got uint64 }

func (e *OrderError) Error() string {
	return fmt.Sprintf("frame sequence %d where %d belongs", e.Got, e.Want)
}

// RejectError is the host's Reject as the agent sees it.
type RejectError struct {
	Code   vsockproto.RejectCode
	Reason string
}

func (e *RejectError) Error() string {
	return fmt.Sprintf("rejected by the host: %s: %s", e.Code, e.Reason)
}

const defaultHandshake = 10 * time.Second

func orDefault[T int | uint32 | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}
