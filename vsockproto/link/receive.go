package link

import (
	"fmt"
	"time"

	"github.com/outguard/outguard/vsockproto"
)

// Acks that come one right after the other are read together: each costs a waking,
// and nobody waits for one while there is room to send. What else the host sends is
// so much later at most.
const (
	rightAfter = 2 * time.Millisecond
	breath     = 5 * time.Millisecond
	plenty     = vsockproto.MaxFrame - vsockproto.FrameHeaderSize // room for a frame of any size
)

// receive reads what the host sends until the connection ends. The host
// numbers its frames from 1 on each connection.
func (a *Agent) receive(r *frameReader, to Handler) error {
	var acked time.Time
	for want := uint64(1); ; want++ {
		f, err := r.next(vsockproto.MaxHello)
		if err != nil {
			return err
		}
		now := time.Now()
		a.mu.Lock()
		a.heard = now
		a.mu.Unlock()
		if f.Sequence != want {
			return &OrderError{Want: want, Got: f.Sequence}
		}
		switch f.Type {
		case vsockproto.FrameAck:
			err = a.acked(f.Payload)
		case vsockproto.FramePolicy:
			var p vsockproto.Policy
			if p, err = vsockproto.ParsePolicy(f.Payload); err == nil {
				to.Policy(p)
			}
		case vsockproto.FrameCanary:
			var c vsockproto.Canary
			if c, err = vsockproto.ParseCanary(f.Payload); err == nil {
				to.Canary(c)
			}
		case vsockproto.FrameCommand:
			var c vsockproto.Command
			if c, err = vsockproto.ParseCommand(f.Payload); err == nil {
				to.Command(c)
			}
		case vsockproto.FrameReject:
			err = rejection(f.Payload)
		default:
			err = fmt.Errorf("%s from the host: %w", f.Type, ErrUnexpected)
		}
		if err != nil {
			return err
		}
		if f.Type == vsockproto.FrameAck {
			if now.Sub(acked) < rightAfter && !r.waiting() && a.Room() >= plenty {
				time.Sleep(breath)
			}
			acked = time.Now()
		}
	}
}

func (a *Agent) acked(payload []byte) error {
	ack, err := vsockproto.ParseAck(payload)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if ack.Sequence >= a.hold.next() {
		return fmt.Errorf("ack of frame %d, next is %d: %w", ack.Sequence, a.hold.next(), ErrUnexpected)
	}
	if ack.Credit = min(ack.Credit, 1<<62); a.base+ack.Credit < a.limit {
		return fmt.Errorf("credit %d: %w", ack.Credit, ErrBackwards)
	}
	if a.hold.offset(ack.Sequence+1) > a.written {
		return fmt.Errorf("ack of frame %d, which was not sent: %w", ack.Sequence, ErrUnexpected)
	}
	a.release(ack.Sequence + 1)
	a.limit = a.base + ack.Credit
	a.withheld = ack.Withheld
	a.changed.Broadcast()
	return nil
}

// release forgets the frames before seq, which the host has. One that is still
// being written waits until it is: a host can say that it has what it cannot have.
func (a *Agent) release(seq uint64) {
	a.recorded = max(a.recorded, seq)
	was := a.hold.seq
	a.hold.release(a.recorded, a.sent)
	if a.hold.seq > was {
		a.journal.Acked(a.hold.seq - 1)
	}
}

// Withheld reports whether the host wants no bulk for now: records of that
// class are to stay where they are.
func (a *Agent) Withheld() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.withheld
}
