package respond

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
)

// Kind is what an order asks for.
type Kind string

// The kinds.
const (
	Log     Kind = "log"     // only to be on record
	Alert   Kind = "alert"   // tell a target; one order for each
	Kill    Kind = "kill"    // in the guest: end the process that the finding is about
	Isolate Kind = "isolate" // the network links down
	Connect Kind = "connect" // those up again that isolate took down
	Pause   Kind = "pause"   // stop all vCPUs
	Capture Kind = "capture" // memory and disks into a bundle; the VM is paused for it
	Save    Kind = "save"    // memory and disks kept in the VM's images, for Revert
	Revert  Kind = "revert"  // back to what Save kept: what has happened since is undone
	Unsave  Kind = "unsave"  // give up what Save kept
	Reset   Kind = "reset"   // begin the machine anew
	Destroy Kind = "destroy" // end it
	Resume  Kind = "resume"  // let the vCPUs run

	KillTree Kind = "kill-tree" // in the guest: that process, and all that descends from it
	Freeze   Kind = "freeze"    // in the guest: stop the tasks of its cgroup
	Thaw     Kind = "thaw"      // in the guest: let go on what freeze stopped
)

// Kinds are all of them.
var Kinds = []Kind{Log, Alert, Kill, KillTree, Isolate, Connect, Pause, Capture, Save, Revert, Unsave, Reset, Destroy, Resume, Freeze, Thaw}

func (k Kind) valid() bool { return slices.Contains(Kinds, k) }

// Request asks for steps on one VM, in order.
type Request struct {
	VM      uuid.UUID // zero: the host itself, for which there are only Log and Alert
	Name    string    // the domain's name, for people
	Steps   []Kind
	Alerts  []string // whom the step alert tells
	State   string   // what save calls what it keeps, revert goes back to and unsave gives up; of revert "": what was saved last before the finding
	Asked   string   // who: "playbook", or "uid 0 (root)" from the command line
	Reason  string   // one sentence for people
	Finding string   // id of the finding, "" for a manual order
	Rule    string   // the playbook's rule, "" for a manual order

	Received time.Time // when the finding's event had arrived on the host; zero without one
	Found    time.Time // when the host had the finding
	Decided  time.Time // when the playbook, or a person, had decided
}

// Order is one step of a request, as it is journaled before it is carried out.
type Order struct {
	ID      uuid.UUID `json:"id"`    // version 7: sorts by time
	Group   uuid.UUID `json:"group"` // shared by the orders of one request
	VM      uuid.UUID `json:"vm"`
	Name    string    `json:"name,omitempty"`
	Kind    Kind      `json:"kind"`
	Target  string    `json:"target,omitempty"` // of an alert: whom it tells; of save, revert and unsave: the saved state, "" of a revert to the last one
	Asked   string    `json:"asked"`
	Reason  string    `json:"reason,omitempty"`
	Finding string    `json:"finding,omitempty"`
	Rule    string    `json:"rule,omitempty"`

	Received time.Time `json:"received,omitzero"`
	Found    time.Time `json:"found,omitzero"`
	Decided  time.Time `json:"decided,omitzero"`
	Given    time.Time `json:"given"` // when Submit had it; the journal's entry follows

	// Deadline is until when it waits for a libvirt that is away, and an alert for
	// its target; zero: it fails.
	Deadline time.Time `json:"deadline,omitzero"`
}

// waits reports whether an order of this kind waits for a libvirt that is away.
// A VM that somebody wants stopped, they want stopped later as well. That one
// starts to run by itself long after it was asked for, nobody expects.
func (k Kind) waits() bool { return k == Isolate || k == Pause || k == Capture || k == Destroy }

// inGuest reports whether the guest has to do it, which may be hostile: where it
// does not, the order fails, and what follows is carried out all the same.
func (k Kind) inGuest() bool { return k == Kill || k == KillTree || k == Freeze || k == Thaw }

// urgent reports whether a request with this step has room in a full queue.
func (k Kind) urgent() bool { return k == Isolate || k == Pause || k == Destroy }

// Status is how an order ended.
type Status string

// How an order ended.
const (
	Done    Status = "done"    // the effect is there, checked
	Asked   Status = "asked"   // the guest says that it is, and nothing has shown it
	Failed  Status = "failed"  // it could not be brought about; Error says why
	Skipped Status = "skipped" // an earlier order of the group failed, or it was overtaken
)

