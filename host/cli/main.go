package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/safe"
)

// Main runs one command line, without the program's name, and returns its exit
// code. ctx ends what waits or follows.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{out: bufio.NewWriterSize(stdout, 64<<10), err: stderr}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(a.out)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if flushed := a.out.Flush(); err == nil && flushed != nil {
		err = runError{fmt.Errorf("write: %w", flushed)}
	}
	return a.exit(err)
}

// runError marks what went wrong in a command, from what was wrong in how it
// was called.
type runError struct{ error }

func (e runError) Unwrap() error { return e.error }

// errVerify ends with ExitVerify.
var errVerify = errors.New("verification failed")

// errFound ends with ExitVerify and no message: the findings were printed.
var errFound = errors.New("there are findings")

func (a *app) exit(err error) int {
	var ran runError
	switch {
	case err == nil:
		return ExitOK
	case !errors.As(err, &ran):
		_, _ = fmt.Fprintf(a.err, "outguard: %s\nTry `outguard --help`.\n", safe.Text(err.Error()))
		return ExitUsage
	case errors.Is(err, errFound):
		return ExitVerify
	}
	_, _ = fmt.Fprintf(a.err, "outguard: %s\n", safe.Text(a.explain(ran.error)))
	if errors.Is(err, errVerify) {
		return ExitVerify
	}
	return ExitError
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "outguard",
		Short: "Watch virtual machines from outside, and answer",
		Long: `outguard speaks to the monitor of this host, outguardd, and reads what it keeps.

Exit codes: 0 all went well; 1 an error; 2 wrong usage; 3 verification failed, a
model file was refused, or --exit-code found something. Messages go to standard error, results to
standard output; with --json, one object a line.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.DisableDescriptions = true
	f := root.PersistentFlags()
	f.BoolVar(&a.json, "json", false, "print JSON, one object a line")
	f.StringVar(&a.config, "config", "", "configuration `file` (default "+defaultConfig+")")
	f.StringVar(&a.socket, "socket", "", "the monitor's `socket` (default api.sock in the configuration's run_dir)")
	root.AddGroup(
		&cobra.Group{ID: watch, Title: "Watch:"},
		&cobra.Group{ID: answer, Title: "Answer:"},
		&cobra.Group{ID: prove, Title: "Prove:"},
		&cobra.Group{ID: setup, Title: "Set up:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(watch, a.statusCmd(), a.vmsCmd(), a.eventsCmd(), a.findingsCmd(), a.decisionsCmd(), a.ordersCmd())
	add(answer, a.modelCmd(), a.policyCmd(), a.pauseCmd(), a.resumeCmd(), a.captureCmd(),
		a.isolateCmd(), a.connectCmd(), a.thawCmd(), a.resetCmd(), a.destroyCmd(), a.saveCmd(), a.savedCmd(), a.unsaveCmd(), a.revertCmd())
	add(prove, a.capturesCmd(), a.bundleCmd(), a.evidenceCmd(), a.exportCmd(), a.tsemCmd())
	add(setup, a.setupCmds()...)
	add(setup, a.versionCmd())
	root.SetHelpCommandGroupID(setup)
	root.SetCompletionCommandGroupID(setup)
	return root
}

const (
	watch  = "watch"
	answer = "answer"
	prove  = "prove"
	setup  = "setup"
)

// command gives c its work, and marks the work's errors.
func (a *app) command(c *cobra.Command, run func(*cobra.Command, []string) error) *cobra.Command {
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if err := run(cmd, args); err != nil {
			var u usageError
			if errors.As(err, &u) {
				return u
			}
			return runError{err}
		}
		return nil
	}
	if c.ValidArgsFunction == nil {
		c.ValidArgsFunction = cobra.NoFileCompletions
	}
	return c
}

// usageError is wrong usage that only the command itself can see.
type usageError struct{ error }

// group is a command that only has others.
func group(c *cobra.Command, of ...*cobra.Command) *cobra.Command {
	c.Args = cobra.NoArgs
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return fmt.Errorf("%s: which? %s", cmd.CommandPath(), subcommands(cmd))
	}
	c.AddCommand(of...)
	return c
}

func subcommands(cmd *cobra.Command) string {
	s := ""
	for i, c := range cmd.Commands() {
		if i > 0 {
			s += ", "
		}
		s += c.Name()
	}
	return s
}
