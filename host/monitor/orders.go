package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/respond"
)

func (b backend) Orders(_ context.Context, q api.Query) ([]*apipb.Order, error) {
	var out []*apipb.Order
	err := b.m.journal.Entries(func(e respond.Entry) bool {
		if e.Order.Given.Before(q.Since) {
			return false
		}
		if (q.VM == uuid.Nil || q.VM == e.Order.VM) && (q.Order == "" || q.Order == e.Order.ID.String()) {
			out = append(out, orderOf(e))
		}
		return q.Limit == 0 || uint64(len(out)) < q.Limit
	})
	slices.Reverse(out)
	return out, err
}

func orderOf(e respond.Entry) *apipb.Order {
	o := e.Order
	p := &apipb.Order{
		Id: o.ID.String(), Group: o.Group.String(), Vm: o.Name, Uuid: o.VM.String(), Step: string(o.Kind), State: "pending",
		Target: o.Target, By: o.Asked, Reason: o.Reason, Rule: o.Rule, Finding: o.Finding,
		Received: api.FormatTime(o.Received), Found: api.FormatTime(o.Found), Decided: api.FormatTime(o.Decided),
	}
	if o.VM == uuid.Nil {
		p.Uuid = "" // the host's own
	}
	if w := e.Waiting; w != nil {
		p.State, p.Error = "waiting", w.Error
		p.Detail = fmt.Sprintf("since %s, until %s", api.FormatTime(w.Since), api.FormatTime(o.Deadline))
	}
	if r := e.Result; r != nil {
		p.State, p.Error = string(r.Status), r.Error
		p.Journalled, p.Started = api.FormatTime(r.Journaled), api.FormatTime(r.Started)
		p.Taken, p.Effect, p.Ended = api.FormatTime(r.Taken), api.FormatTime(r.Effect), api.FormatTime(r.Finished)
		p.Attempts, p.Already, p.Recovered, p.Bundle, p.Detail = uint32(r.Attempts), r.Already, r.Recovered, r.Bundle, r.Detail
	}
	return p
}

func (b backend) Pause(ctx context.Context, vm uuid.UUID, by api.Caller) (*apipb.Order, error) {
	return b.order(ctx, vm, by, respond.Pause)
}

func (b backend) Resume(ctx context.Context, vm uuid.UUID, by api.Caller) (*apipb.Order, error) {
	return b.order(ctx, vm, by, respond.Resume)
}

func (b backend) Contain(ctx context.Context, vm uuid.UUID, step, state string, by api.Caller) (*apipb.Order, error) {
	o, err := b.orderOn(ctx, vm, by, respond.Kind(step), state)
	if err != nil && o != nil && (step == string(respond.Revert) || step == string(respond.Unsave)) {
		err = b.whatIsSaved(ctx, vm, err)
	}
	return o, err
}

// Saved asks libvirt: a domain's snapshots go with its images.
func (b backend) Saved(ctx context.Context, vm uuid.UUID) ([]*apipb.Saved, error) {
	all, err := b.m.libvirt.SavedStates(ctx, vm)
	if err != nil {
		return nil, libvirtError(err)
	}
	out := make([]*apipb.Saved, len(all))
	for i, s := range all {
		out[i] = &apipb.Saved{Name: s.Name, Created: api.FormatTime(s.Created), State: s.State.String()}
	}
	return out, nil
}

// whatIsSaved says beside an error of revert or unsave what there is.
func (b backend) whatIsSaved(ctx context.Context, vm uuid.UUID, err error) error {
	all, listed := b.m.libvirt.SavedStates(ctx, vm)
	if listed != nil {
		return err
	}
	names := make([]string, len(all))
	for i, s := range all {
		names[i] = s.Name
	}
	next := "saved are: " + strings.Join(names, ", ")
	if len(names) == 0 {
		next = "nothing is saved of it; outguard save does that"
	}
	return api.Error(connect.CodeFailedPrecondition, next, err)
}

// Capture leaves a VM running that ran before: pause and resume are orders too, the
// latter as soon as memory and disks are taken.
// What makes it revertible is of the same moment, and is called as the order is.
func (b backend) Capture(ctx context.Context, vm uuid.UUID, revertible bool, by api.Caller, progress func(*apipb.Progress)) (*apipb.Order, error) {
	paused, err := b.m.libvirt.Paused(ctx, vm)
	if err != nil {
		return nil, libvirtError(err)
	}
	defer b.m.captures.watch(vm, progress)()
	if !paused {
		if o, err := b.pauseFor(ctx, vm, by); err != nil {
			return o, err
		}
	}
	taking, err := b.submit(ctx, vm, by, respond.Capture, "")
	var keeping []respond.Order
	if err == nil && revertible { // what it is kept as has the capture's name
		keeping, err = b.submit(ctx, vm, by, respond.Save, taking[0].ID.String())
	}
	if !paused { // its turn comes after theirs
		_, resumed := b.order(context.WithoutCancel(ctx), vm, by, respond.Resume)
		err = errors.Join(err, resumed)
	}
	if len(taking) == 0 {
		return nil, err
	}
	o, captured := b.settled(ctx, taking[0])
	if captured == nil && len(keeping) > 0 {
		captured = b.kept(ctx, o, keeping[0])
	}
	return o, errors.Join(captured, err)
}

