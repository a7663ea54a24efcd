package engines

import (
	"testing"
	"time"

	"github.com/outguard/outguard/plugins/engine"
)

func TestFloodIsBounded(t *testing.T) {
	var f flood
	now := time.Unix(1e9, 0)
	passed := 0
	for range 10 * floodBurst {
		if f.take(now, engine.Low) {
			passed++
		}
	}
	if passed != floodBurst {
		t.Errorf("%d passed at once", passed)
	}
	if !f.take(now, engine.High) || f.take(now, engine.High) {
		t.Error("the first that is worse passes, and no other")
	}
	if n := f.due(now); n != 9*floodBurst+1 {
		t.Errorf("held back: %d", n)
	}
	f.take(now, engine.Low)
	if n := f.due(now.Add(floodEvery - 1)); n != 0 {
		t.Errorf("told again after less than %s: %d", floodEvery, n)
	}
	if n := f.due(now.Add(floodEvery)); n != 1 {
		t.Errorf("told: %d", n)
	}
	passed = 0
	for range 10 * floodRate {
		if f.take(now.Add(time.Second), engine.Low) {
			passed++
		}
	}
	if passed != floodRate {
		t.Errorf("%d passed in the next second", passed)
	}
}

// TestFloodDoesNotStopTheOthers: a VM whose findings flood is judged on, and
// another one's findings all come.
func TestFloodDoesNotStopTheOthers(t *testing.T) {
	h := start(t, Config{}, nil)
	began := time.Now()
	for i := range uint64(5) {
		h.submit(vmA, i+1, "flood")
	}
	h.submit(vmB, 1, "calm")
	h.awaitReason("calm 1")
	if f := h.awaitRule(RuleFlood); f.VM != vmA || f.Detail["held"] == "" {
		t.Errorf("%+v", f)
	}
	n := len(h.reasons())
	if most := floodBurst + 2 + floodRate*time.Since(began).Seconds(); n < floodBurst || float64(n) > most { // the calm one, and one by rounding
		t.Errorf("%d findings of 5120, of which %g may be", n, most)
	}
}
