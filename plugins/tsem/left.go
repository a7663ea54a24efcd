package tsem

import (
	"fmt"
	"strconv"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/lineage"
	"github.com/outguard/outguard/vsockproto"
)

// departs reports a task that is no longer where its container is. What tasks of
// a workload did while its model learned is nothing to stop a VM for.
func (v *vm) departs(w *workload, b *engine.Batch, r *vsockproto.Event, who lineage.Identity, report func(engine.Finding)) {
	severity := engine.Medium
	switch {
	case !w.model.Sealed():
		w.leaves |= who.Left
	case who.Left&^w.leaves == 0:
		severity = engine.Low
	case who.Outside:
		severity = engine.High
	}
	if v.leaving.take() {
		report(v.departed(severity, b, r, who))
	}
}

func (v *vm) departed(severity engine.Severity, b *engine.Batch, r *vsockproto.Event, who lineage.Identity) engine.Finding {
	f := about(b, r)
	f.Rule, f.Severity, f.Technique = RuleLeft, severity, "T1611" // Escape to Host
	actor, container := v.actor(r, who), quote(who.Container.Name())
	switch {
	case who.Left&^lineage.Deeds == 0:
		f.Reason = fmt.Sprintf("%s has reached beyond container %s: %s.", actor, container, who.Left)
	case who.Outside:
		f.Reason = fmt.Sprintf("%s has left container %s (%s) for what is not its container's.", actor, container, who.Left)
	default:
		f.Reason = fmt.Sprintf("%s has left container %s (%s) into namespaces of its own.", actor, container, who.Left)
	}
	f.Detail = map[string]string{
		"left": who.Left.String(), "task_id": hexOf(who.ID()), "container_mnt_ns": decimalOf(who.Container.Mnt),
		"container_pid_ns": decimalOf(who.Container.PID), "container_user_ns": decimalOf(who.Container.User),
		"container_net_ns": decimalOf(who.Container.Net),
	}
	set := func(key, value string) {
		if value != "" {
			f.Detail[key] = value
		}
	}
	if who.Left&lineage.Deeds != 0 {
		set("path", printable(string(r.Path.Data[:min(len(r.Path.Data), maxShown)])))
	}
	set("workload", WorkloadOf(who.Container))
	set("ancestry", ancestry(v.tree.Ancestry(who.Task)))
	v.whereabouts(r, who, set)
	return f
}

// whereabouts say in which container and namespaces an event was.
func (v *vm) whereabouts(r *vsockproto.Event, who lineage.Identity, set func(key, value string)) {
	set("mnt_ns", decimalOf(r.MntNS))
	set("pid_ns", decimalOf(r.PidNS))
	set("user_ns", decimalOf(r.UserNS))
	set("net_ns", decimalOf(r.NetNS))
	if path, has := v.tree.CgroupPath(r.CgroupID); has {
		set("cgroup_path", printable(path))
	} else {
		set("cgroup_path", "unknown")
	}
	if c := who.Container; c != nil {
		set("container", printable(c.ID))
		set("runtime", c.Runtime)
	}
}

func decimalOf(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func tooMany(b *engine.Batch, r *vsockproto.Event, c *lineage.Container, n int) engine.Finding {
	f := about(b, r)
	f.Rule, f.Severity = RuleWorkloads, engine.Medium
	f.Reason = fmt.Sprintf("Container %s is of a kind that there is no room for beside %d others: the VM's own model judges it, and those that come after it.", quote(c.Name()), n)
	f.Detail = map[string]string{"container": printable(c.ID), "runtime": c.Runtime, "workloads": strconv.Itoa(n)}
	return f
}
