package cost

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/outguard/outguard/vmtests/image"
	"github.com/outguard/outguard/vmtests/vm"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// Off is the column of a guest without an agent; the others are profiles.
const Off = "off"

// Columns are what is measured one after the other, in one boot.
var Columns = []string{Off, vsockproto.MinimalProfile, vsockproto.DefaultProfile, vsockproto.TSEMProfile}

// op is one operation: how many rounds of how many, and how many make a round
// so short that the agent rests in some of them; 0: none. Of are the records that it
// is about, of those of the profile default that it makes.
type op struct {
	name, text           string
	rounds, count, short int
	of                   []vsockproto.EventType
}

// In a round of the longer kind the agent has run several times. So many rounds take
// two to three minutes for each kernel.
var ops = []op{
	{"open", "open+read+close of a file on ext4", 8, 2000, 20, []vsockproto.EventType{vsockproto.FileOpen}},
	{"open-tmpfs", "open+read+close of a file on tmpfs", 8, 2000, 20, []vsockproto.EventType{vsockproto.FileOpen}},
	{"exec", "vfork+exec+exit of busybox true", 8, 25, 1, []vsockproto.EventType{vsockproto.BprmCommittedCreds, vsockproto.TaskNewtask, vsockproto.SchedProcessExit}},
	{"connect", "connect+accept over the loopback", 8, 300, 4, []vsockproto.EventType{vsockproto.SocketCreate, vsockproto.SocketConnect, vsockproto.SocketAccept}},
	{"mmap", "mmap+munmap of a file", 8, 1500, 20, []vsockproto.EventType{vsockproto.MmapFile}},
	{"stat", "stat", 8, 4000, 100, nil},
	{"pipe", "a byte to another process and back", 8, 1500, 20, nil},
	{"compile", "gcc -O2 of 85 lines of C, linked", 4, 1, 0, []vsockproto.EventType{vsockproto.FileOpen, vsockproto.MmapFile, vsockproto.BprmCommittedCreds}},
}

const shortRounds, quickRounds = 60, 2

// toil begins a command in the guest. Go's runtime is not to signal itself.
const toil = "GODEBUG=asyncpreemptoff=1 outguard-toil "

// Cost is what an operation takes: instructions, and the records of one.
type Cost struct {
	Task   float64 // instructions of the task alone: while neither the agent nor anything else ran
	Total  float64 // instructions, all told
	Agent  float64 // of them, in the agent's process
	Events float64 // records that were numbered
	Bytes  float64 // of the rings that they took
	Lost   uint64  // records of all rounds that found no room
}

// Result is what was measured on one kernel.
type Result struct {
	Kernel         string                     // its line
	Release        string                     // its name
	Costs          map[string]map[string]Cost // by operation and column
	Programs       []Program                  // with the profile default
	Ready          float64                    // instructions from the agent's start to its programs' being attached
	Flood          Flood
	Delivered      map[string]Delivery // by operation, and of the flood, with the profile default
	Quick          bool                // few rounds
	Resident, Peak int                 // memory of the agent at the end, and at most: while it loaded programs; KiB
}

// Program is what one program of the agent's takes in the course of an operation.
type Program struct {
	Op, Name     string
	Runs         float64 // for each operation
	Instructions float64 // for each run
}

// flood is the name among the operations of what is measured as Flood.
const flood = "flood"

// Delivery is what of an operation's records came to the host.
type Delivery struct {
	Wire  float64                          // bytes for each record, frames included
	Types map[vsockproto.EventType]float64 // bytes of a record
}

// Flood is an open for each record, as fast as can be, until the host has all.
type Flood struct {
	Instructions float64 // for each record that the host has, the open and its delivery
	Lost, Sent   uint64
}

// Options say where things are.
type Options struct {
	Clone    string    // the repository, whose bin/ holds the agent
	Out      io.Writer // for a person who waits; default none
	Profiles []string  // which to measure, by name or as hooks joined by +; default those of Columns
	Only     []string  // operations to measure, and beside them the agent's start and memory alone; default all
	Quick    bool      // few rounds: to see that it works
	Sample   bool      // measure nothing: say where the CPU is while the agent starts, and for each of Only
}

