package respond

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/failpoint"
)

// act brings about what an order asks for.
func (r *Responder) act(ctx context.Context, j *job, res *Result) error {
	switch j.order.Kind {
	case Log:
		res.Effect = res.Started
		return nil
	case Alert:
		return r.alert(ctx, j, res)
	case Kill, KillTree:
		return r.kill(ctx, j, res)
	case Freeze:
		return r.freeze(ctx, j, res)
	case Thaw:
		return r.thaw(ctx, j, res)
	case Isolate:
		return r.isolate(ctx, j, res)
	case Connect:
		return r.connect(ctx, j, res)
	case Reset:
		return r.reset(ctx, j, res)
	case Destroy:
		return r.destroy(ctx, j, res)
	case Pause:
		return r.pause(ctx, j, res)
	case Resume:
		return r.resume(ctx, j, res)
	case Capture:
		return r.bundle(ctx, j, res)
	case Save:
		return r.save(ctx, j, res)
	case Revert:
		return r.revert(ctx, j, res)
	case Unsave:
		return r.unsave(ctx, j, res)
	}
	return fmt.Errorf("unknown step %q", j.order.Kind)
}

// pause stops the VM. Each try is short and not given up when the responder
// stops.
func (r *Responder) pause(ctx context.Context, j *job, res *Result) error {
	return r.whileAway(ctx, j, func() error { return r.tryPause(ctx, j, res) })
}

func (r *Responder) tryPause(ctx context.Context, j *job, res *Result) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.PauseWithin)
	defer cancel()
	if j.recovered {
		if paused, err := r.machine.Paused(ctx, j.order.VM); err == nil && paused {
			res.Already, res.Effect, res.Detail = true, r.now(), "found paused"
			return nil
		}
	}
	return r.insist(ctx, j, true, r.machine.Pause, res)
}

// awayBackoff is how often at least libvirt is tried while it is away.
const awayBackoff = 5 * time.Second

// whileAway tries until libvirt is there, or the order's deadline has passed, or
// ctx ends: then the order stays as it is. An order whose deadline passed while
// no monitor ran has as long as one without.
func (r *Responder) whileAway(ctx context.Context, j *job, try func() error) error {
	deadline := j.order.Deadline
	if least := r.now().Add(r.opts.PauseWithin); deadline.Before(least) {
		deadline = least
	}
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, awayBackoff) {
		err := try()
		if !away(err) {
			return err
		}
		left := deadline.Sub(r.now())
		if left <= 0 {
			return fmt.Errorf("libvirt was away until the order's deadline: %w", err)
		}
		r.hold(j, err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(wait, left)):
			r.retries.Add(1)
		}
	}
}

// hold notes once that an order waits, and why.
func (r *Responder) hold(j *job, why error) {
	w := Waiting{Since: r.now(), Error: bound(why.Error())}
	if !r.holdQueue(j, &w) {
		return
	}
	if err := r.journal.wait(j.order.ID, w); err != nil {
		r.log.Error("not journaled that an order waits", "order", j.order.ID, "err", err)
	}
	r.log.Warn("order waits for libvirt", "order", j.order.ID, "kind", j.order.Kind, "vm", j.order.VM, "until", j.order.Deadline, "err", why)
	if r.opts.Held != nil {
		r.opts.Held(Entry{Order: j.order, Waiting: &w})
	}
}

// holdQueue tells those of the VM's orders that wait behind j as well; false if
// j was held before.
func (r *Responder) holdQueue(j *job, w *Waiting) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	q := r.queue(j.order.lane())
	if q.held != nil {
		return false
	}
	q.held = w
	for _, j := range q.jobs {
		select {
		case <-j.away: // behind another one before
		default:
			j.hold(w)
		}
	}
	return true
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
		if r.stale(j, res) {
			return nil
		}
	}
	return r.insist(ctx, j, false, r.machine.Resume, res)
}

// stale skips an order of an earlier process that nobody expects any more.
func (r *Responder) stale(j *job, res *Result) bool {
	age := r.now().Sub(j.order.Given)
	if !j.recovered || age <= r.opts.PauseWithin {
		return false
	}
	res.Status, res.Error = Skipped, fmt.Sprintf("given %s ago, before a restart; order it again if it still holds", age.Round(time.Second))
	return true
}

