package soak

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/outguard/outguard/vmtests/image"
	"github.com/outguard/outguard/vmtests/product"
	"github.com/outguard/outguard/vmtests/service"
	"github.com/outguard/outguard/vmtests/vm"
)

// Options say how it is done.
type Options struct {
	Clone string        // directory of the project, with bin/ built
	For   time.Duration // how long faults are injected
	Seed  uint64        // 0: one from the clock
	Only  string        // the one kind of fault; "": all
	Out   io.Writer     // progress, and the table at the end

	Transport string // Serial or Vsock; "": Vsock
}

const cache = "/var/cache/outguard"

// calm is how long after a fault what it causes may take to be found and to end.
const calm = 3 * time.Minute

// run is one soak.
type run struct {
	o         Options
	rand      *rand.Rand
	faults    []fault
	heartbeat time.Duration
	dir       string       // of the site
	release   func() error // of it
	kernel    string
	install   *product.Install
	guest     *vm.Guest
	channel   channel
	socket    string // of it, on the host
	report    report
	seen      map[string]bool // findings, by id
}

// Run soaks and prints the table. It is an error if anything was found that
// should not have been, or was not that should.
func Run(ctx context.Context, o Options) (err error) {
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano())
	}
	r := newRun(o)
	if r.channel, err = channelOf(cmp.Or(o.Transport, Vsock)); err != nil {
		return err
	}
	if r.faults, err = chosen(o.Only, r.channel.all()); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.clean(context.WithoutCancel(ctx))) }()
	if err := r.prepare(ctx); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	if err := r.soak(ctx); err != nil {
		return errors.Join(err, r.keep())
	}
	if err := r.finish(ctx); err != nil {
		return errors.Join(err, r.keep())
	}
	r.report.print(o.Out)
	return r.report.verdict()
}

func newRun(o Options) *run {
	return &run{
		o: o, rand: rand.New(rand.NewPCG(o.Seed, 0)), seen: map[string]bool{}, heartbeat: 5 * time.Second,
		report: report{seed: o.Seed, faults: map[string]*tally{}, rules: map[string]int{}},
	}
}

// prepare installs the product and boots a guest that is heard.
func (r *run) prepare(ctx context.Context) error {
	site, err := vm.Here()
	if err != nil {
		return err
	}
	if r.release, err = site.Claim(); err != nil {
		return err
	}
	r.dir = site.Dir
	layout := product.Under(filepath.Join(r.dir, "product"))
	if err := product.Remove(ctx, layout); err != nil {
		return err
	}
	line, kernel, err := image.Kernel(cache)
	if err != nil {
		return err
	}
	files, err := r.files(ctx)
	if err != nil {
		return err
	}
	img, err := image.Build(ctx, filepath.Join(cache, "images"), &image.Options{Kernel: kernel, Files: files})
	if err != nil {
		return err
	}
	lab, err := vm.Open(ctx, img, &vm.Options{Dir: r.dir, Cache: cache})
	if err != nil {
		return err
	}
	config := fmt.Sprintf("state_dir: %s\nrun_dir: %s\nplaybook: %s\nsession:\n  grace: 600s\n  heartbeat: %s\n", layout.State, layout.Run, filepath.Join(layout.Config, "playbook.yaml"), r.heartbeat)
	playbook := "version: 1\nrules:\n  - name: watch\n    match: {}\n    steps: [log]\n    once_per: event\n"
	if r.install, err = product.New(ctx, layout, filepath.Join(r.o.Clone, "bin"), product.Files{Config: config, Playbook: playbook}); err != nil {
		return err
	}
	if err := r.install.StartMonitor(ctx); err != nil {
		return err
	}
	if r.guest, err = lab.Define(ctx, vm.Spec{Name: site.Name("soak"), Image: img, Root: true, Cmdline: r.channel.cmdline}); err != nil {
		return err
	}
	c, err := r.enrol(ctx)
	if err != nil {
		return err
	}
	if c.Vhost != "" {
		r.guest.Serve(&vm.Channel{CID: c.CID, Control: c.Vhost, Socket: c.Socket})
	}
	if err := r.guest.Start(ctx); err != nil {
		return err
	}
	r.kernel = line
	return r.settle(ctx, 10*time.Minute)
}

// load is what goes on in the guest meanwhile.
func (r *run) load(ctx context.Context) error {
	return r.root(ctx, "(while :; do outguard-poke opens /etc/passwd 300; outguard-poke execs /bin/true 3; outguard-poke threads 5; sleep 1; done) >/dev/null 2>&1 &")
}

func (r *run) files(ctx context.Context) ([]image.File, error) {
	agent, err := image.FromHost("/usr/sbin/outguard-agent", 0o755, filepath.Join(r.o.Clone, "bin", "outguard-agent"))
	if err != nil {
		return nil, fmt.Errorf("%w (make build makes it)", err)
	}
	poke, err := image.Compile(ctx, r.o.Clone, "/usr/bin/outguard-poke", "build", "./vmtests/cmd/outguard-poke")
	return []image.File{agent, poke}, err
}