// Operations names what can be measured.
func Operations() (names []string) {
	for _, op := range ops {
		names = append(names, op.name)
	}
	return names
}

// Measure boots a guest on a line of kernels and measures.
func Measure(ctx context.Context, line string, o Options) (r *Result, err error) {
	if o.Out == nil {
		o.Out = io.Discard
	}
	site, err := vm.Here()
	if err != nil {
		return nil, err
	}
	name, where := site.Name("cost-"+strings.ReplaceAll(line, ".", "-")), &vm.Options{Dir: site.Dir + "-cost"}
	defer func() {
		ctx := context.WithoutCancel(ctx)
		err = errors.Join(err, vm.RemoveGuest(ctx, where, name), os.RemoveAll(where.Dir))
	}()
	img, err := build(ctx, line, o)
	if err != nil {
		return nil, err
	}
	lab, err := vm.Open(ctx, img, where)
	if err != nil {
		return nil, err
	}
	if lab.Vsock.Name == "vhost-vsock" {
		return nil, fmt.Errorf("measure: the kernel's vhost-vsock answers by its own clock: %w", errors.ErrUnsupported)
	}
	g, err := lab.Define(ctx, vm.Spec{
		Name: name, Image: img, MemoryMiB: 512, Channel: true, Root: true, Counted: true, Cmdline: []string{"outguard.noagent", "nokaslr", "norandmaps"},
	})
	if err != nil {
		return nil, err
	}
	if err := g.Start(ctx); err != nil {
		return nil, err
	}
	if _, err := g.WaitConsole(ctx, "guest: no agent", 5*time.Minute); err != nil {
		return nil, err
	}
	if err := ready(ctx, g); err != nil {
		return nil, err
	}
	m := &measurement{g: g, o: o, r: &Result{Kernel: line, Release: img.Release, Quick: o.Quick, Costs: map[string]map[string]Cost{}, Delivered: map[string]Delivery{}}}
	if err := m.all(ctx); err != nil {
		console, _ := g.Console()
		return nil, fmt.Errorf("kernel %s: %w; the end of its console:\n%s", line, err, console[max(0, len(console)-1500):])
	}
	return m.r, nil
}

func build(ctx context.Context, line string, o Options) (*image.Image, error) {
	files, err := compiler(ctx)
	if err != nil {
		return nil, err
	}
	program, err := image.Compile(ctx, o.Clone, "/usr/sbin/outguard-toil", "build", "./vmtests/cmd/outguard-toil")
	if err != nil {
		return nil, err
	}
	agent, err := image.FromHost("/usr/sbin/outguard-agent", 0o755, filepath.Join(o.Clone, "bin", "outguard-agent"))
	if err != nil {
		return nil, fmt.Errorf("%w (make build makes it)", err)
	}
	key := image.File{Path: "/etc/outguard.key", Mode: 0o600, Data: prototest.Key[:]}
	return image.Build(ctx, "/var/cache/outguard/images", &image.Options{
		Kernel: filepath.Join("/var/cache/outguard/kernel", line), Files: append(files, program, agent, key),
	})
}

// ready waits until root's shell listens: it starts beside what says that there
// is no agent, and what is sent to it before is lost.
func ready(ctx context.Context, g *vm.Guest) (err error) {
	for range 20 {
		var status int
		if _, status, err = g.Root(ctx, "true", 2*time.Second); err == nil && status == 0 {
			return nil
		}
	}
	return err
}

type measurement struct {
	g *vm.Guest
	o Options
	r *Result
	h *host
}

