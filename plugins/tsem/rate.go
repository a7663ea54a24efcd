package tsem

import (
	"time"

	"github.com/outguard/outguard/plugins/engine"
)

// hour is what one hour of the host's clock brought.
type hour struct {
	at     int64 // hours since 1970
	events uint64
	added  uint64 // new points
}

// maxHours is how many hours are kept.
const maxHours = 48

// rate counts events and new points by the hour, so that one can see when a
// model has learned what there is.
type rate struct {
	hours    []hour // ascending, with gaps
	sinceNew uint64 // events since the last new point
}

// begin makes room for the hour of now.
func (r *rate) begin(now time.Time) {
	at := now.Unix() / 3600
	if n := len(r.hours); n > 0 && r.hours[n-1].at >= at {
		return // the clock may be set back
	}
	if len(r.hours) == maxHours {
		r.hours = append(r.hours[:0], r.hours[1:]...)
	}
	r.hours = append(r.hours, hour{at: at})
}

func (r *rate) event(added bool) {
	h := &r.hours[len(r.hours)-1]
	h.events++
	r.sinceNew++
	if added {
		h.added++
		r.sinceNew = 0
	}
}

// A model is quiet when nothing new came for an hour in which there was
// something to learn from.
const (
	quietFor    = time.Hour
	quietEvents = 100
)

func (r *rate) quiet(lastNew, now time.Time) bool {
	return !lastNew.IsZero() && now.Sub(lastNew) >= quietFor && r.sinceNew >= quietEvents
}

// list is what there is, as the contract says it.
func (r *rate) list() []engine.Hour {
	all := make([]engine.Hour, len(r.hours))
	for i, h := range r.hours {
		all[i] = engine.Hour{Start: time.Unix(h.at*3600, 0), Events: h.events, New: h.added}
	}
	return all
}
