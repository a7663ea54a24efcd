package respond

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/failpoint"
)

// machine is what orders act on; *domain.Client meets it. What changes something
// returns when the effect is there, and is no error where it was before. An
// error with a method Permanent() bool that returns true is not tried again; one
// with a method Away() bool says that libvirt is not there, and the order waits.
type machine interface {
	Pause(ctx context.Context, vm uuid.UUID) error
	Resume(ctx context.Context, vm uuid.UUID) error
	Paused(ctx context.Context, vm uuid.UUID) (bool, error)

	// LinksUp returns the MAC addresses of the network links that are up, and
	// SetLinks takes links down or up, until they are set otherwise.
	LinksUp(ctx context.Context, vm uuid.UUID) ([]string, error)
	SetLinks(ctx context.Context, vm uuid.UUID, macs []string, up bool) error

	Reset(ctx context.Context, vm uuid.UUID) error // each call begins the machine anew
	Destroy(ctx context.Context, vm uuid.UUID) error

	// Save keeps memory and disks under a name that nothing has, Saved tells
	// whether something is kept under it, LastSaved which was kept last before a
	// moment, Revert brings the VM back to it, and Unsave gives it up.
	Save(ctx context.Context, vm uuid.UUID, name string) error
	Saved(ctx context.Context, vm uuid.UUID, name string) (bool, error)
	LastSaved(ctx context.Context, vm uuid.UUID, before time.Time) (string, error)
	Revert(ctx context.Context, vm uuid.UUID, name string, paused bool) error
	Unsave(ctx context.Context, vm uuid.UUID, name string) error

	Active(ctx context.Context, vm uuid.UUID) (bool, error) // a process holds the VM
}

// alerter tells an order's target.
type alerter interface {
	// Alert is one attempt, and returns what the target answered. It may be called
	// again for an order that was told already, by a process that was killed then.
	Alert(ctx context.Context, o Order) (answer string, err error)
}

// capturer makes a bundle of a paused VM, in two parts: only for the first of
// them does the VM have to stand.
type capturer interface {
	// Take takes memory and disks for an order's bundle, and keeps them so that the
	// next process finds them. What an earlier attempt for the same order left half
	// done is its to remove.
	Take(ctx context.Context, o Order) (at time.Time, err error)
	// Pack makes the bundle of what Take took and returns its directory. On an error
	// that stays where it is. The VM may run, or be gone.
	Pack(ctx context.Context, o Order) (bundle string, err error)
	// Captured tells what there is already of an order: the directory of its whole
	// bundle, or "" and when memory and disks were taken for it; zero where they were
	// not, or not whole. An error says that they were, and are of no use.
	Captured(ctx context.Context, o Order) (bundle string, taken time.Time, err error)
}

// recorder puts orders and results on the VM's record. RecordOrder is called
// after the journal's entry and before libvirt. After a restart both are called
// again for what may not be there yet, since nobody knows how far it came; what
// is there the recorder passes over.
type recorder interface {
	RecordOrder(o Order) error
	RecordResult(o Order, r Result) error
}

// guest is what orders ask of the VM's own agent.
type guest interface {
	// Kill has the process ended that o's finding is about, with tree all that
	// descends from it. shown: its end is on record, and not only the guest's word.
	Kill(ctx context.Context, o Order, tree bool) (detail string, shown bool, err error)

	// Cgroup is the id of that process's cgroup, and Freeze has its tasks stopped,
	// or with on false go on. gone: there is no such cgroup any more.
	Cgroup(ctx context.Context, o Order) (id string, err error)
	Freeze(ctx context.Context, vm uuid.UUID, cgroup string, on bool) (gone bool, err error)
}

// Options of a Responder; zero values mean the documented defaults.
type Options struct {
	PauseWithin   time.Duration // default 5 s; resume has the same
	CaptureWithin time.Duration // to take memory and disks, or to save or bring back a VM; default 10 min
	PackWithin    time.Duration // to pack what was taken, which holds up nobody; default 6 h
	AlertWithin   time.Duration // how long an alert is tried; default 10 min
	Alerts        alerter       // default: alerts fail
	Guest         guest         // default: what a guest has to do fails
	GuestWithin   time.Duration // for the guest to do something, which holds up what follows; default 3 s
	Waiting       int           // orders of one VM that may wait, twice as many where one stops it; default 64
	Away          time.Duration // how long an order to pause or capture waits for a libvirt that is away; default 1 h
	Held          func(Entry)   // called when an order begins to wait for that; must not block
	Observe       func(Entry)   // called after each result, at times from within Submit; must not block
	Log           *slog.Logger  // default: discards
}

