package product

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/outguard/outguard/vmtests/vm"
)

// capabilities are what the monitor keeps of root's, as in its service file.
const capabilities = "-all,+dac_read_search,+setuid,+setgid,+kill,+sys_ptrace"

func (p *Install) pidFile() string { return filepath.Join(p.Run, "outguardd.pid") }

// LogFile is where the monitor's messages go.
func (p *Install) LogFile() string { return filepath.Join(p.State, "outguardd.log") }

// StartMonitor starts outguardd as its own user and returns when it answers.
// It outlives this process.
func (p *Install) StartMonitor(ctx context.Context) error {
	if pid, err := vm.RecordedRuns(p.pidFile()); err != nil || pid != 0 {
		return err
	}
	log, err := os.OpenFile(p.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("setpriv", "--reuid=outguard", "--regid=outguard", "--groups=outguard,libvirt,outguard-engine",
		"--inh-caps="+capabilities, "--ambient-caps="+capabilities, "--bounding-set="+capabilities,
		filepath.Join(p.Lib, "outguardd"), "--config", p.ConfigFile())
	if p.Manager != nil {
		p.Manager.prepare(cmd)
	}
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start outguardd: %w", err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	if err := vm.RecordProcess(p.pidFile(), cmd.Process.Pid); err != nil {
		return fmt.Errorf("start outguardd: %w\n%s", err, p.lastLog())
	}
	return p.awaitMonitor(ctx, ended)
}

// awaitMonitor waits until the monitor answers the command line.
func (p *Install) awaitMonitor(ctx context.Context, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		_, err := p.CLI(ctx, "vms", "--json")
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("outguardd ended:\n%s", p.lastLog())
		case <-ctx.Done():
			return fmt.Errorf("outguardd does not answer: %w\n%s", err, p.lastLog())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (p *Install) lastLog() string {
	b, err := os.ReadFile(p.LogFile())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// MonitorPID is the process of the outguardd that runs.
func (p *Install) MonitorPID() (int, error) {
	pid, err := vm.RecordedRuns(p.pidFile())
	if err == nil && pid == 0 {
		err = errors.New("outguardd does not run")
	}
	return pid, err
}

// StopMonitor ends outguardd, if it runs.
func (p *Install) StopMonitor(ctx context.Context) error {
	return vm.StopRecorded(ctx, p.pidFile())
}

// KillMonitor ends outguardd as nothing else would: it gets to do nothing more.
func (p *Install) KillMonitor(ctx context.Context) error {
	pid, err := p.MonitorPID()
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill outguardd: %w", err)
	}
	for ctx.Err() == nil {
		if pid, err := vm.RecordedRuns(p.pidFile()); err != nil || pid == 0 {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return ctx.Err()
}

// CLIError is an outguard command that did not succeed.
type CLIError struct {
	Args   []string
	Output string // what it printed, both streams
	Err    error
}

func (e *CLIError) Error() string {
	return fmt.Sprintf("outguard %s: %v: %s", strings.Join(e.Args, " "), e.Err, strings.TrimSpace(e.Output))
}

func (e *CLIError) Unwrap() error { return e.Err }

// CLI runs the command line of this installation and returns what it printed.
func (p *Install) CLI(ctx context.Context, args ...string) (string, error) {
	if p.Layout != Default() {
		args = append(args, "--config", p.ConfigFile())
	}
	cmd := exec.CommandContext(ctx, filepath.Join(p.Lib, "outguard"), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &errs, "/"
	if err := cmd.Run(); err != nil {
		return out.String(), &CLIError{args, out.String() + errs.String(), errors.Join(err, ctx.Err())}
	}
	return out.String(), nil
}
