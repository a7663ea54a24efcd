package cli

import (
	"context"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/host/evidence"
)

func (a *app) decisionsCmd() *cobra.Command {
	var vm, from string
	t := &policyTest{a: a}
	cmd := a.command(&cobra.Command{
		Use:   "decisions",
		Short: "Print what the playbook decided of the findings on record",
		Long: `Print the decisions on record that ordered something or would have: what a rule
on trial (dry_run) would have ordered stands there as well, and the steps that a
limit took. With --all also those that held back, and that nothing was decided.
It reads the record, so no monitor needs to run.`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		return t.decisions(cmd.Context(), vm, from)
	})
	a.vmFlag(cmd, &vm)
	f := cmd.Flags()
	f.StringVar(&from, "since", "", sinceHelp)
	f.BoolVar(&t.all, "all", false, "print every decision")
	return cmd
}

func (t *policyTest) decisions(ctx context.Context, vm, from string) error {
	p, err := t.a.paths()
	if err != nil {
		return err
	}
	t.store, t.names = filepath.Join(p.State, evidence.StoreDir), enrolledNames(filepath.Join(p.State, "enroll"))
	if err := t.times(from, "", time.Now()); err != nil {
		return err
	}
	var ranges []string
	if vm != "" {
		ranges = []string{vm}
	}
	streams, err := t.streams(ranges)
	if err != nil {
		return err
	}
	any := false
	err = t.merge(ctx, streams, func(m *met) error {
		if m.did == nil || !t.shown(m.did) {
			return nil
		}
		any = true
		return t.decided(m)
	})
	if err == nil && !any && !t.a.json {
		_, _ = t.a.err.Write([]byte("no decisions; --all shows those that did nothing, `outguard findings` what was found\n"))
	}
	return err
}

// decided prints one decision on record.
func (t *policyTest) decided(m *met) error {
	f, d := m.finding, m.did
	if t.a.json {
		return t.a.printJSON(struct {
			At      string    `json:"at"`
			VM      string    `json:"vm"`
			UUID    uuid.UUID `json:"uuid"`
			Finding string    `json:"finding"`
			Found   string    `json:"found"` // the finding's rule
			decision
		}{api.FormatTime(d.At), t.nameOf(m.vm), m.vm, f.ID, f.Rule, decisionOf(d)})
	}
	t.a.printf("%s %s %s [%s]: %s\n", d.At.Local().Format("2006-01-02 15:04:05.000"), quote(t.nameOf(m.vm)), quote(f.Rule), quote(f.ID), safe.Text(would(d)))
	return nil
}
