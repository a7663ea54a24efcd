package api

import (
	"context"
	"log/slog"

	"github.com/outguard/outguard/host/api/apipb"
)

func (s *service) PinBundle(ctx context.Context, r *apipb.PinBundleRequest) (*apipb.PinBundleResponse, error) {
	b, err := s.backend.PinBundle(ctx, r.Id, r.Pinned, callerOf(ctx, ""))
	if err != nil {
		return nil, err
	}
	return &apipb.PinBundleResponse{Bundle: s.bundle(ctx, b)}, nil
}

func (s *service) PruneBundles(ctx context.Context, r *apipb.PruneBundlesRequest) (*apipb.PruneBundlesResponse, error) {
	vm, err := s.resolveOptional(ctx, r.Vm)
	if err != nil {
		return nil, err
	}
	before, err := parseSince(r.Before)
	if err != nil {
		return nil, err
	}
	if before.IsZero() && r.Keep == nil && r.Bytes == nil {
		return nil, invalid("say what goes: before, keep or bytes", "every bundle would be given up")
	}
	by := callerOf(ctx, "")
	s.opts.Log.Info("bundles pruned over the api", slog.Int("pid", int(by.PID)), slog.Uint64("uid", uint64(by.UID)), slog.Bool("dry_run", r.DryRun))
	gone, err := s.backend.PruneBundles(ctx, Prune{VM: vm, Before: before, Keep: r.Keep, Bytes: r.Bytes, DryRun: r.DryRun}, by)
	if err != nil {
		return nil, err
	}
	out := &apipb.PruneBundlesResponse{}
	for _, b := range gone {
		out.Bundles = append(out.Bundles, s.bundle(ctx, b))
	}
	return out, nil
}

func (s *Server) bundle(ctx context.Context, b *apipb.Bundle) *apipb.Bundle {
	s.fillName(ctx, &b.Vm, b.Uuid)
	sanitize(b)
	return b
}
