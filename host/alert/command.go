package alert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// run runs a program with body as its standard input. It has nothing of the
// monitor's: no shell, no environment, no capability, no open file. When ctx ends
// it is killed with all that is in its process group.
func run(ctx context.Context, command []string, body []byte) (string, error) {
	out := &head{}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(body), out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // a child that left the group and holds its output
	err := withoutAmbient(cmd.Run)
	answer := printable(out.b.Bytes())
	if err == nil {
		return answer, nil
	}
	err = fmt.Errorf("run %s: %w", command[0], err)
	if answer != "" {
		err = fmt.Errorf("%w: %s", err, answer)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ENOEXEC) {
		err = permanent{err}
	}
	return "", err
}

// withoutAmbient runs fn on a thread that has no ambient capabilities, and so
// hands none on to what it executes. The thread ends with fn.
func withoutAmbient(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: nobody else gets this thread
		err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
		if err == nil {
			err = fn()
		} else {
			err = fmt.Errorf("give up ambient capabilities: %w", err)
		}
		done <- err
	}()
	return <-done
}

// head keeps the first bytes of what is written, and takes the rest.
type head struct{ b bytes.Buffer }

func (h *head) Write(p []byte) (int, error) {
	if room := maxAnswer - h.b.Len(); room > 0 {
		h.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
