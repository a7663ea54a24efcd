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
type exportOptions struct {
	vms                  []string
	all                  bool
	from, to, out, store string
}

func (a *app) evidenceExportCmd() *cobra.Command {
	var o exportOptions
	cmd := a.command(&cobra.Command{
		Use:   "export {--vm DOMAIN... | --all} --out DIR",
		Short: "Take a part of the record elsewhere, to be verified there",
		Long: `Write what the records of domains have of a time into a new directory, up to and with
the signed head that covers the last of it; of several domains each gets a directory
in there. outguard evidence verify DIR --key host.pub holds all of it against the
host's public key on any machine; give that key to who verifies by another way than
this directory. What retention left of a segment comes along whole; what it gave up
has its signed tombstone there. host.keys, where the host's key was rotated, comes
along too.

Where this user may read the host's key, export.note is there as well: what time and
which domains were asked for, and what there was of it, signed. The record before that
time and the head after it come along, so that whoever verifies it can tell that
nothing is missing at its beginning or its end.

No monitor needs to run; one may. Then a head that is due is waited for, up to 15 s.`,
		Example: `  outguard evidence export --vm web --since 2h --out case-7
  outguard evidence export --vm web --vm db --since '2026-11-23 17:00' --until '2026-11-23 18:00' --out case-7
  outguard evidence export --all --since 1d --out case-8`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error { return a.exportEvidence(cmd.Context(), &o) })
	f := cmd.Flags()
	f.StringArrayVar(&o.vms, "vm", nil, "of this `domain`, by name or UUID, as often as there are some; host is the host's own record")
	_ = cmd.RegisterFlagCompletionFunc("vm", a.completeVMFlag)
	f.BoolVar(&o.all, "all", false, "of every domain that has a record, and of the host")
	f.StringVar(&o.from, "since", "", sinceHelp)
	f.StringVar(&o.to, "until", "", untilHelp)
	f.StringVar(&o.out, "out", "", "write to this `directory`, which must not exist")
	f.StringVar(&o.store, "store", "", "take it from this evidence `directory` (default: evidence in the configuration's state_dir)")
	_ = cmd.MarkFlagRequired("out")
	cmd.MarkFlagsOneRequired("vm", "all")
	cmd.MarkFlagsMutuallyExclusive("vm", "all")
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
	streams, err := o.streams(filepath.Join(p.State, "enroll"))
	if err != nil {
		return err
	}
	made := time.Now() // before the key is read: one that is replaced meanwhile still signs for it
	key, unsigned := exportKey(o.store)
	bar := a.progress()
	all, err := evidence.ExportTime(ctx, streams, o.out, since, until, &evidence.ExportOptions{
		Key: key, Now: func() time.Time { return made }, Began: func(vm uuid.UUID, n, of int) { bar.say(fmt.Sprintf("stream %d of %d: %s", n, of, vm)) },
	})
	bar.end()
	switch {
	case errors.Is(err, os.ErrExist):
		return fmt.Errorf("%w; name another with --out", err)
	case err != nil:
		return readableStore(err)
	}
	for i := range all {
		if !a.json {
			a.exportedLine(&all[i])
		} else if err := a.printJSON(&all[i]); err != nil {
			return err
		}
	}
	if !a.json {
		a.printf("To verify it: outguard evidence verify %s --key host.pub\n", quote(o.out))
	}
	if unsigned != nil {
		_, _ = fmt.Fprintf(a.err, "nobody states what was asked for: %v; as root, or as the user outguard, the host's key does\n", unsigned)
	}
	return nil
}

// exportKey is the host's key beside a store, if it is there and may be read. It is
// only read: a monitor may be running.
func exportKey(store string) (*evidence.Key, error) {
	state := filepath.Dir(filepath.Clean(store))
	key, err := evidence.LoadKey(filepath.Join(state, evidence.KeyFile))
	if err != nil {
		return nil, err
	}
	v, err := evidence.LoadVerifier(filepath.Join(state, evidence.PubFile))
	if err != nil {
		return nil, err
	}
	if v.Name() != key.Name() || v.KeyHash() != key.KeyHash() {
		return nil, fmt.Errorf("%s is not the public half of %s", evidence.PubFile, evidence.KeyFile)
	}
	return key, nil
}

// streams finds the directories of the records that are asked for.
func (o *exportOptions) streams(enrolled string) ([]string, error) {
	var ids []uuid.UUID
	if o.all {
		all, err := evidence.Streams(o.store)
		if err != nil {
			return nil, readableStore(err)
		}
		if len(all) == 0 {
			return nil, fmt.Errorf("%s holds no record", o.store)
		}
		ids = all
	}
	for _, name := range o.vms {
		vm, err := streamOf(o.store, enrolled, name)
		if err != nil {
			return nil, err
		}
		ids = append(ids, vm)
	}
	var dirs []string
	for _, vm := range ids {
		dirs = append(dirs, evidence.StreamDir(o.store, vm))
	}
	return dirs, nil
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

func (a *app) exportedLine(x *evidence.Exported) {
	name := streamName(x.Stream)
	if x.Dir == "" {
		a.printf("%s: nothing of that time%s\n", name, map[bool]string{true: " that a head has signed"}[x.Left > 0])
		return
	}
	a.printf("%s: records %d to %d, %d of that time, signed by the head of %s\n", name, x.First, x.Next, x.Records, x.Head.Time.Format(time.RFC3339))
	if x.GivenUp {
		a.printf("a part of it was given up before; its tombstones are there\n")
	}
	if x.Left > 0 {
		a.printf("%d records are not in it: no head has signed them yet\n", x.Left)
	}
}
