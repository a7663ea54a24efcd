package tsem

import (
	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
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
			Program: c.Program, BootNs: c.BootNs, Tasks: uint64(tasks[i]),
		})
	}
	return p
}
