package soak

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// fault is one thing that goes wrong.
type fault struct {
	name string
	want string // rules of which one has to be found, with blanks between them; "": none has to be
	also string // rules that may be found meanwhile, with blanks between them
	do   func(r *run, ctx context.Context) error
}

// silence is what may be said of every fault that keeps the agent from speaking.
const silence = "session/silent"

var faults = []fault{
	{"agent killed", "", silence, func(r *run, ctx context.Context) error {
		if err := r.root(ctx, "kill -9 $(pidof outguard-agent)"); err != nil {
			return err
		}
		r.beats(ctx, 3) // over virtio-serial its connection seems to live until it is silent
		return nil
	}},
	{"agent stopped", silence, "", func(r *run, ctx context.Context) error {
		return r.untilFound(ctx, silence, "kill -STOP $(pidof outguard-agent)", "kill -CONT $(pidof outguard-agent)")
	}},
	{"channel stalled", silence, "session/loss session/canary session/deaf session/slow", func(r *run, ctx context.Context) error {
		began := time.Now()
		if err := r.guest.Stall(true); err != nil {
			return err
		}
		_, err := r.await(ctx, silence, began)
		return errors.Join(err, r.guest.Stall(false))
	}},
	{"guest paused", "", "", func(r *run, ctx context.Context) error {
		if err := r.guest.Suspend(ctx); err != nil {
			return err
		}
		r.beats(ctx, 3) // it would be silent otherwise
		return r.guest.Resume(ctx)
	}},
	{"monitor killed", "", "", func(r *run, ctx context.Context) error {
		pid, err := r.install.MonitorPID()
		if err != nil {
			return err
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
		return r.restartMonitor(ctx)
	}},
	{"monitor stopped", "", "", func(r *run, ctx context.Context) error {
		if err := r.install.StopMonitor(ctx); err != nil {
			return err
		}
		r.sleep(ctx, 3*time.Second)
		return r.restartMonitor(ctx)
	}},
	{"engine killed", "", "engine/*", func(r *run, ctx context.Context) error {
		pid, err := r.engine()
		for end := time.Now().Add(calm); err != nil && time.Now().Before(end) && ctx.Err() == nil; pid, err = r.engine() {
			r.sleep(ctx, 200*time.Millisecond) // it is starting
		}
		if err != nil {
			return err
		}
		return syscall.Kill(pid, syscall.SIGKILL)
	}},
	{"noise", "session/malformed", "session/noise session/slow listen/crowd", func(r *run, ctx context.Context) error {
		return r.root(ctx, "outguard-poke as www garbage 5")
	}},
	{"hooks silent", "session/unhooked", "session/canary", func(r *run, ctx context.Context) error {
		return r.untilFound(ctx, "session/unhooked", "echo 0 >/proc/sys/kernel/ftrace_enabled", "echo 1 >/proc/sys/kernel/ftrace_enabled")
	}},
	{"flood", "", "session/loss session/drowned session/flood", func(r *run, ctx context.Context) error {
		return r.root(ctx, "outguard-poke opens /etc/passwd 30000")
	}},
}

// untilFound has the guest run a line of shell, and another when what the first
// one did is found.
func (r *run) untilFound(ctx context.Context, rule, begin, end string) error {
	began := time.Now()
	if err := r.root(ctx, begin); err != nil {
		return err
	}
	_, err := r.await(ctx, rule, began)
	return errors.Join(err, r.root(ctx, end))
}

// chosen are the faults to inject: the one of that name, or all.
func chosen(only string, all []fault) ([]fault, error) {
	if only == "" {
		return all, nil
	}
	var names []string
	for _, f := range all {
		if f.name == only {
			return []fault{f}, nil
		}
		names = append(names, f.name)
	}
	return nil, fmt.Errorf("no fault %q: there are %s", only, strings.Join(names, ", "))
}

// engine finds the tsem engine's process among the monitor's children.
func (r *run) engine() (int, error) {
	parent, err := r.install.MonitorPID()
	if err != nil {
		return 0, err
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(parent) {
			return strconv.Atoi(filepath.Base(filepath.Dir(path)))
		}
	}
	return 0, fmt.Errorf("no engine among the children of outguardd (%d)", parent)
}

// expects reports whether a rule may be found while or after f is injected.
func (f *fault) expects(rule string) bool {
	for _, pattern := range strings.Fields(f.also + " " + f.want) {
		if ok, _ := filepath.Match(pattern, rule); ok {
			return true
		}
	}
	return false
}
