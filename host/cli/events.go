package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/outguard/outguard/host/api/apipb"
)

func (a *app) eventsCmd() *cobra.Command {
	r := &apipb.EventsRequest{}
	var from, to string
	cmd := a.command(&cobra.Command{
		Use:   "events",
		Short: "Print what the guests' kernels reported, from the record",
		Long: `Print events from the record, oldest first for each VM: all of them, or with
--follow those that arrive from now on (and with --since as well, those since).
Columns: when the host had it, VM, evidence index, hook, pid, command, and what
was done, and in braces the container, where the path of the task's cgroup shows it.

What is asked for is looked up in an index of the record where its segments are
closed, so that a question about few events reads little of it.`,
		Example: `  outguard events -f --vm web
  outguard events --since 10m --path '/tmp/*' --type bprm_committed_creds
  outguard events --vm web --program curl --type socket_connect`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		if r.Since, err = since(from, time.Now()); err != nil {
			return err
		}
		if r.Until, err = until(to, time.Now()); err != nil {
			return err
		}
		s, err := client.Events(cmd.Context(), r)
		if err != nil {
			return err
		}
		return receive(cmd.Context(), a, s, r.Follow, func(m *apipb.EventsResponse) {
			for _, e := range m.Events {
				a.print(e, func() { a.printf("%s\n", eventLine(e)) })
			}
			if m.GivenUp > 0 {
				fmt.Fprintf(a.err, "retention has given up %d records of what was asked for, or of the same time\n", m.GivenUp)
			}
		})
	})
	f := cmd.Flags()
	f.BoolVarP(&r.Follow, "follow", "f", false, "go on with what arrives")
	a.vmFlag(cmd, &r.Vm)
	f.StringVar(&from, "since", "", sinceHelp)
	f.StringVar(&to, "until", "", untilHelp)
	f.Uint32Var(&r.Pid, "pid", 0, "of this process or thread alone, by its `pid` in the guest's initial namespace")
	f.StringVar(&r.Path, "path", "", "about this `path` alone: of a file, of what was executed, of a unix socket; * is any run of characters, ? any one")
	f.StringVar(&r.Cgroup, "cgroup", "", "of tasks in this `cgroup` alone, by its path, as in '/docker/*'")
	f.StringVar(&r.Container, "container", "", "of tasks in this `container` alone: RUNTIME/ID, ID or the first 12 digits of one, with * and ?")
	f.StringVar(&r.Program, "program", "", "of processes that run this `program`, by its path or its last element, with * and ?; those that they forked too")
	f.StringSliceVar(&r.Types, "type", nil, "from these `hooks` alone, as in file_open,task_kill; --hook is the same")
	f.Uint64Var(&r.Limit, "limit", 0, "stop after this `number`")
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "hook" {
			name = "type"
		}
		return pflag.NormalizedName(name)
	})
	_ = cmd.RegisterFlagCompletionFunc("type", completeTypes)
	return cmd
}

// receive prints a stream. One that follows is flushed as it comes, and
// interrupting it is how it ends.
func receive[M any](ctx context.Context, a *app, s *connect.ServerStreamForClient[M], follow bool, print func(*M)) error {
	defer func() { _ = s.Close() }()
	for s.Receive() {
		print(s.Msg())
		if follow {
			if err := a.out.Flush(); err != nil {
				return err
			}
		}
	}
	err := s.Err()
	if follow && ctx.Err() != nil && (errors.Is(err, context.Canceled) || connect.CodeOf(err) == connect.CodeCanceled) {
		return nil
	}
	return err
}
