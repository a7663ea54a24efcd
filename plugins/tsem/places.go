package tsem

import (
	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/lineage"
)

// Places tells of the VM's cgroups and containers.
func (e *Engine) Places(id uuid.UUID) engine.Places {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := e.vms[id]
	if v == nil {
		return engine.Places{}
	}
	stats := v.tree.Stats()
	p := engine.Places{Session: v.tree.Session(), Nameless: stats.Nameless, Unplaced: stats.Unplaced}
	for _, c := range v.tree.Cgroups() {
		p.Cgroups = append(p.Cgroups, engine.Cgroup{ID: c.ID, Path: c.Path})
	}
	all, tasks := v.tree.Containers()
	for i, c := range all {
		p.Containers = append(p.Containers, engine.Container{
			Cgroup: c.Cgroup, Path: c.Path, Runtime: c.Runtime, ID: c.ID, Begun: c.Begun,
			Mnt: c.Mnt, PID: c.PID, User: c.User, Net: c.Net,
			Program: c.Program, BootNs: c.BootNs, Tasks: uint64(tasks[i]), Workload: v.judgedBy(c),
		})
	}
	return p
}

// judgedBy is the name of the workload whose model judges a container.
func (v *vm) judgedBy(c *lineage.Container) string {
	if w := v.of[c]; w != nil {
		return w.name
	}
	if w := v.workloads[WorkloadOf(c)]; w != nil && !v.whole {
		return w.name
	}
	return ""
}
