package vsockproto

import "fmt"

// MaxCPUs bounds the CPUs of a guest.
const MaxCPUs = 4096

// MaxCounters bounds the entries of a Heartbeat; a guest with more than
// MaxCounters/2 CPUs sends its counters over several heartbeats.
const MaxCounters = 8192

// Counter is how far one (CPU, class) has come. Every number from 1 to
// Watermark was either sent in an earlier frame or is among Lost; no record of
// a number at or below Watermark follows.
type Counter struct {
	CPU       uint32
	Class     Class
	Watermark uint64 // highest sequence given out at a moment when none was under way
	Lost      uint64 // of those, how many found no room in the ring
}

const counterSize = 24

// Totals are what the guest's kernel counts by itself beside the programs'
// account, as it was when the Counters were taken. They count from the boot,
// or from when the programs were loaded.
type Totals struct {
	MarkedNs   uint64 // CLOCK_BOOTTIME when they and the Counters were taken, ns
	Starts     uint64 // tasks ever made: "processes" of /proc/stat
	Unrecorded uint64 // starts that task_newtask saw and that have no record: lost, not asked for, or the agent's own threads
	Unhooked   uint64 // executions, and opens of the agent's own, that the LSM hooks should have seen and did not
}

// Heartbeat is the agent's sign of life and its account of what it emitted.
type Heartbeat struct {
	BootNs uint64 // CLOCK_BOOTTIME when sent, ns
	RealNs uint64 // CLOCK_REALTIME when sent, ns since 1970
	Totals
	Filtering // as it was when sent
	Counters  []Counter
}

// AppendHeartbeat appends h as a Heartbeat payload.
func AppendHeartbeat(b []byte, h *Heartbeat) []byte { return appendAccount(b, h) }

// ParseHeartbeat reads a Heartbeat payload into h, whose Counters are used again.
func ParseHeartbeat(b []byte, h *Heartbeat) error {
	r := reader{b: b}
	r.account(h)
	if err := r.end(); err != nil {
		*h = Heartbeat{}
		return fmt.Errorf("heartbeat: %w", err)
	}
	return nil
}

func appendAccount(b []byte, h *Heartbeat) []byte {
	b = le.AppendUint64(b, h.BootNs)
	b = le.AppendUint64(b, h.RealNs)
	b = le.AppendUint64(b, h.MarkedNs)
	b = le.AppendUint64(b, h.Starts)
	b = le.AppendUint64(b, h.Unrecorded)
	b = le.AppendUint64(b, h.Unhooked)
	b = le.AppendUint32(b, uint32(len(h.Counters)))
	filters := h.Filtering != Filtering{}
	b = append(b, flag(filters), 0, 0, 0)
	for _, c := range h.Counters {
		b = le.AppendUint32(b, c.CPU)
		b = append(b, byte(c.Class), 0, 0, 0)
		b = le.AppendUint64(b, c.Watermark)
		b = le.AppendUint64(b, c.Lost)
	}
	if filters {
		b = le.AppendUint64(le.AppendUint64(b, h.Number), h.Filtered)
	}
	return b
}

func (r *reader) account(h *Heartbeat) {
	h.BootNs, h.RealNs = r.u64(), r.u64()
	h.Totals = Totals{MarkedNs: r.u64(), Starts: r.u64(), Unrecorded: r.u64(), Unhooked: r.u64()}
	if r.err == nil && h.MarkedNs > h.BootNs {
		r.err = fmt.Errorf("marked at %d ns, sent at %d: %w", h.MarkedNs, h.BootNs, ErrInvalid)
	}
	n := r.u32()
	filters := r.bool(r.u8())
	r.zero(3)
	h.Filtering, h.Counters = Filtering{}, h.Counters[:0]
	if r.err == nil && n > MaxCounters {
		r.err = fmt.Errorf("%d counters, limit %d: %w", n, MaxCounters, ErrTooLong)
	}
	if r.err == nil && int(n)*counterSize > len(r.b) {
		r.err = ErrShort
	}
	for i := uint32(0); i < n && r.err == nil; i++ {
		c := Counter{CPU: r.u32(), Class: Class(r.u8())}
		r.zero(3)
		c.Watermark, c.Lost = r.u64(), r.u64()
		switch {
		case r.err != nil:
		case c.CPU >= MaxCPUs || !c.Class.valid():
			r.err = fmt.Errorf("counter of cpu %d class %d: %w", c.CPU, c.Class, ErrInvalid)
		case c.Lost > c.Watermark:
			r.err = fmt.Errorf("%d lost of %d: %w", c.Lost, c.Watermark, ErrInvalid)
		}
		h.Counters = append(h.Counters, c)
	}
	if filters {
		h.Number, h.Filtered = r.u64(), r.u64()
		if r.err == nil && h.Filtering == (Filtering{}) {
			r.err = fmt.Errorf("filters that are none: %w", ErrInvalid)
		}
	}
}

