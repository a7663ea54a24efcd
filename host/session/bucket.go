package session

import "time"

// bucket bounds what a guest can cause by connecting again and again: so much
// at once, and so much a second.
type bucket struct {
	burst, rate float64
	used        float64
	at          time.Time
}

// take takes n and reports whether it was there.
func (b *bucket) take(now time.Time, n float64) bool {
	b.used = max(0, b.used-b.rate*now.Sub(b.at).Seconds())
	b.at = now
	if b.used+n > b.burst {
		return false
	}
	b.used += n
	return true
}

// put takes n whether it is there or not, and returns how long it takes until
// it would have been.
func (b *bucket) put(now time.Time, n float64) time.Duration {
	b.used = max(0, b.used-b.rate*now.Sub(b.at).Seconds()) + n
	b.at = now
	return time.Duration(max(0, b.used-b.burst) / b.rate * float64(time.Second))
}

// Bounds of a VM's connections, and of what they send besides events.
const (
	connectBurst = 16 // proven connections at once
	connectRate  = 1  // and a second

	noiseBurst = 1 << 20 // bytes recorded of connections that have not proven anything
	noiseRate  = 1 << 10 // and a second

	floodBurst = 10 // seconds' worth of Options.Flood at once

	controlBurst = 600 // heartbeats and policy acks at once: a sink may have held them up for minutes
	controlRate  = 4   // and in each heartbeat's interval
)
