// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/guest/kerneltypes"
)

// bootWithBPF is what to do where BPF is not among the kernel's security modules.
const bootWithBPF = "boot with bpf in the lsm= list of the kernel command line (what is active: /sys/kernel/security/lsm)"

// kernelTypes reads of the kernel's description of itself the types of some names,
// or all of it where that cannot be done: above the memory limit, which is lifted
// then, the collector would run all the while. It was limit before.
func (l *loader) kernelTypes(names map[string]bool) (types *kerneltypes.Types, limit int64, err error) {
	limit = debug.SetMemoryLimit(-1)
	types, err = kerneltypes.Read(names)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		l.log.Warn("reading all of the kernel's types, which takes more memory", "reason", err)
	}
	if err != nil {
		debug.SetMemoryLimit(math.MaxInt64)
		types, err = kerneltypes.ReadAll()
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, errors.ErrUnsupported) {
		return nil, limit, fmt.Errorf("read kernel types: %w: the kernel needs CONFIG_DEBUG_INFO_BTF=y and /sys mounted "+
			"(Debian's and every other large distribution's kernel has it: /sys/kernel/btf/vmlinux)", err)
	}
	if err != nil {
		return nil, limit, fmt.Errorf("read kernel types: %w", err)
	}
	return types, limit, nil
}

// touched names what the programs of an object may look for in the kernel: what
// its own types are called, and what stands for hooks.
func touched(spec *ebpf.CollectionSpec) (map[string]bool, error) {
	names := map[string]bool{rdonlyCast: true}
	for _, h := range hooks {
		names[h.kernel] = true
	}
	for _, p := range spec.Programs {
		if p.AttachType == ebpf.AttachTraceIter {
			names["bpf_iter_"+p.AttachTo] = true
		}
	}
	for t, err := range spec.Types.All() {
		if err != nil {
			return nil, fmt.Errorf("types of the programs: %w", err)
		}
		// Of the types of one name, "name___what", each is for some kernels.
		name, _, _ := strings.Cut(t.TypeName(), "___")
		names[name] = true
	}
	delete(names, "")
	return names, nil
}

// claim makes the directory of pins, and this process the only agent.
func claim(pins string) (*os.File, error) {
	if err := mountBPF(filepath.Dir(pins)); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(pins, 0o700); err != nil {
		return nil, fmt.Errorf("make pin directory: %w", err)
	}
	f, err := os.Open(pins)
	if err != nil {
		return nil, fmt.Errorf("open pin directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w: another outguard-agent runs in this machine", pins, err)
	}
	return f, nil
}

// mountBPF mounts a BPF file system at dir unless one is there.
func mountBPF(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("find the BPF file system at %s: %w: mount sysfs at /sys", dir, err)
	}
	if st.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount a BPF file system at %s: %w", dir, err)
	}
	return nil
}