// soak injects faults, in rounds in which each comes once, until the time is up.
func (r *run) soak(ctx context.Context) error {
	r.say("soak: a guest with %s, seed %d, for %s", r.kernel, r.o.Seed, r.o.For)
	if err := r.load(ctx); err != nil {
		return err
	}
	end := time.Now().Add(r.o.For)
	for time.Now().Before(end) {
		for _, i := range r.rand.Perm(len(r.faults)) {
			if !time.Now().Before(end) {
				break
			}
			if err := r.inject(ctx, &r.faults[i]); err != nil {
				return fmt.Errorf("%s: %w", r.faults[i].name, err)
			}
		}
	}
	return nil
}

func (r *run) inject(ctx context.Context, f *fault) error {
	if err := r.note(ctx, f); err != nil { // what came since the last is not this one's
		return err
	}
	t := r.report.of(f)
	t.injected++
	began := time.Now()
	if err := f.do(r, ctx); err != nil {
		return err
	}
	if err := service.Visit(ctx, r.guest.Port, 1); err != nil {
		return err
	}
	if err := r.settle(ctx, calm); err != nil {
		return err
	}
	found := t.found
	for wait := time.Now().Add(calm); ; r.sleep(ctx, time.Second) {
		if err := r.note(ctx, f); err != nil {
			return err
		}
		if f.want == "" || t.found > found || time.Now().After(wait) {
			break
		}
	}
	if f.want != "" && t.found == found {
		r.report.wrong("%s was not found within %s of %q", f.want, calm, f.name)
	}
	r.say("soak: %-16s %5.1f s", f.name, time.Since(began).Seconds())
	r.sleep(ctx, time.Duration(1+r.rand.IntN(4))*time.Second)
	return r.measure(ctx)
}

// note counts the findings that are new.
func (r *run) note(ctx context.Context, f *fault) error {
	all, err := r.install.Findings(ctx, r.guest.Name, "info")
	if err != nil {
		return err
	}
	t := r.report.of(f)
	for _, x := range all {
		if r.seen[x.ID] {
			continue
		}
		r.seen[x.ID] = true
		r.report.rules[x.Rule]++
		if slices.Contains(strings.Fields(f.want), x.Rule) {
			t.found++
		}
		if !f.expects(x.Rule) && x.Engine == "monitor" {
			r.report.wrong("%s after %q: %s", x.Rule, f.name, x.Reason)
		}
	}
	return nil
}

// settle waits until the agent is heard and two heartbeats have passed.
func (r *run) settle(ctx context.Context, within time.Duration) error {
	for end := time.Now().Add(within); ; r.sleep(ctx, 500*time.Millisecond) {
		v, err := r.install.VM(ctx, r.guest.Name)
		if err != nil {
			return err
		}
		if live, missing := v.Attached(); live && len(missing) == 0 {
			break
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("the agent is not heard within %s", within)
		}
	}
	r.beats(ctx, 2)
	return ctx.Err()
}

// beats waits for n heartbeats, and half a one.
func (r *run) beats(ctx context.Context, n int) {
	r.sleep(ctx, time.Duration(n)*r.heartbeat+r.heartbeat/2)
}

// finish looks at the record as a whole.
func (r *run) finish(ctx context.Context) error {
	r.beats(ctx, 2)
	v, err := r.install.VM(ctx, r.guest.Name)
	if err != nil {
		return err
	}
	for _, c := range v.Classes {
		r.report.received, r.report.lost, r.report.missing = r.report.received+c.Received, r.report.lost+c.Lost, r.report.missing+c.Missing
	}
	_, err = r.install.CLI(ctx, "evidence", "verify")
	r.report.verified = err == nil
	return err
}

func (r *run) restartMonitor(ctx context.Context) error {
	r.report.forget("outguardd")
	r.report.forget("engine")
	for end := time.Now().Add(calm); time.Now().Before(end); r.sleep(ctx, 50*time.Millisecond) {
		if _, err := r.install.MonitorPID(); err != nil { // one that was killed takes a moment to be gone
			break
		}
	}
	return r.install.StartMonitor(ctx)
}

func (r *run) root(ctx context.Context, line string) error {
	out, status, err := r.guest.Root(ctx, line, 5*time.Minute)
	if err == nil && status != 0 {
		err = fmt.Errorf("%q in the guest: status %d: %s", line, status, strings.TrimSpace(out))
	}
	return err
}

func (r *run) sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (r *run) say(format string, args ...any) { fmt.Fprintf(r.o.Out, format+"\n", args...) }

// keep shows the end of the logs.
func (r *run) keep() error {
	for _, path := range []string{r.install.LogFile(), filepath.Join(r.guest.Dir(), "console.log"), filepath.Join(r.guest.Dir(), "vsock.log")} {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) { // not every channel has a process of its own
			continue
		}
		if err != nil {
			return err
		}
		r.say("%s ends:\n%s", path, b[max(0, len(b)-4000):])
	}
	return nil
}

func (r *run) clean(ctx context.Context) error {
	var errs []error
	if r.guest != nil {
		errs = append(errs, r.guest.Remove(ctx))
	}
	if r.install != nil {
		errs = append(errs, product.Remove(ctx, r.install.Layout))
	}
	if r.release != nil {
		errs = append(errs, os.RemoveAll(r.dir), r.release())
	}
	return errors.Join(errs...)
}
