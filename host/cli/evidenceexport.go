package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/evidence"
)

// exportOptions are the flags of evidence export.
type exportOptions struct{ vm, from, to, out, store string }

func (a *app) evidenceExportCmd() *cobra.Command {
	var o exportOptions
	cmd := a.command(&cobra.Command{
		Use:   "export --vm DOMAIN --out DIR",
		Short: "Take a part of a domain's record elsewhere, to be verified there",
		Long: `Write what a domain's record has of a time into a new directory, up to and with the
signed head that covers the last of it. outguard evidence verify DIR --key host.pub
holds it against the host's public key on any machine; give that key to who verifies
by another way than this directory. What retention left of a segment comes along
whole; what it gave up has its signed tombstone there. host.keys, where the host's key
was rotated, comes along too.

No monitor needs to run; one may. Then a head that is due is waited for, up to 15 s.`,
		Example: `  outguard evidence export --vm web --since 2h --out case-7
  outguard evidence export --vm web --since '2026-11-23 17:00' --until '2026-11-23 18:00' --out case-7`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error { return a.exportEvidence(cmd.Context(), &o) })
	a.vmFlag(cmd, &o.vm)
	f := cmd.Flags()
	f.StringVar(&o.from, "since", "", sinceHelp)
	f.StringVar(&o.to, "until", "", untilHelp)
	f.StringVar(&o.out, "out", "", "write to this `directory`, which must not exist")
	f.StringVar(&o.store, "store", "", "take it from this evidence `directory` (default: evidence in the configuration's state_dir)")
	_ = cmd.MarkFlagRequired("vm")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

func (a *app) exportEvidence(ctx context.Context, o *exportOptions) error {
	p, err := a.paths()
	if err != nil {
		return err
	}
	if o.store == "" {
		o.store = filepath.Join(p.State, evidence.StoreDir)
	}
	since, until, err := exportTimes(o, time.Now())
	if err != nil {
		return err
	}
	vm, err := streamOf(o.store, filepath.Join(p.State, "enroll"), o.vm)
	if err != nil {
		return err
	}
	x, err := evidence.ExportTime(ctx, evidence.StreamDir(o.store, vm), o.out, since, until)
	switch {
	case errors.Is(err, os.ErrExist):
		return fmt.Errorf("%w; name another with --out", err)
	case err != nil:
		return readableStore(err)
	}
	if a.json {
		return a.printJSON(x)
	}
	a.exportedLine(vm, o, &x)
	return nil
}

func exportTimes(o *exportOptions, now time.Time) (since, until time.Time, err error) {
	for flag, t := range map[string]struct {
		text string
		to   *time.Time
	}{"since": {o.from, &since}, "until": {o.to, &until}} {
		if t.text == "" {
			continue
		}
		if *t.to, err = parseSince(t.text, now); err != nil {
			_, err = when(flag, t.text, now)
			return since, until, err
		}
	}
	if !until.IsZero() && !since.Before(until) {
		err = usageError{fmt.Errorf("--until %q is not after --since", o.to)}
	}
	return since, until, err
}

// streamOf finds a domain's record by its name, its UUID or, of the host's own, host.
func streamOf(store, enrolled, name string) (uuid.UUID, error) {
	all, err := evidence.Streams(store)
	if err != nil {
		return uuid.Nil, readableStore(err)
	}
	names := enrolledNames(enrolled)
	for _, vm := range all {
		if vm.String() == name || names[vm] == name || vm == uuid.Nil && name == "host" {
			return vm, nil
		}
	}
	return uuid.Nil, fmt.Errorf("there is no record of %q in %s; name the domain by its UUID", name, store)
}

func (a *app) exportedLine(vm uuid.UUID, o *exportOptions, x *evidence.Exported) {
	a.printf("%s: records %d to %d, %d of that time, signed by the head of %s\n", vm, x.First, x.Next, x.Records, x.Head.Time.Format(time.RFC3339))
	if x.GivenUp {
		a.printf("a part of it was given up before; its tombstones are there\n")
	}
	if x.Left > 0 {
		a.printf("%d records are not in it: no head has signed them yet\n", x.Left)
	}
	a.printf("To verify it: outguard evidence verify %s --key host.pub\n", quote(o.out))
}
