// Package engine is the contract between the monitor and its model engines:
// what an engine is given, what it answers, and how its process is served.
//
// An engine is a process of its own. Control (describe, learn, seal, models,
// checkpoints) goes over go-plugin's gRPC; the event stream goes over a bare
// unix socket in batches, so that its cost stays close to that of the hop.
package engine

import (
	"context"
	"time"

	"github.com/google/uuid"
)

// Batch is a run of records of one VM in the order in which they arrived, in
// the host's envelope. Records are bytes as the guest's kernel wrote them, for
// vsockproto.Event.Parse; they are valid only until Judge returns.
type Batch struct {
	VM       uuid.UUID // libvirt's domain UUID: never the guest's claim
	Session  uuid.UUID // the session that carried it
	Index    uint64    // evidence index of the frame
	Received time.Time // when its last byte arrived on the host
	Count    int       // records
	Records  []byte
}

// Severity orders findings. The numbers are part of the contract.
type Severity uint8

const (
	Info     Severity = 1
	Low      Severity = 2
	Medium   Severity = 3
	High     Severity = 4
	Severest Severity = 5 // "critical" in text; named apart from the event class
)

// Ref names one event: no two events of a VM share one.
type Ref struct {
	Session  uuid.UUID
	Index    uint64 // evidence index of the frame that carried it
	CPU      uint32
	Class    uint8
	Sequence uint64
}

// Finding is what an engine, or the monitor itself, says of an event.
type Finding struct {
	ID        string    // set by the host: sortable, unique
	Engine    string    // set by the host; "monitor" for its own
	VM        uuid.UUID // set by the host
	At        time.Time // when the host had it
	Received  time.Time // when the event's frame had arrived; zero without one
	BootNs    uint64    // the event's time in the guest, ns since boot
	Hook      time.Time // that moment on the host's clock, set by the host; zero where the clocks' relation is unknown
	Ref       *Ref      // the event; nil where the finding is of none
	Rule      string    // stable name to match in playbooks: "tsem/violation", "session/gap"
	Severity  Severity
	Technique string // ATT&CK id, "" where none fits
	Reason    string // one sentence for people
	Event     string // hook name, "" without an event
	PID       uint32
	Comm      string // guest bytes: escape before showing
	Path      string // guest bytes: escape before showing
	Detail    map[string]string
}

// Info describes an engine.
type Description struct {
	Name, Version string
	Models        bool // it has models: the methods below answer for them
}

// Model describes one model of an engine.
type Model struct {
	VM          uuid.UUID
	Workload    string // whose it is; "": the VM's own. Printable
	Group       string // under which workloads, of any VM, share it; "": nobody else has it
	Mapping     string // the engine's word for how events become points
	Sealed      bool
	Points      uint64 // learned; those that came as violations do not count
	Events      uint64 // judged or learned
	Violations  uint64
	Measurement string    // hex
	State       string    // hex
	LastNew     time.Time // when the last new point was learned

	// What follows is zero where the engine does not tell it.
	Aggregate string // hex; the platform's, as the measurement begins with it
	Version   uint64 // counts what people did to the model
	Forensics uint64 // points that came as violations
	SinceNew  uint64 // events since the last new point
	Quiet     bool   // it has learned what there is, as far as can be told
	Hours     []Hour // ascending, the last ones
}

// Hour is what one hour of the host's clock brought to a model.
type Hour struct {
	Start  time.Time
	Events uint64
	New    uint64 // points
}

// Engine judges events. Judge is called from one goroutine at a time; the
// others may be called at the same time as Judge.
type Engine interface {
	Describe() Description

	// Judge judges a batch and hands each finding to report, in the order of
	// the events. It sets Ref, BootNs, Rule, Severity and what describes the
	// event; the host sets the rest. An event that it cannot decode is a
	// finding, never an error: an error means that the engine is broken.
	Judge(b *Batch, report func(Finding)) error

	// Models lists the models, Learn opens and Seal closes the model of a VM.
	Models() []Model
	Learn(ctx context.Context, vm uuid.UUID) (Model, error)
	Seal(ctx context.Context, vm uuid.UUID) (Model, error)

	// Checkpoint returns all that Restore needs to go on as if nothing had
	// happened, for one VM.
	Checkpoint(vm uuid.UUID) ([]byte, error)
	Restore(vm uuid.UUID, checkpoint []byte) error
}

