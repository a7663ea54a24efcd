// SPDX-License-Identifier: Apache-2.0

// Package uplink carries the guest's events to the host, in order. It drops
// nothing: while it may not send, the records stay in the kernel's rings, and
// what these could not take is in the programs' own account.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
)

// Source hands over records in an order in which no record comes before the
// start of its task, and keeps the account. All but Wake belong to Run.
type Source interface {
	// Batch appends whole records to b within its capacity and counts them.
	// They go into one frame, before the next Batch.
	Batch(b []byte) (records []byte, count int, err error)
	// Withhold makes Batch hand over no bulk, and Settled and Wait not wait for
	// it, or ends that.
	Withhold(withheld bool)
	// Wait returns when there are records, after Wake, or after d.
	Wait(d time.Duration) error
	Wake() error
	// Mark takes the counters; once Batch has handed over everything from
	// before, Settled reports true and Counters tells them.
	Mark() error
	Settled() bool
	Counters(to []vsockproto.Counter) []vsockproto.Counter
	// Totals are the kernel's own counts that belong to Counters.
	Totals() vsockproto.Totals
	// Filtering tells of the filters in force.
	Filtering() (vsockproto.Filtering, error)
	// Snapshot writes a record for every running task. It may take long, and is called
	// beside the others, once at a time.
	Snapshot() error
}

// Policies puts into force what the host asks for.
type Policies interface {
	Begin() // a new session
	Apply(vsockproto.Policy) vsockproto.PolicyAck
	// Canary does what the host asks for; the time is filled in by the caller.
	Canary(vsockproto.Canary) vsockproto.CanaryAck
	// Command does what the host asks for; the time is filled in by the caller.
	Command(vsockproto.Command) vsockproto.CommandAck
}

// Config is what an uplink needs.
type Config struct {
	Link     *link.Agent // whose Journal is the Source's
	Source   Source
	Policies Policies
	Dial     DialFunc
	Hello    func() *vsockproto.Hello // what the agent says of itself, with the time of now
	Clock    func() (bootNs, realNs uint64)
	Save     func(link.State) error // keeps a session for the next agent of this boot
}

// Options are an uplink's; nil and zero mean the defaults.
type Options struct {
	Log      *slog.Logger  // default: nothing is logged
	MinDelay time.Duration // before the first attempt to connect again, doubled by each; default 100 ms
	MaxDelay time.Duration // default 5 s
	Stale    bool          // the source has not written a snapshot since it was opened
	Drain    time.Duration // for the last records and Bye at the end of Run; default 5 s
}

const (
	batchSize = 64 << 10
	// Events never take the last room, so that a sign of life finds some. A
	// host that grants less than minRoom at a time gets signs of life only.
	reserve = 8 << 10
	minRoom = batchSize + vsockproto.EventsHeader + reserve
)

// Uplink is one agent's way to its host.
type Uplink struct {
	Config
	log      *slog.Logger
	minDelay time.Duration
	maxDelay time.Duration
	drain    time.Duration

	buf      []byte // a batch that was read and not yet sent
	count    int
	marked   time.Time // when the mark for the next heartbeat was taken, or the last one before it is settled went; zero: not yet
	took     time.Time // when the mark was taken
	withheld bool      // the source hands over no bulk
	lastBeat time.Time
	counters []vsockproto.Counter
	lost     uint64 // critical records, at the last heartbeat
	missed   uint64 // and of those, up to the last snapshot

	mending chan error // how the snapshot ended that is being written; nil: none is

	orders chan struct{} // a policy has come

	mu        sync.Mutex            // guards what follows
	policy    *vsockproto.Policy    // not yet put into force
	begun     bool                  // a session has begun since the last one was
	beat      time.Duration         // between heartbeats, as the host asked
	fresh     bool                  // welcomed since the last heartbeat
	stale     bool                  // the last snapshot belongs to an earlier session
	again     bool                  // a snapshot is due
	notBefore time.Time             // and when
	ended     bool                  // Bye is sent: the host will close the connection
	answers   *vsockproto.PolicyAck // not yet sent
	sung      *vsockproto.CanaryAck // not yet sent

	obeyed []*vsockproto.CommandAck // not yet sent, maxObeyed at most
}

// New makes an uplink. It starts nothing.
func New(c Config, o *Options) *Uplink {
	if o == nil {
		o = &Options{}
	}
	u := &Uplink{
		Config:   c,
		log:      o.Log,
		minDelay: or(o.MinDelay, 100*time.Millisecond),
		maxDelay: or(o.MaxDelay, 5*time.Second),
		drain:    or(o.Drain, 5*time.Second),
		buf:      make([]byte, 0, batchSize),
		orders:   make(chan struct{}, 1),
		beat:     time.Second,
		stale:    o.Stale,
	}
	if u.log == nil {
		u.log = slog.New(slog.DiscardHandler)
	}
	return u
}

