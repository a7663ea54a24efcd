// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"errors"
	"fmt"
	"time"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
)

// mend has a snapshot written where the host cannot know what runs: in a new session
// that is not the first, and after starts of tasks or programs were lost. Signs of life
// go on meanwhile: it reads programs, from whatever they lie on.
func (u *Uplink) mend() {
	if u.mending != nil {
		select {
		case err := <-u.mending:
			u.mended(err)
		default:
			return
		}
	}
	if u.Link.Room() < minRoom || !u.due() {
		return
	}
	mending := make(chan error, 1)
	u.mending = mending
	go func() {
		mending <- u.Source.Snapshot()
		_ = u.Source.Wake()
	}()
}

// mended takes note of a snapshot that is over. One that failed is due again after a while.
func (u *Uplink) mended(err error) {
	u.mending = nil
	if err == nil {
		u.log.Info("snapshot written", "critical_lost", u.missed)
		return
	}
	u.log.Warn("no snapshot; it is tried again", "error", err)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.again, u.notBefore = true, time.Now().Add(mendAgain)
}

const mendAgain = 10 * time.Second

// due reports once that a snapshot is due.
func (u *Uplink) due() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.again || time.Now().Before(u.notBefore) {
		return false
	}
	u.again = false
	return true
}

// tally finds out whether critical records were lost that no snapshot has made
// up for, and none any more since the last heartbeat: a snapshot in the middle
// of a flood would only add to it.
func (u *Uplink) tally() {
	lost := uint64(0)
	for _, c := range u.counters {
		if c.Class == vsockproto.Critical {
			lost += c.Lost
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if lost > u.missed && lost == u.lost {
		u.again, u.missed = true, lost
	}
	u.lost = lost
}

func (u *Uplink) interval() time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.beat
}

func (u *Uplink) nextBeat() time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.fresh {
		return time.Time{}
	}
	return u.lastBeat.Add(u.beat)
}

// pulse takes a mark when a heartbeat is due, and sends the heartbeat when
// everything from before the mark has been sent. If that takes longer than to
// the next one, a heartbeat goes out with the account as it was before.
func (u *Uplink) pulse() error {
	now := time.Now()
	if u.marked.IsZero() {
		if now.Before(u.nextBeat()) {
			return nil
		}
		if err := u.mark(now); err != nil {
			return err
		}
	}
	settled := u.count == 0 && u.Source.Settled()
	if !settled && now.Sub(u.marked) < u.interval() {
		return nil
	}
	beat, err := u.account()
	if err != nil {
		return err
	}
	err = u.Link.SendHeartbeat(beat)
	if errors.Is(err, link.ErrNoRoom) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("send heartbeat: %w", err)
	}
	u.tally()
	if !settled {
		u.marked = now
		u.beaten(now)
		return nil
	}
	u.marked = time.Time{}
	u.beaten(u.took)
	if now.Before(u.nextBeat()) {
		return nil
	}
	return u.mark(now) // this one was late, and much may have come since
}

func (u *Uplink) mark(now time.Time) error {
	if err := u.Source.Mark(); err != nil {
		return fmt.Errorf("take counters: %w", err)
	}
	u.marked, u.took = now, now
	return nil
}

func (u *Uplink) beaten(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.lastBeat, u.fresh = now, false
}

func (u *Uplink) account() (*vsockproto.Heartbeat, error) {
	filtering, err := u.Source.Filtering()
	if err != nil {
		return nil, err
	}
	u.counters = u.Source.Counters(u.counters[:0])
	boot, real := u.Clock()
	return &vsockproto.Heartbeat{BootNs: boot, RealNs: real, Totals: u.Source.Totals(), Filtering: filtering, Counters: u.counters}, nil
}
