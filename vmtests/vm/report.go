package vm

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

const (
	reportTime  = time.Minute     // a report may take
	answerTime  = 5 * time.Second // a guest has for each thing that it is asked
	reportLines = 200             // of what a kernel says are shown
)

// Report tells what can be seen of a guest that does not do what was waited for:
// whether it runs, where its CPUs are, whether it answers, what its kernel says of
// its tasks when it is asked over the keyboard, and how the machine is that it runs
// on. The last of these changes what is on its console, and nothing else.
func (g *Guest) Report(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportTime)
	defer cancel()
	var b strings.Builder
	say := func(what, text string) { fmt.Fprintf(&b, "  %s: %s\n", what, strings.TrimSpace(text)) }
	state := g.ask(ctx, "domstate", g.Name, "--reason")
	say("libvirt", state)
	say("disks", g.ask(ctx, "domblkerror", g.Name))
	say("console", g.consoleAge())
	say("machine", g.host())
	say("QEMU", g.threads())
	say("vsock device", threadsOf(filepath.Join(g.dir, "vsock.pid")))
	for _, log := range []string{"/var/log/libvirt/qemu/" + g.Name + ".log", filepath.Join(g.dir, "vsock.log")} {
		if text, err := os.ReadFile(log); err == nil {
			say(filepath.Base(log), tail(string(text), 3))
		}
	}
	if !strings.HasPrefix(state, "running") {
		return b.String()
	}
	say("port 80", g.web(ctx))
	say("CPUs", g.registers(ctx))
	time.Sleep(time.Second)
	say("CPUs a second later", g.registers(ctx))
	say("its kernel", g.tasks(ctx))
	return b.String()
}

// ask is virsh's answer, or why there is none.
func (g *Guest) ask(ctx context.Context, args ...string) string {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	out, err := g.lab.virsh(ctx, args...)
	if err != nil {
		return err.Error()
	}
	return out
}

func (g *Guest) consoleAge() string {
	info, err := os.Stat(g.console)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d bytes, the last of them %s ago", info.Size(), time.Since(info.ModTime()).Round(time.Second))
}

// host is what the machine has left: a full disk stops a guest, and so does QEMU's
// end for want of memory.
func (g *Guest) host() string {
	load, _ := os.ReadFile("/proc/loadavg")
	memory, _ := os.ReadFile("/proc/meminfo")
	var fs syscall.Statfs_t
	if err := syscall.Statfs(g.dir, &fs); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("load %s, %s, %d MB of disk free", strings.TrimSpace(string(load)),
		availableMemory.Find(memory), fs.Bavail*uint64(fs.Bsize)/1e6)
}

var availableMemory = regexp.MustCompile(`MemAvailable: .*`)

func (g *Guest) threads() string { return threadsOf("/run/libvirt/qemu/" + g.Name + ".pid") }

// threadsOf says of each thread of the process that a file names whether it runs,
// and for how many ticks it has: the fields 3, 14 and 15 of its stat.
func threadsOf(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	pid, _, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	all, _ := filepath.Glob("/proc/" + pid + "/task/*/stat")
	if len(all) == 0 {
		return "process " + pid + " is gone"
	}
	var said []string
	for _, path := range all {
		stat, _ := os.ReadFile(path)
		name, rest, _ := strings.Cut(string(stat), ") ")
		if f := strings.Fields(rest); len(f) > 12 {
			_, name, _ = strings.Cut(name, "(")
			said = append(said, fmt.Sprintf("%s %s %s+%s", name, f[0], f[11], f[12]))
		}
	}
	return strings.Join(said, ", ")
}

// web tells whether the guest serves: then only its console is silent.
func (g *Guest) web(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort("127.0.0.1", fmt.Sprint(g.Port))+"/", nil)
	if err != nil {
		return err.Error()
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	resp.Body.Close()
	return resp.Status
}

var whereCPU = regexp.MustCompile(`(?m)^(CPU#\d+|RIP=.*)`)

// registers says where each CPU is, and whether it waits for an interrupt (HLT).
func (g *Guest) registers(ctx context.Context) string {
	text := g.ask(ctx, "qemu-monitor-command", "--hmp", g.Name, "info registers -a")
	if all := whereCPU.FindAllString(strings.ReplaceAll(text, "\r", ""), -1); all != nil {
		return strings.Join(all, " ")
	}
	return text
}

// tasks has the kernel print what its CPUs do (L), which tasks are blocked (W) and
// where all are (T), if it still prints anything.
func (g *Guest) tasks(ctx context.Context) string {
	before, _ := g.Console()
	for _, key := range []string{"KEY_L", "KEY_W", "KEY_T"} {
		if _, err := g.lab.virsh(ctx, "send-key", g.Name, "--codeset", "linux", "KEY_LEFTALT", "KEY_SYSRQ", key); err != nil {
			return err.Error()
		}
		time.Sleep(time.Second)
	}
	after, since := before, time.Now()
	_ = poll(ctx, 2*answerTime, "", func() bool { // until it is done, or never begins
		last := after
		if after, _ = g.Console(); len(after) != len(last) {
			since = time.Now()
		}
		return len(after) > len(before) && time.Since(since) > 2*time.Second
	})
	if len(after) <= len(before) {
		return "prints nothing when it is asked what its tasks do"
	}
	return "of its tasks:\n" + strings.Join(ofTasks(after[len(before):]), "\n")
}

var (
	taskLine     = regexp.MustCompile(`\] task:`)
	kernelThread = regexp.MustCompile(`\bppid: *2\b`)
)

// ofTasks leaves of what a kernel prints where it sleeps in its own threads, and the
// scheduler's books behind all tasks; the console has both.
func ofTasks(text string) (lines []string) {
	skip := false
	for line := range strings.Lines(text) {
		switch {
		case strings.Contains(line, "Sched Debug Version"):
			return lines
		case taskLine.MatchString(line):
			skip = kernelThread.MatchString(line)
		case strings.Contains(line, "] sysrq: "):
			skip = false
		}
		if skip {
			continue
		}
		if lines = append(lines, strings.TrimRight(line, "\n")); len(lines) == reportLines {
			return append(lines, "... and more on its console")
		}
	}
	return lines
}
