package session

import "time"

// Clock relates a guest's boot clock to the host's: the smallest difference
// seen between a frame's arrival and the time in it, over the last minute or
// two. It is the guest's word, good for a timeline and for nothing else.
type Clock struct {
	Offset time.Duration // host's Unix time minus guest's boot time; an upper bound
	Valid  bool
}

// Host returns the host's time of a moment of the guest's boot clock.
func (c Clock) Host(bootNs uint64) time.Time { return time.Unix(0, int64(bootNs)+int64(c.Offset)) }

const clockWindow = time.Minute

// clock is a minimum filter over two windows, so that a drift or a pause is
// forgotten after a while.
type clock struct {
	now, before Clock
	since       time.Time
}

func (c *clock) sample(at time.Time, bootNs uint64) {
	if at.Sub(c.since) > clockWindow {
		c.before, c.now, c.since = c.now, Clock{}, at
	}
	d := time.Duration(at.UnixNano() - int64(bootNs))
	if !c.now.Valid || d < c.now.Offset {
		c.now = Clock{Offset: d, Valid: true}
	}
}

func (c *clock) get() Clock {
	if c.before.Valid && (!c.now.Valid || c.before.Offset < c.now.Offset) {
		return c.before
	}
	return c.now
}

func (c *clock) reset() { *c = clock{} }
