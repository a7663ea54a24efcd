package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/apipb/apipbconnect"
)

func (a *app) modelCmd() *cobra.Command {
	return group(&cobra.Command{
		Use:   "model",
		Short: "The models of what is normal: list, learn, seal, compare, correct, move",
		Long: `The models of what is normal. A domain has one of its own, and each kind of
container in it has another: --workload NAME says that a container's is meant, by
the name in outguard model list and outguard vms --containers.`,
	}, a.modelListCmd(), a.modelShowCmd(), a.modelStatusCmd(), a.modelDiffCmd(), a.modelAcceptCmd(), a.modelSetCmd(),
		a.modelExportCmd(), a.modelImportCmd(), a.modelJoinCmd(), a.modelLeaveCmd(),
		a.modelChangeCmd("learn", "Open a domain's models: what happens from now on is normal", learn),
		a.modelChangeCmd("seal", "Seal a domain's models: what they have not seen is a violation from now on", seal))
}

func (a *app) modelListCmd() *cobra.Command {
	r := &apipb.ListModelsRequest{}
	cmd := a.command(&cobra.Command{
		Use: "list", Short: "List the models", Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		out, err := a.models(cmd.Context(), r)
		if err != nil {
			return err
		}
		printAll(a, out, "no models; a domain has one when its agent's first events are judged",
			[]string{"VM", "WORKLOAD", "GROUP", "ENGINE", "STATE", "MAPPING", "POINTS", "EVENTS", "VIOLATIONS", "LAST NEW"}, modelRow)
		return nil
	})
	a.vmFlag(cmd, &r.Vm)
	engineFlag(cmd, &r.Engine)
	return cmd
}

func (a *app) models(ctx context.Context, r *apipb.ListModelsRequest) ([]*apipb.Model, error) {
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	out, err := client.ListModels(ctx, r)
	if err != nil {
		return nil, err
	}
	return out.Models, nil
}

// modelsOf is a domain's model, of each engine that has one.
func (a *app) modelsOf(ctx context.Context, r *apipb.ListModelsRequest, vm string) ([]*apipb.Model, error) {
	r.Vm, r.Own = vm, r.Workload == ""
	out, err := a.models(ctx, r)
	switch {
	case err != nil:
		return nil, err
	case len(out) == 0 && !r.Own:
		return nil, fmt.Errorf("%s has no workload %s; `outguard model list --vm %s` lists them", vm, quote(r.Workload), vm)
	case len(out) == 0:
		return nil, fmt.Errorf("%s has no model yet; `outguard vms` shows whether its agent is heard", vm)
	}
	return out, nil
}

func modelRow(m *apipb.Model) []string {
	return []string{
		vmName(m), m.Workload, m.Group, m.Engine, sealedWord(m), m.Mapping, fmt.Sprint(m.Points), fmt.Sprint(m.Events),
		fmt.Sprint(m.Violations), clock(m.LastNew),
	}
}

func sealedWord(m *apipb.Model) string {
	if m.Sealed {
		return "sealed"
	}
	return "learning"
}

func (a *app) modelShowCmd() *cobra.Command {
	r := &apipb.ListModelsRequest{}
	cmd := a.command(&cobra.Command{
		Use: "show DOMAIN", Short: "Describe a domain's model", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVM,
	}, func(cmd *cobra.Command, args []string) error {
		out, err := a.modelsOf(cmd.Context(), r, args[0])
		if err != nil {
			return err
		}
		for _, m := range out {
			a.print(m, func() { a.describeModel(m) })
		}
		return nil
	})
	engineFlag(cmd, &r.Engine)
	a.workloadFlag(cmd, &r.Workload)
	return cmd
}

func (a *app) describeModel(m *apipb.Model) {
	a.fact("vm", m.Vm+" "+m.Uuid)
	a.workloadFacts(m)
	a.fact("engine", m.Engine)
	a.fact("state", sealedWord(m))
	a.fact("mapping", m.Mapping)
	a.fact("points", fmt.Sprint(m.Points))
	a.fact("events", fmt.Sprint(m.Events))
	a.fact("violations", fmt.Sprint(m.Violations))
	a.fact("last new", clock(m.LastNew))
	a.fact("version", fmt.Sprint(m.Version))
	if m.Aggregate != "" {
		a.fact("aggregate", m.Aggregate)
	}
	a.fact("measurement", m.Measurement)
	a.fact("state value", m.State)
}

type changeModel func(ctx context.Context, c apipbconnect.OutguardClient, vm, engine, workload string) (*apipb.Model, error)

func learn(ctx context.Context, c apipbconnect.OutguardClient, vm, engine, workload string) (*apipb.Model, error) {
	r, err := c.LearnModel(ctx, &apipb.LearnModelRequest{Vm: vm, Engine: engine, Workload: workload})
	return r.GetModel(), err
}

func seal(ctx context.Context, c apipbconnect.OutguardClient, vm, engine, workload string) (*apipb.Model, error) {
	r, err := c.SealModel(ctx, &apipb.SealModelRequest{Vm: vm, Engine: engine, Workload: workload})
	return r.GetModel(), err
}

func (a *app) modelChangeCmd(verb, short string, change changeModel) *cobra.Command {
	var engine, workload string
	var own bool
	cmd := a.command(&cobra.Command{
		Use: verb + " DOMAIN", Short: short,
		Long: short + `.
That is the domain's own model and those of its containers; with --workload that
of one of them, with --own the domain's own alone. A container of a kind that
comes later learns as long as the domain's own model does; once that is sealed it
may do nothing that a person has not let it.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVM,
	}, func(cmd *cobra.Command, args []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		one := func(workload string) error {
			m, err := change(cmd.Context(), client, args[0], engine, workload)
			if err != nil {
				return err
			}
			a.print(m, func() { a.describeModel(m) })
			return nil
		}
		if err := one(workload); err != nil || workload != "" || own {
			return err
		}
		// The domain's own is changed already: a container that comes now begins so.
		containers, err := a.containersOf(cmd.Context(), args[0], engine)
		if err != nil {
			return err
		}
		for _, name := range containers {
			if err := one(name); err != nil {
				return err
			}
		}
		return nil
	})
	engineFlag(cmd, &engine)
	cmd.Flags().StringVar(&workload, "workload", "", "of this container alone, by its `name` in outguard model list")
	_ = cmd.RegisterFlagCompletionFunc("workload", a.completeWorkload)
	cmd.Flags().BoolVar(&own, "own", false, "of the domain alone, and not of its containers")
	cmd.MarkFlagsMutuallyExclusive("own", "workload")
	return cmd
}

func engineFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "engine", "", "of this `engine` (default: the one that has models)")
}
