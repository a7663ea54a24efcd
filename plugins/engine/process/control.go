package process

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/engine/enginepb"
)

// Models lists the engine's models.
func (p *Process) Models(ctx context.Context) ([]engine.Model, error) {
	ctx, cancel := p.deadline(ctx)
	defer cancel()
	reply, err := p.control.Models(ctx, &enginepb.ModelsRequest{})
	if err != nil {
		return nil, fmt.Errorf("models: %w", said(err))
	}
	models := make([]engine.Model, 0, len(reply.GetModels()))
	for _, m := range reply.GetModels() {
		model, err := modelFromPB(m)
		if err != nil {
			return nil, fmt.Errorf("models: %w", err)
		}
		models = append(models, model)
	}
	return models, nil
}

// Checkpoint is an engine's state for one VM, and the number of the last batch
// that it covers.
type Checkpoint struct {
	Data   []byte
	Judged uint64
}

// Learn opens the VM's own model; the checkpoint holds the change.
func (p *Process) Learn(ctx context.Context, vm uuid.UUID) (engine.Model, Checkpoint, error) {
	return p.Of("").Learn(ctx, vm)
}

// Seal closes the VM's own model; the checkpoint holds the change.
func (p *Process) Seal(ctx context.Context, vm uuid.UUID) (engine.Model, Checkpoint, error) {
	return p.Of("").Seal(ctx, vm)
}

// Export returns the VM's own model as a file of the engine's own format.
func (p *Process) Export(ctx context.Context, vm uuid.UUID) ([]byte, error) {
	return p.Of("").Export(ctx, vm)
}

// Import makes the model of a file the VM's own; the checkpoint holds the
// change.
func (p *Process) Import(ctx context.Context, vm uuid.UUID, file []byte) (engine.Model, Checkpoint, error) {
	return p.Of("").Import(ctx, vm, file)
}

// Accept makes points that came as violations the model's own; the checkpoint
// holds the change.
func (p *Process) Accept(ctx context.Context, vm uuid.UUID, points [][engine.PointSize]byte) (engine.Model, Checkpoint, error) {
	return p.Of("").Accept(ctx, vm, points)
}

// Set sets what a person says of the VM's own model; the checkpoint holds the
// change.
func (p *Process) Set(ctx context.Context, vm uuid.UUID, s engine.Settings) (engine.Model, Checkpoint, error) {
	return p.Of("").Set(ctx, vm, s)
}

func changed(what string, c *enginepb.Changed, err error) (engine.Model, Checkpoint, error) {
	if err != nil {
		return engine.Model{}, Checkpoint{}, said(err) // the engine says what it was doing
	}
	m, err := modelFromPB(c.GetModel())
	if err != nil {
		return engine.Model{}, Checkpoint{}, fmt.Errorf("%s: %w", what, err)
	}
	return m, checkpointFromPB(c.GetCheckpoint()), nil
}

// said is the engine's own error without gRPC's words around it; what gRPC
// itself says stays as it is. A call that the engine does not have is
// errors.ErrUnsupported.
func said(err error) error {
	s, ok := status.FromError(err)
	switch {
	case ok && s.Code() == codes.Unknown:
		return errors.New(s.Message())
	case ok && s.Code() == codes.Unimplemented:
		return fmt.Errorf("%s: %w", s.Message(), errors.ErrUnsupported)
	}
	return err
}

// Checkpoint asks for the VM's state.
func (p *Process) Checkpoint(ctx context.Context, vm uuid.UUID) (Checkpoint, error) {
	ctx, cancel := p.deadline(ctx)
	defer cancel()
	c, err := p.control.Checkpoint(ctx, &enginepb.VM{Vm: vm[:]})
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w", said(err))
	}
	return checkpointFromPB(c), nil
}

