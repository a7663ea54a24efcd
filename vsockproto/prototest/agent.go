package prototest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
)

// AgentOptions are an agent's; nil and zero mean the defaults.
type AgentOptions struct {
	Key    [vsockproto.KeySize]byte // default Key
	BootID [16]byte                 // default 1, 0, 0 …
	CPUs   uint32                   // default 2
	Hooks  []vsockproto.Hook        // default every type, available and attached
	Link   *link.AgentOptions

	Silent bool // no heartbeats but those that are asked for

	// Deaf hooks do not run when a Canary makes the agent do something.
	Deaf []vsockproto.EventType
	// Obey does what a Command asks for; the number and the time are filled in.
	// Default: it is done, as far as the answer says.
	Obey   func(vsockproto.Command) vsockproto.CommandAck
	Cannot string // what the guest refuses of a Canary; its answer says so
}

// Agent is a guest's agent without a guest: it sends the events that it is
// given, numbers them as the kernel would, and keeps an honest account.
type Agent struct {
	o    AgentOptions
	link *link.Agent

	mu   sync.Mutex // held from drawing numbers until they are sent; guards the next four
	rows map[row]*vsockproto.Counter
	buf  []byte
	beat vsockproto.Heartbeat
	sums vsockproto.Totals
	sung uint64

	smu     sync.Mutex // guards what follows
	policy  vsockproto.Policy
	welcome vsockproto.HelloAck
	resumed bool
	up      chan struct{} // closed at the first Welcome
}

type row struct {
	cpu   uint32
	class vsockproto.Class
}

// NewAgent makes an agent. It starts nothing.
func NewAgent(o *AgentOptions) *Agent {
	a := &Agent{rows: map[row]*vsockproto.Counter{}, up: make(chan struct{})}
	if o != nil {
		a.o = *o
	}
	if a.o.Key == [vsockproto.KeySize]byte{} {
		a.o.Key = Key
	}
	if a.o.BootID == [16]byte{} {
		a.o.BootID[0] = 1
	}
	if a.o.CPUs == 0 {
		a.o.CPUs = 2
	}
	if a.o.Hooks == nil {
		for _, t := range vsockproto.DefaultTypes() {
			a.o.Hooks = append(a.o.Hooks, vsockproto.Hook{Type: t, Available: true, Attached: true, Tag: [8]byte{byte(t)}})
		}
	}
	a.link = link.NewAgent(a.o.Key, a.o.Link)
	return a
}

// Link returns the end that the agent speaks through, to break its rules.
func (a *Agent) Link() *link.Agent { return a.link }

// Hello returns what the agent says of itself, with the time of now.
func (a *Agent) Hello() *vsockproto.Hello {
	boot, real := clocks()
	return &vsockproto.Hello{
		MinVersion: vsockproto.Version, MaxVersion: vsockproto.Version,
		BootID: a.o.BootID, BootNs: boot, RealNs: real, CPUs: a.o.CPUs,
		Kernel: "6.1.0-test", Build: "prototest", Hooks: a.o.Hooks,
	}
}

// born makes the guest's boot clock count from a moment before any test.
var born = time.Unix(946684000, 0)

func clocks() (boot, real uint64) {
	now := time.Now()
	return uint64(now.Sub(born)), uint64(now.UnixNano())
}

// Run speaks over conn until the connection ends or ctx does, with heartbeats
// at the pace that the host asks for. Called again, it goes on with the session.
func (a *Agent) Run(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	return a.link.Run(ctx, conn, a.Hello(), &handler{
		a: a,
		start: func(every time.Duration) {
			if !a.o.Silent {
				wg.Go(func() { a.beats(ctx, every) })
			}
		},
		sing: func(c vsockproto.Canary) { wg.Go(func() { a.canary(ctx, c) }) },
	})
}

func (a *Agent) beats(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = a.Heartbeat() // without room this one is left out
		}
	}
}

type handler struct {
	a     *Agent
	start func(time.Duration)
	sing  func(vsockproto.Canary)
}

func (h *handler) Welcome(ack vsockproto.HelloAck, resumed bool) {
	h.a.smu.Lock()
	defer h.a.smu.Unlock()
	if h.a.welcome.Version == 0 {
		close(h.a.up)
	}
	h.a.welcome, h.a.resumed = ack, resumed
	h.start(time.Duration(ack.HeartbeatMs) * time.Millisecond)
}