// Stats counts orders since the responder was made.
type Stats struct {
	Given      uint64 // journaled
	Refused    uint64 // not journaled: queue full, journal broken, bad request
	Recovered  uint64 // found without a result at the start
	Done       uint64
	Failed     uint64
	Skipped    uint64
	Retries    uint64 // calls of libvirt beyond each order's first
	Unrecorded uint64 // orders or results that evidence did not take
	Waiting    int64  // journaled, without a result yet
}

// Responder carries out orders.
type Responder struct {
	journal *Journal
	machine machine
	capture capturer
	record  recorder
	opts    Options
	log     *slog.Logger
	now     func() time.Time

	given, refused, recovered, done, failed, skipped, retries, unrecorded atomic.Uint64

	mu      sync.Mutex // guards what follows; never held while journaling or calling out
	queues  map[lane]*queue
	jobs    map[uuid.UUID]*job // without a result
	start   func(*queue)       // starts a worker; nil while Run does not run
	packing chan struct{}      // holds a token for each bundle that is packed
	beside  func(func())       // runs what holds up no queue; set by Run
	opened  chan struct{}      // closed when Run has taken over what the journal holds
	stopped chan struct{}      // closed when Run has returned
	ended   bool
}

// lane names a queue: the orders of one VM, or its alerts to one target, which
// neither wait for the others nor hold them up.
type lane struct {
	vm     uuid.UUID
	target string
}

func (o *Order) lane() lane {
	if o.Kind == Alert {
		return lane{o.VM, o.Target}
	}
	return lane{vm: o.VM} // the target is a saved state's name, if any
}

// queue holds the orders of one lane.
type queue struct {
	submit sync.Mutex // one submission at a time, so that the journal's order is the queue's
	jobs   []*job     // guarded by Responder.mu, as is working
	room   int        // taken by submissions under way
	work   bool       // a worker is at it
	broken uuid.UUID  // the group whose later orders are skipped; the worker's own
	held   *Waiting   // the first of jobs waits for libvirt, and with it the others; guarded by Responder.mu
}

type job struct {
	order     Order
	queue     *queue // an alert's, while it is submitted
	journaled time.Time
	recovered bool
	begun     bool          // a capture was; the worker's own
	taken     bool          // a capture's memory and disks are, and the bundle is to be packed; the worker's own
	away      chan struct{} // closed when it waits for libvirt, or for an order that does
	why       string        // set before that, under Responder.mu
	done      chan struct{} // closed when result is set
	result    Result
}

// hold wakes who does not wait for libvirt. Called once, with Responder.mu held.
func (j *job) hold(w *Waiting) {
	j.why = w.Error
	close(j.away)
}

func newJob(o Order) *job {
	return &job{order: o, away: make(chan struct{}), done: make(chan struct{})}
}

// New returns a responder; nothing is carried out before Run. capture may be
// nil where no order captures, record where nothing keeps evidence.
func New(j *Journal, m machine, capture capturer, record recorder, opts *Options) *Responder {
	r := &Responder{
		journal: j, machine: m, capture: capture, record: record, now: time.Now,
		queues: map[lane]*queue{}, jobs: map[uuid.UUID]*job{}, opened: make(chan struct{}), stopped: make(chan struct{}),
		packing: make(chan struct{}, maxPacking),
	}
	if opts != nil {
		r.opts = *opts
	}
	if r.opts.PauseWithin == 0 {
		r.opts.PauseWithin = 5 * time.Second
	}
	if r.opts.PackWithin == 0 {
		r.opts.PackWithin = 6 * time.Hour
	}
	if r.opts.CaptureWithin == 0 {
		r.opts.CaptureWithin = 10 * time.Minute
	}
	if r.opts.AlertWithin == 0 {
		r.opts.AlertWithin = 10 * time.Minute
	}
	if r.opts.GuestWithin == 0 {
		r.opts.GuestWithin = 3 * time.Second
	}
	if r.opts.Away == 0 {
		r.opts.Away = time.Hour
	}
	if r.opts.Waiting == 0 {
		r.opts.Waiting = 64
	}
	if r.log = r.opts.Log; r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	return r
}

