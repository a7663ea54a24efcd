package api

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/plugins/engine"
)

// errLimit ends a stream that has sent as many as were asked for.
var errLimit = errors.New("limit reached")

func (s *service) Events(ctx context.Context, r *apipb.EventsRequest, out *connect.ServerStream[apipb.EventsResponse]) error {
	q, err := s.query(ctx, r.Vm, r.Since, r.Follow)
	if err != nil {
		return err
	}
	if q.Until, err = untilOf(r); err != nil {
		return err
	}
	filter, err := newEventFilter(r)
	if err != nil {
		return err
	}
	return s.stream(ctx, func(ctx context.Context) error {
		g := newEvents(s, &filter, r.Limit, func(events []*apipb.Event) error {
			return s.send(ctx, func() error { return out.Send(&apipb.EventsResponse{Events: events}) })
		})
		if err := g.run(ctx, q); err != nil || g.givenUp == 0 {
			return err
		}
		return s.send(ctx, func() error { return out.Send(&apipb.EventsResponse{GivenUp: g.givenUp}) })
	})
}

func untilOf(r *apipb.EventsRequest) (time.Time, error) {
	if r.Until != "" && r.Follow {
		return time.Time{}, invalid("leave one of them out", "follow goes on without an end, and until is one")
	}
	return parseTime("until", r.Until)
}

func (s *service) Findings(ctx context.Context, r *apipb.FindingsRequest, out *connect.ServerStream[apipb.FindingsResponse]) error {
	q, err := s.query(ctx, r.Vm, r.Since, r.Follow)
	if err != nil {
		return err
	}
	least := engine.Info
	if r.MinSeverity != "" {
		if least, err = ParseSeverity(r.MinSeverity); err != nil {
			return Error(connect.CodeInvalidArgument, "", err)
		}
	}
	return s.stream(ctx, func(ctx context.Context) error {
		send := limited(r.Limit, func(f *engine.Finding) error {
			p := FindingOf(f)
			p.Vm = s.names.of(ctx, f.VM)
			return s.send(ctx, func() error { return out.Send(&apipb.FindingsResponse{Finding: p}) })
		})
		return s.backend.Findings(ctx, q, func(f *engine.Finding) error {
			if f.Severity < least {
				return nil
			}
			return send(f)
		})
	})
}

func (s *service) Capture(ctx context.Context, r *apipb.CaptureRequest, out *connect.ServerStream[apipb.CaptureResponse]) error {
	vm, by, err := s.ordered(ctx, "capture", r.Vm, r.Reason)
	if err != nil {
		return err
	}
	release, err := s.acquire()
	if err != nil {
		return err
	}
	defer release()
	// A capture that has begun is finished whether or not its caller waits.
	o, err := s.backend.Capture(context.WithoutCancel(ctx), vm, r.Revertible, by, func(p *apipb.Progress) {
		sanitize(p)
		_ = s.send(ctx, func() error { return out.Send(&apipb.CaptureResponse{Progress: p}) })
	})
	if err != nil {
		return err
	}
	return s.send(ctx, func() error { return out.Send(&apipb.CaptureResponse{Order: s.order(ctx, o)}) })
}

// stream runs one bounded stream. An end by limit, by the caller or by the
// server is no error.
func (s *Server) stream(ctx context.Context, run func(context.Context) error) error {
	release, err := s.acquire()
	if err != nil {
		return err
	}
	defer release()
	inner, cancel := streamContext(ctx)
	defer cancel()
	err = run(inner)
	switch {
	case errors.Is(err, errLimit):
		return nil
	case err != nil && inner.Err() != nil && ctx.Err() == nil:
		return Error(connect.CodeUnavailable, "start it again to go on: systemctl start outguardd", errors.New("the monitor stops"))
	}
	return err
}

func (s *Server) acquire() (release func(), err error) {
	select {
	case s.streams <- struct{}{}:
		return func() { <-s.streams }, nil
	default:
		return nil, Error(connect.CodeResourceExhausted, "end one of them, or try again later",
			fmt.Errorf("%d streams are open, which is the limit", cap(s.streams)))
	}
}

// send gives one write its own deadline: a reader that takes nothing for
// WriteTimeout loses its stream, and costs no more than that.
func (s *Server) send(ctx context.Context, write func() error) error {
	c := controllerOf(ctx)
	if c == nil {
		return write()
	}
	_ = c.SetWriteDeadline(time.Now().Add(s.opts.WriteTimeout)) // not every ResponseWriter can
	err := write()
	_ = c.SetWriteDeadline(time.Time{})
	return err
}

// limited passes n on and then ends with errLimit; 0 is no limit.
func limited[T any](n uint64, send func(T) error) func(T) error {
	sent := uint64(0)
	return func(v T) error {
		if err := send(v); err != nil {
			return err
		}
		if sent++; sent == n {
			return errLimit
		}
		return nil
	}
}

// Records hands a VM's batches on as they are recorded.
func (s *service) Records(ctx context.Context, r *apipb.RecordsRequest, out *connect.ServerStream[apipb.RecordsResponse]) error {
	id, err := s.resolve(ctx, r.Vm)
	if err != nil {
		return err
	}
	q := Query{VM: id, Follow: r.Follow, Since: time.Unix(0, 0)}
	if r.Since != "" {
		if q.Since, err = parseSince(r.Since); err != nil {
			return err
		}
	}
	return s.stream(ctx, func(ctx context.Context) error {
		return s.backend.Batches(ctx, q, func(b *engine.Batch) error {
			return s.send(ctx, func() error {
				return out.Send(&apipb.RecordsResponse{
					Session: b.Session[:], Index: b.Index, Received: FormatTime(b.Received), Count: uint32(b.Count), Records: b.Records,
				})
			})
		})
	})
}
