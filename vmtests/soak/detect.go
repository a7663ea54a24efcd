package soak

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Detection is how long one kind of silence took to be found, from the moment
// at which it had begun.
type Detection struct {
	Name  string
	After time.Duration
}

// silences are kinds of silence: how they begin, in the guest or at its channel,
// what finds them, and how they end. The last one does not end.
var silences = []struct {
	name, begin, rule, end string
	stall                  bool
}{
	{"agent-stopped", "p=$(pidof outguard-agent); sleep 3; kill -STOP $p", silence, "kill -CONT $(pidof outguard-agent)", false},
	{"agent-killed", "mv /usr/sbin/outguard-agent /usr/sbin/away; kill -9 $(pidof outguard-agent)", silence, "mv /usr/sbin/away /usr/sbin/outguard-agent; killall -9 sleep", false},
	{"channel-stalled", "", silence, "", true},
	{"hooks-silent", "echo 0 >/proc/sys/kernel/ftrace_enabled", "session/unhooked", "echo 1 >/proc/sys/kernel/ftrace_enabled", false},
	{"guest-hung", "echo 0 >/proc/sys/kernel/panic; (sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &", silence, "", false},
}

// Detect measures each kind of silence once, with the heartbeat that the product
// has by default: 1 s.
func Detect(ctx context.Context, o Options) (found []Detection, err error) {
	r := newRun(o)
	r.heartbeat = time.Second
	defer func() { err = errors.Join(err, r.clean(context.WithoutCancel(ctx))) }()
	if err := r.prepare(ctx); err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	for i := range silences {
		s := &silences[i]
		began, err := r.silence(ctx, s.begin, s.stall)
		if err != nil {
			return found, fmt.Errorf("%s: %w", s.name, err)
		}
		at, err := r.await(ctx, s.rule, began)
		if err != nil {
			return found, fmt.Errorf("%s: %w", s.name, err)
		}
		found = append(found, Detection{s.name, at.Sub(began)})
		if i == len(silences)-1 {
			break
		}
		if s.stall {
			err = r.guest.Stall(false)
		} else {
			_, _, err = r.guest.Root(ctx, s.end, calm)
		}
		if err == nil {
			err = r.settle(ctx, calm)
		}
		if err != nil {
			return found, fmt.Errorf("after %s: %w", s.name, err)
		}
		r.sleep(ctx, 12*time.Second) // findings of one rule come at most every 10 s
	}
	return found, nil
}

// silence begins one and returns when it had begun.
func (r *run) silence(ctx context.Context, line string, stall bool) (time.Time, error) {
	if stall {
		return time.Now(), r.guest.Stall(true)
	}
	_, _, err := r.guest.Root(ctx, line, calm)
	return time.Now(), err
}

// await waits for a finding of that rule and returns when it was made.
func (r *run) await(ctx context.Context, rule string, since time.Time) (time.Time, error) {
	for end := time.Now().Add(calm); time.Now().Before(end); r.sleep(ctx, 300*time.Millisecond) {
		all, err := r.install.Findings(ctx, r.guest.Name, "info")
		if err != nil {
			return time.Time{}, err
		}
		for _, f := range all {
			if f.Rule == rule && f.At.After(since) {
				return f.At.Time, nil
			}
		}
		if err := ctx.Err(); err != nil {
			return time.Time{}, err
		}
	}
	return time.Time{}, fmt.Errorf("no %s within %s", rule, calm)
}
