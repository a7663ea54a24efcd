package domain

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirtxml"
)

// CaptureOptions of one capture; nil and zero mean the documented defaults.
type CaptureOptions struct {
	Progress func(Progress) // called about ten times a second; default: not at all
}

// Progress is how far a capture has come with one part.
type Progress struct {
	Part        string // "memory" or "disks"
	Done, Total uint64 // bytes; Total is 0 while it is not known
}

// File is one file of a capture.
type File struct {
	Kind    string        `json:"kind"`              // "memory", "disk" or "xml"
	Path    string        `json:"path"`              // absolute
	Format  string        `json:"format"`            // "elf", "qcow2" or "xml": never to be probed for
	Target  string        `json:"target,omitempty"`  // a disk's name in the domain: "vda"
	Source  string        `json:"source,omitempty"`  // what the domain has the disk from
	Virtual uint64        `json:"virtual,omitempty"` // a disk's size as the guest sees it
	Size    int64         `json:"size"`              // bytes of the file
	Took    time.Duration `json:"took"`              // all disks share theirs
}

// Left is a disk that a capture left out.
type Left struct {
	Target string `json:"target"`
	Why    string `json:"why"`
}

// Snapshot is a finished capture: memory and disks of one moment.
type Snapshot struct {
	VM       uuid.UUID `json:"vm"`
	Name     string    `json:"name"`
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	Files    []File    `json:"files"`
	Left     []Left    `json:"left,omitempty"`
}

// Capture takes the memory and the disks of a paused domain into dir, which
// is made where it is missing and must then hold none of the capture's files:
//
//	memory.elf        all guest memory and the CPUs' registers, an ELF core
//	disk-vda.qcow2    the disk's whole content, its backing files' included
//	domain.xml        the live description
//
// They are one pair: the vCPUs stand still from before the first byte until
// after the last, and a domain that ran in between is ErrResumed. QEMU itself
// copies the disks through its own block layer (a push backup), so that
// nothing it holds back is missing, no guest-written format is probed, and
// the domain keeps its images. Memory is dumped, not migrated, so that a
// domain that cannot migrate is captured like any other. Empty and read-only
// drives are left out and listed.
//
// QEMU's user must be able to reach dir: every folder above it needs the
// execute bit for others. libvirt owns what it writes: the files end up as
// root's or QEMU's, mode 0600, for the caller to read by CAP_DAC_READ_SEARCH
// and, as the owner of dir, to remove. On an error what was written is
// removed. The domain stays paused.
func (c *Client) Capture(ctx context.Context, vm uuid.UUID, dir string, opts *CaptureOptions) (*Snapshot, error) {
	if opts == nil {
		opts = &CaptureOptions{}
	}
	own := New(&c.opts) // its calls are long
	defer own.Close()
	s, err := own.capture(ctx, vm, dir, opts)
	if err != nil {
		return nil, fmt.Errorf("capture %s: %w", vm, err)
	}
	return s, nil
}

