package engines

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
)

// What one engine may find of one VM: as many at once, and so many a second.
// Findings are never given up for a VM's quota, so that an engine that floods
// would fill the disk with them, and keep the others' from being heard.
const (
	floodBurst = 2048
	floodRate  = 200
	floodEvery = 10 * time.Second // between two findings about it
)

// flood bounds an engine's findings of one VM. Those that are held back are
// counted; the batches that they are of are on record.
type flood struct {
	spent    float64 // of the burst
	at       time.Time
	severest engine.Severity // of what passed in this flood: a worse one passes
	held     uint64          // not told yet
	next     time.Time       // when to tell
}

// take reports whether a finding of that severity passes.
func (f *flood) take(now time.Time, s engine.Severity) bool {
	f.spent = max(0, f.spent-floodRate*now.Sub(f.at).Seconds())
	f.at = now
	if f.spent == 0 {
		f.severest = 0
	}
	if f.spent+1 > floodBurst && s <= f.severest {
		f.held++
		return false
	}
	f.spent = min(f.spent+1, floodBurst)
	f.severest = max(f.severest, s)
	return true
}

// due returns how many findings were held back, when it is time to tell.
func (f *flood) due(now time.Time) (held uint64) {
	if f.held == 0 || now.Before(f.next) {
		return 0
	}
	held, f.held, f.next = f.held, 0, now.Add(floodEvery)
	return held
}

func (s *Supervisor) ownFlood(vm uuid.UUID, held uint64) {
	s.own(RuleFlood, engine.High, vm, fmt.Sprintf(
		"Engine %s finds more in this VM than can be kept, over %d a second; %d findings more are counted only.", s.cfg.Name, floodRate, held),
		map[string]string{"held": fmt.Sprint(held)})
}
