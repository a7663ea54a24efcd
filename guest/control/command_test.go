// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/outguard/outguard/vsockproto"
)

// child starts a shell that prints a line when it is ready, and returns it with
// what /proc says of its start.
func child(t *testing.T, script string) (cmd *exec.Cmd, line string, startNs uint64) {
	t.Helper()
	cmd = exec.Command("sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); _ = cmd.Wait() })
	line, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	s, err := stat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, strings.TrimSpace(line), s.startTicks*nsPerTick + 1234
}

func ended(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(b), ") Z ")
}

func command(k vsockproto.CommandKind, pid int, start uint64) vsockproto.CommandAck {
	return New(nil).Command(vsockproto.Command{Number: 9, Kind: k, TGID: uint32(pid), StartNs: start})
}

// TestKill ends the process that is meant, and no other that has its pid: one
// that started at another time is left alone.
func TestKill(t *testing.T) {
	cmd, _, start := child(t, "echo ready; exec sleep 600")
	pid := cmd.Process.Pid
	for _, other := range []uint64{0, start - nsPerTick, start + nsPerTick} {
		if a := command(vsockproto.CommandKill, pid, other); a.Tasks != 0 || !strings.Contains(a.Reason, "is another one") || ended(pid) {
			t.Errorf("started at %d: %+v, ended %t", other, a, ended(pid))
		}
	}
	if a := command(vsockproto.CommandKill, pid, start); a.Number != 9 || a.Tasks != 1 || a.Reason != "" {
		t.Errorf("%+v", a)
	}
	_ = cmd.Wait()
	if a := command(vsockproto.CommandKill, pid, start); a.Tasks != 0 || a.Reason == "" {
		t.Errorf("of what has ended: %+v", a)
	}
	if a := command(vsockproto.CommandKill, os.Getpid(), 0); !strings.Contains(a.Reason, "is not ended") {
		t.Errorf("the agent itself: %+v", a)
	}
	if a := command(vsockproto.CommandKill, 1, 0); !strings.Contains(a.Reason, "is not ended") {
		t.Errorf("init: %+v", a)
	}
}

// TestKillTree ends what descends from a process, a generation that goes on
// forking among it, and leaves its parent. A hangup, which the kernel may send on
// the way and which has those that are stopped go on, ends none of them.
func TestKillTree(t *testing.T) {
	cmd, line, start := child(t, `trap "" HUP; sleep 600 & a=$!; sh -c 'sleep 600 & echo $! >&3; wait' 3>/dev/null & b=$!
(while :; do sleep 600 & sleep 0.01; done) & c=$!
echo $a $b $c; wait`)
	a := command(vsockproto.CommandKillTree, cmd.Process.Pid, start)
	if a.Reason != "" || a.Tasks < 4 { // those that are there when the line is: itself, $a, $b, $c
		t.Errorf("%+v", a)
	}
	_ = cmd.Wait()
	for _, word := range strings.Fields(line) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			t.Fatal(err)
		}
		if !comes(func() bool { return ended(pid) }) {
			t.Errorf("process %d goes on", pid)
		}
	}
	var left []string
	if !comes(func() bool { left = ofGroup(t, cmd.Process.Pid); return len(left) == 0 }) {
		t.Errorf("of its group is left: %q", left)
	}
}

// comes waits for what is to be: what is killed takes its time to end.
func comes(is func() bool) bool {
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// ofGroup lists the stat lines of a process group's members that have not ended.
func ofGroup(t *testing.T, group int) (left []string) {
	t.Helper()
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		b, err := os.ReadFile("/proc/" + d.Name() + "/stat")
		if err != nil || strings.Contains(string(b), ") Z ") {
			continue
		}
		if fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:])); len(fields) > 2 && fields[2] == strconv.Itoa(group) {
			left = append(left, string(b))
		}
	}
	return left
}

func TestFreezeRefuses(t *testing.T) {
	if a := New(nil).Command(vsockproto.Command{Number: 1, Kind: vsockproto.CommandFreeze, Cgroup: 1 << 60}); !strings.Contains(a.Reason, vsockproto.NoCgroup) {
		t.Errorf("%+v", a)
	}
}

func FuzzStat(f *testing.F) {
	f.Add([]byte("12 (a) b) S 7 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 1234 1 1"))
	f.Add([]byte("1 (x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseStat(b); err != nil && s != (status{}) {
			t.Error("something beside an error")
		}
	})
}
