package domain

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"
)

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
	return k.during(ctx, "disks", k.abort, k.backupDone)
}

// endEarlier ends the copying of disks that a capture began into a directory beside
// this one's and that nobody ended: its process was killed, or libvirtd went away. The
// domain is held by it, and QEMU goes on writing to files that are gone.
func (k *taking) endEarlier(ctx context.Context) error {
	var text string
	err := k.c.call(ctx, k.c.of(k.vm), func(l *libvirt.Libvirt) (err error) {
		text, err = l.DomainBackupGetXMLDesc(k.c.handle(k.vm), 0)
		return err
	})
	if errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	var b libvirtxml.DomainBackup
	if err != nil || b.Unmarshal(text) != nil || !into(&b, filepath.Dir(k.dir)) {
		return nil // none, or somebody else's
	}
	k.c.log.Warn("the disks are still copied for an earlier capture; that is ended", "vm", k.vm)
	k.abort()
	for end := time.Now().Add(abortWithin); ; {
		j, err := k.job(ctx, 0)
		switch {
		case err != nil:
			return err
		case j.kind == 0:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("the disks are still copied for an earlier capture: not ended within %s", abortWithin)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// into reports whether a backup writes into directories of dir.
func into(b *libvirtxml.DomainBackup, dir string) bool {
	if b.Push == nil || b.Push.Disks == nil {
		return false
	}
	return slices.ContainsFunc(b.Push.Disks.Disks, func(d libvirtxml.DomainBackupPushDisk) bool {
		return d.Target != nil && d.Target.File != nil && filepath.Dir(filepath.Dir(d.Target.File.File)) == dir
	})
}

// backupDone returns when no job is under way any more, with how it ended.
func (k *taking) backupDone() error {
	ctx := context.Background() // ends with the job, which during aborts
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		j, err := k.job(ctx, 0)
		if err != nil && !errors.Is(err, ErrUnreachable) { // it goes on without libvirtd
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
