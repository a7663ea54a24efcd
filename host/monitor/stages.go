package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
)

// stage is one part that runs. ready, if set, is called once when the stages
// before it run, and must return before the next one starts.
type stage struct {
	name  string
	ready func(ctx context.Context) error
	run   func(ctx context.Context) error
}

// stages run side by side, started in order and stopped in reverse: each is
// told to stop when all after it have ended.
type stages []stage

type running struct {
	stage
	stop context.CancelFunc
	done chan error
}

// run starts all stages, waits for ctx or for the first stage that ends by
// itself, and stops all. A stage that ends because it was told to is no error.
func (s stages) run(ctx context.Context, log *slog.Logger) error {
	ended := make(chan string, len(s))
	var up []*running
	var errs []error
	for _, st := range s {
		r, err := st.start(ctx, ended)
		if r != nil {
			up = append(up, r)
		}
		if err != nil {
			errs = append(errs, err)
			break
		}
		log.Debug("started", "part", st.name)
	}
	if len(errs) == 0 {
		select {
		case <-ctx.Done():
		case name := <-ended:
			errs = append(errs, fmt.Errorf("%s ended", name))
		}
	}
	for i := len(up) - 1; i >= 0; i-- {
		up[i].stop()
		if err := <-up[i].done; err != nil && !errors.Is(err, context.Canceled) {
			errs = append(errs, fmt.Errorf("%s: %w", up[i].name, err))
		}
		log.Debug("stopped", "part", up[i].name)
	}
	return errors.Join(errs...)
}

// start runs a stage under a context that does not end with ctx: its end comes
// in its turn.
func (st stage) start(ctx context.Context, ended chan<- string) (*running, error) {
	if st.ready != nil {
		if err := st.ready(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", st.name, err)
		}
	}
	if st.run == nil {
		return nil, nil
	}
	own, stop := context.WithCancel(context.WithoutCancel(ctx))
	r := &running{stage: st, stop: stop, done: make(chan error, 1)}
	go func() {
		r.done <- st.run(own)
		ended <- st.name
	}()
	return r, nil
}
