package api

import (
	"context"
	"log/slog"

	"github.com/outguard/outguard/host/api/apipb"
)

func (s *service) ReloadPlaybook(ctx context.Context, _ *apipb.ReloadPlaybookRequest) (*apipb.ReloadPlaybookResponse, error) {
	by := callerOf(ctx, "")
	s.opts.Log.Info("playbook reloaded over the api", slog.Int("pid", int(by.PID)), slog.Uint64("uid", uint64(by.UID)))
	p, err := s.backend.ReloadPlaybook(ctx, by)
	if err != nil {
		return nil, err
	}
	sanitize(p)
	return &apipb.ReloadPlaybookResponse{Playbook: p}, nil
}