func (h *handler) Policy(p vsockproto.Policy) {
	h.a.smu.Lock()
	h.a.policy = p
	h.a.smu.Unlock()
	_ = h.a.link.SendPolicyAck(&vsockproto.PolicyAck{Number: p.Number})
}

// Command answers as the options say, in its own time.
func (h *handler) Command(c vsockproto.Command) {
	obey := h.a.o.Obey
	if obey == nil {
		obey = func(vsockproto.Command) vsockproto.CommandAck { return vsockproto.CommandAck{Tasks: 1} }
	}
	go func() {
		ack := obey(c)
		ack.Number = c.Number
		ack.BootNs, _ = clocks()
		_ = h.a.link.SendCommandAck(&ack)
	}()
}

func (h *handler) Canary(c vsockproto.Canary) { h.sing(c) }

// canary does what c asks for, but for what Deaf hooks would report.
func (a *Agent) canary(ctx context.Context, c vsockproto.Canary) {
	var events []*vsockproto.Event
	for _, e := range CanaryEvents(c.Nonce) {
		if !slices.Contains(a.o.Deaf, e.Type) {
			events = append(events, e)
		}
	}
	const room = 4096 // for all of them: numbers that are drawn have to be sent
	if a.link.Wait(ctx, room) != nil || a.Send(ctx, events...) != nil {
		return
	}
	a.mu.Lock()
	a.sung += uint64(len(events))
	a.mu.Unlock()
	boot, _ := clocks()
	_ = a.link.SendCanaryAck(&vsockproto.CanaryAck{Nonce: c.Nonce, BootNs: boot, Reason: a.o.Cannot})
}

// Sung counts the records that canaries made the agent send.
func (a *Agent) Sung() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sung
}

// CanaryEvents are the records of what a Canary of that nonce asks for.
func CanaryEvents(nonce [16]byte) []*vsockproto.Event {
	var events []*vsockproto.Event
	name := vsockproto.CanaryName(nonce)
	for _, t := range vsockproto.CanaryTypes() {
		e := Sample(t)
		e.Header.Flags = vsockproto.FlagCanary
		e.Path, e.RawAddr = vsockproto.Tail{}, vsockproto.Tail{}
		e.File.Links = 0
		e.Socket.Family, e.Address.Family = 1, 1
		switch t {
		case vsockproto.FileOpen, vsockproto.MmapFile, vsockproto.FileIoctl, vsockproto.FileLock, vsockproto.FileFcntl, vsockproto.SbMount:
			e.Path = vsockproto.Tail{Data: []byte("/memfd:" + name), Flags: vsockproto.TailUnlinked | vsockproto.TailUnreachable}
			if e.Name = (vsockproto.Tail{}); t == vsockproto.SbMount {
				e.Args = [vsockproto.MaxArgs]uint64{0x1000}
			}
		case vsockproto.TaskPrctl:
			arg2, arg3 := vsockproto.CanaryArgs(nonce)
			e.Args = [vsockproto.MaxArgs]uint64{uint64(vsockproto.CanaryProtocol(nonce)), arg2, arg3}
		case vsockproto.SocketCreate:
			e.Socket.Protocol = vsockproto.CanaryProtocol(nonce)
		case vsockproto.SocketBind, vsockproto.SocketConnect, vsockproto.SocketAccept:
			e.Socket.Cookie = 77
			e.RawAddr = vsockproto.Tail{Data: []byte("\x00" + name)}
		case vsockproto.SocketListen:
			e.Socket.Cookie = 77
		case vsockproto.TaskKill:
			e.Signal, e.Target.TGID = 0, e.TGID
		}
		events = append(events, e)
	}
	return events
}

// Up is closed when a host has accepted the agent for the first time.
func (a *Agent) Up() <-chan struct{} { return a.up }

// Welcome returns the last HelloAck and whether it resumed a session.
func (a *Agent) Welcome() (vsockproto.HelloAck, bool) {
	a.smu.Lock()
	defer a.smu.Unlock()
	return a.welcome, a.resumed
}

// Policy returns the last policy.
func (a *Agent) Policy() vsockproto.Policy {
	a.smu.Lock()
	defer a.smu.Unlock()
	return a.policy
}

