// Package engines keeps engine processes running and every batch judged.
//
// A Supervisor owns one engine. It starts the process, hands it the batches
// of each VM in order, starts it again after a crash or a missed deadline,
// gives it back the last checkpoint and sends again what that checkpoint does
// not cover, so that each batch is judged once as far as anyone outside can
// tell. What it cannot have judged it reports: findings of its own, whose rules begin
// with "engine/".
//
// Nothing is dropped while the engine works: Submit blocks the one VM whose
// share is full. Only an open circuit (the engine fails again and again) lets
// batches pass unjudged, counted and reported; evidence has them, and when the
// circuit closes they are judged from there, before what came after them. What
// was not judged no checkpoint covers.
package engines

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/failpoint"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/engine/process"
)

// Config names one engine and its binary.
type Config struct {
	Name   string // in findings and in the store; unique on this host
	Path   string
	Args   []string
	SHA256 string  // hex; "": not pinned
	UID    *uint32 // nil: as this process
	GID    *uint32
	Memory int64 // bytes that the process may have; 0: no limit
}

// Options are what has a default; nil and zero mean it.
type Options struct {
	Logger    *slog.Logger
	Store     Store  // of checkpoints; default: in memory, for as long as the Supervisor lives
	SocketDir string // parent of the control socket's directory; default os.TempDir

	Deadline        time.Duration // of an answer; default 5 s
	CheckpointEvery time.Duration // of a VM with something new, at the soonest; default 10 s
	QueueBytes      int           // unanswered records of one VM; default 2 MiB
	ReplayBytes     int           // records of one VM kept for a restart; default 64 MiB
	TotalBytes      int           // records of all VMs kept; default 512 MiB
	MinBackoff      time.Duration // before the second start; doubled each time; default 50 ms
	MaxBackoff      time.Duration // default 5 s
	CircuitAfter    int           // failures in a row, without one answer, that open the circuit; default 6
	CircuitFor      time.Duration // how long it stays open before the next try; default 30 s

	// Replay has batches judged that passed while the circuit was open; default:
	// nothing does, until the next start of the monitor.
	Replay Replay

	// Holds reports whether an event that a finding refers to is in the batch that
	// was judged; default: the engine is believed. What is not there the engine
	// cannot have seen: see RuleLied.
	Holds func(b *engine.Batch, ref *engine.Ref) bool

	// Judged is called after each batch, in order, with when its verdict was
	// here. It must not block and not keep the batch.
	Judged func(b *engine.Batch, verdict time.Time)
}

// The window of batches under way on the socket. It is small enough for the
// socket's buffer, so that a write waits for nobody, and large enough that the
// engine never waits for the next one.
const (
	windowBatches = 64
	windowBytes   = 128 << 10
)

// ErrNotRunning is for calls that need the process while there is none.
var ErrNotRunning = errors.New("engine is not running")

// Supervisor runs one engine.
type Supervisor struct {
	cfg    Config
	opts   Options
	report func(engine.Finding)
	log    *slog.Logger
	kick   chan struct{} // wakes the checkpointer

	checkpointMu sync.Mutex // one checkpoint is taken and stored at a time; before mu

	mu          sync.Mutex // guards what follows; a write to the process's stream is made with it held
	proc        *process.Process
	description engine.Description
	vms         map[uuid.UUID]*vmQueue
	ready       []*vmQueue // those with something to send, in turn
	inflight    []*item    // sent and unanswered, in order
	headSince   time.Time  // since when inflight[0] is the first
	windowUsed  int
	total       int
	answered    uint64 // number of the last answer of this process
	told        uint64 // and of the last whose findings have been reported
	progress    bool   // this process answered at all
	circuitOpen bool
	opened      uint64         // how often the circuit did
	rejudges    sync.WaitGroup // Run waits for it
	changed     chan struct{}  // closed and replaced whenever room or answers came, if anybody waits
	waiting     int
	status      Status
}