// Restore gives the VM's state back.
func (p *Process) Restore(ctx context.Context, vm uuid.UUID, data []byte) error {
	ctx, cancel := p.deadline(ctx)
	defer cancel()
	if _, err := p.control.Restore(ctx, &enginepb.RestoreRequest{Vm: vm[:], Checkpoint: data}); err != nil {
		return fmt.Errorf("restore: %w", said(err))
	}
	return nil
}

// Places tells of the VM's cgroups and containers.
func (p *Process) Places(ctx context.Context, vm uuid.UUID) (engine.Places, error) {
	ctx, cancel := p.deadline(ctx)
	defer cancel()
	r, err := p.control.Places(ctx, &enginepb.VM{Vm: vm[:]})
	if err != nil {
		return engine.Places{}, fmt.Errorf("places: %w", said(err))
	}
	places, err := placesFromPB(r)
	if err != nil {
		return engine.Places{}, fmt.Errorf("places: %w", err)
	}
	return places, nil
}

func checkpointFromPB(c *enginepb.CheckpointReply) Checkpoint {
	return Checkpoint{Data: c.GetCheckpoint(), Judged: c.GetJudged()}
}

// maxHours is how many hours of a model are believed.
const maxHours = 256

func modelFromPB(m *enginepb.Model) (engine.Model, error) {
	vm, err := uuid.FromBytes(m.GetVm())
	if err != nil {
		return engine.Model{}, fmt.Errorf("model: %w: %w", ErrProtocol, err)
	}
	out := engine.Model{
		VM: vm, Mapping: m.GetMapping(), Sealed: m.GetSealed(), Points: m.GetPoints(), Events: m.GetEvents(),
		Violations: m.GetViolations(), Measurement: m.GetMeasurement(), State: m.GetState(),
		Aggregate: m.GetAggregate(), Version: m.GetVersion(), Forensics: m.GetForensics(),
		SinceNew: m.GetSinceNew(), Quiet: m.GetQuiet(),
		Workload: m.GetWorkload(), Group: m.GetGroup(),
	}
	if len(out.Workload) > engine.MaxName || len(out.Group) > engine.MaxName {
		return engine.Model{}, fmt.Errorf("model of workload %.40q: %w", out.Workload, ErrProtocol)
	}
	for _, h := range m.GetHours()[:min(len(m.GetHours()), maxHours)] {
		out.Hours = append(out.Hours, engine.Hour{Start: time.Unix(h.GetStart(), 0), Events: h.GetEvents(), New: h.GetNew()})
	}
	if ns := m.GetLastNewNs(); ns != 0 {
		out.LastNew = time.Unix(0, ns)
	}
	return out, nil
}

// placesFromPB reads an engine's answer, which is bounded and not believed beyond
// that.
func placesFromPB(p *enginepb.PlacesReply) (engine.Places, error) {
	session, err := uuid.FromBytes(p.GetSession())
	if err != nil || len(p.GetCgroups()) > engine.MaxPlaces || len(p.GetContainers()) > engine.MaxPlaces {
		return engine.Places{}, fmt.Errorf("places of session %x, %d cgroups, %d containers: %w", p.GetSession(), len(p.GetCgroups()), len(p.GetContainers()), ErrProtocol)
	}
	out := engine.Places{Session: session, Nameless: p.GetNameless(), Unplaced: p.GetUnplaced()}
	for _, c := range p.GetCgroups() {
		out.Cgroups = append(out.Cgroups, engine.Cgroup{ID: c.GetId(), Path: string(c.GetPath())})
	}
	for _, c := range p.GetContainers() {
		out.Containers = append(out.Containers, engine.Container{
			Cgroup: c.GetCgroup(), Path: string(c.GetPath()), Runtime: c.GetRuntime(), ID: string(c.GetId()), Begun: c.GetBegun(),
			Mnt: c.GetMntNs(), PID: c.GetPidNs(), User: c.GetUserNs(), Net: c.GetNetNs(),
			Program: string(c.GetProgram()), BootNs: c.GetBootNs(), Tasks: c.GetTasks(), Workload: c.GetWorkload(),
		})
	}
	return out, nil
}
