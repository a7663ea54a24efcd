package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/outguard/outguard/host/evidence"
)

func (a *app) evidenceCmd() *cobra.Command {
	return group(&cobra.Command{Use: "evidence", Short: "Verify the record, take a part of it elsewhere, rotate its key"}, a.evidenceVerifyCmd(), a.evidenceExportCmd(), a.rotateKeyCmd())
}

func (a *app) rotateKeyCmd() *cobra.Command {
	return a.command(&cobra.Command{
		Use:   "rotate-key",
		Short: "Give this host a new key, which the old one signs",
		Long: `Make a new host key. The old key signs that the new one follows it, and the new one
that it does; host.keys beside the public key says so to everybody. Who has any of
the host's public keys verifies all that was signed before and after, with
host.keys, which need not come from a trusted place: bundles and exports have it
with them. What the old key signs from now on is not believed.

The monitor must not run: systemctl stop outguardd, and start it again afterwards.
Guests keep what happens meanwhile. A key that somebody else may have can name a
successor of its own: then give those who verify the new host.pub yourself.`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		p, err := a.paths()
		if err != nil {
			return err
		}
		r, err := evidence.RotateKey(p.State, time.Now())
		switch {
		case errors.Is(err, evidence.ErrInUse):
			return fmt.Errorf("%w; stop it first: systemctl stop outguardd", err)
		case errors.Is(err, os.ErrNotExist):
			return fmt.Errorf("%w; outguardd makes the first key when it first starts", err)
		case errors.Is(err, os.ErrPermission):
			return fmt.Errorf("%w; run as root or as the user outguard", err)
		case err != nil:
			return err
		}
		if a.json {
			return a.printJSON(r)
		}
		a.printf("rotation %d at %s\nold key  %s\nnew key  %s\nwhat follows from which: %s\nStart the monitor again: systemctl start outguardd\n",
			r.Number, r.Time.Format(time.RFC3339), r.Old, r.New, filepath.Join(p.State, evidence.KeysFile))
		return nil
	})
}

func (a *app) evidenceVerifyCmd() *cobra.Command {
	var key string
	cmd := a.command(&cobra.Command{
		Use:   "verify [DIR]",
		Short: "Hold every byte of the record against its hashes and this host's key",
		Long: `Verify the record: the chain from the first record to the last, and every signed
head and seal, with this host's public key. DIR is a whole store or one VM's
stream in it; by default it is this host's store. No monitor needs to run; one
may. What retention has given up is told by its signed tombstones; a part that is
missing without one is corruption.`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: completeDir,
	}, func(cmd *cobra.Command, args []string) error {
		p, err := a.paths()
		if err != nil {
			return err
		}
		dir := filepath.Join(p.State, evidence.StoreDir)
		if len(args) == 1 {
			dir = args[0]
		}
		v, err := a.verifier(key)
		if err == nil {
			v, err = followKeys(v, dir)
		}
		if err != nil {
			return err
		}
		return a.verifyEvidence(cmd.Context(), dir, v)
	})
	keyFlag(cmd, &key)
	return cmd
}

// followKeys finds what follows from a key in what is verified, or above it as in
// a state directory.
func followKeys(v note.Verifier, dir string) (note.Verifier, error) {
	var last error
	for _, d := range []string{dir, filepath.Join(dir, ".."), filepath.Join(dir, "../..")} {
		if _, known := v.(*evidence.Keyring); known {
			return v, nil
		}
		f, err := evidence.FollowFile(v, filepath.Join(d, evidence.KeysFile))
		if err != nil {
			last = err
			continue
		}
		v = f
	}
	if _, known := v.(*evidence.Keyring); known {
		return v, nil
	}
	return v, last
}

func keyFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "key", "", "public key `file` of the host that signed (default: host.pub in the configuration's state_dir)")
}

// verifier loads the key that things are verified with: named, or this host's.
func (a *app) verifier(file string) (note.Verifier, error) {
	if file != "" {
		return evidence.LoadVerifier(file)
	}
	p, err := a.paths()
	if err != nil {
		return nil, err
	}
	file = filepath.Join(p.State, evidence.PubFile)
	v, err := evidence.LoadVerifier(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("this host has no key at %s (outguardd makes it when it first starts); "+
			"give the key of the host that signed with --key FILE", file)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%w; run as root, or give the key with --key FILE", err)
	}
	return v, err
}

func (a *app) verifyEvidence(ctx context.Context, dir string, v note.Verifier) error {
	reports, err := a.verifyAny(ctx, dir, v)
	for i := range reports {
		r := &reports[i]
		if a.json {
			if err := a.printJSON(struct {
				OK bool `json:"ok"`
				*evidence.Report
			}{r.OK(), r}); err != nil {
				return err
			}
			continue
		}
		a.evidenceLine(r)
	}
	switch {
	case errors.Is(err, evidence.ErrCorrupt):
		return fmt.Errorf("%w: %w", errVerify, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w; run as root or as the user outguard", err)
	case err != nil:
		return err
	case len(reports) == 0:
		return fmt.Errorf("%s holds no record; `outguard evidence verify DIR` verifies another", dir)
	}
	return nil
}

// verifyAny takes a store or one stream. It goes on after one that is corrupt,
// so that all of them are told.
func (a *app) verifyAny(ctx context.Context, dir string, v note.Verifier) ([]evidence.Report, error) {
	streams, err := streamsIn(dir)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	bar := a.progress()
	defer bar.end()
	var all []evidence.Report
	var errs []error
	for i, stream := range streams {
		r, err := evidence.VerifyProgress(ctx, stream, v, func(records uint64, bytes int64) {
			bar.say(fmt.Sprintf("stream %d of %d: %d records, %s", i+1, len(streams), records, size(uint64(bytes))))
		})
		if ctx.Err() != nil {
			return all, ctx.Err()
		}
		all, errs = append(all, r), append(errs, err)
	}
	return all, errors.Join(errs...)
}

func streamsIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), ".seg") {
			return []string{dir}, nil
		}
	}
	return evidence.StreamDirs(dir)
}

func (a *app) evidenceLine(r *evidence.Report) {
	state := "ok"
	if !r.OK() {
		state = "CORRUPT: " + r.Problem.Error()
	}
	name := r.Stream.String()
	if r.Stream == uuid.Nil {
		name = "host"
	}
	a.printf("%-36s  records %d to %d, %s, %d signed heads, %d records after the last head%s: %s\n",
		quote(name), r.First, r.Next, size(uint64(r.Bytes)), r.Heads, r.Unsigned, givenUp(r), quoteSentence(state))
}

// givenUp says what of a stream retention has given up, by its tombstones.
func givenUp(r *evidence.Report) (s string) {
	if r.GivenUp > 0 {
		s = fmt.Sprintf(", %d records given up in %d segments", r.GivenUp, r.Remainders)
	}
	if g := r.Gone; g != nil {
		s += fmt.Sprintf(", all before record %d given up for its %s on %s", g.Next, quote(g.Reason), g.Time.UTC().Format(time.DateOnly))
	}
	return s
}
