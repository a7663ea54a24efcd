package cli

import (
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
)

// version is set by the linker:
//
//	-ldflags "-X github.com/outguard/outguard/host/cli.version=v1.2.3"
var version string

// Version is what this binary was built from: as the linker was told, else as
// the module proxy or version control says, else "devel".
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	return versionOf(info)
}

func versionOf(info *debug.BuildInfo) string {
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision, modified := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = "-dirty"
		}
	}
	if revision == "" {
		return "devel"
	}
	return "devel-" + revision + modified
}

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
			}{Version(), running})
		}
		a.printf("outguard   %s\n", Version())
		if running == "" {
			running = "not running"
		}
		a.printf("outguardd  %s\n", running)
		return nil
	})
}