// bundle takes the VM's memory and disks; it pauses the VM first where nobody has.
// What was in memory before the VM ran on is gone: an order found after a restart
// is not carried out on a VM that runs, unless all was taken. What was is packed
// beside the VM's next orders (see pack).
func (r *Responder) bundle(ctx context.Context, j *job, res *Result) error {
	if r.capture == nil {
		return errors.New("this monitor captures nothing")
	}
	return r.whileAway(ctx, j, func() error { return r.tryBundle(ctx, j, res) })
}

func (r *Responder) tryBundle(ctx context.Context, j *job, res *Result) error {
	ctx, cancel := context.WithTimeout(ctx, r.opts.CaptureWithin)
	defer cancel()
	if j.recovered || j.begun {
		dir, taken, err := r.capture.Captured(ctx, j.order)
		if err != nil {
			return err
		}
		if dir != "" {
			res.Already, res.Bundle, res.Effect, res.Detail = true, dir, r.now(), "found whole"
			return nil
		}
		if !taken.IsZero() {
			j.taken, res.Taken, res.Detail = true, taken, "memory and disks found whole"
			return nil
		}
	}
	paused, err := r.machine.Paused(ctx, j.order.VM)
	if err != nil {
		return err
	}
	if !paused && (j.recovered || j.begun) {
		return errors.New("the VM ran on after the capture was interrupted")
	}
	if !paused {
		within, cancel := context.WithTimeout(ctx, r.opts.PauseWithin)
		defer cancel()
		if err := r.insist(within, j, true, r.machine.Pause, res); err != nil {
			return err
		}
	}
	j.begun = true
	if res.Taken, err = r.capture.Take(ctx, j.order); err != nil {
		return err
	}
	failpoint.At(failpoint.Taken)
	j.taken = true
	return nil
}

// maxPacking is how many bundles are packed at once: it costs the host a
// processor each.
const maxPacking = 2

// pack makes the bundle of what was taken and settles the order, while the VM's
// next orders are carried out. What it comes to is no reason to skip those: they
// have begun.
func (r *Responder) pack(ctx context.Context, j *job, res Result) {
	dir, err := r.packed(ctx, j.order)
	switch {
	case ctx.Err() != nil && err != nil:
		r.log.Warn("order interrupted", "order", j.order.ID, "kind", j.order.Kind, "vm", j.order.VM)
		return
	case err != nil:
		res.Status, res.Error = Failed, bound(err.Error())
	default:
		res.Status, res.Bundle, res.Effect = Done, dir, r.now()
	}
	res.Finished = r.now()
	r.settle(j, res)
	r.mu.Lock()
	delete(r.jobs, j.order.ID)
	r.mu.Unlock()
}

func (r *Responder) packed(ctx context.Context, o Order) (string, error) {
	select {
	case r.packing <- struct{}{}:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	defer func() { <-r.packing }()
	ctx, cancel := context.WithTimeout(ctx, r.opts.PackWithin)
	defer cancel()
	dir, err := r.capture.Pack(ctx, o)
	if err == nil && dir == "" {
		err = errors.New("the capture left no bundle")
	}
	return dir, err
}

// insist asks until the VM is paused, or is not, as wanted; see persist.
func (r *Responder) insist(ctx context.Context, j *job, paused bool, ask func(context.Context, uuid.UUID) error, res *Result) error {
	check := func(ctx context.Context) error { return r.check(ctx, j.order.VM, paused) }
	return r.persist(ctx, j, func(ctx context.Context) error { return ask(ctx, j.order.VM) }, check, res)
}

// persist asks until check finds the effect, an error is for good or one that the
// order waits out, or ctx ends. Asking twice does no harm: the effect is a
// state, not a step.
func (r *Responder) persist(ctx context.Context, j *job, ask, check func(context.Context) error, res *Result) error {
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		res.Attempts++
		err := ask(ctx)
		effect := r.now()
		if err == nil {
			if err = check(ctx); err == nil {
				res.Effect = effect
				return nil
			}
		}
		if permanent(err) || (away(err) && j.order.Kind.waits()) {
			return err
		}
		select {
		case <-ctx.Done():
			return r.late(ctx, check, res, err)
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
func (r *Responder) late(ctx context.Context, check func(context.Context) error, res *Result, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := check(ctx); err != nil {
		return fmt.Errorf("not within the deadline: %w", cause)
	}
	res.Effect, res.Detail = r.now(), "after the deadline"
	return nil
}

func away(err error) bool {
	var a interface{ Away() bool }
	return errors.As(err, &a) && a.Away()
}

func permanent(err error) bool {
	var p interface{ Permanent() bool }
	return errors.As(err, &p) && p.Permanent()
}