// Run carries out orders, what an earlier process left of them first, until ctx
// ends; then it returns once no order is under way. An order that ctx's end
// interrupted keeps no result and is found again by the next Run of a process.
func (r *Responder) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	r.beside = func(fn func()) { workers.Go(fn) } // called by a worker, so that Wait does not come first
	if err := r.open(func(q *queue) { workers.Go(func() { r.work(ctx, q) }) }); err != nil {
		return err
	}
	r.keepUp(ctx)
	r.mu.Lock()
	r.start, r.ended = nil, true
	r.mu.Unlock()
	workers.Wait()
	close(r.stopped)
	return nil
}

// behind is how long the journal's file may be behind its log, and behind what is
// on record. Who takes over looks through the record's last seconds for that.
const behind = time.Second

// keepUp has the journal's file keep up until ctx ends.
func (r *Responder) keepUp(ctx context.Context) {
	tick := time.NewTicker(behind)
	defer tick.Stop()
	for said := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := r.journal.commit()
		if err != nil && !said {
			r.log.Error("the journal's file is behind", "err", err)
		}
		said = err != nil
	}
}

// open puts what the journal holds before what was submitted since, and lets
// the workers start.
func (r *Responder) open(start func(*queue)) error {
	pending, err := r.journal.Pending()
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended || r.start != nil {
		return errors.New("a responder runs once")
	}
	found := map[*queue][]*job{}
	for _, o := range pending {
		if r.jobs[o.ID] != nil {
			continue // submitted before Run
		}
		j := newJob(o)
		j.recovered = true
		r.jobs[o.ID] = j
		q := r.queue(o.lane())
		found[q] = append(found[q], j)
		r.recovered.Add(1)
	}
	for q, jobs := range found {
		q.jobs = append(jobs, q.jobs...)
	}
	r.start = start
	close(r.opened)
	for _, q := range r.queues {
		r.kick(q)
	}
	return nil
}

// queue returns a lane's queue; r.mu is held.
func (r *Responder) queue(l lane) *queue {
	q := r.queues[l]
	if q == nil {
		q = &queue{}
		r.queues[l] = q
	}
	return q
}

// kick starts a worker where one is due; r.mu is held.
func (r *Responder) kick(q *queue) {
	if r.start != nil && !q.work && len(q.jobs) > 0 {
		q.work = true
		r.start(q)
	}
}

// Wait returns the result of an order when it has one. ErrStopped says that
// the responder stopped first; the next one finds the order again.
func (r *Responder) Wait(ctx context.Context, id uuid.UUID) (Result, error) {
	return r.wait(ctx, id, false)
}

// WaitUnlessAway is Wait for who does not wait for libvirt as long as the order
// does: ErrAway says that it does, until when and why.
func (r *Responder) WaitUnlessAway(ctx context.Context, id uuid.UUID) (Result, error) {
	return r.wait(ctx, id, true)
}

func (r *Responder) wait(ctx context.Context, id uuid.UUID, unlessAway bool) (Result, error) {
	j, settled, err := r.find(ctx, id)
	if err != nil {
		return Result{}, err
	}
	if settled != nil {
		return *settled, nil
	}
	var away <-chan struct{}
	if unlessAway {
		away = j.away
	}
	select {
	case <-j.done:
		return j.result, nil
	case <-away:
		return Result{}, fmt.Errorf("%w: %s", ErrAway, j.why)
	case <-ctx.Done():
		return Result{}, ctx.Err()
	case <-r.stopped:
	}
	select {
	case <-j.done: // it was settled on the way
		return j.result, nil
	default:
		return Result{}, fmt.Errorf("order %s: %w", id, ErrStopped)
	}
}

// find returns an order that waits, or the result of one that does not. One
// that only the journal knows is taken over when Run starts.
func (r *Responder) find(ctx context.Context, id uuid.UUID) (*job, *Result, error) {
	for _, ready := range [...]<-chan struct{}{nil, r.opened} {
		if ready != nil {
			select {
			case <-ready:
			case <-ctx.Done():
				return nil, nil, ctx.Err()
			}
		}
		r.mu.Lock()
		j := r.jobs[id]
		r.mu.Unlock()
		if j != nil {
			return j, nil, nil
		}
		e, err := r.journal.Entry(id)
		if err != nil || e.Result != nil {
			return nil, e.Result, err
		}
	}
	return nil, nil, fmt.Errorf("order %s: %w", id, ErrStopped)
}