// Bye ends a session in order: the last account and why.
type Bye struct {
	Heartbeat
	Reason string // at most MaxText bytes
}

// AppendBye appends y as a Bye payload.
func AppendBye(b []byte, y *Bye) []byte {
	return appendTail(appendAccount(b, &y.Heartbeat), TagReason, Tail{Data: []byte(y.Reason)})
}

// ParseBye reads a Bye payload.
func ParseBye(b []byte) (Bye, error) {
	r := reader{b: b}
	var y Bye
	r.account(&y.Heartbeat)
	y.Reason = r.text(TagReason)
	if err := r.end(); err != nil {
		return Bye{}, fmt.Errorf("bye: %w", err)
	}
	return y, nil
}

// Ack tells the agent what the host has recorded and how far it may go on.
type Ack struct {
	Sequence uint64 // every frame up to this one is in the record
	Credit   uint64 // bytes of frames that the agent may have sent since the HelloAck, in all; never shrinks
	Withheld bool   // bulk is not to be sent until another Ack says otherwise
}

// AppendAck appends a as an Ack payload.
func AppendAck(b []byte, a *Ack) []byte {
	b = le.AppendUint64(le.AppendUint64(b, a.Sequence), a.Credit)
	return append(b, flag(a.Withheld), 0, 0, 0, 0, 0, 0, 0)
}

// ParseAck reads an Ack payload.
func ParseAck(b []byte) (Ack, error) {
	r := reader{b: b}
	a := Ack{Sequence: r.u64(), Credit: r.u64(), Withheld: r.bool(r.u8())}
	r.zero(7)
	if err := r.end(); err != nil {
		return Ack{}, fmt.Errorf("ack: %w", err)
	}
	return a, nil
}

// Policy says what the agent reports. It replaces the one before as a whole.
type Policy struct {
	Number  uint64      // grows with every change
	Hooks   []EventType // those to report, ascending
	Filters []Filter    // what of them is left out, at most MaxFilters
}

// AppendPolicy appends p as a Policy payload.
func AppendPolicy(b []byte, p *Policy) []byte {
	b = le.AppendUint64(b, p.Number)
	b = le.AppendUint32(b, uint32(len(p.Hooks)))
	b = le.AppendUint32(b, uint32(len(p.Filters)))
	for _, t := range p.Hooks {
		b = le.AppendUint16(b, uint16(t))
		b = append(b, 0, 0, 0, 0, 0, 0)
	}
	for i := range p.Filters {
		b = p.Filters[i].append(b)
	}
	return b
}

// ParsePolicy reads a Policy payload.
func ParsePolicy(b []byte) (Policy, error) {
	r := reader{b: b}
	p := Policy{Number: r.u64()}
	n, filters := r.u32(), r.u32()
	if r.err == nil && n > MaxHooks {
		r.err = fmt.Errorf("%d hooks, limit %d: %w", n, MaxHooks, ErrTooLong)
	}
	if r.err == nil && filters > MaxFilters {
		r.err = fmt.Errorf("%d filters, limit %d: %w", filters, MaxFilters, ErrTooLong)
	}
	for i := uint32(0); i < n && r.err == nil; i++ {
		t := EventType(r.u16())
		r.zero(6)
		if r.err == nil && i > 0 && t <= p.Hooks[i-1] {
			r.err = fmt.Errorf("hook %d out of order: %w", t, ErrInvalid)
		}
		p.Hooks = append(p.Hooks, t)
	}
	for i := uint32(0); i < filters && r.err == nil; i++ {
		f := r.filter()
		if r.err != nil {
			r.err = fmt.Errorf("filter %d: %w", i+1, r.err)
		}
		p.Filters = append(p.Filters, f)
	}
	if err := r.end(); err != nil {
		return Policy{}, fmt.Errorf("policy: %w", err)
	}
	return p, nil
}

// PolicyAck tells that a policy is in force in the guest, or why it is not.
type PolicyAck struct {
	Number uint64
	Reason string // empty: in force
}

// AppendPolicyAck appends a as a PolicyAck payload.
func AppendPolicyAck(b []byte, a *PolicyAck) []byte {
	return appendTail(le.AppendUint64(b, a.Number), TagReason, Tail{Data: []byte(a.Reason)})
}

// ParsePolicyAck reads a PolicyAck payload.
func ParsePolicyAck(b []byte) (PolicyAck, error) {
	r := reader{b: b}
	a := PolicyAck{Number: r.u64(), Reason: r.text(TagReason)}
	if err := r.end(); err != nil {
		return PolicyAck{}, fmt.Errorf("policy-ack: %w", err)
	}
	return a, nil
}

