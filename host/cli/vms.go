package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
)

func (a *app) vmsCmd() *cobra.Command {
	r := &apipb.ListVMsRequest{}
	cmd := a.command(&cobra.Command{
		Use:   "vms [DOMAIN]",
		Short: "List the domains, who watches them and what was lost; or describe one",
		Long: `List the domains of this host: whether each is enrolled, whether its agent has
a live session, how many of the hooks that its profile asks for are attached (and
how many of these its kernel does not have), how many records
came and how many the guest declared lost, and the state of its model. With a
domain, describe that one. With --containers, list the containers that are in
them: runtime and id as the path of their cgroup shows them, namespaces, how many
threads run in each, and which model judges it ("" is the domain's own).`,
		Example: `  outguard vms --containers
  outguard vms web --containers --json | jq '.containers[].id'`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeVM,
	}, func(cmd *cobra.Command, args []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		if len(args) == 1 {
			r.Vm = args[0]
		}
		out, err := client.ListVMs(cmd.Context(), r)
		if err != nil {
			return err
		}
		if r.Containers && !a.json {
			return a.listContainers(out.Vms)
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
	cmd.Flags().BoolVar(&r.Containers, "containers", false, "list their containers, or with --json have those in `containers`")
	return cmd
}

func (a *app) listContainers(vms []*apipb.VM) error {
	var unknown error
	t := a.table("VM", "RUNTIME", "ID", "TASKS", "WORKLOAD", "MNT NS", "PID NS", "USER NS", "NET NS", "PROGRAM", "CGROUP")
	for _, v := range vms {
		if v.ContainersError != "" {
			unknown = fmt.Errorf("containers of %s: %s", v.Name, v.ContainersError)
		}
		for _, c := range v.Containers {
			t.row(v.Name, c.Runtime, c.Id, fmt.Sprint(c.Tasks), c.Workload,
				namespace(c, c.MntNs), namespace(c, c.PidNs), namespace(c, c.UserNs), namespace(c, c.NetNs), c.Program, c.Cgroup)
		}
	}
	t.flush()
	for _, v := range vms {
		if v.CgroupsNameless > 0 || v.TasksUnplaced > 0 {
			a.printf("%s: %d cgroups had no room for their names, and %d times a task came to be in one without a name: what is done there is the domain's own\n",
				safe.Text(v.Name), v.CgroupsNameless, v.TasksUnplaced)
		}
	}
	return unknown
}

// namespace is a number of one, "" of a container in which nothing has begun.
func namespace(c *apipb.Container, n uint32) string {
	if !c.Begun {
		return ""
	}
	return fmt.Sprint(n)
}

func vmRow(v *apipb.VM) []string {
	received, lost := counts(v)
	s := v.GetSession()
	return []string{
		v.Name, vmState(v), agentState(v), v.Transport, s.GetKernel(), hooks(s),
		fmt.Sprint(received), lost, modelState(v.Models), fmt.Sprint(v.Findings), clock(s.GetLastSeen()),
	}
}

// vmState is libvirt's word, and whether an order keeps the domain from its
// network.
func vmState(v *apipb.VM) string {
	if v.Isolated {
		return v.State + ", isolated"
	}
	return v.State
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

// hooks is attached of wanted, and how many of these the kernel has not.
func hooks(s *apipb.Session) string {
	if s == nil {
		return ""
	}
	attached, wanted, lacking := 0, 0, 0
	for _, h := range s.Hooks {
		if !h.Wanted {
			continue
		}
		wanted++
		if h.Attached {
			attached++
		}
		if !h.Available {
			lacking++
		}
	}
	if lacking > 0 {
		return fmt.Sprintf("%d/%d, %d not in the kernel", attached, wanted, lacking)
	}
	return fmt.Sprintf("%d/%d", attached, wanted)
}

// policyState is the profile, and whether it is in force.
func policyState(s *apipb.Session) string {
	text := fmt.Sprintf("profile %s, policy %d", s.Profile, s.Policy)
	switch {
	case s.PolicyReason != "":
		return text + ", refused: " + s.PolicyReason
	case s.PolicyAcked != s.Policy:
		return fmt.Sprintf("%s, %d in force", text, s.PolicyAcked)
	}
	return text + ", in force"
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
	containers, learning := 0, 0
	for _, m := range models {
		if m.Workload != "" {
			if containers++; !m.Sealed {
				learning++
			}
			continue
		}
		all = append(all, fmt.Sprintf("%s %s", m.Engine, sealedWord(m)))
	}
	if containers > 0 {
		all = append(all, fmt.Sprintf("%d of containers, %d learning", containers, learning))
	}
	return strings.Join(all, ", ")
}

func (a *app) describeVM(v *apipb.VM) {
	a.fact("name", v.Name)
	a.fact("uuid", v.Uuid)
	a.fact("state", vmState(v))
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
		a.fact("hooks", policyState(s))
		a.showFilters(s)
	}
	a.fact("evidence", fmt.Sprintf("%s, next index %d", size(v.EvidenceBytes), v.EvidenceNext))
	a.fact("findings", fmt.Sprint(v.Findings))
	for _, c := range v.Classes {
		a.fact(c.Class, fmt.Sprintf("%d received, %d declared lost, %d missing", c.Received, c.Lost, c.Missing))
	}
	for _, m := range v.Models {
		name := m.Engine
		if m.Workload != "" {
			name += " " + m.Workload
		}
		a.fact("model", fmt.Sprintf("%s %s, %d points", name, sealedWord(m), m.Points))
	}
	if v.Session != nil && len(v.Session.Hooks) > 0 {
		a.printf("\n")
		t := a.table("HOOK", "WANTED", "AVAILABLE", "ATTACHED", "PROGRAM")
		for _, h := range v.Session.Hooks {
			t.row(h.Name, yesNo(h.Wanted), yesNo(h.Available), yesNo(h.Attached), h.Tag)
		}
		t.flush()
	}
}