// Stats returns the counters.
func (r *Responder) Stats() Stats {
	r.mu.Lock()
	waiting := int64(len(r.jobs))
	r.mu.Unlock()
	return Stats{
		Given: r.given.Load(), Refused: r.refused.Load(), Recovered: r.recovered.Load(), Done: r.done.Load(),
		Failed: r.failed.Load(), Skipped: r.skipped.Load(), Retries: r.retries.Load(), Unrecorded: r.unrecorded.Load(),
		Waiting: waiting,
	}
}

// work carries out a VM's orders until none waits or ctx ends.
func (r *Responder) work(ctx context.Context, q *queue) {
	for {
		r.mu.Lock()
		if len(q.jobs) == 0 || ctx.Err() != nil {
			q.work = false
			r.mu.Unlock()
			return
		}
		j := q.jobs[0]
		r.mu.Unlock()
		ok := r.carry(ctx, q, j)
		r.mu.Lock()
		q.jobs, q.held = q.jobs[1:], nil // it took a place in the queue until now
		if ok {
			delete(r.jobs, j.order.ID)
		}
		r.mu.Unlock()
	}
}

// carry carries out one order and settles its result; false says that ctx ended
// first and that the order stays as it is, or that its bundle is packed while the
// VM's next orders are carried out.
func (r *Responder) carry(ctx context.Context, q *queue, j *job) bool {
	r.recordOrder(j.order)
	failpoint.At(failpoint.Ordered)
	res := Result{Order: j.order.ID, Journaled: j.journaled, Recovered: j.recovered, Started: r.now()}
	if q.broken == j.order.Group {
		res.Status, res.Error = Skipped, "an earlier step of this request failed"
	} else if err := r.act(ctx, j, &res); err == nil && j.taken {
		r.beside(func() { r.pack(ctx, j, res) })
		return false
	} else if err == nil {
		if res.Status == "" {
			res.Status = Done
		}
		if res.Status == Skipped && j.order.Kind == Revert { // what was to run after it is not to run without
			q.broken = j.order.Group
		}
	} else if ctx.Err() != nil {
		r.log.Warn("order interrupted", "order", j.order.ID, "kind", j.order.Kind, "vm", j.order.VM)
		return false
	} else {
		res.Status, res.Error = Failed, bound(err.Error())
		if !j.order.Kind.inGuest() {
			q.broken = j.order.Group
		}
	}
	res.Finished = r.now()
	r.settle(j, res)
	return true
}

// settle journals and tells a result.
func (r *Responder) settle(j *job, res Result) {
	failpoint.At(failpoint.Settling)
	if err := r.journal.end(&res); err != nil {
		r.log.Error("result not journaled; the order will be looked at again after a restart", "order", res.Order, "err", err)
	}
	failpoint.At(failpoint.Settled)
	r.tell(j, res)
	r.journal.told(res.Order)
	j.result = res
	close(j.done)
}

// Recover puts on record what a process had journaled that was killed then. It
// comes before the first Submit: an order of this process that is journaled and
// not yet on record looks the same, and would be put there twice.
func (r *Responder) Recover(context.Context) error {
	entries, err := r.journal.Untold()
	if err != nil || len(entries) == 0 {
		return err
	}
	ids := make([]uuid.UUID, len(entries))
	for i, e := range entries {
		ids[i] = e.Order.ID
		r.recordOrder(e.Order)
		r.recordResult(e.Order, *e.Result)
	}
	r.journal.told(ids...)
	return nil
}

// tell puts a journaled result on the record, counts it and shows it.
func (r *Responder) tell(j *job, res Result) {
	r.recordResult(j.order, res)
	switch res.Status {
	case Done, Asked:
		r.done.Add(1)
	case Failed:
		r.failed.Add(1)
	case Skipped:
		r.skipped.Add(1)
	}
	r.log.Info("order settled", "order", res.Order, "kind", j.order.Kind, "vm", j.order.VM, "status", res.Status, "err", res.Error)
	if r.opts.Observe != nil {
		r.opts.Observe(Entry{Order: j.order, Result: &res})
	}
}

func (r *Responder) recordResult(o Order, res Result) {
	if r.record == nil {
		return
	}
	if err := r.record.RecordResult(o, res); err != nil {
		r.unrecorded.Add(1)
		r.log.Error("result not in evidence", "order", res.Order, "err", err)
	}
}

func (r *Responder) recordOrder(o Order) {
	if r.record == nil {
		return
	}
	if err := r.record.RecordOrder(o); err != nil {
		r.unrecorded.Add(1)
		r.log.Error("order not in evidence", "order", o.ID, "err", err)
	}
}
