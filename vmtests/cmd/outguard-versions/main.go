package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	// One CPU, so that the records of one file have an order.
	runtime.LockOSThread()
	var one unix.CPUSet
	one.Set(0)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		fmt.Fprintln(stderr, "outguard-versions: keep to one CPU:", err)
		return 1
	}
	for _, arg := range args {
		in := inDir
		dir, isOverlay := strings.CutPrefix(arg, "overlay:")
		if isOverlay {
			in = inOverlay
		}
		if err := in(dir, stdout); err != nil {
			fmt.Fprintf(stderr, "outguard-versions: %s: %v\n", arg, err)
			return 1
		}
	}
	return 0
}

func inDir(dir string, out io.Writer) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, c := range changes {
		for _, u := range uses {
			f := &file{path: filepath.Join(dir, c.name+"-"+u.event), out: out}
			if err := f.create(); err != nil {
				return err
			}
			if err := f.between(c, u); err != nil {
				return fmt.Errorf("%s, %s: %w", c.name, u.event, err)
			}
		}
	}
	if err := withWriter(dir, out); err != nil {
		return fmt.Errorf("a writer that stays: %w", err)
	}
	return withinTick(dir, out, runs, maps)
}

// between uses a file, changes it and uses it again, and once more unchanged.
func (f *file) between(c change, u use) error {
	for range 2 {
		if err := f.use(u); err != nil {
			return err
		}
		if err := f.change(c); err != nil {
			return err
		}
	}
	if err := f.use(u); err != nil {
		return err
	}
	return f.use(u) // out of the cache, if there is one
}

// withWriter keeps a shared mapping while the file is used: what is written
// through it changes no time, and no open tells of it. A file with a writer
// cannot be run.
func withWriter(dir string, out io.Writer) error {
	for _, u := range uses[1:] {
		f := &file{path: filepath.Join(dir, "writer-"+u.event), out: out}
		if err := f.create(); err != nil {
			return err
		}
		if err := f.use(u); err != nil {
			return err
		}
		m, err := f.mapShared()
		if err != nil {
			return err
		}
		for range 3 {
			f.next()
			copy(m, f.data)
			if err := f.use(u); err != nil {
				return err
			}
		}
		if err := unix.Munmap(m); err != nil {
			return err
		}
		if err := f.use(u); err != nil {
			return err
		}
	}
	return nil
}

// A pair is two uses of a file with a change between them within one tick: so many are
// wanted of each change, in at most so many tries. A run takes about as long as a tick.
type pairs struct {
	use         use
	want, tries int
}

var (
	runs = pairs{running, 1, 4000}
	maps = pairs{mapping, 3, 400}
)

// withinTick uses files, changes them and uses them again with the clock of file
// systems where it was.
func withinTick(dir string, out io.Writer, all ...pairs) error {
	for _, p := range all {
		for _, c := range changes {
			if err := p.of(c, dir, out); err != nil {
				return fmt.Errorf("%s within one tick, %s: %w", c.name, p.use.event, err)
			}
		}
	}
	return nil
}

func (p pairs) of(c change, dir string, out io.Writer) error {
	done := 0
	for try := 0; done < p.want; try++ {
		if try == p.tries {
			return fmt.Errorf("%d of %d pairs in %d tries", done, p.want, try)
		}
		f := &file{path: filepath.Join(dir, fmt.Sprintf("tick-%s-%s-%d", c.name, p.use.event, try))}
		same, err := f.pair(p.use, c)
		if err != nil {
			return err
		}
		if same {
			done++
			fmt.Fprint(out, f.said.String())
		}
	}
	return nil
}

// pair writes a version, uses it, changes it and uses what has become of it. It reports
// whether both versions were made within one tick: then nothing that a file system
// notes tells them apart.
func (f *file) pair(u use, c change) (bool, error) {
	if err := f.create(); err != nil {
		return false, err
	}
	before, err := nextTick()
	if err != nil {
		return false, err
	}
	if err := f.change(changes[0]); err != nil {
		return false, err
	}
	if err := f.use(u); err != nil {
		return false, err
	}
	if err := f.change(c); err != nil {
		return false, err
	}
	after, err := tick()
	if err != nil {
		return false, err
	}
	return before == after, f.use(u)
}

// nextTick waits for one to begin.
func nextTick() (unix.Timespec, error) {
	last, err := tick()
	for err == nil {
		var now unix.Timespec
		if now, err = tick(); now != last {
			return now, err
		}
	}
	return last, err
}

// tick is the clock that file systems take their times from, which goes on by
// a jiffy at a time.
func tick() (unix.Timespec, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &t)
	return t, err
}
