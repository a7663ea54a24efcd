package monitor

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/host/bundle"
	"github.com/outguard/outguard/host/decide"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/respond"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/lineage"
	"github.com/outguard/outguard/vsockproto"
)

// What a bundle tells for people is bounded: the VM stands while it is made, and
// the evidence in it is whole.
const (
	maxTold      = 20_000  // events before the subject's, and as many after it
	maxToldBytes = 8 << 20 // of their records: told in JSON they are several times as large
	maxFindings  = 200     // beside the subject
	maxDecisions = 200     //
	maxRead      = 1 << 17 // records, from the end of what is read
	maxBeginning = 1 << 14 // records of a session's beginning: the snapshot of what ran
)

// story is what a VM's record tells around a finding or a capture.
type story struct {
	vm      uuid.UUID
	session uuid.UUID       // whose tasks the tree has
	about   *engine.Finding // nil: a capture that a person asked for
	window  uint64          // the first record of the bundle's evidence

	tree     *lineage.Tree
	seen     map[lineage.Key]sighting
	from     uint64
	next     uint64
	gaps     []string
	subject  *lineage.Key
	refs     map[engine.Ref]string // of events with a finding: its id
	found    map[lineage.Key][]string
	findings []engine.Finding
	more     int
	decided  []decide.Decision
	before   recent
	after    []kept
	bytes    int   // of after's records
	unkept   int   // events after the subject's for which there was no room
	broken   error // what kept the record from being read to its end
	passed   bool
}

// sighting is what the last record of a task said of it that its lineage does
// not keep.
type sighting struct {
	comm string
	uid  uint32
}

// kept is an event as it is on record.
type kept struct {
	index    uint64
	session  uuid.UUID
	received time.Time
	task     lineage.Key
	subject  bool
	record   []byte
}

// recent are the last events of many: no more than maxTold, of no more than maxToldBytes.
type recent struct {
	all     []kept
	from    int // those before are dropped
	bytes   int
	dropped int
}

func (r *recent) add(k kept) {
	r.all = append(r.all, k)
	for r.bytes += len(k.record); len(r.all)-r.from > maxTold || r.bytes > maxToldBytes; r.from++ {
		r.bytes -= len(r.all[r.from].record)
		r.all[r.from] = kept{}
		r.dropped++
	}
	if r.from > maxTold {
		r.all, r.from = append(r.all[:0], r.all[r.from:]...), 0
	}
}

// list returns what is kept, the oldest first.
func (r *recent) list() []kept { return slices.Clone(r.all[r.from:]) }

// tell reads what the record tells. window is the first record of the bundle's
// evidence, since when the session began, zero where that is not known. What
// cannot be read is said on the page: memory and disks are worth a bundle
// without it.
func tell(r *evidence.Reader, vm, session uuid.UUID, about *engine.Finding, window uint64, since time.Time) *story {
	s := &story{
		vm: vm, session: session, about: about, window: window,
		tree: lineage.New(func(*vsockproto.Event, lineage.ID) lineage.ID { return lineage.ID{} }, &lineage.Options{
			MaxTasks: 1 << 17, MaxExited: 1 << 16, KeepExited: 30 * 24 * time.Hour, // what has ended may be an ancestor
		}),
		findings: []engine.Finding{}, decided: []decide.Decision{}, // in JSON none is a list as well
		seen: map[lineage.Key]sighting{}, refs: map[engine.Ref]string{}, found: map[lineage.Key][]string{},
	}
	s.broken = errors.Join(s.read(r, since), s.broken)
	return s
}

func (s *story) read(r *evidence.Reader, since time.Time) error {
	if err := r.Read(s.window, 1<<63, s.noteFound); err != nil {
		return fmt.Errorf("read findings: %w", err)
	}
	_, next, err := r.Bounds()
	if err != nil {
		return err
	}
	s.next = next
	if s.from, err = s.begin(r, since); err != nil {
		return err
	}
	for _, span := range s.spans() {
		a := newAgain(s.vm)
		if err := r.Read(span[0], span[1], func(rec *evidence.Record) error { return s.frame(a, rec) }); err != nil {
			return fmt.Errorf("read events: %w", err)
		}
	}
	return nil
}

// begin is where reading begins: with the session, or with the window.
func (s *story) begin(r *evidence.Reader, since time.Time) (uint64, error) {
	if since.IsZero() {
		return s.window, nil
	}
	from, err := r.Since(since.Add(-time.Second))
	if err != nil {
		return 0, fmt.Errorf("find the session's beginning: %w", err)
	}
	first, _, err := r.Bounds()
	return min(max(from, first), s.window), err
}

// spans are what is read: everything, or the session's beginning and the end.
func (s *story) spans() [][2]uint64 {
	last := max(s.next, maxRead) - maxRead
	last = min(last, s.window)
	if begun := s.from + maxBeginning; begun < last {
		s.gaps = append(s.gaps, fmt.Sprintf("Records %d to %d were passed over: the session is too long to read all of it while the VM stands. Processes that began there are of unknown history.", begun, last))
		return [][2]uint64{{s.from, begun}, {last, s.next}}
	}
	return [][2]uint64{{s.from, s.next}}
}

// noteFound takes findings and decisions of the window.
func (s *story) noteFound(rec *evidence.Record) error {
	switch rec.Kind {
	case evidence.KindFinding:
		f, err := unmarshal[engine.Finding](rec)
		if err != nil {
			s.broken = err // what follows is told
			return nil
		}
		own := s.about != nil && f.ID == s.about.ID
		if f.Ref != nil {
			s.refs[*f.Ref] = f.ID
		}
		if !own && len(s.findings) >= maxFindings {
			s.more++
			return nil
		}
		s.findings = append(s.findings, f)
	case evidence.KindDecision:
		d, err := unmarshal[decide.Decision](rec)
		if err != nil {
			s.broken = err
			return nil
		}
		if d.Rule != "" && len(s.decided) < maxDecisions || s.about != nil && d.Finding == s.about.ID {
			s.decided = append(s.decided, d)
		}
	}
	return nil
}

