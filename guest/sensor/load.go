// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/guest/bpf"
	"github.com/outguard/outguard/vsockproto"
)

// pinned maps outlive the agent. The digest cache is not among them: it is
// right only as long as the programs that end its entries have run all along,
// so it lives and dies with them; what the snapshot needs is, since the agent and
// programs that it took over speak of it to each other.
// Frames come behind the rings that they are about.
var pinned = []string{"critical", "bulk", "config", "counters", "labels", "ipc_labels", "state", "frames", named, "mapped", "running", "filter_sets", "filter_keys", "filter_paths", "filtered"}

// named tells of which cgroups the host knows the path; no further program names one.
const named = "named"

// loader brings the programs into the kernel.
type loader struct {
	kernel *btf.Spec  // its types, as far as they were asked for; nil once they are given up
	cache  *btf.Cache // has them too, so that nothing else reads all of them
	pins   string
	cpus   int
	log    *slog.Logger
	paths  bool // the snapshot's iterator may ask for paths

	lacking map[string]bool // functions of hooks that the kernel has not
}

// objects are what is in the kernel: the maps, and the programs by their names.
type objects struct {
	bpf.ProbeMaps
	programs map[string]*ebpf.Program
}

func (o *objects) Close() error {
	var errs []error
	for _, p := range o.programs {
		errs = append(errs, p.Close())
	}
	if o.Critical != nil {
		errs = append(errs, o.ProbeMaps.Close())
	}
	return errors.Join(errs...)
}

// learn reads of the kernel's types those that an object's programs touch, until
// forget gives them up.
func (l *loader) learn(spec *ebpf.CollectionSpec) (forget func(), err error) {
	names, err := touched(spec)
	if err != nil {
		return nil, err
	}
	types, limit, err := l.kernelTypes(names)
	if err != nil {
		debug.SetMemoryLimit(limit)
		return nil, err
	}
	l.kernel, l.cache = types.Spec, types.Cache
	return func() {
		l.kernel, l.cache = nil, nil
		debug.SetMemoryLimit(limit)
	}, nil
}

func (l *loader) link(program string) string { return filepath.Join(l.pins, "link_"+program) }

// load makes the first object fit this kernel and loads it.
func (l *loader) load(o *objects, spec *ebpf.CollectionSpec) error {
	l.paths = true
	err := l.tryLoad(o, spec)
	var v *ebpf.VerifierError
	if errors.As(err, &v) {
		// A kernel may not let an iterator ask for the path of a task's file.
		l.log.Info("trying with a snapshot without paths", "refused", v)
		l.paths = false
		if spec, err = bpf.LoadProbe(); err == nil {
			err = l.tryLoad(o, spec)
		}
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

func (l *loader) tryLoad(o *objects, spec *ebpf.CollectionSpec) error {
	if err := l.fit(spec); err != nil {
		return err
	}
	if err := l.replace(spec); err != nil {
		return err
	}
	options := &ebpf.CollectionOptions{
		Maps:     ebpf.MapOptions{PinPath: l.pins},
		Programs: ebpf.ProgramOptions{KernelTypes: l.kernel},
		Cache:    l.cache,
	}
	if err := runAdopt(spec, options); err != nil {
		return err
	}
	all, err := ebpf.NewCollectionWithOptions(spec, *options)
	if err != nil {
		return err
	}
	defer all.Close()
	if err := all.Assign(&o.ProbeMaps); err != nil {
		return err
	}
	o.programs, all.Programs = all.Programs, nil
	return nil
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

// fit sizes the first object's maps, says which may be shared, and picks the
// shape of the hooks that differ between kernels.
func (l *loader) fit(spec *ebpf.CollectionSpec) error {
	if err := l.fitMaps(spec); err != nil {
		return err
	}
	n, err := arguments(l.kernel, setattr)
	if err != nil {
		return err
	}
	if n == 3 { // the mount's id map comes first
		spec.Programs[setattr] = spec.Programs[setattrIDMap]
	}
	delete(spec.Programs, setattrIDMap)
	if !l.has("bpf_lsm_" + postOpen) {
		delete(spec.Programs, postOpen)
	}
	return l.fitReads(spec, map[string]bool{"snapshot_paths": l.paths, "has_post_open": l.has("bpf_lsm_" + postOpen)})
}

func (l *loader) fitMaps(spec *ebpf.CollectionSpec) error {
	for _, name := range pinned {
		m, ok := spec.Maps[name]
		if !ok && name == named && spec.Programs[fileOpen] == nil {
			continue
		}
		if !ok {
			return fmt.Errorf("map %s: %w", name, os.ErrNotExist)
		}
		m.Pinning = ebpf.PinByName
	}
	spec.Maps["counters"].MaxEntries = uint32(2 * l.cpus)
	spec.Maps["filtered"].MaxEntries = uint32(l.cpus)
	return nil
}

// fitReads gives an object's constants their values, and those that say how this
// kernel's memory is read.
func (l *loader) fitReads(spec *ebpf.CollectionSpec, values map[string]bool) error {
	values["has_casts"] = describes(l.kernel, rdonlyCast)
	values["follows_casts"] = values["has_casts"] && l.unsorted()
	if !values["has_casts"] {
		withoutCasts(spec)
	}
	return set(spec, values)
}

// unsorted reports whether the kernel's types are not sorted, as far as its version
// tells. It makes no difference but to how long programs take to load.
func (l *loader) unsorted() bool {
	v, err := features.LinuxVersionCode()
	return err == nil && v < 7<<16
}

// withoutCasts takes the calls of bpf_rdonly_cast out, which are never reached in a
// kernel that has it not: it would be looked for in the types of every module.
func withoutCasts(spec *ebpf.CollectionSpec) {
	for _, p := range spec.Programs {
		for i, ins := range p.Instructions {
			if ins.IsKfuncCall() {
				p.Instructions[i] = asm.Mov.Imm(asm.R0, 0).WithSymbol(ins.Symbol()).WithSource(ins.Source())
			}
		}
	}
}

// set gives an object's constants their values.
func set(spec *ebpf.CollectionSpec, values map[string]bool) error {
	for name, value := range values {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// look finds out which hooks the kernel has not.
func (l *loader) look() {
	l.lacking = make(map[string]bool)
	for _, h := range hooks {
		if !describes(l.kernel, h.kernel) {
			l.lacking[h.kernel] = true
		}
	}
}

func (l *loader) has(function string) bool { return !l.lacking[function] }

// hooks are those that this kernel has.
func (l *loader) hooks() []hook {
	return slices.DeleteFunc(slices.Clone(hooks), func(h hook) bool { return !l.has(h.kernel) })
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

// describe tells for every event type what became of it.
func (l *loader) describe(s *Sensor) ([]vsockproto.Hook, error) {
	var list []vsockproto.Hook
	for _, h := range hooks {
		if h.event == 0 {
			continue
		}
		_, attached := s.links[h.program]
		k := vsockproto.Hook{Type: h.event, Available: l.has(h.kernel), Attached: attached}
		if p := s.objects.programs[h.program]; p != nil {
			var err error
			if k.Tag, err = tagOf(p); err != nil {
				return nil, err
			}
		}
		list = append(list, k)
	}
	tag, err := tagOf(s.objects.programs[snapshot])
	if err != nil {
		return nil, err
	}
	for _, t := range [...]vsockproto.EventType{vsockproto.TaskSnapshot, vsockproto.CgroupSnapshot} {
		list = append(list, vsockproto.Hook{Type: t, Available: true, Attached: true, Tag: tag})
	}
	return ascending(list), nil
}
