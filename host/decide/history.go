package decide

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
)

// History is what the rules did. Decide only reads it; Note adds a decision.
// The zero value is empty. It is not safe for use by several goroutines.
type History struct {
	rules map[key]Last
	steps map[spent][]time.Time // ascending, when a limited step was ordered
}

// key names one rule's history with one VM. A rule on trial has one of its own:
// what it would have done holds nothing back when it comes into force.
type key struct {
	vm   uuid.UUID
	rule string
	dry  bool
}

// spent names a limit: of one VM, or with the zero UUID of the host itself; or of all.
type spent struct {
	all  bool
	vm   uuid.UUID
	step Step
	dry  bool
}

// Last is what a rule last did about a VM.
type Last struct {
	At      time.Time // zero: it has done nothing yet
	Session uuid.UUID
	Held    uint64      // findings held back since
	seen    []time.Time // when it matched and what is asked to repeat had not, MaxTimes at most
}

// Last returns what a rule in force last did about a VM.
func (h *History) Last(vm uuid.UUID, rule string) Last { return h.last(vm, rule, false) }

func (h *History) last(vm uuid.UUID, rule string, dry bool) Last { return h.rules[key{vm, rule, dry}] }

// seen is when a rule matched a VM's findings. That is the same on trial and in
// force.
func (h *History) seen(vm uuid.UUID, rule string) []time.Time {
	return h.rules[key{vm, rule, false}].seen
}

// Note records a decision: what acted starts anew, what was held is counted.
func (h *History) Note(d Decision) {
	if h.rules == nil {
		h.rules, h.steps = map[key]Last{}, map[spent][]time.Time{}
	}
	for _, rule := range d.Counted {
		k := key{d.VM, rule, false}
		last := h.rules[k]
		if len(last.seen) == MaxTimes {
			last.seen = slices.Delete(last.seen, 0, 1)
		}
		last.seen = append(last.seen, d.At)
		h.rules[k] = last
	}
	h.note(&d, Trial{Rule: d.Rule, Steps: d.Steps, Held: d.Held}, false)
	for _, t := range d.Dry {
		h.note(&d, t, true)
	}
}

func (h *History) note(d *Decision, t Trial, dry bool) {
	if t.Rule == "" {
		return
	}
	k := key{d.VM, t.Rule, dry}
	last := h.rules[k]
	if t.Held != "" {
		last.Held++
		h.rules[k] = last
		return
	}
	h.rules[k] = Last{At: d.At, Session: d.Session}
	if dry {
		h.clearSeen(d.VM, t.Rule)
	}
	for _, s := range t.Steps {
		if limited(s) {
			h.spend(spent{false, d.VM, s, dry}, d.At)
			h.spend(spent{true, uuid.Nil, s, dry}, d.At)
		}
	}
}

// clearSeen has a repetition begin anew.
func (h *History) clearSeen(vm uuid.UUID, rule string) {
	k := key{vm, rule, false}
	if last, ok := h.rules[k]; ok {
		last.seen = nil
		h.rules[k] = last
	}
}

// spend notes that a limited step was ordered. No limit looks at more than
// MaxPer of them, nor further back than MaxWindow.
func (h *History) spend(k spent, at time.Time) {
	all := h.steps[k]
	i, _ := slices.BinarySearchFunc(all, at, time.Time.Compare) // the next monitor reads one VM after the other
	all = slices.Insert(all, i, at)
	old := len(all) - MaxPer
	for i, t := range all {
		if t.After(all[len(all)-1].Add(-MaxWindow)) {
			old = max(old, i)
			break
		}
	}
	h.steps[k] = slices.Delete(all, 0, max(old, 0))
}

// within counts what was spent since a moment.
func (h *History) within(k spent, since time.Time) int {
	all := h.steps[k]
	i, _ := slices.BinarySearchFunc(all, since, func(t, since time.Time) int {
		if t.After(since) {
			return 1
		}
		return -1
	})
	return len(all) - i
}

// Forget lets a rule act on a VM again: its order was refused or failed.
func (h *History) Forget(vm uuid.UUID, rule string) {
	k := key{vm, rule, false}
	if last, ok := h.rules[k]; ok {
		h.rules[k] = Last{seen: last.seen}
	}
}

// Drop forgets a VM that is no more.
func (h *History) Drop(vm uuid.UUID) {
	for k := range h.rules {
		if k.vm == vm {
			delete(h.rules, k)
		}
	}
	for k := range h.steps {
		if k.vm == vm {
			delete(h.steps, k)
		}
	}
}

// held says why a rule that acted at last does not act now, "" where it does.
func (r *Rule) held(last Last, in Input) string {
	switch r.OncePer {
	case PerRun:
		if !in.RunSince.After(last.At) {
			return "acted in this run of the VM"
		}
	case PerSession:
		if last.Session == in.Session {
			return "acted in this session"
		}
	case PerVM:
		return "acted on this VM"
	}
	if until := last.At.Add(r.Cooldown); in.Now.Before(until) {
		return fmt.Sprintf("cooling down for %s", until.Sub(in.Now).Round(time.Millisecond))
	}
	return ""
}

// apply takes from steps what a limit has no more room for. Only what costs the
// host is limited: no limit keeps a VM running that is to be stopped, nor lets one
// run that was to be reverted first.
func (l *Limits) apply(steps []Step, in Input, h *History, dry bool) (left []Step, dropped []Dropped) {
	stays := false
	for _, s := range steps {
		if why := l.spent(s, in, h, dry); why != "" {
			dropped = append(dropped, Dropped{s, why})
			stays = stays || s == Revert
			continue
		}
		if s == Resume && stays {
			dropped = append(dropped, Dropped{s, "it is not reverted"})
			continue
		}
		left = append(left, s)
	}
	return left, dropped
}

func (l *Limits) spent(s Step, in Input, h *History, dry bool) string {
	limit, ok := l.of(s)
	if !ok {
		return ""
	}
	if b := limit.VM; h.within(spent{false, in.Finding.VM, s, dry}, in.Now.Add(-b.Per)) >= b.N {
		return fmt.Sprintf("limit of this VM: %s", b)
	}
	if b := limit.Total; h.within(spent{true, uuid.Nil, s, dry}, in.Now.Add(-b.Per)) >= b.N {
		return fmt.Sprintf("limit of all VMs: %s", b)
	}
	return ""
}
