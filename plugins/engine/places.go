package engine

import (
	"context"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/outguard/outguard/plugins/engine/enginepb"
)

// Places implements the control service.
func (s *server) Places(_ context.Context, r *enginepb.VM) (*enginepb.PlacesReply, error) {
	vm, err := uuid.FromBytes(r.GetVm())
	if err != nil {
		return nil, err
	}
	p, is := s.engine.(Placer)
	if !is {
		return nil, status.Error(codes.Unimplemented, "this engine does not tell containers apart")
	}
	places := p.Places(vm)
	return placesToPB(&places), nil
}

func placesToPB(p *Places) *enginepb.PlacesReply {
	out := &enginepb.PlacesReply{Session: p.Session[:], Nameless: p.Nameless, Unplaced: p.Unplaced}
	for _, c := range p.Cgroups {
		out.Cgroups = append(out.Cgroups, &enginepb.Cgroup{Id: c.ID, Path: []byte(c.Path)})
	}
	for i := range p.Containers {
		c := &p.Containers[i]
		out.Containers = append(out.Containers, &enginepb.Container{
			Cgroup: c.Cgroup, Path: []byte(c.Path), Runtime: c.Runtime, Id: []byte(c.ID), Begun: c.Begun,
			MntNs: c.Mnt, PidNs: c.PID, UserNs: c.User, NetNs: c.Net,
			Program: []byte(c.Program), BootNs: c.BootNs, Tasks: c.Tasks, Workload: c.Workload,
		})
	}
	return out
}
