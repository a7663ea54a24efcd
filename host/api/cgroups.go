package api

import (
	"context"
	"slices"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/plugins/lineage"
	"github.com/outguard/outguard/vsockproto"
)

// cgroups name the cgroups of a stream's events: by the records that say so, as
// they pass, and before the first of a session by what is known of it already.
type cgroups struct {
	known func(ctx context.Context, vm uuid.UUID) (*Cgroups, error)
	look  func(ctx context.Context, vm, session uuid.UUID, ids []uint64, upTo uint64) (map[uint64]string, error) // nil: all that name one pass
	vms   map[uuid.UUID]*cgroupNames
}

// cgroupNames are those of one session of a VM.
type cgroupNames struct {
	vm      uuid.UUID
	session uuid.UUID
	paths   map[uint64]string
	bytes   int
}

// maxCgroupNames bounds the text of one session's, bytes: a guest names as many
// as it likes. Beyond that the names before are forgotten.
const maxCgroupNames = 4 << 20

// of returns the names of a session. Those that are known already are asked for
// once, with a VM's first batch: the records of a session that comes later are in
// the stream from its start on.
func (c *cgroups) of(ctx context.Context, vm, session uuid.UUID) *cgroupNames {
	n, met := c.vms[vm]
	if met && n.session == session {
		return n
	}
	n = &cgroupNames{vm: vm, session: session, paths: map[uint64]string{}}
	if !met {
		n.learn(ctx, c.known, vm)
	}
	if c.vms == nil {
		c.vms = map[uuid.UUID]*cgroupNames{}
	}
	c.vms[vm] = n
	return n
}

func (n *cgroupNames) learn(ctx context.Context, known func(context.Context, uuid.UUID) (*Cgroups, error), vm uuid.UUID) {
	all, err := known(ctx, vm)
	if err != nil || all.Session != n.session {
		return // without them an event's cgroup is said to have no name
	}
	for id, path := range all.Paths {
		n.add(id, path)
	}
}

func (n *cgroupNames) add(id uint64, path string) {
	if n.bytes += len(path) + 64; n.bytes > maxCgroupNames {
		clear(n.paths)
		n.bytes = 0
	}
	n.paths[id] = path
}

// note takes what an event says of cgroups.
func (n *cgroupNames) note(e *vsockproto.Event) {
	if e.Type == vsockproto.CgroupMkdir || e.Type == vsockproto.CgroupSnapshot {
		n.add(e.Cgroup.ID, string(e.Path.Data))
	}
}

// resolve looks on record for those cgroups that no record which passed has
// named: what is passed over may have. One that is not there has no name.
func (c *cgroups) resolve(ctx context.Context, n *cgroupNames, ids []uint64, upTo uint64) {
	ids = slices.DeleteFunc(ids, func(id uint64) bool { _, known := n.paths[id]; return known || id == 0 })
	if c.look == nil || len(ids) == 0 {
		return
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	found, err := c.look(ctx, n.vm, n.session, ids, upTo)
	if err != nil {
		return // without them an event's cgroup is said to have no name
	}
	for _, id := range ids {
		n.add(id, found[id])
	}
}

// fill says in which container an event's task is, as far as its cgroup shows.
func (n *cgroupNames) fill(s *apipb.Subject) {
	path := n.paths[s.CgroupId]
	if path == "" {
		return
	}
	runtime, id, _ := lineage.RuntimeOf(path)
	s.Cgroup, s.Runtime, s.Container = safe.Quote(path), runtime, safe.Quote(id)
}
