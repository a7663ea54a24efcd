package api

import (
	"context"
	"log/slog"

	"github.com/outguard/outguard/host/api/apipb"
)

func (s *service) RotateKey(ctx context.Context, r *apipb.RotateKeyRequest) (*apipb.RotateKeyResponse, error) {
	by := callerOf(ctx, r.Reason)
	s.opts.Log.Info("host key rotation over the api", slog.Int("pid", int(by.PID)), slog.Uint64("uid", uint64(by.UID)), slog.String("reason", r.Reason))
	return s.backend.RotateKey(ctx, by)
}
