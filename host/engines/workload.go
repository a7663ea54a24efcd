package engines

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/engine/process"
)

// Workload is an engine as far as one workload of its VMs goes.
type Workload struct {
	s    *Supervisor
	name string
}

// Of is the engine as far as that workload goes; "" is the VM's own.
func (s *Supervisor) Of(workload string) Workload { return Workload{s, workload} }

// change does it to the workload.
func (w Workload) change(ctx context.Context, vm uuid.UUID, anew bool,
	do func(process.Workload) (engine.Model, process.Checkpoint, error)) (engine.Model, error) {
	return w.s.change(ctx, vm, anew && w.name == "", func(p *process.Process, _ context.Context, _ uuid.UUID) (engine.Model, process.Checkpoint, error) {
		return do(p.Of(w.name))
	})
}

// Learn opens the workload's model. When it returns without an error, the change
// is stored.
func (w Workload) Learn(ctx context.Context, vm uuid.UUID) (engine.Model, error) {
	return w.change(ctx, vm, true, func(p process.Workload) (engine.Model, process.Checkpoint, error) { return p.Learn(ctx, vm) })
}

// Seal closes the workload's model. When it returns without an error, the change
// is stored. It counts from the batch that the engine judges next.
func (w Workload) Seal(ctx context.Context, vm uuid.UUID) (engine.Model, error) {
	return w.change(ctx, vm, false, func(p process.Workload) (engine.Model, process.Checkpoint, error) { return p.Seal(ctx, vm) })
}

// Export returns the workload's model as a file of the engine's own format.
func (w Workload) Export(ctx context.Context, vm uuid.UUID) ([]byte, error) {
	p, err := w.s.process()
	if err != nil {
		return nil, err
	}
	file, err := p.Of(w.name).Export(ctx, vm)
	if err != nil {
		return nil, fmt.Errorf("engine %s: %w", w.s.cfg.Name, err)
	}
	return file, nil
}

// Import makes the model of a file the workload's own. When it returns without
// an error, the change is stored.
func (w Workload) Import(ctx context.Context, vm uuid.UUID, file []byte) (engine.Model, error) {
	return w.change(ctx, vm, true, func(p process.Workload) (engine.Model, process.Checkpoint, error) { return p.Import(ctx, vm, file) })
}

// Accept makes points that came as violations the model's own. When it returns
// without an error, the change is stored.
func (w Workload) Accept(ctx context.Context, vm uuid.UUID, points [][engine.PointSize]byte) (engine.Model, error) {
	return w.change(ctx, vm, false, func(p process.Workload) (engine.Model, process.Checkpoint, error) { return p.Accept(ctx, vm, points) })
}

// Set sets what a person says of the workload's model. When it returns without
// an error, the change is stored.
func (w Workload) Set(ctx context.Context, vm uuid.UUID, set engine.Settings) (engine.Model, error) {
	return w.change(ctx, vm, false, func(p process.Workload) (engine.Model, process.Checkpoint, error) { return p.Set(ctx, vm, set) })
}

// Join makes the workload share a group's model, or with "" have its own again.
// When it returns without an error, the change is stored.
func (w Workload) Join(ctx context.Context, vm uuid.UUID, group string) (engine.Model, error) {
	return w.change(ctx, vm, false, func(p process.Workload) (engine.Model, process.Checkpoint, error) { return p.Join(ctx, vm, group) })
}
