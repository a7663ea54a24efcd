// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

// pinned maps outlive the agent. The digest cache is not among them: it is
// right only as long as the programs that end its entries have run all along,
// so it lives and dies with them.
// Frames come behind the rings that they are about.
var pinned = []string{"critical", "bulk", "config", "counters", "labels", "state", "frames"}

// loader brings the programs into the kernel.
type loader struct {
	kernel *btf.Spec
	pins   string
	cpus   int
	log    *slog.Logger

	postOpen bool // the kernel has file_post_open
}

func (l *loader) link(program string) string { return filepath.Join(l.pins, "link_"+program) }

// load makes the object fit this kernel and loads it.
func (l *loader) load(o *bpf.ProbeObjects) error {
	err := l.tryLoad(o, true)
	var v *ebpf.VerifierError
	if errors.As(err, &v) {
		// A kernel may not let an iterator ask for the path of a task's file.
		l.log.Info("trying with a snapshot without paths", "refused", v)
		err = l.tryLoad(o, false)
	}
	if errors.Is(err, os.ErrPermission) && !errors.As(err, &v) {
		return fmt.Errorf("load programs: %w: the agent needs root with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN", err)
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		// Storage at inodes is there only with the BPF security module.
		return fmt.Errorf("load programs: %w: %s", err, bootWithBPF)
	}
	if err != nil {
		return fmt.Errorf("load programs: %w", err)
	}
	return nil
}

func (l *loader) tryLoad(o *bpf.ProbeObjects, paths bool) error {
	spec, err := bpf.LoadProbe()
	if err != nil {
		return err
	}
	if err := l.fit(spec, paths); err != nil {
		return err
	}
	if err := l.replace(spec); err != nil {
		return err
	}
	options := &ebpf.CollectionOptions{
		Maps:     ebpf.MapOptions{PinPath: l.pins},
		Programs: ebpf.ProgramOptions{KernelTypes: l.kernel},
	}
	if err := runAdopt(spec, options); err != nil {
		return err
	}
	return spec.LoadAndAssign(o, options)
}

// runAdopt makes the programs know this process as the agent. It comes first:
// those of an earlier agent may be running, and loading takes a while.
func runAdopt(spec *ebpf.CollectionSpec, options *ebpf.CollectionOptions) error {
	var o struct {
		Adopt *ebpf.Program `ebpf:"adopt"`
	}
	if err := spec.LoadAndAssign(&o, options); err != nil {
		return err
	}
	defer o.Adopt.Close()
	return adopt(o.Adopt)
}

func adopt(p *ebpf.Program) error {
	ret, err := p.Run(&ebpf.RunOptions{})
	if err == nil && ret != 0 {
		err = fmt.Errorf("result %d: %w", ret, errors.ErrUnsupported)
	}
	if err != nil {
		return fmt.Errorf("make the programs know the agent: %w", err)
	}
	return nil
}

func adoptPin(pins string) string { return filepath.Join(pins, "adopt") }

// adoptEarly makes the programs of an earlier agent know this one before it
// does anything else. If that fails they will know it a little later.
func adoptEarly(pins string, log *slog.Logger) {
	p, err := ebpf.LoadPinnedProgram(adoptPin(pins), nil)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err == nil {
		defer p.Close()
		err = adopt(p)
	}
	if err != nil {
		log.Warn("the programs of an earlier agent do not know this one", "error", err)
	}
}

// fit sizes the maps, says which may be shared, and picks the shape of a hook
// that differs between kernels.
func (l *loader) fit(spec *ebpf.CollectionSpec, paths bool) error {
	for _, name := range pinned {
		m, ok := spec.Maps[name]
		if !ok {
			return fmt.Errorf("map %s: %w", name, os.ErrNotExist)
		}
		m.Pinning = ebpf.PinByName
	}
	spec.Maps["counters"].MaxEntries = uint32(2 * l.cpus)
	if err := spec.Variables["snapshot_paths"].Set(paths); err != nil {
		return fmt.Errorf("set snapshot_paths: %w", err)
	}
	return l.choose(spec)
}