// Status is what a Supervisor says of itself.
type Status struct {
	Name        string
	Running     bool
	PID         int
	Version     string
	Models      bool
	Starts      uint64
	Batches     uint64 // judged
	Records     uint64
	Findings    uint64
	Unjudged    uint64 // batches that passed, also if they were judged later
	Pending     int    // batches accepted and not judged
	CircuitOpen bool
}

// vmQueue holds one VM's batches from the first that no checkpoint covers.
type vmQueue struct {
	id         uuid.UUID
	items      []*item
	next       int // index of the first that this process has not been sent
	unanswered int // bytes
	kept       int // bytes
	dirtySince time.Time
	isReady    bool
	refused    bool        // the stored checkpoint could not be used, and stays
	failing    bool        // the last checkpoint could not be stored
	covered    engine.Ref  // the last batch that this Supervisor let go of: Session and Index
	unjudged   unjudged    // what passed while the circuit was open
	rejudging  bool        // it is handed in again, and the next batches wait
	held       *engine.Ref // the first that stays unjudged: checkpoints cover nothing from there on
	suspect    suspect
	flood      flood // of its findings; tell's own
}

// suspect is a batch that passed after the process had ended with it first in
// line. Handed in again it is not a new one.
type suspect struct {
	index   uint64
	crashes int
}

type item struct {
	vm       *vmQueue
	batch    engine.Batch // its records are message's
	message  *[]byte      // as it goes on the stream
	number   uint64       // on the present process's stream; 0: not sent
	answered bool         // by this process
	reported bool         // its verdict is out; another one would be a repeat
	crashes  int          // how often the process ended with this one first in line
	telling  bool         // its verdict is being handed on
	released bool         // a checkpoint covers it
}

func (it *item) size() int { return len(it.batch.Records) + itemOverhead }

const itemOverhead = 256

// New makes a Supervisor; Run starts it. report is given every finding,
// stamped with engine, VM, time and id: those of the engine in the order of
// the batches, those of the supervisor itself between them from another
// goroutine. It may block, and then the engine's answers wait.
func New(cfg Config, report func(engine.Finding), opts *Options) *Supervisor {
	s := &Supervisor{
		cfg: cfg, report: report, opts: withDefaults(opts),
		vms: map[uuid.UUID]*vmQueue{}, kick: make(chan struct{}, 1), changed: make(chan struct{}),
	}
	s.log = s.opts.Logger.With("engine", cfg.Name)
	s.status.Name = cfg.Name
	return s
}

func withDefaults(opts *Options) Options {
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Store == nil {
		o.Store = NewMemory()
	}
	orDuration(&o.Deadline, 5*time.Second)
	orDuration(&o.CheckpointEvery, 10*time.Second)
	orDuration(&o.MinBackoff, 50*time.Millisecond)
	orDuration(&o.MaxBackoff, 5*time.Second)
	orDuration(&o.CircuitFor, 30*time.Second)
	orInt(&o.QueueBytes, 2<<20)
	orInt(&o.ReplayBytes, 64<<20)
	orInt(&o.TotalBytes, 512<<20)
	orInt(&o.CircuitAfter, 6)
	return o
}

func orDuration(d *time.Duration, or time.Duration) {
	if *d == 0 {
		*d = or
	}
}

func orInt(n *int, or int) {
	if *n == 0 {
		*n = or
	}
}

// Name is the engine's name in findings.
func (s *Supervisor) Name() string { return s.cfg.Name }

// Status says how the engine is.
func (s *Supervisor) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	st.CircuitOpen = s.circuitOpen
	st.Version, st.Models = s.description.Version, s.description.Models
	if s.proc != nil {
		st.Running, st.PID = true, s.proc.PID()
	}
	return st
}

