package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// RecordProcess writes down which process is ours, so that another run can end
// it: its number, and when it started, since numbers are used again.
func RecordProcess(path string, pid int) error {
	started, err := startTime(pid)
	if err != nil {
		return err
	}
	return os.WriteFile(path, fmt.Appendf(nil, "%d %s\n", pid, started), 0o644)
}

// RecordedRuns reports the process that the file at path names, 0 if it has
// ended.
func RecordedRuns(path string) (int, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	var pid int
	var started string
	if err == nil {
		_, err = fmt.Sscan(string(text), &pid, &started)
	}
	if err != nil {
		return 0, fmt.Errorf("process recorded in %s: %w", path, err)
	}
	if now, err := startTime(pid); err != nil || now != started {
		return 0, nil
	}
	return pid, nil
}

// StopRecorded ends the process that the file at path names, if it still is
// that one, and removes the file.
func StopRecorded(ctx context.Context, path string) error {
	pid, err := RecordedRuns(path)
	if err == nil && pid != 0 {
		err = stop(ctx, pid)
	}
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// StopPrograms ends the processes whose program stands in dir, after giving
// them a moment to end by themselves.
func StopPrograms(ctx context.Context, dir string) error {
	var running []int
	err := poll(ctx, 5*time.Second, "", func() bool {
		running = programs(dir)
		return len(running) == 0
	})
	if err == nil {
		return nil
	}
	var errs []error
	for _, pid := range running {
		errs = append(errs, stop(ctx, pid))
	}
	return errors.Join(errs...)
}

func programs(dir string) (pids []int) {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		panic(err) // the pattern is broken
	}
	for _, l := range links {
		exe, err := os.Readlink(l)
		if err != nil || filepath.Dir(strings.TrimSuffix(exe, " (deleted)")) != dir {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(l))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// startTime is field 22 of /proc/<pid>/stat, in clock ticks since boot. A
// process that has ended and waits for its parent counts as gone.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	_, rest, ok := strings.Cut(string(b), ") ") // the name before may hold anything
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 || fields[0] == "Z" && !threads(pid) {
		return "", fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	}
	return fields[19], nil
}

// threads reports whether a process whose first thread has ended has others, that
// still hold its files.
func threads(pid int) bool {
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return err == nil && len(all) > 1
}

// stop ends a process that may not be a child: it is asked, and after a minute
// made to. One that stands still is let go on, to hear it.
func stop(ctx context.Context, pid int) error {
	gone := func() bool {
		_, err := startTime(pid)
		return err != nil
	}
	syscall.Kill(pid, syscall.SIGTERM)
	syscall.Kill(pid, syscall.SIGCONT)
	if poll(ctx, time.Minute, "", gone) == nil {
		return nil
	}
	syscall.Kill(pid, syscall.SIGKILL)
	return poll(ctx, time.Minute, fmt.Sprintf("process %d to end", pid), gone)
}
