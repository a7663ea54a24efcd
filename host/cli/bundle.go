package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
)

func (a *app) bundleCmd() *cobra.Command {
	return group(&cobra.Command{Use: "bundle", Short: "List, show and verify what was captured"}, a.bundleListCmd())
}

func (a *app) bundleListCmd() *cobra.Command {
	r := &apipb.ListBundlesRequest{}
	cmd := a.command(&cobra.Command{
		Use: "list", Short: "List the bundles on this host", Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		out, err := client.ListBundles(cmd.Context(), r)
		if err != nil {
			return err
		}
		printAll(a, out.Bundles, "no bundles; `outguard capture DOMAIN` makes one",
			[]string{"CREATED", "VM", "SIZE", "FINDINGS", "DIR"}, func(b *apipb.Bundle) []string {
				return []string{clock(b.Created), b.Vm, size(b.Bytes), fmt.Sprint(len(b.Findings)), b.Dir}
			})
		return nil
	})
	a.vmFlag(cmd, &r.Vm)
	return cmd
}
