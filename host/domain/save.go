package domain

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
	"libvirt.org/go/libvirtxml"

	"github.com/outguard/outguard/host/failpoint"
)

// ErrNotRevertible: the domain cannot be saved so that it can be brought back.
// What wraps it says why.
var ErrNotRevertible error = permanent("the domain cannot be saved with its memory")

// ErrNoSave: there is nothing saved under that name.
var ErrNoSave error = permanent("nothing is saved under that name")

// Saved is a state of a domain that it can be brought back to.
type Saved struct {
	Name    string
	Created time.Time // to the second
	State   State     // of the domain when it was saved: Running or Paused
}

// savedPrefix marks libvirt's snapshots that are ours.
const savedPrefix = "outguard-"

var savedName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9-]{0,63}$`)

// Save keeps the memory and the disks of a running or paused domain, as they are at one
// moment, for Revert: as a snapshot of libvirt's called outguard-<name>, inside
// the domain's own images, which grow by it. The domain stands while it is made,
// and goes on as it was. A device that keeps the domain from being migrated (a
// vhost-user vsock), or a disk that the guest can write and that is not qcow2, is
// ErrNotRevertible.
func (c *Client) Save(ctx context.Context, vm uuid.UUID, name string) error {
	if err := c.save(ctx, vm, name); err != nil {
		return fmt.Errorf("save %s as %s: %w", vm, name, err)
	}
	return nil
}

func (c *Client) save(ctx context.Context, vm uuid.UUID, name string) error {
	if !savedName.MatchString(name) {
		return fmt.Errorf("%q is no name: letters, digits and dashes, at most 64", name)
	}
	if s, err := c.State(ctx, vm); err != nil {
		return err
	} else if s != Running && s != Paused {
		return fmt.Errorf("the domain is %s: %w", s, ErrNotRunning)
	}
	text, err := c.XML(ctx, vm)
	if err != nil {
		return err
	}
	if err := savable(text); err != nil {
		return err
	}
	request, err := xml.Marshal(&libvirtxml.DomainSnapshot{
		Name: savedPrefix + name, Description: "made by Outguard, for outguard revert",
		Memory: &libvirtxml.DomainSnapshotMemory{Snapshot: "internal"},
	})
	if err != nil {
		return err
	}
	return c.long(func(own *Client) error {
		// libvirt undoes nothing half-way: the call is not given up.
		return own.call(context.WithoutCancel(ctx), own.of(vm), func(l *libvirt.Libvirt) error {
			failpoint.At(failpoint.Asking)
			_, err := l.DomainSnapshotCreateXML(own.handle(vm), string(request), 0)
			failpoint.At(failpoint.Asked)
			return unsavable(err)
		})
	})
}

// long runs fn with a client of its own: its calls would keep others waiting.
func (c *Client) long(fn func(own *Client) error) error {
	own := New(&c.opts)
	defer own.Close()
	return fn(own)
}

// savable says what of a domain cannot be kept, before libvirt is asked.
func savable(text string) error {
	def := libvirtxml.Domain{}
	if err := def.Unmarshal(text); err != nil {
		return fmt.Errorf("read its description: %w", err)
	}
	var writable int
	for _, d := range devices(&def) {
		if leftOut(&d) != "" {
			continue
		}
		writable++
		if d.Driver == nil || d.Driver.Type != "qcow2" {
			return fmt.Errorf("%w: disk %s is no qcow2 image", ErrNotRevertible, d.Target.Dev)
		}
	}
	if writable == 0 { // QEMU puts the memory into a disk
		return fmt.Errorf("%w: it has no disk that it can write", ErrNotRevertible)
	}
	return nil
}

// unsavable puts ErrNotRevertible on libvirt's word for a device that does not
// migrate.
func unsavable(err error) error {
	var e libvirt.Error
	if errors.As(err, &e) && (strings.Contains(e.Message, "migrat") || libvirt.ErrorNumber(e.Code) == libvirt.ErrConfigUnsupported) {
		return fmt.Errorf("%w: %w", ErrNotRevertible, err)
	}
	return err
}

// Revert brings a domain, running or not, back to what Save kept, and leaves it
// running or paused. What it did since is gone, from its memory and its disks.
// libvirt replaces the QEMU process.
func (c *Client) Revert(ctx context.Context, vm uuid.UUID, name string, paused bool) error {
	flags, want := uint32(libvirt.DomainSnapshotRevertRunning), Running
	if paused {
		flags, want = uint32(libvirt.DomainSnapshotRevertPaused), Paused
	}
	err := c.long(func(own *Client) error {
		err := own.onSaved(context.WithoutCancel(ctx), vm, name, func(l *libvirt.Libvirt, s libvirt.DomainSnapshot) error {
			failpoint.At(failpoint.Asking)
			err := l.DomainRevertToSnapshot(s, flags)
			failpoint.At(failpoint.Asked)
			return err
		})
		if err != nil {
			return err
		}
		s, err := own.State(ctx, vm)
		if err == nil && s != want {
			err = fmt.Errorf("libvirt reported success, but the domain is %s", s)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("revert %s to %s: %w", vm, name, err)
	}
	return nil
}

// Unsave gives up what Save kept, and the room that it took. The domain may run.
func (c *Client) Unsave(ctx context.Context, vm uuid.UUID, name string) error {
	err := c.long(func(own *Client) error {
		return own.onSaved(context.WithoutCancel(ctx), vm, name, func(l *libvirt.Libvirt, s libvirt.DomainSnapshot) error {
			failpoint.At(failpoint.Asking)
			err := l.DomainSnapshotDelete(s, 0)
			failpoint.At(failpoint.Asked)
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("give up %s of %s: %w", name, vm, err)
	}
	return nil
}

func (c *Client) onSaved(ctx context.Context, vm uuid.UUID, name string, do func(*libvirt.Libvirt, libvirt.DomainSnapshot) error) error {
	return c.call(ctx, c.of(vm), func(l *libvirt.Libvirt) error {
		s, err := l.DomainSnapshotLookupByName(c.handle(vm), savedPrefix+name, 0)
		var e libvirt.Error
		if errors.As(err, &e) && libvirt.ErrorNumber(e.Code) == libvirt.ErrNoDomainSnapshot {
			return ErrNoSave
		}
		if err != nil {
			return err
		}
		return do(l, s)
	})
}

// Saved reports whether Save has kept something under that name.
func (c *Client) Saved(ctx context.Context, vm uuid.UUID, name string) (bool, error) {
	err := c.onSaved(ctx, vm, name, func(*libvirt.Libvirt, libvirt.DomainSnapshot) error { return nil })
	if errors.Is(err, ErrNoSave) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("saved states of %s: %w", vm, err)
	}
	return true, nil
}

// SavedStates lists what Save has kept of a domain, oldest first. Snapshots that
// others made are not among them.
func (c *Client) SavedStates(ctx context.Context, vm uuid.UUID) (all []Saved, err error) {
	err = c.read(ctx, c.of(vm), func(l *libvirt.Libvirt) error {
		all = nil
		snaps, _, err := l.DomainListAllSnapshots(c.handle(vm), 1, uint32(libvirt.DomainSnapshotListTopological))
		if err != nil {
			return err
		}
		for _, s := range snaps {
			name, ours := strings.CutPrefix(s.Name, savedPrefix)
			if !ours {
				continue
			}
			text, err := l.DomainSnapshotGetXMLDesc(s, 0)
			if err != nil {
				return err
			}
			state, err := parseSaved(text)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			state.Name = name
			all = append(all, state)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("saved states of %s: %w", vm, err)
	}
	return all, nil
}

// LastSaved is the name of what Save kept last before a moment, ErrNoSave where
// there is none. libvirt has the time of a state to the second: one of the same
// second is none from before.
func (c *Client) LastSaved(ctx context.Context, vm uuid.UUID, before time.Time) (string, error) {
	all, err := c.SavedStates(ctx, vm)
	if err != nil {
		return "", err
	}
	return lastBefore(all, before)
}

func lastBefore(all []Saved, before time.Time) (string, error) {
	last := Saved{}
	for _, s := range all {
		if !s.Created.Add(time.Second).After(before) && !s.Created.Before(last.Created) {
			last = s
		}
	}
	if last.Name == "" {
		return "", fmt.Errorf("%w: of %d saved states none is from before %s; outguard save makes one", ErrNoSave, len(all), before.UTC().Format(time.RFC3339))
	}
	return last.Name, nil
}

func parseSaved(text string) (Saved, error) {
	var d struct {
		State   string `xml:"state"`
		Created int64  `xml:"creationTime"`
	}
	if err := xml.Unmarshal([]byte(text), &d); err != nil {
		return Saved{}, fmt.Errorf("snapshot: %w", err)
	}
	s := Saved{Created: time.Unix(d.Created, 0).UTC(), State: Running}
	if d.State == "paused" {
		s.State = Paused
	}
	return s, nil
}