// Result is what came of an order.
type Result struct {
	Order     uuid.UUID `json:"order"`
	Status    Status    `json:"status"`
	Error     string    `json:"error,omitempty"`
	Already   bool      `json:"already,omitempty"`   // the effect was there before
	Recovered bool      `json:"recovered,omitempty"` // settled after a restart
	Journaled time.Time `json:"journaled,omitzero"`  // the order was on disk; zero after a restart
	Started   time.Time `json:"started"`             // its turn in the VM's queue came
	Taken     time.Time `json:"taken,omitzero"`      // of a capture: memory and disks were, and the VM's next orders had their turn
	Effect    time.Time `json:"effect,omitzero"`     // libvirt confirmed the effect; of a capture: the bundle was whole
	Finished  time.Time `json:"finished"`
	Attempts  int       `json:"attempts,omitempty"`
	Bundle    string    `json:"bundle,omitempty"`  // directory of a capture's bundle
	Links     []string  `json:"links,omitempty"`   // MAC addresses that isolate took down, or connect up
	Cgroups   []string  `json:"cgroups,omitempty"` // ids of those that freeze stopped, or thaw let go on
	Detail    string    `json:"detail,omitempty"`
}

// Waiting says that libvirt is away and that an order waits for it.
type Waiting struct {
	Since time.Time `json:"since"`
	Error string    `json:"error"` // what was tried last before it was journaled
}

// Entry is an order with its result, nil while it has none.
type Entry struct {
	Order   Order    `json:"order"`
	Waiting *Waiting `json:"waiting,omitempty"` // nil: it has a result, or its turn has not come, or is now
	Result  *Result  `json:"result,omitempty"`
}

var (
	// ErrQueueFull: too many orders of this VM wait already.
	ErrQueueFull = errors.New("the VM's queue of orders is full")
	// ErrStopped: the responder is shutting down.
	ErrStopped = errors.New("responder has stopped")
	// ErrAway: libvirt is away, and the order waits for it.
	ErrAway = errors.New("the order waits for libvirt")
	// ErrNoOrder: the journal has no such order.
	ErrNoOrder = errors.New("no such order")
)

const (
	maxSteps  = 8
	maxAlerts = 16
	maxText   = 4096 // of any text in a request
)

// orders makes a request's orders, or says what is wrong with it.
func (q *Request) orders(now time.Time, o *Options) ([]Order, error) {
	if q.VM == uuid.Nil && slices.ContainsFunc(q.Steps, func(k Kind) bool { return k != Log && k != Alert }) {
		return nil, errors.New("no VM")
	}
	if len(q.Steps) == 0 || len(q.Steps) > maxSteps || len(q.Alerts) > maxAlerts {
		return nil, fmt.Errorf("%d steps and %d alerts: 1 to %d and at most %d are expected", len(q.Steps), len(q.Alerts), maxSteps, maxAlerts)
	}
	if slices.Contains(q.Steps, Alert) && len(q.Alerts) == 0 {
		return nil, errors.New("an alert that tells nobody")
	}
	if q.State == "" && (slices.Contains(q.Steps, Save) || slices.Contains(q.Steps, Unsave)) {
		return nil, errors.New("no saved state is named")
	}
	if q.Asked == "" {
		return nil, errors.New("nobody asked")
	}
	group, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	out := make([]Order, 0, len(q.Steps)+len(q.Alerts))
	for _, k := range q.Steps {
		if !k.valid() {
			return nil, fmt.Errorf("unknown step %q", k)
		}
		targets := []string{""}
		switch k {
		case Alert:
			targets = q.Alerts
		case Save, Revert, Unsave:
			targets = []string{q.State}
		}
		for _, target := range targets {
			id, err := uuid.NewV7()
			if err != nil {
				return nil, err
			}
			out = append(out, Order{
				ID: id, Deadline: k.deadline(now, o), Group: group, VM: q.VM, Name: bound(q.Name), Kind: k, Target: bound(target),
				Asked: bound(q.Asked), Reason: bound(q.Reason), Finding: bound(q.Finding), Rule: bound(q.Rule),
				Received: q.Received, Found: q.Found, Decided: q.Decided, Given: now,
			})
		}
	}
	return out, nil
}

func (k Kind) deadline(now time.Time, o *Options) time.Time {
	switch {
	case k.waits():
		return now.Add(o.Away)
	case k == Alert:
		return now.Add(o.AlertWithin)
	}
	return time.Time{}
}

// before is the moment that a revert goes back behind.
func (o *Order) before() time.Time {
	for _, at := range [...]time.Time{o.Received, o.Found} {
		if !at.IsZero() {
			return at
		}
	}
	return o.Given
}

func bound(s string) string { return s[:min(len(s), maxText)] }