// TrySubmit takes the next batch of its VM if there is room for it now. It
// copies the records.
func (s *Supervisor) TrySubmit(b *engine.Batch) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue(b.VM)
	if len(b.Records) > engine.MaxBatchBytes || (!s.circuitOpen && s.full(q, len(b.Records)+itemOverhead)) {
		return false
	}
	s.take(q, b)
	return true
}

// Submit takes the next batch of its VM. It copies the records, and blocks
// while this VM has too much unanswered. An error is the context's, or says
// that the batch is larger than the contract allows.
func (s *Supervisor) Submit(ctx context.Context, b *engine.Batch) error {
	if len(b.Records) > engine.MaxBatchBytes {
		return fmt.Errorf("submit to engine %s: batch of %d bytes: %w", s.cfg.Name, len(b.Records), engine.ErrTooLong)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue(b.VM)
	size := len(b.Records) + itemOverhead
	for !s.circuitOpen && s.full(q, size) {
		if err := s.wait(ctx); err != nil {
			return fmt.Errorf("submit to engine %s: %w", s.cfg.Name, err)
		}
	}
	s.take(q, b)
	return nil
}

func (s *Supervisor) take(q *vmQueue, b *engine.Batch) {
	if s.circuitOpen {
		s.pass(q, b)
		return
	}
	it := &item{vm: q, batch: *b}
	room := newMessage(engine.BatchRecords + len(b.Records))
	message, err := engine.AppendBatch((*room)[:0], 0, b)
	if err != nil { // its count: nothing that a session hands on
		s.status.Unjudged++
		s.log.Error("batch cannot be judged", "vm", b.VM, "index", b.Index, "err", err)
		return
	}
	if q.suspect.crashes > 0 && q.suspect.index == b.Index {
		it.crashes, q.suspect = q.suspect.crashes, suspect{}
	}
	*room = message
	it.message, it.batch.Records = room, message[engine.BatchRecords:]
	s.enqueue(it)
	s.pump()
}

func (s *Supervisor) queue(vm uuid.UUID) *vmQueue {
	q := s.vms[vm]
	if q == nil {
		q = &vmQueue{id: vm}
		s.vms[vm] = q
	}
	return q
}

// full reports whether the VM's next batch has to wait.
func (s *Supervisor) full(q *vmQueue, size int) bool { return q.rejudging || !s.room(q, size) }

func (s *Supervisor) room(q *vmQueue, size int) bool {
	fits := (q.unanswered == 0 || q.unanswered+size <= s.opts.QueueBytes) &&
		(q.kept == 0 || q.kept+size <= s.opts.ReplayBytes) &&
		(q.kept == 0 || s.total+size <= s.opts.TotalBytes)
	if !fits || q.kept+size > s.opts.ReplayBytes/2 || s.total+size > s.opts.TotalBytes/2 {
		s.wakeCheckpointer()
	}
	return fits
}

func (s *Supervisor) wakeCheckpointer() {
	select {
	case s.kick <- struct{}{}:
	default: // it is awake
	}
}

func (s *Supervisor) enqueue(it *item) {
	q, n := it.vm, it.size()
	if len(q.items) == 0 {
		q.dirtySince = time.Now()
	}
	q.items = append(q.items, it)
	q.unanswered += n
	q.kept += n
	s.total += n
	s.status.Pending++
	s.markReady(q)
}

func (s *Supervisor) markReady(q *vmQueue) {
	if !q.isReady && q.next < len(q.items) {
		q.isReady = true
		s.ready = append(s.ready, q)
	}
}

// pump sends what the window has room for, one batch of each VM in turn.
func (s *Supervisor) pump() {
	for s.proc != nil && len(s.ready) > 0 {
		q := s.ready[0]
		it := q.items[q.next]
		n := it.size()
		if len(s.inflight) > 0 && (len(s.inflight) >= windowBatches || s.windowUsed+n > windowBytes) {
			return
		}
		number, err := s.proc.SendMessage(*it.message, time.Now().Add(s.opts.Deadline))
		if err != nil {
			s.proc.Kill() // Receive ends, and Run starts another
			return
		}
		if len(s.inflight) == 0 {
			s.headSince = time.Now()
		}
		it.number = number
		s.inflight = append(s.inflight, it)
		s.windowUsed += n
		q.next++
		s.ready = s.ready[1:]
		q.isReady = false
		s.markReady(q)
	}
}

// verdict takes the answer to the batch that is first in line.
func (s *Supervisor) verdict(v process.Verdict) {
	now := time.Now()
	s.mu.Lock()
	if len(s.inflight) == 0 || s.inflight[0].number != v.Number {
		s.mu.Unlock()
		s.kill() // an answer to what was never asked
		return
	}
	it := s.inflight[0]
	if lie := s.lie(it, &v); lie != nil {
		s.mu.Unlock()
		s.kill() // and the batch was first in line
		s.lied(it, lie)
		return
	}
	first := !it.reported
	s.settle(it, v, now)
	it.telling = first
	s.pump()
	s.announce()
	s.mu.Unlock()
	if first {
		s.tell(it, v, now)
	}
	s.mu.Lock()
	s.told = v.Number
	it.letGo()
	s.announce()
	s.mu.Unlock()
}

// lie returns the first finding of an event that the batch does not hold.
func (s *Supervisor) lie(it *item, v *process.Verdict) *engine.Finding {
	for i := range v.Findings {
		ref := v.Findings[i].Ref
		if ref == nil {
			continue
		}
		other := ref.Session != it.batch.Session || ref.Index != it.batch.Index
		if other || (s.opts.Holds != nil && ref.Sequence != 0 && !s.opts.Holds(&it.batch, ref)) {
			return &v.Findings[i]
		}
	}
	return nil
}

// tell reports what the engine found in a batch. No checkpoint covers the batch
// before that: what it covers is not judged again after a crash.
func (s *Supervisor) tell(it *item, v process.Verdict, now time.Time) {
	failpoint.At(failpoint.Verdict)
	for i := range v.Findings {
		f := &v.Findings[i]
		if !it.vm.flood.take(now, f.Severity) {
			continue
		}
		s.stamp(f, &it.batch, now)
		s.report(*f)
	}
	if held := it.vm.flood.due(now); held > 0 {
		s.ownFlood(it.batch.VM, held)
	}
	if s.opts.Judged != nil {
		s.opts.Judged(&it.batch, now)
	}
}

// letGo ends the telling of a verdict, whose batch may have been let go of
// meanwhile. Called with mu held.
func (it *item) letGo() {
	it.telling = false
	if it.released && it.message != nil {
		it.free()
	}
}

func (s *Supervisor) settle(it *item, v process.Verdict, now time.Time) {
	s.inflight[0] = nil
	s.inflight = s.inflight[1:]
	s.headSince = now
	s.windowUsed -= it.size()
	s.answered, s.progress = v.Number, true
	it.answered = true
	if !it.reported {
		it.reported = true
		it.vm.unanswered -= it.size()
		s.status.Pending--
		s.status.Batches++
		s.status.Records += uint64(it.batch.Count)
		s.status.Findings += uint64(len(v.Findings))
	}
}

// wait lets go of mu until announce is called or ctx ends.
func (s *Supervisor) wait(ctx context.Context) error {
	changed := s.changed
	s.waiting++
	s.mu.Unlock()
	var err error
	select {
	case <-changed:
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.mu.Lock()
	s.waiting--
	return err
}

// announce wakes everyone who waits for room or for an answer.
func (s *Supervisor) announce() {
	if s.waiting == 0 {
		return
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Supervisor) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		s.proc.Kill()
	}
}

// pass lets a batch by unjudged while the circuit is open.
func (s *Supervisor) pass(q *vmQueue, b *engine.Batch) {
	s.status.Unjudged++
	at := engine.Ref{Session: b.Session, Index: b.Index}
	q.unjudged.widen(unjudged{1, at, at})
}
