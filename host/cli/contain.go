package cli

import (
	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
)

func (a *app) isolateCmd() *cobra.Command {
	return a.containCmd("isolate", "isolated", &cobra.Command{
		Short: "Take a domain's network links down, until outguard connect",
		Long: `Take every network link of a domain down that is up, of the domain that runs and
of its lasting description, so that one that is started again is isolated as
well. The agent's channel is none of them: events go on. A device that libvirt
does not know, of QEMU's own command line, is an error, after the others are
down, and so is a device of the host's that is passed through, where it is a
network adapter or nobody can tell.`,
	})
}

func (a *app) connectCmd() *cobra.Command {
	return a.containCmd("connect", "connected", &cobra.Command{
		Short: "Bring the network links up again that isolate took down",
		Long: `Bring up the links that orders took down, and no others: those that the domain's
owner had down stay so.`,
	})
}

func (a *app) thawCmd() *cobra.Command {
	return a.containCmd("thaw", "thawed", &cobra.Command{
		Short: "Let tasks of a guest go on that an order froze",
		Long: `Have the guest's agent let the cgroups go on that the playbook's step freeze has
stopped. That they do is the guest's word: the order is "asked".`,
	})
}

func (a *app) resetCmd() *cobra.Command {
	return a.containCmd("reset", "reset", &cobra.Command{
		Short: "Begin a domain's machine anew, as its reset button would",
		Long:  "Begin the machine anew. What was in its memory is gone; its vCPUs stand afterwards\nif they stood.",
	})
}

func (a *app) destroyCmd() *cobra.Command {
	return a.containCmd("destroy", "off", &cobra.Command{
		Short: "End a domain, as pulling its plug would",
		Long:  "End the domain's QEMU at once. What was in its memory is gone: outguard capture\nkeeps it.",
	})
}

// containCmd is a command that has one step carried out.
func (a *app) containCmd(step, done string, c *cobra.Command) *cobra.Command {
	var reason string
	c.Use, c.Args, c.ValidArgsFunction = step+" DOMAIN", cobra.ExactArgs(1), a.completeVM
	cmd := a.command(c, func(cmd *cobra.Command, args []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		r, err := client.Contain(cmd.Context(), &apipb.ContainRequest{Vm: args[0], Step: step, Reason: reason})
		if err != nil {
			return err
		}
		a.print(r.Order, func() {
			a.orderDone(r.Order, done)
			if r.Order.Detail != "" {
				a.printf("%s\n", quoteSentence(r.Order.Detail))
			}
		})
		return nil
	})
	reasonFlag(cmd, &reason)
	return cmd
}