func or(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// Run connects, and connects again, and carries events until ctx ends; then it
// sends what is left and Bye, if the host can be reached. The error is the
// source's: a connection that fails is logged and made anew.
func (u *Uplink) Run(ctx context.Context) error {
	linkCtx, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	var wg sync.WaitGroup
	wg.Go(func() { u.connect(linkCtx) })
	wg.Go(func() { u.obey(linkCtx) })
	wake := context.AfterFunc(ctx, u.wake)
	defer wake()

	err := u.carry(ctx)
	if err == nil {
		err = u.finish(linkCtx)
	}
	hangUp()
	wg.Wait()
	return err
}

// carry moves records and signs of life until ctx ends.
func (u *Uplink) carry(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := u.answer(); err != nil {
			return err
		}
		u.follow()
		if err := u.pulse(); err != nil {
			return err
		}
		u.mend()
		moved, err := u.move()
		if err != nil {
			return err
		}
		if moved {
			continue
		}
		if err := u.rest(ctx); err != nil {
			return err
		}
	}
	return nil
}

// rest waits for something to do: for room if a batch could not go, for records
// otherwise, and no longer than to the next heartbeat.
func (u *Uplink) rest(ctx context.Context) error {
	left := time.Until(u.nextBeat())
	if u.Link.Room() >= minRoom {
		return u.Source.Wait(max(left, 0))
	}
	if left <= 0 {
		left = u.interval() // due, and no room for it either
	}
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	_ = u.Link.Wait(ctx, minRoom) // its only error is that of ctx, and the caller looks
	return nil
}

// follow takes over whether bulk is wanted. When it is again a mark comes first:
// what was lost meanwhile is to be known before what comes behind it.
func (u *Uplink) follow() {
	withheld := u.Link.Withheld()
	if withheld == u.withheld {
		return
	}
	u.withheld = withheld
	u.Source.Withhold(withheld)
	u.mu.Lock()
	u.fresh = true
	u.mu.Unlock()
}

// move sends one batch. It reads one only if there is room for it, so that
// what cannot go yet stays in the rings.
func (u *Uplink) move() (bool, error) {
	if u.count == 0 {
		if u.Link.Room() < minRoom {
			return false, nil
		}
		var err error
		if u.buf, u.count, err = u.Source.Batch(u.buf[:0]); err != nil {
			return false, fmt.Errorf("read events: %w", err)
		}
		if u.count == 0 {
			return false, nil
		}
	}
	switch err := u.Link.SendEvents(u.count, u.buf); {
	case errors.Is(err, link.ErrNoRoom):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("send events: %w", err)
	}
	u.count = 0
	return true, nil
}

// maxObeyed bounds the answers to commands that wait for room. The host gives one
// command at a time.
const maxObeyed = 16

// answer sends what is owed for a policy, a canary and commands.
func (u *Uplink) answer() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	for len(u.obeyed) > 0 {
		if err := owe(&u.obeyed[0], u.Link.SendCommandAck); err != nil || u.obeyed[0] != nil {
			return err
		}
		u.obeyed = u.obeyed[1:]
	}
	return errors.Join(owe(&u.answers, u.Link.SendPolicyAck), owe(&u.sung, u.Link.SendCanaryAck))
}

// owe sends what is owed, if there is room for it; else it stays owed.
func owe[T any](what **T, send func(*T) error) error {
	if *what == nil {
		return nil
	}
	switch err := send(*what); {
	case errors.Is(err, link.ErrNoRoom):
		return nil
	case err != nil:
		return fmt.Errorf("send an answer: %w", err)
	}
	*what = nil
	return nil
}

// finish sends everything up to now and Bye, and waits until the host has
// recorded it, if it can be reached in time.
func (u *Uplink) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, u.drain)
	defer cancel()
	if u.mending != nil {
		select {
		case err := <-u.mending:
			u.mended(err)
		case <-time.After(u.drain / 2):
			u.log.Warn("a snapshot is left behind: what it reads does not come")
		}
	}
	if err := u.Source.Mark(); err != nil {
		return fmt.Errorf("take counters: %w", err)
	}
	for u.count != 0 || !u.Source.Settled() {
		moved, err := u.move()
		if err != nil {
			return err
		}
		if !moved && u.Link.Wait(ctx, minRoom) != nil {
			u.log.Warn("the host cannot be reached; what it has not seen stays in the kernel")
			return nil
		}
	}
	last, err := u.account()
	if err != nil {
		return err
	}
	if err := u.Link.SendBye(&vsockproto.Bye{Heartbeat: *last, Reason: "stopped"}); err != nil {
		u.log.Warn("no bye", "error", err)
		return nil
	}
	u.end()
	if err := u.Link.Drained(ctx); err != nil {
		u.log.Warn("the host has not confirmed the end", "error", err)
	}
	return nil
}