// PointSize is the size of a point, in bytes.
const PointSize = 32

// Modelled is what can be done to one model of each VM: to take it out as a file
// of the engine's own format, put one in again, and correct it.
type Modelled interface {
	// Learn opens and Seal closes the model.
	Learn(ctx context.Context, vm uuid.UUID) (Model, error)
	Seal(ctx context.Context, vm uuid.UUID) (Model, error)

	// Export returns the VM's model as a file, and Import makes that of a file
	// the VM's own, with all its points; it may be sealed.
	Export(ctx context.Context, vm uuid.UUID) ([]byte, error)
	Import(ctx context.Context, vm uuid.UUID, file []byte) (Model, error)

	// Accept makes points that came as violations the model's own: a person has
	// looked at them. A point that the model does not have is an error, and
	// then none is accepted.
	Accept(ctx context.Context, vm uuid.UUID, points [][PointSize]byte) (Model, error)

	// Set sets what a person says of the model. What it cannot take is an
	// error, and then nothing is set.
	Set(ctx context.Context, vm uuid.UUID, s Settings) (Model, error)
}

// Modeller is an engine whose models are sets of points. It is optional: of an
// engine that is none, Export, Import, Accept and Set are unimplemented.
type Modeller interface {
	Engine
	Modelled
}

// Divider is an engine with a model for each workload of a VM: the VM itself, and
// what runs in it apart. It is optional: an engine that is none has workload ""
// alone, the VM's own.
type Divider interface {
	Modeller

	// Workload is what can be done to the models of that workload.
	Workload(name string) Modelled

	// Join makes a VM's workload share the model of a group, with all that have
	// joined it, and with none, "", have a model of its own again.
	Join(ctx context.Context, vm uuid.UUID, workload, group string) (Model, error)
}

// MaxName bounds the name of a workload or a group, bytes.
const MaxName = 256

// Settings are what a person says of a model.
type Settings struct {
	Base       *[PointSize]byte  // a verifier's nonce, of a model that has nothing yet; nil: as it is
	Aggregate  *[PointSize]byte  // the platform's, of a model that learns; nil: as it is
	Pseudonyms [][PointSize]byte // files that may change their content, added
}

// Placer is an engine that tells where in a VM events happen. It is optional: of
// an engine that is none, Places is unimplemented.
type Placer interface {
	Engine

	// Places tells of the VM's cgroups and containers, as its records name them.
	Places(vm uuid.UUID) Places
}

// Places are a VM's cgroups and containers. Text is the guest's.
type Places struct {
	Session    uuid.UUID // that named them
	Cgroups    []Cgroup
	Containers []Container
	Nameless   uint64 // cgroups for which there was no room
	Unplaced   uint64 // times that a task came to be in a cgroup that nothing names
}

// MaxPlaces bounds the cgroups, and the containers, of one VM.
const MaxPlaces = 4096

// Cgroup is the path of a number that records have.
type Cgroup struct {
	ID   uint64
	Path string
}

// Container is one that is there.
type Container struct {
	Cgroup              uint64 // id; 0: not known
	Path                string // of its cgroup
	Runtime, ID         string // as the path shows them; no runtime: "" and the path's last element
	Begun               bool   // its first program was seen; what follows is of that
	Mnt, PID, User, Net uint32 // namespaces
	Program             string // path
	BootNs              uint64 // when it started, ns since boot
	Tasks               uint64 // threads that run in it
	Workload            string // the model that judges it; "": the VM's own
}
