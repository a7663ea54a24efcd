package cli

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/host/version"
)

func (a *app) versionCmd() *cobra.Command {
	return a.command(&cobra.Command{
		Use:   "version",
		Short: "Print the version of this program and of the monitor that runs",
		Args:  cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := contextTimeout(cmd, 2*time.Second)
		defer cancel()
		running := ""
		if client, err := a.client(); err == nil {
			if st, err := client.Status(ctx, &apipb.StatusRequest{}); err == nil {
				running = st.Version
			}
		}
		if a.json {
			return a.printJSON(struct {
				Outguard  string `json:"outguard"`
				Outguardd string `json:"outguardd"` // "": not running
			}{version.String(), running})
		}
		a.printf("outguard   %s\n", version.String())
		if running == "" {
			running = "not running"
		}
		a.printf("outguardd  %s\n", safe.Text(running))
		return nil
	})
}