// frame takes one record's events.
func (s *story) frame(a *again, rec *evidence.Record) error {
	b, ok := a.batch(rec)
	if !ok {
		return nil
	}
	var e vsockproto.Event
	for rest := b.Records; len(rest) > 0; {
		h, err := vsockproto.ParseHeader(rest)
		if err != nil {
			return nil // sound has seen it: not reached
		}
		record := rest[:h.Length]
		rest = rest[h.Length:]
		if rec.Index < s.window && !ofLineage(h.Type) {
			continue
		}
		if _, err := e.Parse(record); err == nil {
			s.event(&b, &e, record)
		}
	}
	return nil
}

// ofLineage reports whether a tree without it would lack a task or its place.
func ofLineage(t vsockproto.EventType) bool {
	switch t {
	case vsockproto.BprmCommittedCreds, vsockproto.TaskNewtask, vsockproto.SchedProcessExit, vsockproto.TaskSnapshot,
		vsockproto.CgroupMkdir, vsockproto.CgroupSnapshot, vsockproto.CgroupRmdir, vsockproto.CgroupAttachTask:
		return true
	}
	return false
}

func (s *story) event(b *engine.Batch, e *vsockproto.Event, record []byte) {
	key := lineage.KeyOf(e.Task)
	ref := engine.Ref{Session: b.Session, Index: b.Index, CPU: e.CPU, Class: uint8(e.Class), Sequence: e.Sequence}
	subject := s.about != nil && s.about.Ref != nil && *s.about.Ref == ref
	if b.Session == s.session {
		s.tree.Apply(e)
		s.seen[key] = sighting{commOf(e), e.EUID}
		if subject {
			s.subject = &key
		}
		if id := s.refs[ref]; id != "" {
			s.found[key] = append(s.found[key], id)
		}
	}
	if b.Index < s.window {
		return
	}
	switch {
	case !s.passed:
		s.before.add(kept{b.Index, b.Session, b.Received, key, subject, slices.Clone(record)})
		s.passed = subject
	case s.unkept == 0 && len(s.after) < maxTold && s.bytes+len(record) <= maxToldBytes:
		s.bytes += len(record)
		s.after = append(s.after, kept{b.Index, b.Session, b.Received, key, subject, slices.Clone(record)})
	default:
		s.unkept++
	}
}

// events are those that are told, in their order.
func (s *story) events() []kept { return append(s.before.list(), s.after...) }

// lines are the events for programs, of the VM of that name.
func (s *story) lines(name string) []byte {
	var out []byte
	var e vsockproto.Event
	for _, k := range s.events() {
		if _, err := e.Parse(k.record); err != nil {
			continue // it was parsed before
		}
		b := engine.Batch{VM: s.vm, Session: k.session, Index: k.index, Received: k.received}
		told := api.EventOf(&b, &e)
		told.Vm = safe.Text(name)
		out = append(api.AppendJSON(out, told), '\n')
	}
	return out
}

// page is what the bundle's page tells. o is the order that makes the bundle.
func (s *story) page(o respond.Order, orders []respond.Entry) *bundle.Page {
	p := &bundle.Page{Findings: s.findings, More: s.more}
	for i := range s.decided {
		p.Decisions = append(p.Decisions, decisionTold(&s.decided[i]))
	}
	for _, e := range orders {
		told := orderTold(e)
		if e.Order.ID == o.ID {
			told.Text = "this bundle"
		}
		p.Orders = append(p.Orders, told)
	}
	f := s.family()
	if p.Tree = f.tree; len(p.Tree.Processes) == 0 {
		p.Tree = nil
	}
	p.Events = s.rows(f.part)
	if s.broken != nil {
		p.Missing = append(p.Missing, fmt.Sprintf("The record was not read to its end for this page: %s.", s.broken))
	}
	if n := s.before.dropped; n > 0 {
		p.Missing = append(p.Missing, fmt.Sprintf("%s lacks the first %d events of those before; evidence/ has them.", bundle.EventsPart, n))
	}
	if s.unkept > 0 {
		p.Missing = append(p.Missing, fmt.Sprintf("%s lacks the last %d events of those after; evidence/ has them.", bundle.EventsPart, s.unkept))
	}
	return p
}

func decisionTold(d *decide.Decision) bundle.Decision {
	out := bundle.Decision{At: d.At, Finding: d.Finding, Rule: d.Rule, Held: d.Held}
	for _, step := range d.Steps {
		out.Steps = append(out.Steps, string(step))
	}
	for _, x := range d.Dropped {
		out.Dropped = append(out.Dropped, fmt.Sprintf("%s: %s", x.Step, x.Why))
	}
	for _, x := range d.Dry {
		out.Trials = append(out.Trials, fmt.Sprintf("%s: %v %s", x.Rule, x.Steps, x.Held))
	}
	return out
}

func orderTold(e respond.Entry) bundle.Ordered {
	o := bundle.Ordered{Given: e.Order.Given, What: string(e.Order.Kind), Asked: e.Order.Asked}
	if e.Order.Target != "" {
		o.What += " " + e.Order.Target
	}
	if r := e.Result; r != nil {
		o.Status, o.Effect, o.Text = string(r.Status), r.Effect, r.Detail
		if r.Error != "" {
			o.Text = r.Error
		}
	}
	return o
}
