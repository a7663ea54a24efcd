package cli

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
)

// runs marks a command that does something itself and has others beside it.
const runs = "runs"

func (a *app) capturesCmd() *cobra.Command {
	r := &apipb.ListBundlesRequest{}
	cmd := a.command(&cobra.Command{
		Use: "captures", Short: "List the captures on this host, what they take, and which are pinned",
		Long: `List the captures, oldest first: directories or, with bundles.form: archive in the
configuration, files. DISK is what they take of it, holes not counted.
Before another capture is made the oldest that are not pinned are given up, until
all of them fit in captures.budget; each is a finding, capture/given-up.`,
		Args: cobra.NoArgs, Annotations: map[string]string{runs: ""},
	}, func(cmd *cobra.Command, _ []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		out, err := client.ListBundles(cmd.Context(), r)
		if err != nil {
			return err
		}
		a.printCaptures(out.Bundles)
		return nil
	})
	a.vmFlag(cmd, &r.Vm)
	cmd.AddCommand(a.capturesPinCmd(true), a.capturesPinCmd(false), a.capturesPruneCmd())
	return cmd
}

func (a *app) printCaptures(all []*apipb.Bundle) {
	printAll(a, all, "no captures; `outguard capture DOMAIN` makes one",
		[]string{"CREATED", "VM", "DISK", "PINNED", "FINDING", "NAME"}, func(b *apipb.Bundle) []string {
			return []string{clock(b.Created), vmName(b), size(b.Disk), yesNo(b.Pinned), strings.Join(b.Findings, " "), b.Id}
		})
}

func (a *app) capturesPinCmd(pinned bool) *cobra.Command {
	c := &cobra.Command{Use: "pin NAME...", Short: "Keep captures from being given up"}
	if !pinned {
		c = &cobra.Command{Use: "unpin NAME...", Short: "Let captures be given up again"}
	}
	c.Args, c.ValidArgsFunction = cobra.MinimumNArgs(1), a.completeCaptures
	return a.command(c, func(cmd *cobra.Command, args []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		for _, name := range args {
			r, err := client.PinBundle(cmd.Context(), &apipb.PinBundleRequest{Id: filepath.Base(name), Pinned: pinned})
			if err != nil {
				return err
			}
			a.print(r.Bundle, func() {
				a.printf("%s: %s\n", quote(r.Bundle.Id), map[bool]string{true: "pinned", false: "no longer pinned"}[pinned])
			})
		}
		return nil
	})
}

func (a *app) capturesPruneCmd() *cobra.Command {
	r := &apipb.PruneBundlesRequest{}
	var before, to string
	var keep uint64
	cmd := a.command(&cobra.Command{
		Use: "prune", Short: "Give captures up that are not pinned, the oldest first",
		Long: `Remove captures that are not pinned, the oldest first, and list them: those
created before a time, all but the newest, or until those that are left take no
more than a size; of several, those for which all hold. Each is a finding.`,
		Example: `  outguard captures prune --before 90d
  outguard captures prune --vm web --keep 3 --dry-run`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		var err error
		if r.Before, err = since(before, time.Now()); err != nil {
			return usageError{fmt.Errorf("--before %q is no time", before)}
		}
		if cmd.Flags().Changed("keep") {
			r.Keep = &keep
		}
		if to != "" {
			n, err := parseSize(to)
			if err != nil {
				return usageError{fmt.Errorf("--to %q: %w", to, err)}
			}
			r.Bytes = &n
		}
		if r.Before == "" && r.Keep == nil && r.Bytes == nil {
			return usageError{fmt.Errorf("say what goes: --before, --keep or --to")}
		}
		client, err := a.client()
		if err != nil {
			return err
		}
		out, err := client.PruneBundles(cmd.Context(), r)
		if err != nil {
			return err
		}
		printAll(a, out.Bundles, "none to give up; `outguard captures` lists them",
			[]string{"CREATED", "VM", "DISK", "NAME"}, func(b *apipb.Bundle) []string {
				return []string{clock(b.Created), vmName(b), size(b.Disk), b.Id}
			})
		return nil
	})
	a.vmFlag(cmd, &r.Vm)
	f := cmd.Flags()
	f.StringVar(&before, "before", "", "created before this `time`: 90d or 12h ago, or 2006-01-02")
	f.Uint64Var(&keep, "keep", 0, "all but the newest `number`")
	f.StringVar(&to, "to", "", "until the rest takes no more than this `size`, such as 20GiB")
	f.BoolVar(&r.DryRun, "dry-run", false, "list them, and give none up")
	return cmd
}

// parseSize reads a number of bytes, with KiB, MiB, GiB or TiB behind it.
func parseSize(s string) (uint64, error) {
	for i, unit := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if digits, ok := strings.CutSuffix(s, unit); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 32)
			if err != nil {
				break
			}
			return n << (10 * (i + 1)), nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("no size: write a whole number of bytes, or with KiB, MiB, GiB or TiB")
	}
	return n, nil
}

// completeCaptures offers the names of the captures.
func (a *app) completeCaptures(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	client, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := contextTimeout(cmd, time.Second)
	defer cancel()
	out, err := client.ListBundles(ctx, &apipb.ListBundlesRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, b := range out.Bundles {
		names = append(names, b.Id)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
