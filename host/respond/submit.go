package respond

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/failpoint"
)

// Submit journals the orders of a request, all or none, queues them and
// returns them. It returns after the journal is on disk and before they are
// carried out; without a journal entry nothing is. Wait waits for a result.
func (r *Responder) Submit(_ context.Context, req Request) ([]Order, error) {
	orders, err := r.submit(req)
	if err != nil {
		r.refused.Add(1)
		return nil, fmt.Errorf("order for %s: %w", req.VM, err)
	}
	r.given.Add(uint64(len(orders)))
	return orders, nil
}

func (r *Responder) submit(req Request) ([]Order, error) {
	orders, err := req.orders(r.now(), &r.opts)
	if err != nil {
		return nil, err
	}
	p := split(orders, r.now())
	q, err := r.reserve(lane{vm: req.VM}, p.jobs)
	if err != nil {
		return nil, err
	}
	r.reserveAlerts(p)
	q.submit.Lock()
	defer q.submit.Unlock()
	err = r.begin(req.VM, &batch{orders, p.results}, len(p.jobs) > 0)
	failpoint.At(failpoint.Journaled)
	for _, j := range p.alerts {
		r.enqueue(j.queue, []*job{j}, err)
	}
	r.enqueue(q, p.jobs, err)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	r.tellSettled(p)
	if len(p.jobs) > 0 {
		runtime.Gosched() // the VM's worker was started last: it goes on here, and no thread is woken for it
	}
	return orders, nil
}

// begin journals a batch, soon where something waits for its turn.
func (r *Responder) begin(vm uuid.UUID, b *batch, soon bool) error {
	if soon {
		err := r.journal.ahead(b)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errTaken) && !errors.Is(err, errTooLarge) {
			r.log.Warn("the journal's write-ahead log; an order takes longer", "vm", vm, "err", err)
		}
	}
	return r.journal.begin(b)
}

// tellSettled puts on record what is settled by being journaled.
func (r *Responder) tellSettled(p *parted) {
	told := make([]uuid.UUID, len(p.settled))
	for i, o := range p.settled {
		r.recordOrder(o)
		r.tell(&job{order: o}, p.results[i])
		told[i] = o.ID
	}
	r.journal.told(told...)
}

// parted are the orders of a request by how they are carried out.
type parted struct {
	jobs    []*job  // in the VM's turn
	alerts  []*job  // each in its target's
	settled []Order // by being journaled, with results
	results []Result
}

func (p *parted) settle(o Order, now time.Time, status Status, why string) {
	p.settled = append(p.settled, o)
	p.results = append(p.results, Result{Order: o.ID, Status: status, Error: why, Started: now, Effect: now, Finished: now})
}

// split parts the orders that are carried out by being journaled, with their
// results, from those that need a turn. So a flood of what is only logged
// neither fills a VM's queue nor holds up its pause, and neither does an alert.
func split(orders []Order, now time.Time) *parted {
	p := &parted{}
	for _, o := range orders {
		switch o.Kind {
		case Log:
			p.settle(o, now, Done, "")
		case Alert:
			p.alerts = append(p.alerts, newJob(o))
		default:
			p.jobs = append(p.jobs, newJob(o))
		}
	}
	return p
}

// reserveAlerts takes room in the targets' lanes. Where there is none the alert
// is skipped, which is a result: no alert keeps a VM from being stopped.
func (r *Responder) reserveAlerts(p *parted) {
	var left []*job
	for _, j := range p.alerts {
		q, err := r.reserve(j.order.lane(), []*job{j})
		if err != nil {
			p.settle(j.order, j.order.Given, Skipped, err.Error())
			continue
		}
		j.queue = q
		left = append(left, j)
	}
	p.alerts = left
}

// reserve takes room for jobs in a lane's queue. A request that stops the VM has
// as much room again, which no other can take from it.
func (r *Responder) reserve(l lane, jobs []*job) (*queue, error) {
	limit := r.opts.Waiting
	if slices.ContainsFunc(jobs, func(j *job) bool { return j.order.Kind.urgent() }) {
		limit *= 2
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return nil, ErrStopped
	}
	q := r.queue(l)
	if len(jobs) > 0 && len(q.jobs)+q.room+len(jobs) > limit {
		return nil, ErrQueueFull
	}
	q.room += len(jobs)
	for _, j := range jobs { // before the journal has them: open takes over only what nobody here has
		r.jobs[j.order.ID] = j
	}
	return q, nil
}

// enqueue gives the room back, to the jobs where they were journaled.
func (r *Responder) enqueue(q *queue, jobs []*job, err error) {
	journaled := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	q.room -= len(jobs)
	for _, j := range jobs {
		if err != nil {
			delete(r.jobs, j.order.ID)
			continue
		}
		j.journaled = journaled
		q.jobs = append(q.jobs, j)
		if q.held != nil {
			j.hold(q.held)
		}
	}
	r.kick(q)
}
