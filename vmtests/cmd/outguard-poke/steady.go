package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// steady opens files and runs programs on every CPU without pause, each of them
// by a name that no other has, until there is a file DIR/stop. It says what that is to
// have recorded: events of TYPE that name PREFIX0 … PREFIX(N-1), once each.
//
//	TYPE PREFIX N
func steady(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	counts, errs := make([]int, runtime.NumCPU()), make([]error, runtime.NumCPU())
	var all sync.WaitGroup
	for cpu := range counts {
		all.Go(func() { counts[cpu], errs[cpu] = steadyOn(cpu, dir) })
	}
	all.Wait()
	for cpu, n := range counts {
		if errs[cpu] != nil {
			return fmt.Errorf("cpu %d, after %d: %w", cpu, n, errs[cpu])
		}
		for _, event := range []string{opened, execed} {
			fmt.Println(event, steadyName(dir, cpu), n)
		}
	}
	return nil
}

func steadyName(dir string, cpu int) string { return filepath.Join(dir, fmt.Sprintf("cpu%d-", cpu)) }

// steadyOn returns how often it did both.
func steadyOn(cpu int, dir string) (n int, err error) {
	runtime.LockOSThread()
	var one unix.CPUSet
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return 0, err
	}
	for ; unix.Access(filepath.Join(dir, "stop"), unix.F_OK) != nil; n++ {
		name := fmt.Sprint(steadyName(dir, cpu), n)
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return n, err
		}
		unix.Close(fd)
		if err := unix.Unlink(name); err != nil {
			return n, err
		}
		if _, err := ran("/bin/true", []string{"/bin/true", name}, nil); err != nil {
			return n, err
		}
	}
	return n, nil
}
