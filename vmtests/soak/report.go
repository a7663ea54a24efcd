package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// report is what comes out.
type report struct {
	seed     uint64
	faults   map[string]*tally
	rules    map[string]int // findings
	grown    []*growth
	errors   []string
	received uint64
	lost     uint64
	missing  uint64
	verified bool
}

// tally is of one kind of fault.
type tally struct{ injected, found int }

// growth is of one process, over its life.
type growth struct {
	name        string
	pid         string
	first, last usage
	measured    int
}

// usage of a process: resident memory in KiB, and open file descriptors.
type usage struct{ rss, fds int }

func (r *report) of(f *fault) *tally {
	t := r.faults[f.name]
	if t == nil {
		t = &tally{}
		r.faults[f.name] = t
	}
	return t
}

func (r *report) wrong(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

// forget ends the life of a process: the next of its name begins anew.
func (r *report) forget(name string) {
	for _, g := range r.grown {
		if g.name == name {
			g.pid = ""
		}
	}
}

// sample enters what a process uses. The first samples of its life are warming
// up, and not counted.
func (r *report) sample(name, pid string, u usage) {
	i := slices.IndexFunc(r.grown, func(g *growth) bool { return g.name == name && g.pid == pid })
	if i < 0 {
		r.grown = append(r.grown, &growth{name: name, pid: pid, first: u, last: u})
		return
	}
	g := r.grown[i]
	if g.measured++; g.measured < 3 {
		g.first = u
	}
	g.last = u
}

// Bounds of growth from a process's third sample to its last. The agent and the
// monitor are written in a language that gives memory back late.
const (
	mostGrowth = 32 << 10 // KiB
	mostFDs    = 8
)

// verdict is nil if all is as it should be.
func (r *report) verdict() error {
	for _, g := range r.grown {
		if n := g.last.rss - g.first.rss; n > mostGrowth {
			r.wrong("%s grew by %d KiB", g.name, n)
		}
		if n := g.last.fds - g.first.fds; n > mostFDs {
			r.wrong("%s has %d file descriptors more", g.name, n)
		}
	}
	if r.missing > 0 {
		r.wrong("%d records are neither received nor declared lost", r.missing)
	}
	if len(r.errors) == 0 {
		return nil
	}
	return errors.New("soak: " + strings.Join(r.errors, "\nsoak: "))
}

func (r *report) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\nfault\tinjected\tto be found\tfound\n")
	for _, f := range everyFault() {
		if t := r.faults[f.name]; t != nil {
			fmt.Fprintf(w, "%s\t%d\t%s\t%d\n", f.name, t.injected, orDash(f.want), t.found)
		}
	}
	fmt.Fprintf(w, "\nfinding\tcount\n")
	for _, rule := range slices.Sorted(maps.Keys(r.rules)) {
		fmt.Fprintf(w, "%s\t%d\n", rule, r.rules[rule])
	}
	fmt.Fprintf(w, "\nprocess\tMiB\tgrown by KiB\tfile descriptors\tgrown by\n")
	for _, g := range r.grown {
		fmt.Fprintf(w, "%s\t%.1f\t%d\t%d\t%d\n", g.name, float64(g.last.rss)/1024, g.last.rss-g.first.rss, g.last.fds, g.last.fds-g.first.fds)
	}
	fmt.Fprintf(w, "\nrecords received\t%d\ndeclared lost\t%d\nmissing\t%d\nevidence verified\t%v\nseed\t%d\n", r.received, r.lost, r.missing, r.verified, r.seed)
	w.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// measure takes what each process uses now.
func (r *run) measure(ctx context.Context) error {
	pid, err := r.install.MonitorPID()
	if err != nil {
		return err
	}
	u, err := usageOf(pid)
	if err != nil {
		return err
	}
	r.report.sample("outguardd", strconv.Itoa(pid), u)
	if pid, err = r.engine(); err == nil { // else it is starting
		if u, err = usageOf(pid); err == nil {
			r.report.sample("engine", strconv.Itoa(pid), u)
		}
	}
	out, _, err := r.guest.Root(ctx, `p=$(pidof outguard-agent); echo $p $(grep VmRSS /proc/$p/status) $(ls /proc/$p/fd 2>/dev/null | wc -l)`, calm)
	if err != nil {
		return err
	}
	var agent, label, unit string
	if _, err := fmt.Sscan(out, &agent, &label, &u.rss, &unit, &u.fds); err != nil {
		return fmt.Errorf("the agent's memory: %q: %w", out, err)
	}
	r.report.sample("agent", agent, u)
	return nil
}

func usageOf(pid int) (u usage, err error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	b, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return u, err
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	if _, err := fmt.Sscan(rest, &u.rss); err != nil {
		return u, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	u.fds = len(fds)
	return u, err
}
