package cli

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/vsockproto"
)

// completeVM offers the domains that the monitor knows, for a first argument.
func (a *app) completeVM(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.vmNames(cmd), cobra.ShellCompDirectiveNoFileComp
}

// completeVMFlag offers them for --vm, whatever the arguments are.
func (a *app) completeVMFlag(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.vmNames(cmd), cobra.ShellCompDirectiveNoFileComp
}

// vmNames is quick or nothing: somebody waits at a prompt.
func (a *app) vmNames(cmd *cobra.Command) []cobra.Completion {
	client, err := a.client()
	if err != nil {
		return nil
	}
	ctx, cancel := contextTimeout(cmd, time.Second)
	defer cancel()
	r, err := client.ListVMs(ctx, &apipb.ListVMsRequest{})
	if err != nil {
		return nil
	}
	var names []cobra.Completion
	for _, v := range r.Vms {
		names = append(names, v.Name)
	}
	return names
}

func completeTypes(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	for _, t := range vsockproto.EventTypes() {
		names = append(names, t.String())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func completeDir(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// vmFlag adds --vm.
func (a *app) vmFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "vm", "", "of this `domain` alone, by name or UUID")
	_ = cmd.RegisterFlagCompletionFunc("vm", a.completeVMFlag)
}
