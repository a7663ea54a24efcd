package domain

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
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