// choose puts aside the programs that this kernel has no hook for. Another one
// is loaded under their names and attached nowhere.
func (l *loader) choose(spec *ebpf.CollectionSpec) error {
	withIDMap, err := setattrTakesIDMap(l.kernel)
	if err != nil {
		return err
	}
	if withIDMap {
		spec.Programs[setattr] = spec.Programs[setattrIDMap].Copy()
	} else {
		spec.Programs[setattrIDMap] = spec.Programs[setattr].Copy()
	}
	l.postOpen = describes(l.kernel, "bpf_lsm_"+postOpen)
	if !l.postOpen {
		spec.Programs[postOpen] = spec.Programs[fileOpen].Copy()
	}
	if err := spec.Variables["has_post_open"].Set(l.postOpen); err != nil {
		return fmt.Errorf("set has_post_open: %w", err)
	}
	return nil
}

// hooks are those to attach on this kernel.
func (l *loader) hooks() []hook {
	if l.postOpen {
		return hooks
	}
	return slices.DeleteFunc(slices.Clone(hooks), func(h hook) bool { return h.program == postOpen })
}

// replace removes the pins of maps that another build laid out otherwise. The
// others, the numbers among them, stay.
func (l *loader) replace(spec *ebpf.CollectionSpec) error {
	renewed := false // a ring, so that what is known of frames is about another
	for _, name := range pinned {
		other, err := l.differs(spec.Maps[name], name)
		if err != nil {
			return err
		}
		if name == "frames" && renewed && other == nil {
			other = errOther
		}
		renewed = renewed || other != nil && spec.Maps[name].Type == ebpf.RingBuf
		if other == nil || errors.Is(other, os.ErrNotExist) {
			continue
		}
		l.log.Info("replacing a map of another build", "map", name, "reason", other)
		if err := os.Remove(filepath.Join(l.pins, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove pin: %w", err)
		}
	}
	return nil
}

// differs tells why the pinned map of a name cannot be the one that spec wants.
func (l *loader) differs(spec *ebpf.MapSpec, name string) (reason, err error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(l.pins, name), nil)
	if errors.Is(err, os.ErrNotExist) {
		return err, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned map %s: %w", name, err)
	}
	defer m.Close()
	return spec.Compatible(m), nil
}

// programs finds the loaded programs by their names.
func programs(o *bpf.ProbeObjects) map[string]*ebpf.Program {
	return map[string]*ebpf.Program{
		setattr:                o.InodeSetattr,
		fileOpen:               o.FileOpen,
		postOpen:               o.FilePostOpen,
		"socket_post_create":   o.SocketPostCreate,
		"bprm_committed_creds": o.BprmCommittedCreds,
		"mmap_file":            o.MmapFile,
		"socket_create":        o.SocketCreate,
		"socket_bind":          o.SocketBind,
		"socket_connect":       o.SocketConnect,
		"socket_listen":        o.SocketListen,
		"socket_accept":        o.SocketAccept,
		"task_kill":            o.TaskKill,
		"sched_process_exec":   o.SchedProcessExec,
		"task_newtask":         o.TaskNewtask,
		"sched_process_exit":   o.SchedProcessExit,
		"cgroup_mkdir":         o.CgroupMkdir,
		"cgroup_rmdir":         o.CgroupRmdir,
		"cgroup_attach_task":   o.CgroupAttachTask,
		snapshot:               o.TaskSnapshot,
	}
}

// describe tells for every event type what became of it.
func (l *loader) describe(s *Sensor) ([]vsockproto.Hook, error) {
	all := programs(&s.objects)
	var list []vsockproto.Hook
	for _, h := range hooks {
		if h.event == 0 {
			continue
		}
		tag, err := tagOf(all[h.program])
		if err != nil {
			return nil, err
		}
		_, attached := s.links[h.program]
		list = append(list, vsockproto.Hook{
			Type: h.event, Available: describes(l.kernel, h.kernel), Attached: attached, Tag: tag,
		})
	}
	tag, err := tagOf(all[snapshot])
	if err != nil {
		return nil, err
	}
	for _, t := range [...]vsockproto.EventType{vsockproto.TaskSnapshot, vsockproto.CgroupSnapshot} {
		list = append(list, vsockproto.Hook{Type: t, Available: true, Attached: true, Tag: tag})
	}
	return ascending(list), nil
}