func (m *measurement) all(ctx context.Context) error {
	if err := m.column(ctx, Off); err != nil {
		return err
	}
	var err error
	if m.h, err = listen(m.g.Hybrid()); err != nil {
		return err
	}
	defer m.h.close()
	if err := m.start(ctx); err != nil {
		return err
	}
	profiles := m.o.Profiles
	if profiles == nil {
		profiles = Columns[1:]
	}
	for _, c := range profiles {
		if err := m.h.put(ctx, c); err != nil {
			return err
		}
		if err := m.column(ctx, c); err != nil {
			return err
		}
	}
	if m.o.Sample {
		return nil
	}
	if len(m.o.Only) > 0 {
		return m.resident(ctx)
	}
	if err := m.h.put(ctx, vsockproto.DefaultProfile); err != nil {
		return err
	}
	if err := m.programs(ctx); err != nil {
		return err
	}
	if err := m.flood(ctx); err != nil {
		return err
	}
	return m.resident(ctx)
}

// start starts the agent and waits until its session is there.
func (m *measurement) start(ctx context.Context) error {
	fmt.Fprintf(m.o.Out, "%s: the agent starts\n", m.r.Kernel)
	how := "agent"
	if m.o.Sample {
		how = "sample-agent"
	}
	if _, err := m.root(ctx, "outguard-toil "+how+" /usr/sbin/outguard-agent --key /etc/outguard.key >/run/toil 2>/dev/console & true"); err != nil {
		return err
	}
	if _, err := m.g.WaitConsole(ctx, "msg=connected", 3*time.Minute); err != nil {
		return err
	}
	text, err := m.root(ctx, "cat /run/toil")
	if m.o.Sample && err == nil {
		m.seen("start", text)
	}
	if err == nil {
		_, err = fmt.Sscanf(text, "ready %g", &m.r.Ready)
	}
	if err != nil {
		return fmt.Errorf("when the agent was ready: %w: %q", err, text)
	}
	return nil
}

func (m *measurement) root(ctx context.Context, line string) (string, error) {
	out, status, err := m.g.Root(ctx, line, 5*time.Minute)
	if err == nil && status != 0 {
		err = fmt.Errorf("%q in the guest: status %d: %s", line, status, out)
	}
	return out, err
}

// column measures every operation as things are.
func (m *measurement) column(ctx context.Context, column string) error {
	for _, op := range ops {
		if (len(m.o.Only) > 0 || m.o.Sample) && !slices.Contains(m.o.Only, op.name) {
			continue
		}
		if m.o.Quick {
			op.rounds, op.count = quickRounds, max(1, op.count/2)
		}
		if m.h != nil {
			m.h.forget()
		}
		if m.o.Sample {
			if err := m.sample(ctx, op, column); err != nil {
				return err
			}
			continue
		}
		c, err := m.one(ctx, op)
		if err != nil {
			return fmt.Errorf("%s with %s: %w", op.name, column, err)
		}
		if m.r.Costs[op.name] == nil {
			m.r.Costs[op.name] = map[string]Cost{}
		}
		m.r.Costs[op.name][column] = c
		if column == vsockproto.DefaultProfile && len(op.of) > 0 {
			m.r.Delivered[op.name] = m.h.delivered()
		}
		fmt.Fprintf(m.o.Out, "%s %s %s: %.0f instructions, %.0f of them the agent's; %.0f the task's alone, %.2f events%s\n",
			m.r.Kernel, column, op.name, c.Total, c.Agent, c.Task, c.Events, m.came())
	}
	return nil
}

// sample says where the CPU is in the course of an operation.
func (m *measurement) sample(ctx context.Context, op op, column string) error {
	out, err := m.root(ctx, fmt.Sprintf(toil+"sample %s %d", op.name, op.count))
	if err != nil {
		return err
	}
	m.seen(column+" "+op.name, out)
	return nil
}

// seen passes on what was sampled.
func (m *measurement) seen(of, text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(m.o.Out, "%s %s %s", m.r.Kernel, of, line)
	}
}

// came says which records have come of an operation, the most frequent first.
func (m *measurement) came() string {
	if m.h == nil {
		return ""
	}
	all := m.h.types()
	types := slices.SortedFunc(maps.Keys(all), func(a, b vsockproto.EventType) int { return cmp.Compare(all[b].count, all[a].count) })
	var b strings.Builder
	for _, t := range types[:min(len(types), 4)] {
		fmt.Fprintf(&b, ", %s %d", t, all[t].count)
	}
	return b.String()
}

