// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

// kernelTotals takes what the kernel counts by itself. Opening /proc/stat for
// that is a file_open as well: if the program at that hook does not count it,
// hooks have fallen silent.
func (s *Sensor) kernelTotals() (t vsockproto.Totals, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, err := s.config()
	if err != nil {
		return t, err
	}
	if t.Starts, err = s.starts(); err != nil {
		return t, err
	}
	after, err := s.config()
	if err != nil {
		return t, err
	}
	if after.AgentOpens == before.AgentOpens {
		after.UnseenOpens++
		if err := s.change(func(c *bpf.ProbeAgentConfig) { c.UnseenOpens++ }); err != nil {
			return t, err
		}
	}
	t.Unhooked = after.UnseenOpens
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return t, fmt.Errorf("read the boot clock: %w", err)
	}
	t.MarkedNs = uint64(now.Nano())
	return t, nil
}

// starts reads how many tasks the kernel has made since it booted.
func (s *Sensor) starts() (uint64, error) {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("count the kernel's tasks: %w: mount proc at /proc", err)
	}
	defer f.Close()
	return scanStarts(f, s.stat[:])
}

var errNoStarts = errors.New("no line \"processes\" in /proc/stat")

// scanStarts finds the line "processes N", which may stand behind one that is
// longer than room.
func scanStarts(r io.Reader, room []byte) (uint64, error) {
	const label = "\nprocesses "
	kept := 0
	for {
		n, err := r.Read(room[kept:])
		b := room[:kept+n]
		if at := bytes.Index(b, []byte(label)); at >= 0 {
			if line, _, whole := bytes.Cut(b[at+len(label):], []byte("\n")); whole {
				return strconv.ParseUint(string(line), 10, 64)
			}
		}
		if err == io.EOF {
			return 0, errNoStarts
		}
		if err != nil {
			return 0, fmt.Errorf("read /proc/stat: %w", err)
		}
		kept = copy(room, b[max(0, len(b)-64):])
	}
}
