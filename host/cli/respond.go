package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
)

func (a *app) pauseCmd() *cobra.Command {
	var reason string
	cmd := a.command(&cobra.Command{
		Use: "pause DOMAIN", Short: "Stop a domain's vCPUs, and wait until they stand",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVM,
	}, func(cmd *cobra.Command, args []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		r, err := client.Pause(cmd.Context(), &apipb.PauseRequest{Vm: args[0], Reason: reason})
		if err != nil {
			return err
		}
		a.print(r.Order, func() { a.orderDone(r.Order, "paused") })
		return nil
	})
	reasonFlag(cmd, &reason)
	return cmd
}

func (a *app) resumeCmd() *cobra.Command {
	var reason string
	cmd := a.command(&cobra.Command{
		Use: "resume DOMAIN", Short: "Let a paused domain run again",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVM,
	}, func(cmd *cobra.Command, args []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		r, err := client.Resume(cmd.Context(), &apipb.ResumeRequest{Vm: args[0], Reason: reason})
		if err != nil {
			return err
		}
		a.print(r.Order, func() { a.orderDone(r.Order, "running") })
		return nil
	})
	reasonFlag(cmd, &reason)
	return cmd
}

func (a *app) captureCmd() *cobra.Command {
	var reason string
	var revertible bool
	cmd := a.command(&cobra.Command{
		Use: "capture DOMAIN", Short: "Take a domain's memory and disks into a signed bundle",
		Long: `Take memory and disks as they are at one moment, with the record, into a bundle
that is signed by this host's key. The domain stands meanwhile. A capture that
has begun is finished even if this command is interrupted; outguard orders
shows what came of it.

With --revertible memory and disks of that moment are kept in the domain's own
images as well, and outguard revert brings the domain back to them: it is called
as the capture's order is. See outguard save for what that needs.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVM,
	}, func(cmd *cobra.Command, args []string) error {
		o, err := a.capture(cmd, &apipb.CaptureRequest{Vm: args[0], Reason: reason, Revertible: revertible})
		if err != nil {
			return err
		}
		a.print(o, func() {
			a.orderDone(o, "captured")
			a.printf("bundle: %s\nshow it with: outguard bundle show %s\n", quote(o.Bundle), quote(o.Bundle))
			if revertible {
				a.printf("come back to it with: outguard revert %s %s\n", quote(args[0]), quote(o.Id))
			}
		})
		return nil
	})
	reasonFlag(cmd, &reason)
	cmd.Flags().BoolVar(&revertible, "revertible", false, "keep that moment for outguard revert as well")
	return cmd
}

func (a *app) capture(cmd *cobra.Command, r *apipb.CaptureRequest) (*apipb.Order, error) {
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	s, err := client.Capture(cmd.Context(), r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	bar := a.progress()
	defer bar.end()
	for s.Receive() {
		if o := s.Msg().Order; o != nil {
			return o, nil
		}
		p := s.Msg().GetProgress()
		bar.show(p.GetStep(), p.GetDone(), p.GetTotal())
	}
	if s.Err() != nil {
		return nil, s.Err()
	}
	return nil, errors.New("the monitor ended the capture without a result; `outguard orders` shows what came of it")
}

func (a *app) orderDone(o *apipb.Order, what string) {
	took := between(o.Decided, o.Effect)
	switch {
	case o.Already:
		took = " (it was already)"
	case took != "":
		took = " in " + took
	}
	a.printf("%s: %s%s (order %s)\n", quote(o.Vm), what, took, quote(o.Id))
}

func reasonFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "reason", "", "why, as a `text` for the journal")
}
