package cli

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
)

func (a *app) workloadFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "workload", "", "of this container's `name` in outguard model list (default: the domain's own)")
	_ = cmd.RegisterFlagCompletionFunc("workload", a.completeWorkload)
}

// completeWorkload completes a workload of the domain that was named before.
func (a *app) completeWorkload(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	r := &apipb.ListModelsRequest{}
	if len(args) > 0 {
		r.Vm = args[0]
	}
	all, err := a.models(cmd.Context(), r)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, m := range all {
		if m.Workload != "" {
			names = append(names, m.Workload)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// containersOf names the workloads of a domain beside its own.
func (a *app) containersOf(ctx context.Context, vm, engine string) ([]string, error) {
	all, err := a.models(ctx, &apipb.ListModelsRequest{Vm: vm, Engine: engine})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, m := range all {
		if m.Workload != "" {
			names = append(names, m.Workload)
		}
	}
	return names, nil
}

func (a *app) workloadFacts(m *apipb.Model) {
	if m.Workload != "" {
		a.fact("workload", m.Workload)
	}
	if m.Group != "" {
		a.fact("shared in", m.Group)
	}
}

func (a *app) modelJoinCmd() *cobra.Command {
	r := &apipb.JoinModelRequest{}
	cmd := a.command(&cobra.Command{
		Use:   "join DOMAIN GROUP",
		Short: "Let a workload share a model with others that do the same work",
		Long: `Let a domain's model, or with --workload a container's, be one with those of all
other workloads that have joined the group, in this domain or others. The first
to join brings its model. Who joins later brings what it has learned, if the
group's model learns; where that is sealed it is judged by that from now on, and
its own model is given up (outguard model export keeps it). Learning, sealing and
accepting are for all of the group. DOMAIN may hold * and ?, and then means every
enrolled domain that there is now with such a name.`,
		Example: `  outguard model join web1 --workload crun/nginx nginx
  outguard model join 'web-*' --workload crun/nginx nginx`,
		Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeVMThenFile,
	}, func(cmd *cobra.Command, args []string) error {
		names, err := a.domainsLike(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		r.Group = args[1]
		for _, r.Vm = range names {
			if err := a.join(cmd.Context(), r); err != nil {
				return fmt.Errorf("%s: %w", safe.Text(r.Vm), err)
			}
		}
		return nil
	})
	engineFlag(cmd, &r.Engine)
	a.workloadFlag(cmd, &r.Workload)
	return cmd
}

// domainsLike are the enrolled domains whose names match, or the one that is
// named.
func (a *app) domainsLike(ctx context.Context, pattern string) (names []string, err error) {
	if !strings.ContainsAny(pattern, "*?") {
		return []string{pattern}, nil
	}
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	out, err := client.ListVMs(ctx, &apipb.ListVMsRequest{})
	if err != nil {
		return nil, err
	}
	for _, v := range out.Vms {
		is, err := path.Match(pattern, v.Name)
		if err != nil {
			return nil, usageError{fmt.Errorf("domain %q: %w", pattern, err)}
		}
		if is && v.Enrolled {
			names = append(names, v.Name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no enrolled domain is called %s; `outguard vms` lists them", quote(pattern))
	}
	return names, nil
}

func (a *app) modelLeaveCmd() *cobra.Command {
	r := &apipb.JoinModelRequest{}
	cmd := a.command(&cobra.Command{
		Use:   "leave DOMAIN",
		Short: "Let a workload have a model of its own again",
		Long: `Let a domain, or with --workload a container, share its model with nobody any
more. It goes on with one that is as the shared one was.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVM,
	}, func(cmd *cobra.Command, args []string) error {
		r.Vm = args[0]
		return a.join(cmd.Context(), r)
	})
	engineFlag(cmd, &r.Engine)
	a.workloadFlag(cmd, &r.Workload)
	return cmd
}

func (a *app) join(ctx context.Context, r *apipb.JoinModelRequest) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	out, err := client.JoinModel(ctx, r)
	if err != nil {
		return err
	}
	a.print(out.Model, func() { a.describeModel(out.Model) })
	return nil
}
