// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/vsockproto"
)

// Bounds of a command's work.
const (
	maxTree      = 4096        // processes that one kill-tree ends
	treePasses   = 16          // looks for children that were made meanwhile
	stillWithin  = time.Second // for all of a tree to stand; one in an uninterruptible wait may not
	freezeWithin = 500 * time.Millisecond
)

// Command does what the host asks for, and returns the answer but for the time.
func (c *Control) Command(q vsockproto.Command) vsockproto.CommandAck {
	ack := vsockproto.CommandAck{Number: q.Number}
	var err error
	switch q.Kind {
	case vsockproto.CommandKill, vsockproto.CommandKillTree:
		ack.Tasks, err = kill(int(q.TGID), q.StartNs, q.Kind == vsockproto.CommandKillTree)
	case vsockproto.CommandFreeze, vsockproto.CommandThaw:
		err = freeze(q.Cgroup, q.Kind == vsockproto.CommandFreeze)
	default:
		err = fmt.Errorf("this agent does not know %s", q.Kind)
	}
	if err != nil {
		ack.Reason = clip(err.Error())
	}
	return ack
}

// victim is one process, held by its pidfd: whoever has its pid later is another.
type victim struct{ pid, fd int }

// kill ends a process that started then, and with tree all that descends from
// it. They are stopped first, one generation after the other, so that none makes
// children that nobody sees, and ended the other way round: when a process ends
// that tied its children's group to the session, the kernel has those of the group
// that are stopped go on, and whoever ignores the hangup that comes along makes
// more of them.
func kill(pid int, startNs uint64, tree bool) (killed uint32, err error) {
	if pid == os.Getpid() || pid == 1 {
		return 0, fmt.Errorf("process %d is not ended", pid)
	}
	root, err := hold(pid)
	if err != nil {
		return 0, err
	}
	victims := []victim{root}
	defer func() {
		for _, v := range victims {
			unix.Close(v.fd)
		}
	}()
	if s, err := stat(pid); err != nil || s.startTicks != startNs/nsPerTick {
		return 0, errors.Join(fmt.Errorf("process %d is another one", pid), err)
	}
	if tree {
		victims, err = stopTree(victims)
	}
	for _, v := range slices.Backward(victims) {
		if e := unix.PidfdSendSignal(v.fd, unix.SIGKILL, nil, 0); e == nil {
			killed++
		} else if !errors.Is(e, unix.ESRCH) {
			err = errors.Join(err, fmt.Errorf("end process %d: %w", v.pid, e))
		}
	}
	return killed, err
}

func hold(pid int) (victim, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return victim{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return victim{pid, fd}, nil
}

// stopTree stops victims and what descends from them until nothing is added. A
// process in it that is the agent or init is left out, with its children. A fork
// that is under way when its signal comes ends first, and its child is there only
// then: so the last look is one that begins when all of them stand still.
func stopTree(victims []victim) ([]victim, error) {
	in := map[int]bool{}
	for _, v := range victims {
		in[v.pid] = true
		_ = unix.PidfdSendSignal(v.fd, unix.SIGSTOP, nil, 0) // one that has ended has no children
	}
	still := time.Now().Add(stillWithin)
	for pass := 0; pass < treePasses; {
		quiet := stand(victims) || time.Now().After(still)
		more, err := children(in)
		if err != nil || (quiet && len(more) == 0) {
			return victims, err
		}
		if len(more) == 0 {
			time.Sleep(time.Millisecond)
			continue
		}
		pass++
		for _, pid := range more {
			if len(victims) == maxTree {
				return victims, fmt.Errorf("more than %d processes", maxTree)
			}
			v, err := hold(pid)
			if err != nil {
				continue // it has ended
			}
			if s, err := stat(pid); err != nil || !in[s.ppid] { // its pid is another's by now
				unix.Close(v.fd)
				continue
			}
			in[pid] = true
			victims = append(victims, v)
			_ = unix.PidfdSendSignal(v.fd, unix.SIGSTOP, nil, 0)
		}
	}
	return victims, errors.New("it makes children faster than they can be stopped")
}

// stand reports whether every thread of the victims is stopped or has ended.
func stand(victims []victim) bool {
	for _, v := range victims {
		dir := "/proc/" + strconv.Itoa(v.pid) + "/task"
		threads, _ := os.ReadDir(dir) // none: it has ended
		for _, t := range threads {
			b, err := os.ReadFile(dir + "/" + t.Name() + "/stat")
			if s, bad := parseStat(b); err == nil && bad == nil && !strings.ContainsRune("TtZX", rune(s.state)) {
				return false
			}
		}
	}
	return true
}

// children lists the processes whose parent is in a set and that are not.
func children(in map[int]bool) (out []int, err error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || in[pid] || pid == os.Getpid() || pid == 1 {
			continue
		}
		if s, err := stat(pid); err == nil && in[s.ppid] {
			out = append(out, pid)
		}
	}
	return out, nil
}

// nsPerTick is what /proc counts starts in: USER_HZ is 100 everywhere.
const nsPerTick = 10_000_000

// status is what of /proc/PID/stat is needed.
type status struct {
	state      byte // R, S, D, T …
	ppid       int
	startTicks uint64
}

func stat(pid int) (status, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return status{}, err
	}
	return parseStat(b)
}

// parseStat reads behind the last parenthesis: a name may hold any.
func parseStat(b []byte) (status, error) {
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 || len(fields[0]) != 1 {
		return status{}, errors.New("no stat of a process")
	}
	ppid, err1 := strconv.Atoi(string(fields[1]))
	start, err2 := strconv.ParseUint(string(fields[19]), 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return status{}, err
	}
	return status{fields[0][0], ppid, start}, nil
}

// cgroupRoot is where version 2 is mounted.
var cgroupRoots = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}

// freeze stops the tasks of a cgroup, or lets them go on, and waits until the
// kernel says so. The root and one that holds the agent are refused.
func freeze(id uint64, on bool) error {
	dir, err := findCgroup(id)
	if err != nil {
		return err
	}
	if on && holdsAgent(dir) {
		return errors.New("the agent is in that cgroup")
	}
	word, want := "0", "frozen 0"
	if on {
		word, want = "1", "frozen 1"
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte(word), 0); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	for end := time.Now().Add(freezeWithin); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if err != nil {
			return fmt.Errorf("freeze: %w", err)
		}
		if strings.Contains(string(b), want) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("not %s within %s", want, freezeWithin)
		}
	}
}

// findCgroup returns the directory of a cgroup, whose inode its id is.
func findCgroup(id uint64) (found string, err error) {
	for _, root := range cgroupRoots {
		if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
			continue
		}
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil // it went meanwhile
			}
			var st syscall.Stat_t
			if path != root && syscall.Lstat(path, &st) == nil && st.Ino == id {
				found = path
				return fs.SkipAll
			}
			return nil
		})
		if err != nil || found != "" {
			return found, err
		}
	}
	return "", errors.New(vsockproto.NoCgroup) // or version 2 is not mounted
}

// holdsAgent reports whether the agent is in dir or below it.
func holdsAgent(dir string) bool {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(b)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		for _, root := range cgroupRoots {
			mine := filepath.Join(root, path)
			if mine == dir || strings.HasPrefix(mine, dir+"/") {
				return true
			}
		}
	}
	return false
}
