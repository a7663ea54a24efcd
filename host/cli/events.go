package cli

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
)

func (a *app) eventsCmd() *cobra.Command {
	r := &apipb.EventsRequest{}
	var from string
	cmd := a.command(&cobra.Command{
		Use:   "events",
		Short: "Print what the guests' kernels reported, from the record",
		Long: `Print events from the record, oldest first for each VM: all of them, or with
--follow those that arrive from now on (and with --since as well, those since).
Columns: when the host had it, VM, evidence index, hook, pid, command, and what
was done, and in braces the container, where the path of the task's cgroup shows it.`,
		Example: `  outguard events -f --vm web
  outguard events --since 10m --path '/tmp/*' --type bprm_committed_creds`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		if r.Since, err = since(from, time.Now()); err != nil {
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
		})
	})
	f := cmd.Flags()
	f.BoolVarP(&r.Follow, "follow", "f", false, "go on with what arrives")
	a.vmFlag(cmd, &r.Vm)
	f.StringVar(&from, "since", "", sinceHelp)
	f.Uint32Var(&r.Pid, "pid", 0, "of this process or thread alone, by its `pid` in the guest's initial namespace")
	f.StringVar(&r.Path, "path", "", "about this `path` alone: of a file, of what was executed, of a unix socket; * is any run of characters, ? any one")
	f.StringVar(&r.Cgroup, "cgroup", "", "of tasks in this `cgroup` alone, by its path, as in '/docker/*'")
	f.StringSliceVar(&r.Types, "type", nil, "from these `hooks` alone, as in file_open,task_kill")
	f.Uint64Var(&r.Limit, "limit", 0, "stop after this `number`")
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
