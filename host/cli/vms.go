package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
)

func (a *app) vmsCmd() *cobra.Command {
	return a.command(&cobra.Command{
		Use:   "vms [DOMAIN]",
		Short: "List the domains, who watches them and what was lost; or describe one",
		Long: `List the domains of this host: whether each is enrolled, whether its agent has
a live session, how many of the kernel's hooks are attached, how many records
came and how many the guest declared lost, and the state of its model. With a
domain, describe that one.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeVM,
	}, func(cmd *cobra.Command, args []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		r := &apipb.ListVMsRequest{}
		if len(args) == 1 {
			r.Vm = args[0]
		}
		out, err := client.ListVMs(cmd.Context(), r)
		if err != nil {
			return err
		}
		if len(args) == 1 && !a.json {
			for _, v := range out.Vms {
				a.describeVM(v)
			}
			return nil
		}
		printAll(a, out.Vms, "no domains; `virsh define` makes one, `outguard enroll` has it watched",
			[]string{"NAME", "STATE", "AGENT", "TRANSPORT", "KERNEL", "HOOKS", "RECEIVED", "LOST", "MODEL", "FINDINGS", "LAST SEEN"}, vmRow)
		return nil
	})
}

func vmRow(v *apipb.VM) []string {
	received, lost := counts(v)
	s := v.GetSession()
	return []string{
		v.Name, v.State, agentState(v), v.Transport, s.GetKernel(), hooks(s),
		fmt.Sprint(received), lost, modelState(v.Models), fmt.Sprint(v.Findings), clock(s.GetLastSeen()),
	}
}

func agentState(v *apipb.VM) string {
	switch {
	case v.Session != nil:
		return v.Session.State
	case v.Enrolled:
		return "never heard"
	}
	return "not enrolled"
}

// hooks is attached of available.
func hooks(s *apipb.Session) string {
	if s == nil {
		return ""
	}
	attached, available := 0, 0
	for _, h := range s.Hooks {
		if h.Attached {
			attached++
		}
		if h.Available {
			available++
		}
	}
	return fmt.Sprintf("%d/%d", attached, available)
}

func counts(v *apipb.VM) (received uint64, lost string) {
	var l, missing uint64
	for _, c := range v.Classes {
		received, l, missing = received+c.Received, l+c.Lost, missing+c.Missing
	}
	lost = fmt.Sprint(l)
	if missing > 0 {
		lost += fmt.Sprintf("+%d missing", missing)
	}
	return received, lost
}

func modelState(models []*apipb.Model) string {
	var all []string
	for _, m := range models {
		word := "learning"
		if m.Sealed {
			word = "sealed"
		}
		all = append(all, fmt.Sprintf("%s %s", m.Engine, word))
	}
	return strings.Join(all, ", ")
}

func (a *app) describeVM(v *apipb.VM) {
	a.fact("name", v.Name)
	a.fact("uuid", v.Uuid)
	a.fact("state", v.State)
	a.fact("enrolled", yesNo(v.Enrolled))
	a.fact("transport", v.Transport)
	a.fact("agent", agentState(v))
	if s := v.Session; s != nil {
		a.fact("session", s.Id)
		a.fact("started", clock(s.Started))
		a.fact("last seen", clock(s.LastSeen))
		if s.Reason != "" {
			a.fact("ended", s.Reason)
		}
		a.fact("kernel", s.Kernel)
		a.fact("agent build", s.Build)
		a.fact("boot id", s.BootId)
		a.fact("cpus", fmt.Sprint(s.Cpus))
	}
	a.fact("evidence", fmt.Sprintf("%s, next index %d", size(v.EvidenceBytes), v.EvidenceNext))
	a.fact("findings", fmt.Sprint(v.Findings))
	for _, c := range v.Classes {
		a.fact(c.Class, fmt.Sprintf("%d received, %d declared lost, %d missing", c.Received, c.Lost, c.Missing))
	}
	for _, m := range v.Models {
		a.fact("model", fmt.Sprintf("%s, %d points", modelState([]*apipb.Model{m}), m.Points))
	}
	if v.Session != nil && len(v.Session.Hooks) > 0 {
		a.printf("\n")
		t := a.table("HOOK", "AVAILABLE", "ATTACHED", "PROGRAM")
		for _, h := range v.Session.Hooks {
			t.row(h.Name, yesNo(h.Available), yesNo(h.Attached), h.Tag)
		}
		t.flush()
	}
}
