package monitor

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/engines"
	"github.com/outguard/outguard/host/evidence"
)

// grouping lets workloads join the groups that the configuration names.
type grouping struct {
	m      *Monitor
	joined map[api.ModelRef]bool
	failed string // what was logged last
}

func newGrouping(m *Monitor) *grouping { return &grouping{m: m, joined: map[api.ModelRef]bool{}} }

// run looks as often as enrolments are looked at. A join that fails, of an engine
// that is not up, is tried again.
func (g *grouping) run(ctx context.Context) error {
	if len(g.m.cfg.Groups) == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	t := time.NewTicker(enrolmentsEvery)
	defer t.Stop()
	for {
		if err := g.joinAll(ctx); ctx.Err() == nil {
			g.tell(err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

func (g *grouping) tell(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != g.failed && err != nil {
		g.m.log.Error("models that are to be shared", "error", err)
	}
	g.failed = text
}

// wanted are the workloads of a domain, each with the first group that matches.
func (g *grouping) wanted(w *watched) map[api.ModelRef]string {
	all := map[api.ModelRef]string{}
	for _, c := range g.m.cfg.Groups {
		of := api.ModelRef{Engine: c.Engine, VM: w.UUID, Workload: c.Workload}
		if is, err := filepath.Match(c.VM, w.Name); err != nil || !is || all[of] != "" {
			continue
		}
		all[of] = c.Name
	}
	return all
}

// joinAll lets those join that have not yet.
func (g *grouping) joinAll(ctx context.Context) error {
	var errs []error
	groups := map[*engines.Supervisor]map[api.ModelRef]string{} // as the engines have them
	for _, w := range g.m.domains.list() {
		if w.Enrolment == nil {
			continue
		}
		for of, name := range g.wanted(&w) {
			if g.joined[of] {
				continue
			}
			err := g.join(ctx, of, name, groups)
			if errs = append(errs, err); err == nil {
				g.joined[of] = true
			}
		}
	}
	return errors.Join(errs...)
}

// join does nothing where the engine has it so already: each change is a
// checkpoint.
func (g *grouping) join(ctx context.Context, of api.ModelRef, name string, groups map[*engines.Supervisor]map[api.ModelRef]string) error {
	e, err := backend{g.m}.modeller(of.Engine)
	if err != nil {
		return err
	}
	has := groups[e]
	if has == nil {
		if has, err = groupsOf(ctx, e, of.Engine); err != nil {
			return err
		}
		groups[e] = has
	}
	if has[of] == name {
		return nil
	}
	if _, err := e.Of(of.Workload).Join(ctx, of.VM, name); err != nil {
		return err
	}
	g.m.keep(of.VM, evidence.KindNote, time.Now(), note{
		What: "model-join", Text: fmt.Sprintf("%s, workload %q, group %s, by the configuration", e.Name(), of.Workload, name),
	})
	return nil
}

// groupsOf are the groups of an engine's models. as is how they are referred to.
func groupsOf(ctx context.Context, e *engines.Supervisor, as string) (map[api.ModelRef]string, error) {
	models, err := e.Models(ctx)
	if err != nil {
		return nil, err
	}
	all := make(map[api.ModelRef]string, len(models))
	for i := range models {
		all[api.ModelRef{Engine: as, VM: models[i].VM, Workload: models[i].Workload}] = models[i].Group
	}
	return all, nil
}