// Canary asks the agent to do what its hooks report, under a name that nobody
// can know before: see PROTOCOL.md, section 7.
type Canary struct {
	Nonce [16]byte
}

// AppendCanary appends c as a Canary payload.
func AppendCanary(b []byte, c *Canary) []byte { return append(b, c.Nonce[:]...) }

// ParseCanary reads a Canary payload.
func ParseCanary(b []byte) (Canary, error) {
	r := reader{b: b}
	var c Canary
	copy(c.Nonce[:], r.take(len(c.Nonce)))
	if err := r.end(); err != nil {
		return Canary{}, fmt.Errorf("canary: %w", err)
	}
	return c, nil
}

// CanaryAck tells that the agent has done what a Canary asks for.
type CanaryAck struct {
	Nonce  [16]byte
	BootNs uint64 // CLOCK_BOOTTIME when it was done, ns
	Reason string // why something of it could not be done; empty: all of it was
}

// AppendCanaryAck appends a as a CanaryAck payload.
func AppendCanaryAck(b []byte, a *CanaryAck) []byte {
	b = le.AppendUint64(append(b, a.Nonce[:]...), a.BootNs)
	return appendTail(b, TagReason, Tail{Data: []byte(a.Reason)})
}

// ParseCanaryAck reads a CanaryAck payload.
func ParseCanaryAck(b []byte) (CanaryAck, error) {
	r := reader{b: b}
	var a CanaryAck
	copy(a.Nonce[:], r.take(len(a.Nonce)))
	a.BootNs, a.Reason = r.u64(), r.text(TagReason)
	if err := r.end(); err != nil {
		return CanaryAck{}, fmt.Errorf("canary-ack: %w", err)
	}
	return a, nil
}

// Reject ends a connection that the host does not take, or no longer.
type Reject struct {
	Code   RejectCode
	Reason string // at most MaxText bytes
}

// RejectCode says why, for programs. Numbers are never used again.
type RejectCode uint16

const (
	RejectVersion   RejectCode = 1 // no version in common
	RejectUnknown   RejectCode = 2 // the domain is not enrolled
	RejectProof     RejectCode = 3 // the key or the session's secret is wrong
	RejectBusy      RejectCode = 4 // the domain has a live session already
	RejectSession   RejectCode = 5 // the session to resume is not known
	RejectProtocol  RejectCode = 6 // a frame that the protocol does not allow
	RejectExhausted RejectCode = 7 // over a limit; try again later
	RejectClosing   RejectCode = 8 // the monitor stops; reconnect when it is back
)

var rejectNames = map[RejectCode]string{
	RejectVersion: "version", RejectUnknown: "unknown-domain", RejectProof: "proof",
	RejectBusy: "busy", RejectSession: "session", RejectProtocol: "protocol",
	RejectExhausted: "exhausted", RejectClosing: "closing",
}

func (c RejectCode) String() string {
	if s, ok := rejectNames[c]; ok {
		return s
	}
	return fmt.Sprintf("reject(%d)", uint16(c))
}

// AppendReject appends j as a Reject payload.
func AppendReject(b []byte, j *Reject) []byte {
	b = le.AppendUint16(b, uint16(j.Code))
	b = append(b, 0, 0, 0, 0, 0, 0)
	return appendTail(b, TagReason, Tail{Data: []byte(j.Reason)})
}

// ParseReject reads a Reject payload.
func ParseReject(b []byte) (Reject, error) {
	r := reader{b: b}
	j := Reject{Code: RejectCode(r.u16())}
	r.zero(6)
	j.Reason = r.text(TagReason)
	if err := r.end(); err != nil {
		return Reject{}, fmt.Errorf("reject: %w", err)
	}
	return j, nil
}

// Events is the payload of an Events frame: Count records, one after another.
type Events struct {
	Count   uint32
	Records []byte // as the guest's kernel wrote them; for Event.Parse
}

// EventsHeader is the size of what stands before the records, in bytes.
const EventsHeader = 8

// AppendEventsHeader appends the count; the records follow.
func AppendEventsHeader(b []byte, count int) []byte {
	return le.AppendUint32(le.AppendUint32(b, uint32(count)), 0)
}

// ParseEvents reads an Events payload. The records are not looked into: Count
// is the agent's word until they have been walked.
func ParseEvents(b []byte) (Events, error) {
	r := reader{b: b}
	e := Events{Count: r.u32()}
	r.zero(4)
	if r.err != nil {
		return Events{}, fmt.Errorf("events: %w", r.err)
	}
	if uint64(e.Count)*RecordHeaderSize > uint64(len(r.b)) {
		return Events{}, fmt.Errorf("events: %d records in %d bytes: %w", e.Count, len(r.b), ErrShort)
	}
	e.Records = r.b
	return e, nil
}
