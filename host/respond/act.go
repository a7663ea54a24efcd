package respond

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// act brings about what an order asks for.
func (r *Responder) act(ctx context.Context, j *job, res *Result) error {
	switch j.order.Kind {
	case Log:
		res.Effect = res.Started
		return nil
	case Pause:
		return r.pause(ctx, j, res)
	case Resume:
		return r.resume(ctx, j, res)
	case Capture:
		return r.bundle(ctx, j, res)
	}
	return fmt.Errorf("unknown step %q", j.order.Kind)
}

// pause stops the VM. It is short and not given up when the responder stops.
func (r *Responder) pause(ctx context.Context, j *job, res *Result) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.PauseWithin)
	defer cancel()
	if j.recovered {
		if paused, err := r.machine.Paused(ctx, j.order.VM); err == nil && paused {
			res.Already, res.Effect, res.Detail = true, r.now(), "found paused"
			return nil
		}
	}
	return r.insist(ctx, j.order.VM, true, r.machine.Pause, res)
}

// resume lets the VM run. After a restart an old order is not carried out any
// more: nobody expects a VM to start running by itself hours later.
func (r *Responder) resume(ctx context.Context, j *job, res *Result) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.PauseWithin)
	defer cancel()
	if j.recovered {
		paused, err := r.machine.Paused(ctx, j.order.VM)
		if err == nil && !paused {
			res.Already, res.Effect, res.Detail = true, r.now(), "found running"
			return nil
		}
		if age := r.now().Sub(j.order.Given); age > r.opts.PauseWithin {
			res.Status, res.Error = Skipped, fmt.Sprintf("given %s ago, before a restart; order it again if it still holds", age.Round(time.Second))
			return nil
		}
	}
	return r.insist(ctx, j.order.VM, false, r.machine.Resume, res)
}

// bundle captures the VM, which it pauses first where nobody has. What was in
// memory before the VM ran on is gone: an order found after a restart is not
// carried out on a VM that runs.
func (r *Responder) bundle(ctx context.Context, j *job, res *Result) error {
	if r.capture == nil {
		return errors.New("this monitor captures nothing")
	}
	ctx, cancel := context.WithTimeout(ctx, r.opts.CaptureWithin)
	defer cancel()
	if j.recovered {
		dir, err := r.capture.Captured(ctx, j.order)
		if err == nil && dir != "" {
			res.Already, res.Bundle, res.Effect, res.Detail = true, dir, r.now(), "found whole"
			return nil
		}
	}
	paused, err := r.machine.Paused(ctx, j.order.VM)
	if err != nil {
		return err
	}
	if !paused && j.recovered {
		return errors.New("the VM ran on after the capture was interrupted")
	}
	if !paused {
		within, cancel := context.WithTimeout(ctx, r.opts.PauseWithin)
		defer cancel()
		if err := r.insist(within, j.order.VM, true, r.machine.Pause, res); err != nil {
			return err
		}
	}
	dir, err := r.capture.Capture(ctx, j.order)
	if err != nil {
		return err
	}
	if dir == "" {
		return errors.New("the capture left no bundle")
	}
	res.Bundle, res.Effect = dir, r.now()
	return nil
}

// insist asks until the VM is as wanted, an error is for good, or ctx ends.
// Asking twice does no harm: the effect is a state, not a step.
func (r *Responder) insist(ctx context.Context, vm uuid.UUID, paused bool, ask func(context.Context, uuid.UUID) error, res *Result) error {
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		res.Attempts++
		err := ask(ctx, vm)
		effect := r.now()
		if err == nil {
			if err = r.check(ctx, vm, paused); err == nil {
				res.Effect = effect
				return nil
			}
		}
		if permanent(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return r.late(ctx, vm, paused, res, err)
		case <-time.After(wait):
			r.retries.Add(1)
		}
	}
}

// check holds an answer against the VM itself.
func (r *Responder) check(ctx context.Context, vm uuid.UUID, want bool) error {
	paused, err := r.machine.Paused(ctx, vm)
	if err != nil {
		return fmt.Errorf("check the effect: %w", err)
	}
	if paused != want {
		return fmt.Errorf("libvirt reported success, but paused is %t", paused)
	}
	return nil
}

// late looks once more after the deadline: a call that did not return may
// have had its effect.
func (r *Responder) late(ctx context.Context, vm uuid.UUID, want bool, res *Result, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := r.check(ctx, vm, want); err != nil {
		return fmt.Errorf("not within the deadline: %w", cause)
	}
	res.Effect, res.Detail = r.now(), "after the deadline"
	return nil
}

func permanent(err error) bool {
	var p interface{ Permanent() bool }
	return errors.As(err, &p) && p.Permanent()
}
