package api

import (
	"context"

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
	vms   map[uuid.UUID]*cgroupNames
}

// cgroupNames are those of one session of a VM.
type cgroupNames struct {
	session uuid.UUID
	paths   map[uint64]string
	bytes   int
}

// maxCgroupNames bounds the text of one session's, bytes: a guest names as many
// as it likes. Beyond that the names before are forgotten.
const maxCgroupNames = 4 << 20

// of returns the names of a session, none at first but those that are known.
func (c *cgroups) of(ctx context.Context, vm, session uuid.UUID) *cgroupNames {
	n := c.vms[vm]
	if n != nil && n.session == session {
		return n
	}
	n = &cgroupNames{session: session, paths: map[uint64]string{}}
	if known, err := c.known(ctx, vm); err == nil && known.Session == session {
		for id, path := range known.Paths {
			n.add(id, path)
		}
	}
	if c.vms == nil {
		c.vms = map[uuid.UUID]*cgroupNames{}
	}
	c.vms[vm] = n
	return n
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

// fill says in which container an event's task is, as far as its cgroup shows.
func (n *cgroupNames) fill(s *apipb.Subject) {
	path, has := n.paths[s.CgroupId]
	if !has {
		return
	}
	runtime, id, _ := lineage.RuntimeOf(path)
	s.Cgroup, s.Runtime, s.Container = safe.Quote(path), runtime, safe.Quote(id)
}
