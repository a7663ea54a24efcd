package respond

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// isolate takes down the VM's network links that are up. Which they are is in
// the journal before libvirt is asked, so that the way back knows them.
func (r *Responder) isolate(ctx context.Context, j *job, res *Result) error {
	return r.whileAway(ctx, j, func() error { return r.tryIsolate(ctx, j, res) })
}

func (r *Responder) tryIsolate(ctx context.Context, j *job, res *Result) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.PauseWithin)
	defer cancel()
	vm := j.order.VM
	up, err := r.machine.LinksUp(ctx, vm)
	if err != nil {
		return err
	}
	res.Already = len(up) == 0
	ask := func(ctx context.Context) error {
		now, err := r.machine.LinksUp(ctx, vm) // one may have come meanwhile
		if err != nil {
			return err
		}
		for _, mac := range now {
			if !slices.Contains(up, mac) {
				up = append(up, mac)
			}
		}
		if err := r.journal.isolate(vm, up); err != nil {
			return fmt.Errorf("journal: %w", err)
		}
		return r.machine.SetLinks(ctx, vm, up, false)
	}
	err = r.persist(ctx, j, ask, func(ctx context.Context) error { return r.noLinks(ctx, vm) }, res)
	if len(up) > 0 {
		res.Links, res.Detail = up, strings.TrimSpace(res.Detail+" down: "+strings.Join(up, " "))
	}
	return err
}

func (r *Responder) noLinks(ctx context.Context, vm uuid.UUID) error {
	up, err := r.machine.LinksUp(ctx, vm)
	if err != nil {
		return fmt.Errorf("check the effect: %w", err)
	}
	if len(up) > 0 {
		return fmt.Errorf("libvirt reported success, but %s is up", strings.Join(up, " "))
	}
	return nil
}

// connect is the way back: the links that isolate took down are up again, and
// no others. Nobody expects an old order to bring a VM back to the network.
func (r *Responder) connect(ctx context.Context, j *job, res *Result) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.PauseWithin)
	defer cancel()
	vm := j.order.VM
	macs, err := r.journal.Isolated(vm)
	if err != nil {
		return err
	}
	if len(macs) == 0 {
		res.Already, res.Effect, res.Detail = true, r.now(), "no link of it is down by an order"
		return nil
	}
	if r.stale(j, res) {
		return nil
	}
	ask, done := once(func(ctx context.Context) error { return r.machine.SetLinks(ctx, vm, macs, true) })
	if err := r.persist(ctx, j, ask, done, res); err != nil {
		return err
	}
	res.Links, res.Detail = macs, strings.TrimSpace(res.Detail+" up: "+strings.Join(macs, " "))
	return r.journal.connect(vm)
}

// reset begins the machine anew. Nobody can tell whether an order of an earlier
// process had its effect, and a machine that is begun anew twice is begun anew.
func (r *Responder) reset(ctx context.Context, j *job, res *Result) error {
	if r.stale(j, res) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*r.opts.PauseWithin)
	defer cancel()
	ask, done := once(func(ctx context.Context) error { return r.machine.Reset(ctx, j.order.VM) })
	return r.persist(ctx, j, ask, done, res)
}

// once is what the machine has checked by its effect when it returns, for
// persist: done answers as the last call of ask did.
func once(call func(context.Context) error) (ask, done func(context.Context) error) {
	last := errors.New("it was not asked")
	ask = func(ctx context.Context) error { last = call(ctx); return last }
	return ask, func(context.Context) error { return last }
}

// destroy ends the VM. An order that an earlier process had begun may have had
// its effect, and somebody may have started the VM again since: unless it waited
// for libvirt, an old one is not carried out on a VM that runs.
func (r *Responder) destroy(ctx context.Context, j *job, res *Result) error {
	return r.whileAway(ctx, j, func() error { return r.tryDestroy(ctx, j, res) })
}

