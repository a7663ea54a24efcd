package domain

import (
	"context"
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
	// Progress is called when the capture comes to the memory, about ten times a
	// second from then on, and never twice at once; the capture does not end before
	// it has returned. Default: not at all.
	Progress func(Progress)
}

// Progress is how far a capture has come with one part.
type Progress struct {
	Part        string // "memory" or "disks"
	Done, Total uint64 // bytes; Total is 0 while it is not known
}

// File is one file of a capture.
type File struct {
	Kind    string        `json:"kind"`              // "memory", "disk", "xml", "console" or "screen"
	Path    string        `json:"path"`              // absolute
	Format  string        `json:"format"`            // "elf", "qcow2", "xml", "text" or "png": never to be probed for
	Target  string        `json:"target,omitempty"`  // a disk's name in the domain: "vda"
	Source  string        `json:"source,omitempty"`  // what the domain has the disk from
	Virtual uint64        `json:"virtual,omitempty"` // a disk's size as the guest sees it
	Size    int64         `json:"size"`              // bytes of the file
	Took    time.Duration `json:"took"`              // all disks share theirs
}

// Left is a disk that a capture left out, or the "console" or "screen".
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
	Facts    []Fact    `json:"facts,omitempty"`  // what the domain runs on, by libvirt
	Claims   []Fact    `json:"claims,omitempty"` // what the guest says of itself, for who captures it to fill in
}

// Fact is one thing that is said of a domain or of its host.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Capture takes the memory and the disks of a paused domain into dir, which
// is made where it is missing and must then hold none of the capture's files:
//
//	memory.elf        all guest memory and the CPUs' registers, an ELF core
//	disk-vda.qcow2    the disk's whole content, its backing files' included
//	domain.xml        the live description
//	console.log       the end of the console's file, where it has one
//	screen.png        the first display, where there is one
//
// They are one pair: the vCPUs stand still from before the first byte until
// after the last, and a domain that ran in between is ErrResumed. QEMU itself
// copies the disks through its own block layer (a push backup), so that
// nothing it holds back is missing, no guest-written format is probed, and
// the domain keeps its images. Memory is copied from the file by which QEMU
// shares it, or where there is none dumped, never migrated, so that a domain that
// cannot migrate is captured like any other; the fact "memory image" says which.
// Empty and read-only drives are left out and listed.
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
	if err := k.endEarlier(ctx); err != nil {
		return nil, err
	}
	s := &Snapshot{VM: vm, Started: time.Now()}
	for _, part := range []func(context.Context, *Snapshot) error{k.describe, k.space, k.memory, k.disks, k.beside} {
		if err = part(ctx, s); err != nil {
			if ran.Load() {
				err = fmt.Errorf("%w (%w)", ErrResumed, err)
			}
			return nil, err
		}
	}
	err = c.still(ctx, vm)
	if ran.Load() || errors.Is(err, errRuns) { // its event may be on the way
		err = ErrResumed
	}
	if err != nil {
		return nil, err
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

// errRuns is of a domain that is active and not paused.
var errRuns = errors.New("pause it first")

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
	return fmt.Errorf("the domain is %s: %w", s, errRuns)
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

// CaptureBytes is how much a capture of an active domain may take, all of its
// memory and what its disks have allocated: an upper bound, but for what the
// guest writes meanwhile.
func (c *Client) CaptureBytes(ctx context.Context, vm uuid.UUID) (uint64, error) {
	text, err := c.XML(ctx, vm)
	if err != nil {
		return 0, err
	}
	var def libvirtxml.Domain
	if err := def.Unmarshal(text); err != nil {
		return 0, fmt.Errorf("read its description: %w", err)
	}
	return c.captureBytes(ctx, vm, &def)
}

func (c *Client) captureBytes(ctx context.Context, vm uuid.UUID, def *libvirtxml.Domain) (uint64, error) {
	const slack = 16 << 20 // for the core's notes and the images' tables
	need := uint64(slack)
	err := c.call(ctx, c.of(vm), func(l *libvirt.Libvirt) error {
		d := c.handle(vm)
		_, most, now, _, _, err := l.DomainGetInfo(d) // KiB
		if err != nil {
			return err
		}
		need += max(most, now) << 10
		for _, disk := range devices(def) {
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
		return 0, fmt.Errorf("measure: %w", err)
	}
	return need, nil
}

// space refuses what would not fit, before anything large is written.
func (k *taking) space(ctx context.Context, _ *Snapshot) error {
	need, err := k.c.captureBytes(ctx, k.vm, &k.def)
	if err != nil {
		return err
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
