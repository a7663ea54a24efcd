package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
)

func (a *app) ordersCmd() *cobra.Command {
	r := &apipb.ListOrdersRequest{}
	var from string
	cmd := a.command(&cobra.Command{
		Use:   "orders [ID]",
		Short: "List what was ordered, by whom, and what came of it; or describe one",
		Long: `List the newest orders of the journal, oldest first. Each was on disk before
libvirt was called; TOOK is from the decision to the checked effect.`,
		Args: cobra.MaximumNArgs(1),
	}, func(cmd *cobra.Command, args []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		if r.Since, err = since(from, time.Now()); err != nil {
			return err
		}
		if len(args) == 1 {
			r.Id = args[0]
		}
		out, err := client.ListOrders(cmd.Context(), r)
		if err != nil {
			return err
		}
		if len(args) == 1 && !a.json {
			a.describeOrder(out.Orders[0])
			return nil
		}
		printAll(a, out.Orders, "no orders; `outguard findings` shows what was found",
			[]string{"DECIDED", "VM", "STEP", "STATE", "TOOK", "BY", "RESULT", "ID"}, orderRow)
		if out.More {
			_, _ = fmt.Fprintf(a.err, "there are older orders than these %d: see --limit and --since\n", len(out.Orders))
		}
		return nil
	})
	a.vmFlag(cmd, &r.Vm)
	cmd.Flags().StringVar(&from, "since", "", sinceHelp)
	cmd.Flags().Uint64Var(&r.Limit, "limit", 1000, "list the newest `number` of them, at most 5000")
	return cmd
}

func orderRow(o *apipb.Order) []string {
	by := o.By
	if o.Rule != "" {
		by += " " + o.Rule
	}
	result := o.Error
	if result == "" {
		result = o.Bundle
	}
	step := o.Step
	if o.Target != "" {
		step += " " + o.Target
	}
	return []string{clock(o.Decided), vmName(o), step, o.State, between(o.Decided, o.Effect), by, result, o.Id}
}

func (a *app) describeOrder(o *apipb.Order) {
	a.fact("id", o.Id)
	a.fact("vm", o.Vm+" "+o.Uuid)
	a.fact("step", o.Step)
	if o.Target != "" {
		a.fact("tells", o.Target)
	}
	a.fact("state", o.State)
	if o.Error != "" {
		a.fact("error", o.Error)
	}
	a.fact("by", o.By)
	a.fact("rule", o.Rule)
	a.fact("reason", o.Reason)
	a.fact("finding", o.Finding)
	last := ""
	for _, at := range []struct{ name, time string }{
		{"received", o.Received}, {"found", o.Found}, {"decided", o.Decided}, {"journalled", o.Journalled},
		{"started", o.Started}, {"taken", o.Taken}, {"effect", o.Effect}, {"ended", o.Ended},
	} {
		if at.name == "taken" && at.time == "" {
			continue // it is no capture
		}
		text := clock(at.time)
		if d := between(last, at.time); d != "" {
			text += " +" + d
		}
		a.fact(at.name, text)
		if at.time != "" {
			last = at.time
		}
	}
	a.fact("bundle", o.Bundle)
	if o.Detail != "" {
		a.fact("detail", o.Detail)
	}
}
