package api

import (
	"context"
	"log/slog"

	"connectrpc.com/connect"
)

// errorInterceptor is the one place where a backend's error becomes the wire's.
type errorInterceptor struct{ log *slog.Logger }

func (i errorInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		out, err := next(ctx, r)
		return out, i.wire(ctx, r.Spec(), err)
	}
}

func (i errorInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, c connect.StreamingHandlerConn) error {
		return i.wire(ctx, c.Spec(), next(ctx, c))
	}
}

func (errorInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// wire logs what is the monitor's own fault; the rest is the caller's to read.
func (i errorInterceptor) wire(ctx context.Context, spec connect.Spec, err error) error {
	err = wireError(err)
	if err != nil && connect.CodeOf(err) == connect.CodeInternal {
		i.log.WarnContext(ctx, "api call", slog.String("procedure", spec.Procedure), slog.Any("error", err))
	}
	return err
}
