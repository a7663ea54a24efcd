package monitor_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// These benchmarks run outguardd and its engine as processes and look at them
// from outside, so that what the agents cost is none of theirs.

// usage is what the monitor and its engine have taken so far.
type usage struct {
	at              time.Time
	cpu             time.Duration // of both
	monitor, engine int           // memory now, bytes
}

func (h *host) usage() usage {
	h.t.Helper()
	monitor, engine := h.cmd.Process.Pid, h.engine()
	return usage{time.Now(), cpuTime(h.t, monitor) + cpuTime(h.t, engine), memory(h.t, monitor, "VmRSS"), memory(h.t, engine, "VmRSS")}
}

// engine is the process id of the one that there is.
func (h *host) engine() int {
	h.t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", h.cmd.Process.Pid))
	if err != nil {
		h.t.Fatal(err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", h.cmd.Process.Pid, task.Name()))
		if f := strings.Fields(string(text)); err == nil && len(f) > 0 {
			pid, err := strconv.Atoi(f[0])
			if err != nil {
				h.t.Fatal(err)
			}
			return pid
		}
	}
	h.t.Fatal("no engine")
	return 0
}

// cpuTime is a process's, of all its threads, by its clock.
func cpuTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// crew is a monitor with n sessions, all of them up.
func crew(b *testing.B, n int) *fleet {
	b.Helper()
	h := newHost(b)
	h.write(h.config, fmt.Sprintf("state_dir: %[1]s/state\nrun_dir: %[1]s/run\nlibvirt: %[1]s/none\nlisten: {vsock: \"off\"}\nsession: {heartbeat: %[2]s, flood: 1000000000}\nlog: {level: error}\n", h.root, heartbeat))
	f := newFleet(h, n, &prototest.AgentOptions{Link: &link.AgentOptions{Hold: vsockproto.MaxFrame}})
	h.start()
	b.Cleanup(func() {
		if h.cmd.ProcessState == nil {
			f.stop()
			_ = h.end(syscall.SIGKILL) // nothing of it is looked at
		}
	})
	f.stop = func() {}
	return f
}

// What BenchmarkSessions sends, in all, whatever the number of sessions: as many
// frames of as many events, one from each session in turn. So with many of them
// each frame finds its session's memory and its record's last page cold, and
// each second as many more records are to be synced; none of it is set right.
const (
	frameEvents  = 20
	framesSecond = 1000
	loadSeconds  = 10

	// Rare enough that what heartbeats cost does not drown what events do.
	heartbeat = 10 * time.Second
)

// load sends frames at that rate, from one agent after the other, and returns
// when they are judged. It is the same load for every number of agents.
func (f *fleet) load(b *testing.B) (events int) {
	b.Helper()
	var batch []*vsockproto.Event
	for i := range frameEvents {
		batch = append(batch, opened(fmt.Sprintf("/srv/%d", i)))
	}
	before := f.judged(b)
	next := time.Now()
	for k := range framesSecond * loadSeconds {
		if err := f.Agents[k%len(f.Agents)].Send(b.Context(), batch...); err != nil {
			b.Fatal(err)
		}
		next = next.Add(time.Second / framesSecond)
		time.Sleep(time.Until(next))
	}
	f.h.eventually("judged", func() error {
		if n := f.judged(b) - before; n < frameEvents*framesSecond*loadSeconds {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	return frameEvents * framesSecond * loadSeconds
}

// judged is how many records the engine has.
func (f *fleet) judged(b *testing.B) uint64 {
	b.Helper()
	s, err := f.h.api.Status(b.Context(), &apipb.StatusRequest{})
	if err != nil {
		b.Fatal(err)
	}
	return s.Engines[0].Judged
}

// BenchmarkSessions is what a session costs: memory when it is idle and when it
// has been busy, processor time when it is idle, and what an event of the same
// total rate costs with 1, 200 and 6,000 of them.
func BenchmarkSessions(b *testing.B) {
	var one float64
	var alone usage
	for _, n := range []int{1, 200, 6000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			f := crew(b, n)
			f.connect(0)
			time.Sleep(5 * time.Second) // what connecting left behind
			idle := f.h.usage()
			time.Sleep(heartbeat) // one of each session
			loaded := f.h.usage()
			rest := float64(loaded.cpu-idle.cpu) / float64(loaded.at.Sub(idle.at))
			events := f.load(b)
			after := f.h.usage()
			perEvent := (float64(after.cpu-loaded.cpu) - rest*float64(after.at.Sub(loaded.at))) / float64(events)
			b.ReportMetric(perEvent, "event-cpu-ns")
			b.ReportMetric(rest*heartbeat.Seconds()*1e6/float64(n), "heartbeat-cpu-us")
			if n == 1 {
				one, alone = perEvent, idle
			} else {
				b.ReportMetric(perEvent/one, "event-ratio")
				b.ReportMetric(each(idle.monitor-alone.monitor, n-1), "idle-KiB")
				b.ReportMetric(each(idle.engine-alone.engine, n-1), "idle-engine-KiB")
				b.ReportMetric(each(after.monitor-alone.monitor, n-1), "busy-KiB")
				b.ReportMetric(each(after.engine-alone.engine, n-1), "busy-engine-KiB")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func each(bytes, n int) float64 { return float64(bytes) / 1024 / float64(n) }

// BenchmarkResume is how long 200 sessions take to go on after the monitor was
// killed: from its start until the last agent is welcome, and how much of that
// is from its ready on. Agents try again every 20 ms.
func BenchmarkResume(b *testing.B) {
	const agents = 200
	f := crew(b, agents)
	f.connect(0)
	var whole, after time.Duration
	for range b.N {
		f.load(b) // something to take up again
		_ = f.h.end(syscall.SIGKILL)
		began := time.Now()
		f.h.start()
		ready := time.Now()
		f.awaitLive(agents)
		whole, after = whole+time.Since(began), after+time.Since(ready)
	}
	b.ReportMetric(float64(whole.Milliseconds())/float64(b.N), "start-to-live-ms")
	b.ReportMetric(float64(after.Milliseconds())/float64(b.N), "ready-to-live-ms")
	b.ReportMetric(0, "ns/op")
}
