package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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

func (a *app) evidenceVerifyCmd() *cobra.Command {
	var key string
	cmd := a.command(&cobra.Command{
		Use:   "verify [DIR]",
		Short: "Hold every byte of the record against its hashes and this host's key",
		Long: `Verify the record: the chain from the first record to the last, and every signed
head and seal, with this host's public key. DIR is a whole store or one VM's
stream in it; by default it is this host's store. No monitor needs to run; one
may. What retention has given up is told by its signed tombstones; a part that is
missing without one is corruption.

DIR can be what outguard evidence export has written, too. Then its statement is held
against what is there, and it is told whether the record itself shows that nothing of
the time that was asked for is missing at its beginning and at its end, or only who
exported it says so.`,
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
		return a.verifyEvidence(cmd.Context(), dir, func() (note.Verifier, error) {
			v, err := a.verifier(key)
			if err != nil {
				return nil, err
			}
			return followKeys(v, dir)
		})
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

func (a *app) verifyEvidence(ctx context.Context, dir string, keys func() (note.Verifier, error)) error {
	v, err := keys()
	if err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, evidence.StatementFile)); err == nil {
		return a.verifyExport(ctx, dir, v)
	}
	reports, err := a.verifyAny(ctx, dir, v)
	if errors.Is(err, evidence.ErrCorrupt) { // or the key was rotated meanwhile
		if again, kerr := keys(); kerr == nil && evidence.Generations(again) > evidence.Generations(v) {
			reports, err = a.verifyAny(ctx, dir, again)
		}
	}
	for i := range reports {
		r := &reports[i]
		unread := error(nil) // the last one's, if it is no verdict
		if i == len(reports)-1 && err != nil && r.OK() {
			unread = err
		}
		if a.json {
			text := ""
			if unread != nil {
				text = unread.Error()
			}
			if err := a.printJSON(struct {
				OK    bool   `json:"ok"`
				Error string `json:"error,omitempty"`
				*evidence.Report
			}{r.OK() && unread == nil, text, r}); err != nil {
				return err
			}
			continue
		}
		a.evidenceLine(r, unread)
	}
	if err == nil && isPart(reports) {
		_, _ = fmt.Fprintf(a.err, "no %s is here: this is a part of a record, and what was asked for, and whether something is missing before or behind it, nobody states\n", evidence.StatementFile)
	}
	if err == nil && len(reports) == 0 {
		return fmt.Errorf("%s holds no record; `outguard evidence verify DIR` verifies another", dir)
	}
	return verdict(err)
}

// isPart says whether what was verified are parts of records, by their places: a
// whole one is called by its UUID.
func isPart(reports []evidence.Report) bool {
	return slices.ContainsFunc(reports, func(r evidence.Report) bool {
		name, _, _ := strings.Cut(filepath.Base(filepath.Clean(r.Dir)), ".corrupt-")
		_, err := uuid.Parse(name)
		return err != nil
	})
}

func verdict(err error) error {
	switch {
	case errors.Is(err, evidence.ErrCorrupt):
		return fmt.Errorf("%w: %w", errVerify, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w; run as root or as the user outguard", err)
	}
	return err
}

// verifyExport verifies what was exported, as a whole.
func (a *app) verifyExport(ctx context.Context, dir string, v note.Verifier) error {
	bar := a.progress()
	r, err := evidence.VerifyExport(ctx, dir, v, func(stream, of int, records uint64, bytes int64) {
		bar.say(fmt.Sprintf("stream %d of %d: %d records, %s", stream, of, records, size(uint64(bytes))))
	})
	bar.end()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if a.json {
		return errors.Join(verdict(err), a.printJSON(struct {
			OK bool `json:"ok"`
			*evidence.ExportReport
		}{err == nil, &r}))
	}
	if s := r.Statement; s != nil {
		a.printf("exported %s: %s\n", s.Made.Local().Format(time.DateTime), asked(s))
	}
	for i := range r.Streams {
		a.evidenceLine(&r.Streams[i].Report, nil)
		if r.Streams[i].OK() {
			a.endsLines(r.Statement, &r.Streams[i])
		}
	}
	a.nothingLines(r.Statement)
	return verdict(err)
}

func asked(s *evidence.Statement) string {
	since, until := "the beginning", "then"
	if !s.Since.IsZero() {
		since = s.Since.Local().Format(time.DateTime)
	}
	if !s.Until.IsZero() {
		until = s.Until.Local().Format(time.DateTime)
	}
	return fmt.Sprintf("what there was from %s until %s, of %d streams", since, until, len(s.Streams))
}

// endsLines says whether an export's two ends are shown or said.
func (a *app) endsLines(s *evidence.Statement, x *evidence.ExportedTo) {
	st := &x.Stated
	a.printf("  %d records of that time\n", st.Records-min(st.Left, st.Records))
	switch {
	case x.Begins && x.Gone != nil:
		a.printf("  beginning: shown, what was before has its tombstone\n")
	case x.Begins && x.First == 0:
		a.printf("  beginning: shown, it is the record's own\n")
	case x.Begins:
		a.printf("  beginning: shown, by a record from before it\n")
	default:
		a.printf("  beginning: not shown by the record; the statement says that it begins at %d, of records from %d\n", x.First, st.Begin)
	}
	switch {
	case x.Ends:
		a.printf("  end: shown, by a head of %s\n", x.Head.Time.Local().Format(time.DateTime))
	case st.Left > 0:
		a.printf("  end: %d records are not here that no head had signed\n", st.Left)
	default:
		a.printf("  end: not shown by the record; the statement says that there were no more than %d records at %s\n", st.End, s.Made.Local().Format(time.DateTime))
	}
}

// nothingLines names the streams of which there is nothing.
func (a *app) nothingLines(s *evidence.Statement) {
	if s == nil {
		return
	}
	for _, st := range s.Streams {
		if st.Range == nil {
			a.printf("%-36s  nothing of that time, says the statement; %d records that no head had signed\n", quote(streamName(st.Stream)), st.Left)
		}
	}
}

func streamName(stream uuid.UUID) string {
	if stream == uuid.Nil {
		return "host"
	}
	return stream.String()
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
	dirs, err := evidence.StreamDirs(dir)
	if err != nil || len(dirs) > 0 {
		return dirs, err
	}
	return evidence.ExportDirs(dir)
}

func (a *app) evidenceLine(r *evidence.Report, unread error) {
	state := "ok"
	switch {
	case !r.OK():
		state = "CORRUPT: " + r.Problem.Error()
	case unread != nil:
		state = "NOT READ: " + unread.Error()
	}
	a.printf("%-36s  records %d to %d, %s, %d signed heads, %d records after the last head%s: %s\n",
		quote(streamName(r.Stream)), r.First, r.Next, size(uint64(r.Bytes)), r.Heads, r.Unsigned, givenUp(r), quoteSentence(state))
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