// Send numbers the events and sends them, in as few frames as they fit in. It
// waits until it may, and sets each event's Sequence.
func (a *Agent) Send(ctx context.Context, events ...*vsockproto.Event) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	const most = vsockproto.MaxFrame - vsockproto.FrameHeaderSize - vsockproto.EventsHeader
	a.buf = a.buf[:0]
	count := 0
	for _, e := range events {
		if len(a.buf)+vsockproto.MaxRecord > most {
			if err := a.flush(ctx, count); err != nil {
				return err
			}
			count = 0
		}
		e.Sequence = a.draw(e.CPU, e.Class, 1)
		if e.Type == vsockproto.TaskNewtask {
			a.sums.Starts++
		}
		var err error
		if a.buf, err = e.Append(a.buf); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		count++
	}
	return a.flush(ctx, count)
}

func (a *Agent) flush(ctx context.Context, count int) error {
	if count == 0 {
		return nil
	}
	for {
		err := a.link.SendEvents(count, a.buf)
		if !errors.Is(err, link.ErrNoRoom) {
			a.buf = a.buf[:0]
			return err
		}
		if err := a.link.Wait(ctx, len(a.buf)+vsockproto.EventsHeader); err != nil {
			return err
		}
	}
}

func (a *Agent) draw(cpu uint32, c vsockproto.Class, n uint64) (last uint64) {
	k := row{cpu, c}
	if a.rows[k] == nil {
		a.rows[k] = &vsockproto.Counter{CPU: cpu, Class: c}
		a.beat.Counters = append(a.beat.Counters, vsockproto.Counter{})
	}
	a.rows[k].Watermark += n
	return a.rows[k].Watermark
}

// Lose draws n numbers whose records found no room, and declares them.
func (a *Agent) Lose(cpu uint32, c vsockproto.Class, n uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.draw(cpu, c, n)
	a.rows[row{cpu, c}].Lost += n
}

// Hide draws n numbers and says nothing of them: loss that is not declared.
func (a *Agent) Hide(cpu uint32, c vsockproto.Class, n uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.draw(cpu, c, n)
}

// Starts makes the kernel count n tasks that no record tells of; declared: the
// account says so.
func (a *Agent) Starts(n uint64, declared bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sums.Starts += n
	if declared {
		a.sums.Unrecorded += n
	}
}

// Doubled announces n starts of tasks that the kernel has not counted beside what
// it has
// announced already, as while the programs of two builds are attached.
func (a *Agent) Doubled(n uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sums.Unrecorded += n
}

// Reload makes the programs those of another build.
func (a *Agent) Reload() {
	a.o.Hooks = slices.Clone(a.o.Hooks)
	for i := range a.o.Hooks {
		a.o.Hooks[i].Tag[7]++
	}
}

// Unhook makes the kernel count n executions that no hook saw.
func (a *Agent) Unhook(n uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sums.Unhooked += n
}

// Heartbeat sends the account; link.ErrNoRoom if it may not. While Send is
// under way it is a sign of life without counters.
func (a *Agent) Heartbeat() error {
	boot, real := clocks()
	if !a.mu.TryLock() {
		return a.link.SendHeartbeat(&vsockproto.Heartbeat{BootNs: boot, RealNs: real})
	}
	defer a.mu.Unlock()
	return a.link.SendHeartbeat(a.account(boot, real))
}

func (a *Agent) account(boot, real uint64) *vsockproto.Heartbeat {
	a.beat.BootNs, a.beat.RealNs = boot, real
	a.beat.Totals = a.sums
	a.beat.MarkedNs = boot
	a.beat.Counters = a.beat.Counters[:0]
	for _, c := range a.rows {
		a.beat.Counters = append(a.beat.Counters, *c)
	}
	return &a.beat
}

// Bye ends the session in order and waits until the host has recorded it.
func (a *Agent) Bye(ctx context.Context, reason string) error {
	boot, real := clocks()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.link.SendBye(&vsockproto.Bye{Heartbeat: *a.account(boot, real), Reason: reason}); err != nil {
		return err
	}
	return a.link.Drained(ctx)
}

// Drained returns when the host has recorded everything sent.
func (a *Agent) Drained(ctx context.Context) error { return a.link.Drained(ctx) }