func (r *Responder) tryDestroy(ctx context.Context, j *job, res *Result) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 4*r.opts.PauseWithin) // QEMU has to end
	defer cancel()
	vm := j.order.VM
	active, err := r.machine.Active(ctx, vm)
	if err != nil {
		return err
	}
	if !active {
		res.Already, res.Effect, res.Detail = true, r.now(), "found off"
		return nil
	}
	if j.recovered {
		if e, err := r.journal.Entry(j.order.ID); (err != nil || e.Waiting == nil) && r.stale(j, res) {
			return nil
		}
	}
	check := func(ctx context.Context) error {
		active, err := r.machine.Active(ctx, vm)
		if err == nil && active {
			err = errors.New("libvirt reported success, but the VM is active")
		}
		return err
	}
	return r.persist(ctx, j, func(ctx context.Context) error { return r.machine.Destroy(ctx, vm) }, check, res)
}

// kill asks the guest once: a hostile one holds up what follows no longer than
// GuestWithin. Asked again by the next process it does no harm: the process is
// named by its start as well.
func (r *Responder) kill(ctx context.Context, j *job, res *Result) error {
	if r.opts.Guest == nil {
		return errors.New("this monitor asks nothing of guests")
	}
	if r.stale(j, res) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.GuestWithin)
	defer cancel()
	res.Attempts++
	detail, shown, err := r.opts.Guest.Kill(ctx, j.order, j.order.Kind == KillTree)
	if err != nil {
		return err
	}
	if res.Effect, res.Detail = r.now(), bound(detail); !shown {
		res.Status = Asked
	}
	return nil
}

// freeze asks the guest to stop a cgroup, which is in the journal before: the way
// back knows it. That it stands is the guest's word.
func (r *Responder) freeze(ctx context.Context, j *job, res *Result) error {
	if r.opts.Guest == nil {
		return errors.New("this monitor asks nothing of guests")
	}
	if r.stale(j, res) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.GuestWithin)
	defer cancel()
	id, err := r.opts.Guest.Cgroup(ctx, j.order)
	if err != nil {
		return err
	}
	if err := r.journal.freeze(j.order.VM, id); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	res.Attempts++
	res.Cgroups, res.Detail = []string{id}, "cgroup "+id
	if _, err := r.opts.Guest.Freeze(ctx, j.order.VM, id, true); err != nil {
		return err
	}
	res.Effect, res.Status = r.now(), Asked
	return nil
}

// thaw is the way back: all that orders froze goes on, and what is no more is
// forgotten.
func (r *Responder) thaw(ctx context.Context, j *job, res *Result) error {
	if r.opts.Guest == nil {
		return errors.New("this monitor asks nothing of guests")
	}
	all, err := r.journal.Frozen(j.order.VM)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		res.Already, res.Effect, res.Detail = true, r.now(), "nothing of it is frozen by an order"
		return nil
	}
	if r.stale(j, res) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.GuestWithin)
	defer cancel()
	res.Attempts++
	for _, id := range all {
		if gone, err := r.opts.Guest.Freeze(ctx, j.order.VM, id, false); err != nil && !gone {
			return fmt.Errorf("cgroup %s: %w", id, err)
		}
	}
	res.Effect, res.Status, res.Cgroups, res.Detail = r.now(), Asked, all, "cgroups "+strings.Join(all, " ")
	return r.journal.thaw(j.order.VM)
}

// Between two attempts of an alert there is at least the one, at most the other.
const (
	alertBackoff    = time.Second
	alertBackoffMax = time.Minute
)

// alert tells the order's target until it has taken it, or says that it never
// will, or the deadline has passed. An order whose deadline passed while no
// monitor ran is tried once.
func (r *Responder) alert(ctx context.Context, j *job, res *Result) error {
	if r.opts.Alerts == nil {
		return errors.New("this monitor alerts nobody")
	}
	for wait := alertBackoff; ; wait = min(2*wait, alertBackoffMax) {
		res.Attempts++
		answer, err := r.opts.Alerts.Alert(ctx, j.order)
		if err == nil {
			res.Effect, res.Detail = r.now(), bound(answer)
			return nil
		}
		if ctx.Err() != nil || permanent(err) {
			return err
		}
		if !r.now().Add(wait).Before(j.order.Deadline) {
			return fmt.Errorf("not within %s: %w", j.order.Deadline.Sub(j.order.Given).Round(time.Second), err)
		}
		r.log.Warn("alert not taken; it is tried again", "order", j.order.ID, "target", j.order.Target, "in", wait, "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
			r.retries.Add(1)
		}
	}
}
