// Outguard-toil is a program for guests in whose time a nanosecond is an
// instruction (QEMU's -icount). It does one thing over and over and says what
// it cost:
//
//	outguard-toil OP ROUNDS COUNT
//
// for each of ROUNDS how long COUNT times OP took in all, how much of that the
// agent ran, how many records the programs numbered and lost meanwhile, and how
// many bytes of the rings these took:
//
//	round NS AGENT_NS EMITTED LOST BYTES
//
// With no agent the last four are 0. OP is open, open-tmpfs, exec, connect, mmap,
// stat, pipe or compile; flood is open, after which it waits until the host has
// everything.
//
//	outguard-toil programs OP COUNT
//
// says of each program in the kernel that ran meanwhile how often it did and how
// long in all:
//
//	program NAME RUNS NS
//
//	outguard-toil sample OP COUNT
//
// says where the CPU was meanwhile, looked at every 7,919 ns, and how often each
// function of the agent's was among the callers:
//
//	sample TIMES THREAD UNDER FUNCTION
//	within TIMES FUNCTION
//
// UNDER is the system call or the interrupt, in the kernel.
//
//	outguard-toil agent PROGRAM ARG...
//
// runs the agent, what it says going to standard error, and prints once
//
//	ready NS PID
//
// when it has attached its programs. It ends when the agent does.
// outguard-toil sample-agent says where the CPU was until then as well, looked at
// every 79,193 ns.
//
// GODEBUG=asyncpreemptoff=1 keeps Go's runtime from signalling a thread that is
// in the kernel for long: each signal would be a record.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

func main() {
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // or it would run in between
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "outguard-toil:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 1 && args[0] == "agent" {
		return agent(args[1:], nil)
	}
	if len(args) > 1 && args[0] == "sample-agent" {
		s, err := newSampler(sampleSeldom)
		if err != nil {
			return err
		}
		return agent(args[1:], s)
	}
	if len(args) == 1 && args[0] == echo {
		return echoes()
	}
	if len(args) == 3 && args[0] == "programs" {
		return each(args[1], args[2], programs)
	}
	if len(args) == 3 && args[0] == "sample" {
		return each(args[1], args[2], sample)
	}
	if len(args) != 3 {
		return errors.New("want OP ROUNDS COUNT, programs OP COUNT, sample OP COUNT, or agent and a program")
	}
	rounds, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	begin, ok := ops[args[0]]
	if !ok {
		return fmt.Errorf("operation %q is not known", args[0])
	}
	do, err := begin()
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	b, err := openBooks()
	if err != nil {
		return err
	}
	return toil(do, b, rounds, count, args[0] == "flood")
}

// toil does the rounds. The first of all is for the caches. A compile is not done
// twice for one round.
func toil(do func() error, b *books, rounds, count int, settle bool) error {
	for i := range rounds + 1 {
		var before, after page
		if err := b.time(&before); err != nil {
			return err
		}
		// What wakes the agent, after a rest, is not of the round, nor is its waking.
		if err := times(do, min(count-1, 2)); err != nil {
			return err
		}
		yield()
		if err := b.count(&before); err != nil {
			return err
		}
		began := time.Now()
		if err := times(do, count); err != nil {
			return err
		}
		for settle && !b.delivered() {
			yield()
		}
		took := time.Since(began)
		// The other way round: what looking at the time opens is not of the round.
		if err := errors.Join(b.count(&after), b.time(&after)); err != nil {
			return err
		}
		if i > 0 {
			d := after.since(before)
			fmt.Println("round", took.Nanoseconds(), d.agent, d.emitted, d.lost, d.bytes)
		}
	}
	return nil
}

func each(name, times string, look func(do func() error, count int) error) error {
	count, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	begin, ok := ops[name]
	if !ok {
		return fmt.Errorf("operation %q is not known", name)
	}
	do, err := begin()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return look(do, count)
}

func times(do func() error, n int) error {
	for range n {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// agent runs the agent, and samples until it is ready where s is not nil.
func agent(args []string, s *sampler) error {
	cmd := exec.Command(args[0], args[1:]...)
	r, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	lines := bufio.NewReader(r)
	var took time.Duration
	start := func() (err error) {
		took, err = untilAttached(cmd, lines)
		return err
	}
	if s != nil {
		err = s.while(start)
	} else {
		err = start()
	}
	if err != nil {
		return err
	}
	fmt.Println("ready", took.Nanoseconds(), cmd.Process.Pid)
	if s != nil {
		if err := s.tell(); err != nil {
			return err
		}
	}
	_, err = io.Copy(os.Stderr, lines)
	return errors.Join(err, cmd.Wait())
}

// untilAttached starts the agent and returns when it says that it has attached.
func untilAttached(cmd *exec.Cmd, lines *bufio.Reader) (time.Duration, error) {
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for {
		line, err := lines.ReadString('\n')
		fmt.Fprint(os.Stderr, line)
		if err != nil {
			return 0, errors.Join(err, cmd.Wait())
		}
		if strings.Contains(line, "msg=attached") {
			return time.Since(began), nil
		}
	}
}
