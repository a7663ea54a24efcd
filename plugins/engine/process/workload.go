package process

import (
	"context"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/engine/enginepb"
)

// Workload is a process as far as one workload of its VMs goes.
type Workload struct {
	p    *Process
	name string
}

// Of is the process as far as that workload goes; "" is the VM's own.
func (p *Process) Of(workload string) Workload { return Workload{p, workload} }

func (w Workload) of(vm uuid.UUID) *enginepb.VM { return &enginepb.VM{Vm: vm[:], Workload: w.name} }

// Learn opens the workload's model; the checkpoint holds the change.
func (w Workload) Learn(ctx context.Context, vm uuid.UUID) (engine.Model, Checkpoint, error) {
	ctx, cancel := w.p.deadline(ctx)
	defer cancel()
	c, err := w.p.control.Learn(ctx, w.of(vm))
	return changed("learn", c, err)
}

// Seal closes the workload's model; the checkpoint holds the change.
func (w Workload) Seal(ctx context.Context, vm uuid.UUID) (engine.Model, Checkpoint, error) {
	ctx, cancel := w.p.deadline(ctx)
	defer cancel()
	c, err := w.p.control.Seal(ctx, w.of(vm))
	return changed("seal", c, err)
}

// Export returns the workload's model as a file of the engine's own format.
func (w Workload) Export(ctx context.Context, vm uuid.UUID) ([]byte, error) {
	ctx, cancel := w.p.deadline(ctx)
	defer cancel()
	r, err := w.p.control.Export(ctx, w.of(vm))
	if err != nil {
		return nil, said(err) // the engine says what it was doing
	}
	return r.GetFile(), nil
}

// Import makes the model of a file the workload's own; the checkpoint holds the
// change.
func (w Workload) Import(ctx context.Context, vm uuid.UUID, file []byte) (engine.Model, Checkpoint, error) {
	ctx, cancel := w.p.deadline(ctx)
	defer cancel()
	c, err := w.p.control.Import(ctx, &enginepb.ImportRequest{Vm: vm[:], Workload: w.name, File: file})
	return changed("import", c, err)
}

// Accept makes points that came as violations the model's own; the checkpoint
// holds the change.
func (w Workload) Accept(ctx context.Context, vm uuid.UUID, points [][engine.PointSize]byte) (engine.Model, Checkpoint, error) {
	ctx, cancel := w.p.deadline(ctx)
	defer cancel()
	r := &enginepb.AcceptRequest{Vm: vm[:], Workload: w.name}
	for i := range points {
		r.Points = append(r.Points, points[i][:])
	}
	c, err := w.p.control.Accept(ctx, r)
	return changed("accept", c, err)
}

// Set sets what a person says of the workload's model; the checkpoint holds the
// change.
func (w Workload) Set(ctx context.Context, vm uuid.UUID, s engine.Settings) (engine.Model, Checkpoint, error) {
	ctx, cancel := w.p.deadline(ctx)
	defer cancel()
	r := &enginepb.SetRequest{Vm: vm[:], Workload: w.name}
	if s.Base != nil {
		r.Base = s.Base[:]
	}
	if s.Aggregate != nil {
		r.Aggregate = s.Aggregate[:]
	}
	for i := range s.Pseudonyms {
		r.Pseudonyms = append(r.Pseudonyms, s.Pseudonyms[i][:])
	}
	c, err := w.p.control.Set(ctx, r)
	return changed("set", c, err)
}

// Join makes the workload share a group's model, or with "" have its own again;
// the checkpoint holds the change.
func (w Workload) Join(ctx context.Context, vm uuid.UUID, group string) (engine.Model, Checkpoint, error) {
	ctx, cancel := w.p.deadline(ctx)
	defer cancel()
	c, err := w.p.control.Join(ctx, &enginepb.JoinRequest{Vm: vm[:], Workload: w.name, Group: group})
	return changed("join", c, err)
}