// pauseFor has a VM that runs stand for a capture. Where that was not waited for to its
// end (the caller went away, or libvirtd) the pause may yet come about, and nobody would
// end it: an order to resume follows it.
func (b backend) pauseFor(ctx context.Context, vm uuid.UUID, by api.Caller) (*apipb.Order, error) {
	pausing, err := b.submit(ctx, vm, by, respond.Pause, "")
	if err != nil {
		return nil, err
	}
	o, err := b.settled(ctx, pausing[0])
	if err != nil && (o == nil || o.Ended == "") {
		_, follows := b.submit(context.WithoutCancel(ctx), vm, by, respond.Resume, "")
		err = errors.Join(err, follows)
	}
	return o, err
}

// kept waits for what makes a capture revertible.
func (b backend) kept(ctx context.Context, o *apipb.Order, keeping respond.Order) error {
	if _, err := b.settled(ctx, keeping); err != nil {
		return api.Error(connect.CodeFailedPrecondition, "outguard bundle show "+o.Bundle+" shows the capture", fmt.Errorf("captured, and not kept for revert: %w", err))
	}
	return nil
}

func (b backend) order(ctx context.Context, vm uuid.UUID, by api.Caller, step respond.Kind) (*apipb.Order, error) {
	return b.orderOn(ctx, vm, by, step, "")
}

func (b backend) orderOn(ctx context.Context, vm uuid.UUID, by api.Caller, step respond.Kind, state string) (*apipb.Order, error) {
	orders, err := b.submit(ctx, vm, by, step, state)
	if err != nil {
		return nil, err
	}
	return b.settled(ctx, orders[0])
}

func (b backend) submit(ctx context.Context, vm uuid.UUID, by api.Caller, step respond.Kind, state string) ([]respond.Order, error) {
	return b.m.responder.Submit(ctx, respond.Request{
		State: state, VM: vm, Name: b.m.domains.name(vm), Steps: []respond.Kind{step}, Asked: by.String(), Reason: by.Reason, Decided: time.Now(),
	})
}

// settled waits for what comes of an order.
func (b backend) settled(ctx context.Context, order respond.Order) (*apipb.Order, error) {
	r, err := b.m.responder.WaitUnlessAway(ctx, order.ID)
	if errors.Is(err, respond.ErrAway) {
		return orderOf(respond.Entry{Order: order}), api.Error(connect.CodeUnavailable, "start libvirtd; outguard orders "+order.ID.String()+" shows what came of it", err)
	}
	if err != nil {
		return nil, err
	}
	o := orderOf(respond.Entry{Order: order, Result: &r})
	if r.Status != respond.Done && r.Status != respond.Asked {
		err = api.Error(connect.CodeFailedPrecondition, "outguard orders --vm "+o.Vm+" shows it", fmt.Errorf("%s %s: %s", order.Kind, o.Vm, r.Error))
	}
	return o, err
}

func libvirtError(err error) error {
	switch {
	case errors.Is(err, domain.ErrUnreachable):
		return api.Error(connect.CodeUnavailable, "start libvirtd", err)
	case errors.Is(err, domain.ErrNotFound), errors.Is(err, domain.ErrNotRunning):
		return api.Error(connect.CodeFailedPrecondition, "outguard vms shows each domain's state", err)
	}
	return err
}

func (b backend) Bundles(context.Context) ([]*apipb.Bundle, error) {
	all, err := b.m.shelf.captures()
	return bundlesOf(all), err
}

func bundlesOf(all []*capture) []*apipb.Bundle {
	out := make([]*apipb.Bundle, len(all))
	for i, c := range all {
		out[i] = bundleOf(c)
	}
	return out
}

func bundleOf(c *capture) *apipb.Bundle {
	man := c.manifest
	b := &apipb.Bundle{
		Id: c.name(), Dir: c.dir, Vm: man.VMName, Uuid: man.VM.String(), Created: api.FormatTime(man.Created), Order: man.Order,
		Disk: c.disk, Pinned: c.pinned, Bytes: c.bytes,
	}
	if man.Finding != "" {
		b.Findings = []string{man.Finding}
	}
	return b
}

func (b backend) PinBundle(_ context.Context, id string, pinned bool, by api.Caller) (*apipb.Bundle, error) {
	c, err := b.m.shelf.setPinned(id, pinned)
	if errors.Is(err, fs.ErrNotExist) {
		err = api.Error(connect.CodeNotFound, "outguard captures lists them", err)
	}
	if err != nil {
		return nil, err
	}
	what := "capture-pinned"
	if !pinned {
		what = "capture-unpinned"
	}
	b.m.keep(c.manifest.VM, evidence.KindNote, time.Now(), note{What: what, Text: fmt.Sprintf("%s, by %s", c.name(), by)})
	return bundleOf(c), nil
}

func (b backend) PruneBundles(_ context.Context, p api.Prune, by api.Caller) ([]*apipb.Bundle, error) {
	gone, err := b.m.shelf.prune(wish{vm: p.VM, before: p.Before, keep: p.Keep, bytes: p.Bytes, dry: p.DryRun, by: by.String()})
	return bundlesOf(gone), err
}
