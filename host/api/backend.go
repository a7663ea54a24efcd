package api

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/plugins/engine"
)

// Backend is what the API needs of the monitor. Its methods are called from
// many goroutines at once.
//
// Every string of an answer may hold guest bytes as they are: the server makes
// them printable. A VM's name may be left empty where its uuid is set; the
// server fills it in. An error may carry its code and the next thing to do by
// Error; of others fs.ErrNotExist is not-found, errors.ErrUnsupported is
// unimplemented, and the rest is internal.
type Backend interface {
	Status(ctx context.Context) (*apipb.StatusResponse, error)

	// Names returns the name of every domain that the monitor knows, from
	// memory: an order finds its VM by it, also while an engine or libvirt hangs.
	Names(ctx context.Context) (map[uuid.UUID]string, error)

	// VMs returns every domain that the monitor knows, in any order.
	VMs(ctx context.Context) ([]*apipb.VM, error)

	// Batches hands the recorded batches that q asks for to yield, in the order
	// of the record for each VM, until they are at an end (with Follow: until
	// ctx ends) or yield fails, whose error it returns. A batch is valid until
	// yield returns. yield blocks for as long as its reader is slow: nothing may
	// be locked and no live queue may wait meanwhile; who falls behind reads on
	// from the record.
	Batches(ctx context.Context, q Query, yield func(*engine.Batch) error) error

	// CgroupPaths looks on record for the paths of those cgroups of a session, in
	// records up to an index. One that it does not find is left out.
	CgroupPaths(ctx context.Context, vm, session uuid.UUID, ids []uint64, upTo uint64) (map[uint64]string, error)

	// Cgroups names a VM's cgroups, as far as its present or last session has.
	Cgroups(ctx context.Context, vm uuid.UUID) (*Cgroups, error)

	// Findings does the same with findings. Without Follow the streams are
	// merged by time: of each VM in the order of its record, and of several VMs'
	// next findings the earliest first. What cannot be read of one VM's record
	// stops no other's; it is the error at the end.
	Findings(ctx context.Context, q Query, yield func(*engine.Finding) error) error

	// Orders returns the journal's orders that q asks for, oldest first: with a
	// Limit the newest of them.
	Orders(ctx context.Context, q Query) ([]*apipb.Order, error)

	// Models returns the models of all engines.
	Models(ctx context.Context) ([]Model, error)

	// Learn opens and Seal closes a model.
	Learn(ctx context.Context, of ModelRef, by Caller) (Model, error)
	Seal(ctx context.Context, of ModelRef, by Caller) (Model, error)

	// ExportModel takes a model out as a file of the engine's own format,
	// ImportModel puts one in, and AcceptModel makes points that came as
	// violations the model's own.
	ExportModel(ctx context.Context, of ModelRef) ([]byte, error)
	ImportModel(ctx context.Context, of ModelRef, file []byte, by Caller) (Model, error)
	AcceptModel(ctx context.Context, of ModelRef, points [][engine.PointSize]byte, by Caller) (Model, error)

	// SetModel sets what a person says of a model.
	SetModel(ctx context.Context, of ModelRef, s engine.Settings, by Caller) (Model, error)

	// JoinModel makes a workload share a group's model, or with no group have its
	// own again.
	JoinModel(ctx context.Context, of ModelRef, group string, by Caller) (Model, error)

	// Containers tells of a VM's containers.
	Containers(ctx context.Context, vm uuid.UUID) (*engine.Places, error)

	// SetPolicy gives a VM a profile of hooks, "" for the configured one, and
	// returns its name and the number of the policy that says it.
	SetPolicy(ctx context.Context, vm uuid.UUID, profile string, by Caller) (name string, number uint64, err error)

	// Pause, Resume and Capture journal an order, carry it out and return it
	// with its result; a failed one is an order and an error. Capture tells its
	// progress from its own goroutine, before it returns.
	Pause(ctx context.Context, vm uuid.UUID, by Caller) (*apipb.Order, error)
	Resume(ctx context.Context, vm uuid.UUID, by Caller) (*apipb.Order, error)
	Capture(ctx context.Context, vm uuid.UUID, revertible bool, by Caller, progress func(*apipb.Progress)) (*apipb.Order, error)

	// Contain does the same with one of the steps isolate, connect, thaw, reset,
	// destroy, save, revert and unsave; the last three have a state's name.
	Contain(ctx context.Context, vm uuid.UUID, step, state string, by Caller) (*apipb.Order, error)

	// Saved lists what save orders have kept of a domain, oldest first.
	Saved(ctx context.Context, vm uuid.UUID) ([]*apipb.Saved, error)

	// Bundles lists the bundles on this host, oldest first.
	Bundles(ctx context.Context) ([]*apipb.Bundle, error)

	// PinBundle keeps a bundle from being given up, or no longer; PruneBundles
	// gives up those that are not pinned and that p says, and returns them.
	PinBundle(ctx context.Context, id string, pinned bool, by Caller) (*apipb.Bundle, error)
	PruneBundles(ctx context.Context, p Prune, by Caller) ([]*apipb.Bundle, error)

	// ReloadPlaybook reads the playbook's file anew and returns what is in force
	// then. On an error that is what was before.
	ReloadPlaybook(ctx context.Context, by Caller) (*apipb.Playbook, error)

	// RotateKey gives the host a new key; what is signed from when it returns is
	// the new one's. Who may ask for it the backend says.
	RotateKey(ctx context.Context, by Caller) (*apipb.RotateKeyResponse, error)
}

// Query says which part of the record is wanted.
type Query struct {
	VM     uuid.UUID // zero: all
	Since  time.Time // at or after, by the host's clock; zero: from the start, with Follow from now on
	Until  time.Time // before; zero: no bound
	Follow bool      // go on with what arrives

	// GivenUp, if set, is told how many of a VM's records that may have been asked
	// for retention has given up. Without Follow.
	GivenUp func(vm uuid.UUID, records uint64)

	// May, if set, is asked of a part of a VM's record that is indexed, in order,
	// whether it may hold a batch that is wanted, from whether any of its events may
	// have one of EventKeys. What it says no of may be left out. Without Follow.
	May func(vm uuid.UUID, has func(key uint64) bool) bool

	Order string // of orders: only that with this id; empty: all
	Limit uint64 // of orders: at most so many, the newest; 0: all
}

// Cgroups are the paths of a VM's cgroups by their numbers, and the session that
// named them. Paths are the guest's.
type Cgroups struct {
	Session uuid.UUID
	Paths   map[uint64]string
}

// ModelRef says which model is meant. With no engine named it is that of the one
// engine that has models, with no workload the VM's own.
type ModelRef struct {
	Engine   string
	VM       uuid.UUID
	Workload string
}

// Prune says which bundles are to be given up: those that hold of what is set.
type Prune struct {
	VM     uuid.UUID // zero: of all
	Before time.Time // zero: whenever
	Keep   *uint64   // all but so many, the newest
	Bytes  *uint64   // the oldest, until those that are left take no more
	DryRun bool      // none is given up
}

// Model is a model and the engine that has it.
type Model struct {
	Engine string
	engine.Model
}

// Caller is who asked for an order: the credentials of the process at the other
// end of the socket as the kernel says them, and its stated reason.
type Caller struct {
	PID      int32 // 0: not known (not a unix socket)
	UID, GID uint32
	Reason   string
}

// String is the caller as the journal names it.
func (c Caller) String() string {
	if c.PID == 0 {
		return "api"
	}
	return fmt.Sprintf("api uid %d pid %d", c.UID, c.PID)
}