func (m *measurement) one(ctx context.Context, op op) (Cost, error) {
	c, err := m.toil(ctx, op.name, op.rounds, op.count)
	if err != nil || op.short == 0 {
		c.Task = c.Total - c.Agent
		return c, err
	}
	short, err := m.toil(ctx, op.name, shortRounds, op.short)
	c.Task, c.Events, c.Bytes = short.Total, short.Events, short.Bytes
	c.Lost += short.Lost
	return c, err
}

func (m *measurement) toil(ctx context.Context, op string, rounds, count int) (Cost, error) {
	out, err := m.root(ctx, fmt.Sprintf(toil+"%s %d %d", op, rounds, count))
	if err != nil {
		return Cost{}, err
	}
	return least(out, rounds, count)
}

// least takes the round that took the least time.
func least(out string, rounds, count int) (best Cost, err error) {
	var lost uint64
	n := 0
	for line := range strings.Lines(out) {
		var ns, agent, emitted, gone, bytes float64
		if _, err := fmt.Sscanf(line, "round %g %g %g %g %g", &ns, &agent, &emitted, &gone, &bytes); err != nil {
			continue
		}
		of := float64(count)
		c := Cost{Total: ns / of, Agent: agent / of, Events: emitted / of, Bytes: bytes / of}
		lost += uint64(gone)
		if n == 0 || c.Total < best.Total {
			best = c
		}
		n++
	}
	if n != rounds {
		return Cost{}, fmt.Errorf("%d rounds of %d in %q", n, rounds, out)
	}
	best.Lost = lost
	return best, nil
}

// programs asks the kernel what each program takes. Its own reading of the clock
// is in it, around a hundred instructions.
func (m *measurement) programs(ctx context.Context) error {
	for _, op := range []string{"open", "open-tmpfs", "mmap", "connect", "exec"} {
		const count = 100
		out, err := m.root(ctx, fmt.Sprintf(toil+"programs %s %d", op, count))
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			p := Program{Op: op}
			var ns float64
			if _, err := fmt.Sscanf(line, "program %s %g %g", &p.Name, &p.Runs, &ns); err != nil || p.Runs < count {
				continue
			}
			p.Instructions, p.Runs = ns/p.Runs, p.Runs/count
			m.r.Programs = append(m.r.Programs, p)
			fmt.Fprintf(m.o.Out, "%s %s: %s runs %.2g times, %.0f instructions each\n", m.r.Kernel, op, p.Name, p.Runs, p.Instructions)
		}
	}
	slices.SortStableFunc(m.r.Programs, func(a, b Program) int { return cmp.Or(cmp.Compare(a.Op, b.Op), cmp.Compare(a.Name, b.Name)) })
	return nil
}

// flood opens a file as fast as one CPU can, and waits for the host to have it.
func (m *measurement) flood(ctx context.Context) error {
	time.Sleep(2 * time.Second) // what the last one left
	m.h.forget()
	const rounds, count = 4, 10_000
	c, err := m.toil(ctx, flood, rounds, count)
	if err != nil {
		return err
	}
	var came uint64
	for _, n := range m.h.types() {
		came += n.count
	}
	m.r.Delivered[flood] = m.h.delivered()
	m.r.Flood = Flood{Instructions: c.Total / c.Events, Lost: c.Lost, Sent: came}
	return nil
}

func (m *measurement) resident(ctx context.Context) error {
	text, err := m.root(ctx, "grep -E '^Vm(HWM|RSS)' /proc/$(pidof outguard-agent)/status")
	if err == nil {
		_, err = fmt.Sscanf(text, "VmHWM: %d kB\nVmRSS: %d kB\n", &m.r.Peak, &m.r.Resident)
	}
	if err != nil {
		return fmt.Errorf("the agent's memory: %w: %q", err, text)
	}
	return nil
}
