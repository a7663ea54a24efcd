package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/vsockproto"
)

func (a *app) policyCmd() *cobra.Command {
	return group(&cobra.Command{
		Use: "policy", Short: "Which hooks a domain's agent attaches and reports",
	}, a.policyShowCmd(), a.policySetCmd(), a.policyResetCmd())
}

func (a *app) policyShowCmd() *cobra.Command {
	return a.command(&cobra.Command{
		Use: "show DOMAIN", Short: "The domain's profile, whether it is in force, its filters and its hooks",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVM,
	}, func(cmd *cobra.Command, args []string) error {
		s, err := a.sessionOf(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		a.print(s, func() { a.showPolicy(s) })
		return nil
	})
}

func (a *app) showPolicy(s *apipb.Session) {
	a.fact("hooks", policyState(s))
	a.showFilters(s)
	t := a.table("HOOK", "AVAILABLE", "ATTACHED")
	for _, h := range s.Hooks {
		if h.Wanted {
			t.row(h.Name, yesNo(h.Available), yesNo(h.Attached))
		}
	}
	t.flush()
}

// showFilters says what the guest's kernel leaves out, if it was asked to or does.
func (a *app) showFilters(s *apipb.Session) {
	if len(s.Filters) == 0 && s.Filtered == 0 && s.FiltersPolicy == 0 {
		return
	}
	a.fact("filtered", filterState(s))
	for _, f := range s.Filters {
		a.fact("filter", f)
	}
}

func filterState(s *apipb.Session) string {
	text := fmt.Sprintf("%d records since the boot, by %d filters", s.Filtered, len(s.Filters))
	switch {
	case s.FiltersPolicy != 0:
		return fmt.Sprintf("%s of policy %d, in force", text, s.FiltersPolicy)
	case len(s.Filters) > 0:
		return text + ", not in force yet"
	}
	return text
}

// sessionOf is what is known of a domain's agent.
func (a *app) sessionOf(ctx context.Context, name string) (*apipb.Session, error) {
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	r, err := client.ListVMs(ctx, &apipb.ListVMsRequest{})
	if err != nil {
		return nil, err
	}
	for _, v := range r.Vms {
		if v.Name != name && v.Uuid != name {
			continue
		}
		if v.Session == nil {
			return nil, fmt.Errorf("%s: its agent was never heard: outguard enroll prints what the guest needs", safe.Text(name))
		}
		return v.Session, nil
	}
	return nil, fmt.Errorf("no domain %s: outguard vms lists them", safe.Quote([]byte(name)))
}

func (a *app) policySetCmd() *cobra.Command {
	var wait time.Duration
	cmd := a.command(&cobra.Command{
		Use: "set DOMAIN PROFILE", Short: "Give a domain another profile, and wait until it is in force",
		Long: `Give a domain another profile of hooks, whatever the configuration says, and
wait until its agent has put it into force. What both profiles ask for is
reported throughout. It stays until another is set or outguard policy reset.`,
		Args: cobra.ExactArgs(2), ValidArgsFunction: a.completePolicy,
	}, func(cmd *cobra.Command, args []string) error { return a.setPolicy(cmd, args[0], args[1], wait) })
	waitFlag(cmd, &wait)
	return cmd
}

func (a *app) policyResetCmd() *cobra.Command {
	var wait time.Duration
	cmd := a.command(&cobra.Command{
		Use: "reset DOMAIN", Short: "Give a domain the profile that the configuration says",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVM,
	}, func(cmd *cobra.Command, args []string) error { return a.setPolicy(cmd, args[0], "", wait) })
	waitFlag(cmd, &wait)
	return cmd
}

func waitFlag(cmd *cobra.Command, wait *time.Duration) {
	cmd.Flags().DurationVar(wait, "wait", time.Minute, "for the agent to answer; 0 does not wait")
}

// completePolicy offers domains, and then profiles.
func (a *app) completePolicy(cmd *cobra.Command, args []string, part string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return vsockproto.ProfileNames(), cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeVM(cmd, args, part)
}

var errNotInForce = errors.New("not in force")

func (a *app) setPolicy(cmd *cobra.Command, name, profile string, wait time.Duration) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	r, err := client.SetPolicy(cmd.Context(), &apipb.SetPolicyRequest{Vm: name, Profile: profile})
	if err != nil {
		return err
	}
	s, err := a.inForce(cmd.Context(), name, r.Policy, wait)
	if err != nil {
		return fmt.Errorf("profile %s, policy %d: %w", safe.Text(r.Profile), r.Policy, err)
	}
	a.print(r, func() { a.printf("%s\n", policyState(s)) })
	return nil
}

// inForce waits until a policy is, or the agent has refused it.
func (a *app) inForce(ctx context.Context, name string, number uint64, wait time.Duration) (*apipb.Session, error) {
	end := time.Now().Add(wait)
	for {
		s, err := a.sessionOf(ctx, name)
		switch {
		case err != nil:
			return nil, err
		case s.PolicyAcked >= number || wait == 0:
			return s, nil
		case s.PolicyReason != "":
			return nil, fmt.Errorf("%w: the agent refuses it: %s", errNotInForce, safe.Text(s.PolicyReason))
		case time.Now().After(end):
			return nil, fmt.Errorf("%w: the agent is %s and has not answered; it is sent the policy whenever it connects", errNotInForce, safe.Text(s.State))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}
