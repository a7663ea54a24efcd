package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
)

func (a *app) findingsCmd() *cobra.Command {
	r := &apipb.FindingsRequest{}
	var from string
	var exitCode bool
	cmd := a.command(&cobra.Command{
		Use:   "findings",
		Short: "Print what the engines and the monitor found",
		Long: `Print findings, oldest first (of each VM in the order of its record, the VMs
merged by time): all of them, or with --follow those from now on (and with
--since as well, those since). If a VM's record cannot be read on, the others'
findings are printed all the same, and then the error. Columns: when, severity, VM, rule, the
process and file it is about, the reason, and in brackets its id and the
evidence index of its event.`,
		Example: `  outguard findings -f --min-severity high
  outguard findings --since 1h --exit-code || mail -s findings root`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		if r.Since, err = since(from, time.Now()); err != nil {
			return err
		}
		s, err := client.Findings(cmd.Context(), r)
		if err != nil {
			return err
		}
		any := false
		err = receive(cmd.Context(), a, s, r.Follow, func(m *apipb.FindingsResponse) {
			any = true
			a.print(m.Finding, func() { a.printf("%s\n", findingLine(m.Finding)) })
		})
		if err == nil && any && exitCode {
			return errFound
		}
		return err
	})
	f := cmd.Flags()
	f.BoolVarP(&r.Follow, "follow", "f", false, "go on with what is found")
	a.vmFlag(cmd, &r.Vm)
	f.StringVar(&from, "since", "", sinceHelp)
	f.StringVar(&r.MinSeverity, "min-severity", "", "of this `severity` at least: info, low, medium, high, critical")
	f.Uint64Var(&r.Limit, "limit", 0, "stop after this `number`")
	f.BoolVar(&exitCode, "exit-code", false, "exit with 3 if there is a finding")
	_ = cmd.RegisterFlagCompletionFunc("min-severity",
		cobra.FixedCompletions([]cobra.Completion{"info", "low", "medium", "high", "critical"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func findingLine(f *apipb.Finding) string {
	var about []string
	if f.Pid != 0 {
		about = append(about, fmt.Sprintf("pid %d", f.Pid))
	}
	if f.Comm != "" {
		about = append(about, quote(f.Comm))
	}
	if f.Path != "" {
		about = append(about, quote(f.Path))
	}
	if len(about) > 0 {
		about = append(about, "")
	}
	where := safe.Text(f.Id)
	if f.Ref != nil {
		where += fmt.Sprintf(" index %d", f.Ref.Index)
	}
	if f.Technique != "" {
		where += " " + safe.Text(f.Technique)
	}
	return fmt.Sprintf("%s  %-8s  %-12s %-20s  %s%s [%s]", clock(f.At), safe.Text(f.Severity), vmName(f),
		safe.Text(f.Rule), strings.Join(about, " "), safe.Text(f.Reason), where)
}
