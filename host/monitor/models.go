package monitor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/engines"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/plugins/engine"
)

func (b backend) Models(ctx context.Context) ([]api.Model, error) {
	var out []api.Model
	var errs error
	for _, e := range b.m.engines {
		if !e.Status().Models {
			continue
		}
		models, err := e.Models(ctx)
		errs = errors.Join(errs, err)
		for _, m := range models {
			out = append(out, api.Model{Engine: e.Name(), Model: m})
		}
	}
	return out, errs
}

// Cgroups asks the first engine that tells. What no engine knows is no error: the
// events' own records may name it.
func (b backend) Cgroups(ctx context.Context, vm uuid.UUID) (*api.Cgroups, error) {
	places, err := b.places(ctx, vm)
	if err != nil {
		return nil, err
	}
	out := &api.Cgroups{Session: places.Session, Paths: make(map[uint64]string, len(places.Cgroups))}
	for _, c := range places.Cgroups {
		out.Paths[c.ID] = c.Path
	}
	return out, nil
}

func (b backend) places(ctx context.Context, vm uuid.UUID) (engine.Places, error) {
	for _, e := range b.m.engines {
		places, err := e.Places(ctx, vm)
		if !errors.Is(err, errors.ErrUnsupported) {
			return places, err
		}
	}
	return engine.Places{}, fmt.Errorf("containers: %w", errors.ErrUnsupported)
}

// modeller finds the engine called name, or the only one with models.
func (b backend) modeller(name string) (*engines.Supervisor, error) {
	var found []*engines.Supervisor
	for _, e := range b.m.engines {
		if e.Name() == name || (name == "" && e.Status().Models) {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 0:
		return nil, api.Error(connect.CodeFailedPrecondition, "outguardd's log says why; it is started again by itself", fmt.Errorf("no engine with models runs"))
	case 1:
		return found[0], nil
	}
	return nil, api.Error(connect.CodeInvalidArgument, "say which with --engine", fmt.Errorf("%d engines have models", len(found)))
}

func (b backend) Learn(ctx context.Context, of api.ModelRef, by api.Caller) (api.Model, error) {
	return b.model(ctx, of, by, "learn", func(w engines.Workload) (engine.Model, error) { return w.Learn(ctx, of.VM) })
}

func (b backend) Seal(ctx context.Context, of api.ModelRef, by api.Caller) (api.Model, error) {
	return b.model(ctx, of, by, "seal", func(w engines.Workload) (engine.Model, error) { return w.Seal(ctx, of.VM) })
}

func (b backend) ExportModel(ctx context.Context, of api.ModelRef) ([]byte, error) {
	e, err := b.modeller(of.Engine)
	if err != nil {
		return nil, err
	}
	file, err := e.Of(of.Workload).Export(ctx, of.VM)
	if err != nil {
		return nil, modelError(err)
	}
	return file, nil
}

func (b backend) ImportModel(ctx context.Context, of api.ModelRef, file []byte, by api.Caller) (api.Model, error) {
	return b.model(ctx, of, by, "import", func(w engines.Workload) (engine.Model, error) { return w.Import(ctx, of.VM, file) })
}

func (b backend) AcceptModel(ctx context.Context, of api.ModelRef, points [][engine.PointSize]byte, by api.Caller) (api.Model, error) {
	return b.model(ctx, of, by, "accept", func(w engines.Workload) (engine.Model, error) { return w.Accept(ctx, of.VM, points) })
}

func (b backend) SetModel(ctx context.Context, of api.ModelRef, s engine.Settings, by api.Caller) (api.Model, error) {
	return b.model(ctx, of, by, "set", func(w engines.Workload) (engine.Model, error) { return w.Set(ctx, of.VM, s) })
}

func (b backend) JoinModel(ctx context.Context, of api.ModelRef, group string, by api.Caller) (api.Model, error) {
	return b.model(ctx, of, by, "join", func(w engines.Workload) (engine.Model, error) { return w.Join(ctx, of.VM, group) })
}

func (b backend) Containers(ctx context.Context, vm uuid.UUID) (*engine.Places, error) {
	places, err := b.places(ctx, vm)
	return &places, err
}

// modelError is what an engine says of a model, with the next thing to do.
func modelError(err error) error {
	if errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return api.Error(connect.CodeFailedPrecondition, "outguard vms shows whether its agent is live, outguard model list what was learnt", err)
}

func (b backend) model(ctx context.Context, of api.ModelRef, by api.Caller, what string,
	do func(engines.Workload) (engine.Model, error)) (api.Model, error) {
	e, err := b.modeller(of.Engine)
	if err != nil {
		return api.Model{}, err
	}
	m, err := do(e.Of(of.Workload))
	if err != nil {
		return api.Model{}, modelError(err)
	}
	text := fmt.Sprintf("%s, by %s", e.Name(), by)
	if of.Workload != "" {
		text = fmt.Sprintf("%s, workload %s, by %s", e.Name(), of.Workload, by)
	}
	b.m.keep(of.VM, evidence.KindNote, time.Now(), note{What: "model-" + what, Text: text})
	return api.Model{Engine: e.Name(), Model: m}, nil
}
