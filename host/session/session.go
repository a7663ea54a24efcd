// Package session is one VM's connection over its life: who may speak for the
// VM, that what it says is in order and whole, and that it goes on speaking.
//
// Every byte goes to the Recorder before anything else is done with it; then
// frame order, bounds, layout and the account of each (CPU, class) are checked;
// then the records go to the Sink; and then they are acked, which also gives
// the agent credit for more. A Sink that is slow therefore slows its own VM's
// agent and nothing else.
//
// Heartbeats are held against what the guest's kernel counts by itself, and at
// random times a canary has the agent run every hook, so that hooks which fall
// silent are found while the agent goes on. Of an agent that says nothing the
// guest's kernel is asked, past it, and the finding names the cause.
//
// What a guest does wrong ends its session, with a Reject and a finding, and
// nobody else's. What was received stays in the record.
//
//	connection  ->  Hello, proof  ->  one live session per VM  ->  record -> check -> sink -> ack
//	                                            |
//	                  Run: silence while the vCPUs run is a finding
//
// It does not know how a connection came about (host/listen), what an event
// means (engines), or what is done about a finding (host/decide).
package session

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

// Errors to branch on.
var (
	// ErrNotEnrolled is what Keys wraps when a VM has no key.
	ErrNotEnrolled = errors.New("not enrolled")
	// ErrNotKept is what a Recorder wraps when a frame was refused by its quota
	// and that itself is on record, at the index that it returns: the frame is
	// judged all the same, under that index, which others may share.
	ErrNotKept = errors.New("not kept")
	// ErrFull is what a Recorder wraps when it has no room for a frame now: the
	// connection waits with it until there is, and its agent has no new credit.
	ErrFull = errors.New("no room to record")
)

// Keys knows the key that a VM's agent proves in its first session of a boot.
type Keys interface {
	Key(vm uuid.UUID) ([vsockproto.KeySize]byte, error)
}

// Received is one frame as it came, or what is left of one that broke off.
type Received struct {
	VM       uuid.UUID
	Session  uuid.UUID // uuid.Nil before the agent has proven its key
	At       time.Time // when its last byte arrived
	Whole    bool
	Critical bool   // not to be given up for what is bulk: it has a budget of its own
	Held     bool   // Recorded will be called of it
	Raw      []byte // valid until Record returns, or Recorded
}

// Proven reports whether the agent had proven its key.
func (r *Received) Proven() bool { return r.Session != uuid.Nil }

// Recorder keeps what was received. Its methods are called from one goroutine
// at a time for a session, from several for a VM. An error, ErrNotKept and
// ErrFull apart, ends the connection: nothing is judged that is not on record.
type Recorder interface {
	Record(r *Received) (index uint64, err error)
	// Recorded is called when what Record was given last, and was Held, has been
	// handed on, before it is acked.
	Recorded(vm uuid.UUID) error
	// Room reports whether the VM's bulk can be kept: n bytes more of it. While
	// it cannot, the agent is asked for none.
	Room(vm uuid.UUID, n int) bool
	// Opened and Closed are called when a session has been accepted on a
	// connection and when that connection has ended.
	Opened(s *Status) error
	Closed(s *Status) error
}

// Replayer gives back what a session's frames were, in order, from those on
// record for the VM with an index above after. With it a monitor that was
// killed goes on exactly where the record ends; frames recorded before the
// agent had proven its key are none of the session's.
type Replayer interface {
	Replay(vm, session uuid.UUID, after uint64, frame func(index uint64, raw []byte) error) error
}

// Sink takes batches that are on record and well-formed. The batch and its
// records are valid until it returns; as long as it blocks, the VM has no new
// credit. An error ends the connection.
type Sink interface {
	Deliver(ctx context.Context, b *engine.Batch) error
}

// DomainState is what libvirt says of a VM.
type DomainState uint8

// States of a domain.
const (
	DomainUnknown DomainState = iota // libvirt cannot say: only who is connected can be silent
	DomainRunning
	DomainPaused // its vCPUs stand
	DomainOff
)

// Domains tells whether a VM can be expected to speak. It answers at once, from
// what is known.
type Domains interface {
	DomainState(vm uuid.UUID) DomainState
}

// Store keeps what a session needs to go on after the monitor has started
// again. The bytes hold a secret. Save of nil removes; Load of a VM that has
// none is nil, nil.
type Store interface {
	Save(vm uuid.UUID, state []byte) error
	Load(vm uuid.UUID) ([]byte, error)
}

// Parts are what a Manager stands on. Keys, Recorder, Sink and Findings are
// required.
type Parts struct {
	Keys     Keys
	Recorder Recorder
	Sink     Sink
	Findings func(engine.Finding) // from several goroutines; must not block for long
	Domains  Domains              // nil: every VM is taken as running
	Examiner Examiner             // nil: no cause of a silence is named
	Store    Store                // nil: nothing outlives the monitor
	Replayer Replayer             // nil: only what the Store holds
	Log      *slog.Logger         // nil: slog.Default()
}

// Options bound a session; nil and zero mean the defaults.
type Options struct {
	Heartbeat time.Duration          // that agents are asked for; default 1 s
	Silence   int                    // heartbeats without a frame until silence is a finding; default 2
	Escalate  int                    // and until it is one of the highest severity; default 5
	Grace     time.Duration          // for a VM to boot and its agent to come up; default 2 min
	Credit    int                    // bytes of frames in flight; default 4 MiB, at least two frames
	Canary    time.Duration          // between canaries, on average; default 10 s
	Handshake time.Duration          // default 10 s
	Penalty   time.Duration          // after a violation, until a new session is let in; default 5 s
	Save      time.Duration          // at least this often while a session speaks; default 5 s
	Repeat    time.Duration          // a rule's findings of one VM come at most this often; default 10 s
	Flood     int                    // records a second that a VM is held to; default 100,000, with ten seconds' worth at once
	Policy    []vsockproto.EventType // what agents report; default vsockproto.StartTypes

	// PolicyOf is what the agent of one VM reports, ascending; nil: Policy. It is
	// asked whenever an agent connects, and not to call back.
	PolicyOf func(vm uuid.UUID) []vsockproto.EventType

	// FiltersOf is what of that its kernel leaves out; nil: nothing. It is asked
	// when PolicyOf is.
	FiltersOf func(vm uuid.UUID) []vsockproto.Filter
}

func (o *Options) defaults() Options {
	var d Options
	if o != nil {
		d = *o
	}
	set(&d.Heartbeat, time.Second)
	set(&d.Silence, 2)
	set(&d.Escalate, 5)
	set(&d.Grace, 2*time.Minute)
	set(&d.Credit, 4<<20)
	set(&d.Canary, 10*time.Second)
	set(&d.Handshake, 10*time.Second)
	set(&d.Penalty, 5*time.Second)
	set(&d.Save, 5*time.Second)
	set(&d.Repeat, 10*time.Second)
	set(&d.Flood, 100_000)
	d.Credit = max(d.Credit, 2*vsockproto.MaxFrame)
	if d.Policy == nil {
		d.Policy = vsockproto.StartTypes()
	}
	return d
}

func set[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}