func (c *Client) capture(ctx context.Context, vm uuid.UUID, dir string, opts *CaptureOptions) (_ *Snapshot, err error) {
	dir, err = room(dir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ran, stop, err := c.guard(ctx, vm, cancel)
	if err != nil {
		return nil, err
	}
	defer stop()
	k := &taking{c: c, vm: vm, dir: dir, progress: opts.Progress}
	defer func() {
		if err != nil {
			k.remove()
		}
	}()
	s := &Snapshot{VM: vm, Started: time.Now()}
	for _, part := range []func(context.Context, *Snapshot) error{k.describe, k.space, k.memory, k.disks} {
		if err = part(ctx, s); err != nil {
			if ran.Load() {
				err = fmt.Errorf("%w (%w)", ErrResumed, err)
			}
			return nil, err
		}
	}
	if err = c.still(ctx, vm); err != nil {
		return nil, err
	}
	if ran.Load() {
		return nil, ErrResumed
	}
	s.Finished = time.Now()
	return s, nil
}

// room makes dir ready and says who could not reach it.
func room(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if strings.ContainsAny(dir, "\x00\n") {
		return "", fmt.Errorf("directory %q: unusable name", dir)
	}
	err = os.Mkdir(dir, 0o711)
	if err == nil {
		err = os.Chmod(dir, 0o711) // whatever the umask
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return dir, reachable(dir)
}

// reachable returns an error where QEMU, as a user of its own, could not get
// into dir.
func reachable(dir string) error {
	for at := dir; ; at = filepath.Dir(at) {
		fi, err := os.Stat(at)
		if err != nil {
			return err
		}
		if !fi.IsDir() {
			return fmt.Errorf("%s is no directory", at)
		}
		if fi.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("QEMU's user cannot reach %s: `chmod o+x %s` (its files stay unreadable)", dir, at)
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}

// still returns an error unless the domain is paused.
func (c *Client) still(ctx context.Context, vm uuid.UUID) error {
	s, err := c.State(ctx, vm)
	switch {
	case err != nil:
		return err
	case s == Paused:
		return nil
	case !s.Active():
		return ErrNotRunning
	}
	return fmt.Errorf("the domain is %s: pause it first", s)
}

// guard checks that the domain is paused and watches for it to run, stop or
// for the view of it to be lost, until stop is called; any of these cancels.
func (c *Client) guard(ctx context.Context, vm uuid.UUID, cancel context.CancelCauseFunc) (ran *atomic.Bool, stop func(), err error) {
	ran = &atomic.Bool{}
	watch, end := context.WithCancel(ctx)
	ready, done := make(chan struct{}), make(chan struct{})
	var seen bool
	go func() {
		defer close(done)
		_ = c.Watch(watch, func(e Event) {
			switch {
			case e.Kind == Resync && !seen:
				seen = true
				close(ready)
			case e.Kind == Resync: // a moment was not seen
				ran.Store(true)
				cancel(ErrResumed)
			case e.VM == vm && (e.Kind == ResumedEvent || e.Kind == Stopped || e.Kind == Started):
				ran.Store(true)
				cancel(ErrResumed)
			}
		})
	}()
	stop = func() { end(); <-done }
	select {
	case <-ready:
	case <-ctx.Done():
		stop()
		return nil, nil, ctx.Err()
	}
	if err := c.still(ctx, vm); err != nil {
		stop()
		return nil, nil, err
	}
	return ran, stop, nil
}

// taking is one capture under way.
type taking struct {
	c        *Client
	vm       uuid.UUID
	dir      string
	progress func(Progress)
	made     []string // files to remove on an error
	def      libvirtxml.Domain
}

// file claims a name in the directory.
func (k *taking) file(name string) (string, error) {
	path := filepath.Join(k.dir, name)
	if _, err := os.Lstat(path); err == nil {
		return "", fmt.Errorf("%s is there already", path)
	}
	k.made = append(k.made, path)
	return path, nil
}

func (k *taking) remove() {
	for _, path := range k.made {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			k.c.log.Error("partial capture not removed", "path", path, "err", err)
		}
	}
}

// describe writes the live description.
func (k *taking) describe(ctx context.Context, s *Snapshot) error {
	text, err := k.c.XML(ctx, k.vm)
	if err != nil {
		return err
	}
	if err := k.def.Unmarshal(text); err != nil {
		return fmt.Errorf("read its description: %w", err)
	}
	s.Name = k.def.Name
	path, err := k.file("domain.xml")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	s.Files = append(s.Files, File{Kind: "xml", Path: path, Format: "xml", Size: int64(len(text))})
	return nil
}

// space refuses what would not fit, before anything large is written.
func (k *taking) space(ctx context.Context, _ *Snapshot) error {
	const slack = 16 << 20 // for the core's notes and the images' tables
	need := uint64(slack)
	err := k.c.call(ctx, k.c.of(k.vm), func(l *libvirt.Libvirt) error {
		d := k.c.handle(k.vm)
		_, most, now, _, _, err := l.DomainGetInfo(d) // KiB
		if err != nil {
			return err
		}
		need += max(most, now) << 10
		for _, disk := range devices(&k.def) {
			if disk.Target == nil || leftOut(&disk) != "" {
				continue
			}
			allocated, _, _, err := l.DomainGetBlockInfo(d, disk.Target.Dev, 0)
			if err != nil {
				return err
			}
			need += allocated
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("measure: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(k.dir, &fs); err != nil {
		return fmt.Errorf("measure %s: %w", k.dir, err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < need {
		return fmt.Errorf("%w: %s has %d MiB free, the capture needs %d MiB", ErrNoSpace, k.dir, free>>20, need>>20)
	}
	return nil
}

// memory dumps the guest's memory. The call returns when the dump is whole.
func (k *taking) memory(ctx context.Context, s *Snapshot) error {
	path, err := k.file("memory.elf")
	if err != nil {
		return err
	}
	began := time.Now()
	err = k.during(ctx, "memory", func() error {
		return k.c.call(context.WithoutCancel(ctx), k.c.of(k.vm), func(l *libvirt.Libvirt) error {
			return l.DomainCoreDumpWithFormat(k.c.handle(k.vm), path, uint32(libvirt.DomainCoreDumpFormatRaw), libvirt.DumpMemoryOnly)
		})
	})
	if err != nil {
		return fmt.Errorf("dump memory: %w", err)
	}
	f := File{Kind: "memory", Path: path, Format: "elf", Took: time.Since(began)}
	if f.Size, err = size(path); err != nil {
		return fmt.Errorf("dump memory: %w", err)
	}
	s.Files = append(s.Files, f)
	return nil
}

func size(path string) (int64, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	if fi.Size() == 0 {
		return 0, fmt.Errorf("%s is empty", path)
	}
	return fi.Size(), nil
}

// abortWithin is how long libvirt may take to abort a job.
const abortWithin = 30 * time.Second

// during runs fn, tells how far libvirt's job has come meanwhile, and aborts
// the job when ctx ends; it returns after fn has, so that nothing is written
// any more, unless libvirt does not abort it.
func (k *taking) during(ctx context.Context, part string, fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	ended := ctx.Done()
	var late <-chan time.Time
	for {
		select {
		case err := <-done:
			if ctx.Err() != nil {
				return errors.Join(context.Cause(ctx), err)
			}
			return err
		case <-ended:
			ended, late = nil, time.After(abortWithin)
			k.abort()
		case <-late:
			return errors.Join(context.Cause(ctx), fmt.Errorf("libvirt has not aborted its job within %s", abortWithin))
		case <-tick.C:
			if j, err := k.job(ctx, 0); err == nil {
				k.tell(part, j)
			}
		}
	}
}

func (k *taking) tell(part string, j job) {
	if k.progress != nil {
		k.progress(Progress{Part: part, Done: j.done, Total: j.total})
	}
}

// abort stops the domain's job; there may be none any more.
func (k *taking) abort() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := k.c.call(ctx, k.c.of(k.vm), func(l *libvirt.Libvirt) error { return l.DomainAbortJob(k.c.handle(k.vm)) })
	if err != nil {
		k.c.log.Debug("abort job", "vm", k.vm, "err", err)
	}
}

// job is what libvirt says of a domain's job.
type job struct {
	kind        int32 // 0: none
	done, total uint64
	ok, told    bool // how a completed one ended
	message     string
}

const (
	statsCompleted = 1 // VIR_DOMAIN_JOB_STATS_COMPLETED: of the last job, once
	jobCompleted   = 3 // VIR_DOMAIN_JOB_COMPLETED
)

func (k *taking) job(ctx context.Context, flags libvirt.DomainGetJobStatsFlags) (j job, err error) {
	err = k.c.call(ctx, k.c.of(k.vm), func(l *libvirt.Libvirt) error {
		kind, params, err := l.DomainGetJobStats(k.c.handle(k.vm), flags)
		j.kind = kind
		for _, p := range params {
			switch v := p.Value.I.(type) {
			case uint64:
				switch p.Field {
				case libvirt.DomainJobDiskTotal, libvirt.DomainJobMemoryTotal:
					j.total = max(j.total, v)
				case libvirt.DomainJobDiskProcessed, libvirt.DomainJobMemoryProcessed:
					j.done = max(j.done, v)
				}
			case int32:
				if p.Field == libvirt.DomainJobSuccess {
					j.ok, j.told = v != 0, true
				}
			case string:
				if p.Field == libvirt.DomainJobErrmsg {
					j.message = v
				}
			}
		}
		return err
	})
	return j, err
}

// disks has QEMU copy every disk that a guest can write.
func (k *taking) disks(ctx context.Context, s *Snapshot) error {
	req := libvirtxml.DomainBackup{Push: &libvirtxml.DomainBackupPush{Disks: &libvirtxml.DomainBackupPushDisks{}}}
	var files []File
	for i := range devices(&k.def) {
		d := &devices(&k.def)[i]
		if d.Target == nil {
			continue
		}
		entry := libvirtxml.DomainBackupPushDisk{Name: d.Target.Dev, Backup: "no"}
		if why := leftOut(d); why != "" {
			s.Left = append(s.Left, Left{Target: d.Target.Dev, Why: why})
		} else {
			path, err := k.file("disk-" + d.Target.Dev + ".qcow2")
			if err != nil {
				return err
			}
			entry.Backup = "yes"
			entry.Driver = &libvirtxml.DomainBackupDiskDriver{Type: "qcow2"}
			entry.Target = &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}}
			files = append(files, File{Kind: "disk", Path: path, Format: "qcow2", Target: d.Target.Dev, Source: source(d)})
		}
		req.Push.Disks.Disks = append(req.Push.Disks.Disks, entry)
	}
	if len(files) == 0 {
		return nil
	}
	began := time.Now()
	if err := k.backup(ctx, &req); err != nil {
		return fmt.Errorf("copy disks: %w", err)
	}
	for _, f := range files {
		f.Took = time.Since(began)
		if err := k.measure(ctx, &f); err != nil {
			return fmt.Errorf("copy disk %s: %w", f.Target, err)
		}
		s.Files = append(s.Files, f)
	}
	return nil
}

func devices(d *libvirtxml.Domain) []libvirtxml.DomainDisk {
	if d.Devices == nil {
		return nil
	}
	return d.Devices.Disks
}

// leftOut says why a disk is not captured, "" where it is.
func leftOut(d *libvirtxml.DomainDisk) string {
	switch {
	case d.Source == nil || source(d) == "":
		return "empty drive"
	case d.ReadOnly != nil:
		return "read-only"
	case d.Device == "lun":
		return "passed through as a SCSI unit"
	}
	return ""
}

func source(d *libvirtxml.DomainDisk) string {
	switch s := d.Source; {
	case s.File != nil:
		return s.File.File
	case s.Block != nil:
		return s.Block.Dev
	case s.Network != nil:
		return s.Network.Protocol + ":" + s.Network.Name
	case s.Volume != nil:
		return s.Volume.Pool + "/" + s.Volume.Volume
	case s.NVME != nil:
		return "nvme"
	case s.VHostUser != nil:
		return "vhost-user"
	case s.VHostVDPA != nil:
		return "vhost-vdpa"
	}
	return ""
}

// backup runs a push backup to its end.
func (k *taking) backup(ctx context.Context, req *libvirtxml.DomainBackup) error {
	text, err := xml.Marshal(req)
	if err != nil {
		return err
	}
	err = k.c.call(context.WithoutCancel(ctx), k.c.of(k.vm), func(l *libvirt.Libvirt) error {
		return l.DomainBackupBegin(k.c.handle(k.vm), string(text), nil, 0)
	})
	if err != nil {
		return err
	}
	return k.during(ctx, "disks", k.backupDone)
}

// backupDone returns when no job is under way any more, with how it ended.
func (k *taking) backupDone() error {
	ctx := context.Background() // ends with the job, which during aborts
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		j, err := k.job(ctx, 0)
		if err != nil && !lost(err) {
			return err
		}
		if err == nil && j.kind == 0 {
			return k.verdict(ctx)
		}
		time.Sleep(wait)
	}
}

func (k *taking) verdict(ctx context.Context) error {
	j, err := k.job(ctx, statsCompleted)
	switch {
	case err != nil:
		return err
	case j.told && !j.ok, j.kind != jobCompleted:
		if j.message == "" {
			j.message = "the job was aborted"
		}
		return errors.New(j.message)
	}
	return nil
}

// measure fills in a disk's sizes.
func (k *taking) measure(ctx context.Context, f *File) (err error) {
	if f.Size, err = size(f.Path); err != nil {
		return err
	}
	return k.c.call(ctx, k.c.of(k.vm), func(l *libvirt.Libvirt) error {
		_, capacity, _, err := l.DomainGetBlockInfo(k.c.handle(k.vm), f.Target, 0)
		f.Virtual = capacity
		return err
	})
}
