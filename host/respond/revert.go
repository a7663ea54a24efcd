package respond

import (
	"context"
	"errors"
	"fmt"
)

// save keeps the VM's memory and disks for revert. It is asked for once: what was
// asked for by a process that was killed is there whole, or is not there and was
// of a moment that has passed.
func (r *Responder) save(ctx context.Context, j *job, res *Result) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.CaptureWithin)
	defer cancel()
	vm, name := j.order.VM, j.order.Target
	there, err := r.machine.Saved(ctx, vm, name)
	switch {
	case err != nil:
		return err
	case there && j.recovered:
		res.Already, res.Effect, res.Detail = true, r.now(), "found whole"
		return nil
	case there:
		return fmt.Errorf("%q is kept already", name)
	case j.recovered:
		return errors.New("it was interrupted, and its moment has passed")
	}
	res.Attempts++
	if err := r.machine.Save(ctx, vm, name); err != nil {
		return err
	}
	if there, err = r.machine.Saved(ctx, vm, name); err != nil || !there {
		return errors.Join(errors.New("libvirt reported success, but nothing is kept"), err)
	}
	res.Effect = r.now()
	return nil
}

// revert brings the VM back, standing or running as it is now. What names no state
// means the last one from before the finding. It is asked for
// once, and not again by a later process: nobody can tell whether it came about,
// and what the VM has done since would be undone by a second time.
func (r *Responder) revert(ctx context.Context, j *job, res *Result) error {
	if j.recovered {
		res.Status, res.Error = Skipped, "the monitor ended while it was under way: see what the VM is, and order it again if it still holds"
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.CaptureWithin)
	defer cancel()
	vm, name := j.order.VM, j.order.Target
	if name == "" {
		var err error
		if name, err = r.machine.LastSaved(ctx, vm, j.order.before()); err != nil {
			return err
		}
		res.Detail = "to " + name
	}
	active, err := r.machine.Active(ctx, vm)
	if err != nil {
		return err
	}
	paused := false
	if active {
		if paused, err = r.machine.Paused(ctx, vm); err != nil {
			return err
		}
	}
	res.Attempts++
	if err := r.machine.Revert(ctx, vm, name, paused); err != nil {
		return err
	}
	if err := r.check(ctx, vm, paused); err != nil {
		return err
	}
	res.Effect = r.now()
	return nil
}

// unsave gives up what save kept. What an earlier process gave up is gone.
func (r *Responder) unsave(ctx context.Context, j *job, res *Result) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.CaptureWithin)
	defer cancel()
	vm, name := j.order.VM, j.order.Target
	there, err := r.machine.Saved(ctx, vm, name)
	switch {
	case err != nil:
		return err
	case !there && j.recovered:
		res.Already, res.Effect, res.Detail = true, r.now(), "found given up"
		return nil
	case !there:
		return fmt.Errorf("nothing is kept as %q", name)
	}
	res.Attempts++
	if err := r.machine.Unsave(ctx, vm, name); err != nil {
		return err
	}
	if there, err = r.machine.Saved(ctx, vm, name); err != nil || there {
		return errors.Join(errors.New("libvirt reported success, but it is kept still"), err)
	}
	res.Effect = r.now()
	return nil
}
