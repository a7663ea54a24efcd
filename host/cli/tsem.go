package cli

import (
	"bufio"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/plugins/tsem"
	"github.com/outguard/outguard/plugins/tsem/quixote"
)

func (a *app) tsemCmd() *cobra.Command {
	return group(&cobra.Command{Use: "tsem", Short: "TSEM's and Quixote's own terms, tools and files"},
		a.tsemShowCmd(), a.tsemMeasureCmd(), a.tsemReplayCmd(), a.tsemPseudonymCmd(), a.tsemDiffCmd())
}

// flushed is the output of a verb that may wait for its input: what is written
// is on its way.
type flushed struct{ *bufio.Writer }

func (w flushed) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	if err != nil {
		return n, err
	}
	return n, w.Flush()
}

// input opens a file of lines; - is standard input.
func input(cmd *cobra.Command, name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(cmd.InOrStdin()), nil
	}
	return os.Open(name)
}

func completeJSONL(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return []cobra.Completion{"jsonl", "json"}, cobra.ShellCompDirectiveFilterFileExt
}

const dialectHelp = "how lines are read, a `name`: quixote, as its agents do, or json, strictly"

func dialectFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "dialect", "quixote", dialectHelp)
	_ = cmd.RegisterFlagCompletionFunc("dialect", cobra.FixedCompletions([]cobra.Completion{"quixote", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

func (a *app) tsemMeasureCmd() *cobra.Command {
	var dialect string
	cmd := a.command(&cobra.Command{
		Use:   "measure FILE.jsonl",
		Short: "Compute the coefficients of exported events, without a monitor",
		Long: `Measure the events of an export, TSEM's or Outguard's, one JSON object a line; -
is standard input. For each line one comes out, in order:

    {"ok": true, "type": …, "pid": …, "tnum": …, "coe": …, "cell": …, "point": …, "pseudonym": …}
    {"ok": false, "error": …}

The mapping is Quixote's. pid and tnum are 0 where the event does not tell them;
pseudonym is empty where the event has no file. Lines are not trimmed. With
--dialect quixote, lines that are no JSON at all mean what they mean to Quixote's
agents, who search text.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: completeJSONL,
	}, func(cmd *cobra.Command, args []string) error {
		d, err := quixote.ParseDialect(dialect)
		if err != nil {
			return usageError{err}
		}
		events, err := input(cmd, args[0])
		if err != nil {
			return err
		}
		defer events.Close()
		return quixote.Measure(flushed{a.out}, events, d)
	})
	dialectFlag(cmd, &dialect)
	return cmd
}

// replayFlags are those of tsem replay.
type replayFlags struct {
	dialect, model, aggregate, key string
	sealAfter                      int
	brief                          bool
}

func (a *app) tsemReplayCmd() *cobra.Command {
	var f replayFlags
	cmd := a.command(&cobra.Command{
		Use:   "replay FILE.jsonl",
		Short: "Judge exported events by a model, without a monitor",
		Long: `Replay the events of an export into a model and print records, one JSON object a
line: "init", then an "event" for each line, then "final" with every point; - is
standard input. Violations are in the records and do not change the exit code; a
model file that is broken ends it with 3, after the init record.

An aggregate line sets the aggregate and has no record. A line that is no event
has the record {"rec": "event", "n": N, "update": false}. A model file without
"end" is accepted here and nowhere else: as in Quixote, it takes no event.

The state of an event's record is a hash chain over all points, so a replay of
many points is faster with --brief, which prints init and final alone, and the
events that were none.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: completeJSONL,
	}, func(cmd *cobra.Command, args []string) error { return a.replay(cmd, args[0], &f) })
	fl := cmd.Flags()
	dialectFlag(cmd, &f.dialect)
	fl.StringVar(&f.model, "model", "", "begin with this model `file` of Quixote's; default: an empty one")
	fl.StringVar(&f.aggregate, "aggregate", "", "set this `hex` aggregate once the model is loaded")
	fl.IntVar(&f.sealAfter, "seal-after", -1, "seal the model after this `number` of events")
	fl.StringVar(&f.key, "key", "", "refuse a model that is not signed by this RSA public key, a PEM `file`")
	fl.BoolVar(&f.brief, "brief", false, "print no record for each event")
	return cmd
}

func (a *app) replay(cmd *cobra.Command, file string, f *replayFlags) error {
	o := &quixote.ReplayOptions{SealAfter: f.sealAfter, Brief: f.brief}
	var err error
	if o.Dialect, err = quixote.ParseDialect(f.dialect); err != nil {
		return usageError{err}
	}
	if f.aggregate != "" {
		if o.Aggregate, err = parseDigest(f.aggregate); err != nil {
			return usageError{fmt.Errorf("--aggregate: %w", err)}
		}
	}
	if o.Load.Key, err = readKey(f.key); err != nil {
		return err
	}
	if f.model != "" {
		model, err := os.Open(f.model)
		if err != nil {
			return err
		}
		defer model.Close()
		o.Model, o.Loaded = model, func(l *quixote.Loaded) { a.warnSigner(l, f.key != "") }
	}
	events, err := input(cmd, file)
	if err != nil {
		return err
	}
	defer events.Close()
	err = quixote.Replay(flushed{a.out}, events, o)
	if errors.Is(err, quixote.ErrModel) {
		return failedVerify{fmt.Errorf("%s: %w", f.model, err)}
	}
	return err
}

// failedVerify is an error that ends with ExitVerify.
type failedVerify struct{ error }

func (e failedVerify) Is(target error) bool { return target == errVerify }
func (e failedVerify) Unwrap() error        { return e.error }

// warnSigner says what a signature is worth.
func (a *app) warnSigner(l *quixote.Loaded, pinned bool) {
	switch {
	case !l.Ended:
		_, _ = fmt.Fprintln(a.err, "outguard: the model file has no `end`, so the model takes no event")
	case l.Signed && !pinned:
		_, _ = fmt.Fprintln(a.err, "outguard: the model is signed by the key inside it, which proves nothing about who signed; --key pins one")
	}
}

func parseDigest(s string) (*tsem.ID, error) {
	v := new(tsem.ID)
	if len(s) != hex.EncodedLen(len(v)) {
		return nil, fmt.Errorf("%d hex digits, want %d", len(s), hex.EncodedLen(len(v)))
	}
	_, err := hex.Decode(v[:], []byte(s))
	return v, err
}

func readKey(file string) (*rsa.PublicKey, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	key, err := quixote.ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", file, err)
	}
	return key, nil
}

func (a *app) tsemPseudonymCmd() *cobra.Command {
	return a.command(&cobra.Command{
		Use:   "pseudonym PATH...",
		Short: "Compute the pseudonyms under which files may change their content",
		Long: `Print, for each path, the line of a model file that lets the file change its
content without a new point. The path is as events tell it.`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: completeFiles,
	}, func(_ *cobra.Command, args []string) error {
		for _, path := range args {
			p := tsem.Pseudonym([]byte(path))
			if !a.json {
				a.printf("pseudonym %x\n", p)
				continue
			}
			if err := a.printJSON(struct {
				Path      string `json:"path"`
				Pseudonym string `json:"pseudonym"`
			}{path, hex.EncodeToString(p[:])}); err != nil {
				return err
			}
		}
		return nil
	})
}

func completeFiles(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}
