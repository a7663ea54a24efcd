package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
)

func (a *app) saveCmd() *cobra.Command {
	var reason, name string
	cmd := a.command(&cobra.Command{
		Use: "save DOMAIN", Short: "Keep a domain's memory and disks as they are, for outguard revert",
		Long: `Keep memory and disks of one moment inside the domain's own images, which grow by
them, as a snapshot of libvirt's called outguard-NAME. The domain stands for that
moment. Every disk that it can write has to be qcow2, and no device may keep it
from being migrated: a vhost-user vsock does, a virtio-serial port (outguard enroll
--transport serial) and the kernel's vsock do not. outguard saved lists what is kept,
and outguard unsave gives it up.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVM,
	}, func(cmd *cobra.Command, args []string) error {
		o, err := a.contain(cmd, &apipb.ContainRequest{Vm: args[0], Step: "save", State: name, Reason: reason})
		if err != nil {
			return err
		}
		a.print(o, func() {
			a.orderDone(o, "saved")
			a.printf("come back to it with: outguard revert %s %s\n", quote(args[0]), quote(o.Target))
		})
		return nil
	})
	reasonFlag(cmd, &reason)
	cmd.Flags().StringVar(&name, "name", "", "what it is `called`: letters, digits and dashes (default: the time, in UTC)")
	return cmd
}

func (a *app) revertCmd() *cobra.Command {
	var reason string
	cmd := a.command(&cobra.Command{
		Use: "revert DOMAIN STATE", Short: "Bring a domain back to what outguard save or capture --revertible kept",
		Long: `Bring memory and disks back to a moment that was kept. What the domain has done
since is undone; outguard capture keeps that before. It runs afterwards if it ran,
and stands if it stood. Its agent goes on from numbers of that time, in a new
session: nothing of it is taken for missing.`,
		Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeSaved,
	}, func(cmd *cobra.Command, args []string) error {
		o, err := a.contain(cmd, &apipb.ContainRequest{Vm: args[0], Step: "revert", State: args[1], Reason: reason})
		if err != nil {
			return err
		}
		a.print(o, func() { a.orderDone(o, "reverted to "+quote(o.Target)) })
		return nil
	})
	reasonFlag(cmd, &reason)
	return cmd
}

func (a *app) savedCmd() *cobra.Command {
	return a.command(&cobra.Command{
		Use: "saved DOMAIN", Short: "List what is kept of a domain for outguard revert, oldest first",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVM,
	}, func(cmd *cobra.Command, args []string) error {
		all, err := a.saved(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		printAll(a, all, "nothing is kept; `outguard save "+quote(args[0])+"` does that",
			[]string{"CREATED", "STATE", "NAME"}, func(s *apipb.Saved) []string { return []string{clock(s.Created), s.State, s.Name} })
		return nil
	})
}

func (a *app) saved(ctx context.Context, vm string) ([]*apipb.Saved, error) {
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	out, err := client.ListSaved(ctx, &apipb.ListSavedRequest{Vm: vm})
	if err != nil {
		return nil, err
	}
	return out.Saved, nil
}

func (a *app) unsaveCmd() *cobra.Command {
	var reason string
	cmd := a.command(&cobra.Command{
		Use: "unsave DOMAIN STATE", Short: "Give up what is kept of a domain for outguard revert, and the room that it takes",
		Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeSaved,
	}, func(cmd *cobra.Command, args []string) error {
		o, err := a.contain(cmd, &apipb.ContainRequest{Vm: args[0], Step: "unsave", State: args[1], Reason: reason})
		if err != nil {
			return err
		}
		a.print(o, func() { a.orderDone(o, "given up: "+quote(o.Target)) })
		return nil
	})
	reasonFlag(cmd, &reason)
	return cmd
}

func (a *app) contain(cmd *cobra.Command, r *apipb.ContainRequest) (*apipb.Order, error) {
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	out, err := client.Contain(cmd.Context(), r)
	if err != nil {
		return nil, err
	}
	return out.Order, nil
}

// completeSaved offers the domains, and then what is kept of one.
func (a *app) completeSaved(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return a.completeVM(cmd, args, prefix)
	}
	all, err := a.saved(cmd.Context(), args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, s := range all {
		names = append(names, s.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
