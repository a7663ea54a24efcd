// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

// byDefault is what is reported until the host has said otherwise. Cgroups are
// beyond it: they are reported always, see guest/bpf/cgroup.h.
var byDefault = setOf(vsockproto.StartTypes()...)

// begin attaches every program, writes down what runs already, and then pins:
// an agent that dies on the way leaves no half of it behind. The programs of an
// earlier agent go when ours are there: for a moment both report, since an
// event that comes twice is better than one that nobody misses.
func (l *loader) begin(s *Sensor) error {
	err := s.configure(func(c *bpf.ProbeAgentConfig) {
		if c.Policy == 0 { // else an earlier agent's stays in force
			want(c, firstPolicy, byDefault)
			c.Policy = uint8(firstPolicy)
		}
	})
	if err != nil {
		return err
	}
	if err := l.attach(s); err != nil {
		return err
	}
	if err := l.unlink(); err != nil {
		return err
	}
	if err := s.alive(); err != nil {
		return err
	}
	if err := s.Snapshot(); err != nil {
		return err
	}
	for name, k := range s.links {
		if err := k.Pin(l.link(name)); err != nil {
			return fmt.Errorf("pin %s: %w", name, err)
		}
	}
	if err := s.objects.programs[adopter].Pin(adoptPin(l.pins)); err != nil {
		return fmt.Errorf("pin adopt: %w", err)
	}
	return nil
}

// unlink detaches the programs of an earlier agent.
func (l *loader) unlink() error {
	old, err := filepath.Glob(l.link("*"))
	if err != nil {
		return fmt.Errorf("find links: %w", err)
	}
	if _, err := os.Lstat(adoptPin(l.pins)); err == nil {
		old = append(old, adoptPin(l.pins))
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove link: %w", err)
		}
	}
	return nil
}

// attach attaches the first object's programs, so that the snapshot is whole.
// What else an earlier agent was asked for the host asks for again.
func (l *loader) attach(s *Sensor) error {
	for _, h := range l.hooks() {
		p := s.objects.programs[h.program]
		if p == nil {
			continue
		}
		k, err := attach(p)
		if err != nil && h.needed {
			return fmt.Errorf("attach %s: %w", h.program, err)
		}
		if err != nil {
			l.log.Warn("hook not attached", "hook", h.program, "error", err)
			continue
		}
		s.links[h.program] = k
	}
	return nil
}

// alive proves that the hooks run: attaching succeeds even where BPF is not
// among the kernel's security modules.
func (s *Sensor) alive() error {
	before, err := s.config()
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("open a file for the hooks to see: %w", err)
	}
	f.Close()
	after, err := s.config()
	if err != nil {
		return err
	}
	if after.AgentOpens == before.AgentOpens {
		return fmt.Errorf("the attached programs do not run: %w: %s, and check that /proc/sys/kernel/ftrace_enabled is 1",
			errors.ErrUnsupported, bootWithBPF)
	}
	return nil
}

func ascending(list []vsockproto.Hook) []vsockproto.Hook {
	slices.SortFunc(list, func(a, b vsockproto.Hook) int { return cmp.Compare(a.Type, b.Type) })
	return list
}
