package domain

import (
	"cmp"
	"context"
	"encoding/xml"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/failpoint"
)

// State is what libvirt says of a domain.
type State uint8

// The states. Running includes libvirt's "blocked", which QEMU never reports.
const (
	Unknown State = iota
	Running
	Paused
	ShuttingDown
	ShutOff
	Crashed
	Suspended // the guest put itself to sleep
)

var stateNames = [...]string{"unknown", "running", "paused", "shutting down", "shut off", "crashed", "suspended"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "unknown"
}

// Active reports whether a QEMU process holds the domain.
func (s State) Active() bool {
	return s == Running || s == Paused || s == ShuttingDown || s == Suspended
}

func toState(n int32) State {
	switch libvirt.DomainState(n) {
	case libvirt.DomainRunning, libvirt.DomainBlocked:
		return Running
	case libvirt.DomainPaused:
		return Paused
	case libvirt.DomainShutdown:
		return ShuttingDown
	case libvirt.DomainShutoff:
		return ShutOff
	case libvirt.DomainCrashed:
		return Crashed
	case libvirt.DomainPmsuspended:
		return Suspended
	}
	return Unknown
}

// Domain is one libvirt domain.
type Domain struct {
	UUID  uuid.UUID
	Name  string
	ID    int // libvirt's number while it is active, else -1
	State State
}

// filters are libvirt's, with the state that each stands for; Unknown has to
// be asked for.
var filters = []struct {
	flag  libvirt.ConnectListAllDomainsFlags
	state State
}{
	{libvirt.ConnectListDomainsRunning, Running},
	{libvirt.ConnectListDomainsPaused, Paused},
	{libvirt.ConnectListDomainsShutoff, ShutOff},
	{libvirt.ConnectListDomainsOther, Unknown},
}

// List returns all domains, active or not, sorted by name.
func (c *Client) List(ctx context.Context) ([]Domain, error) {
	var found map[uuid.UUID]Domain
	err := c.read(ctx, &c.lines[0], func(l *libvirt.Libvirt) error {
		found = map[uuid.UUID]Domain{}
		for _, f := range filters { // by state: one call for thousands of domains
			ds, _, err := l.ConnectListAllDomains(1, f.flag)
			if err != nil {
				return err
			}
			for _, d := range ds {
				if err := c.add(l, found, d, f.state); err != nil {
					return err
				}
			}
		}
		ds, _, err := l.ConnectListAllDomains(1, 0)
		if err != nil {
			return err
		}
		for _, d := range ds { // one that changed its state meanwhile slipped through
			if _, ok := found[uuid.UUID(d.UUID)]; !ok {
				if err := c.add(l, found, d, Unknown); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list domains: %w", err)
	}
	return slices.SortedFunc(maps.Values(found), func(a, b Domain) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.UUID.String(), b.UUID.String()))
	}), nil
}

// add puts a domain among those found; one that is gone by now is left out.
func (c *Client) add(l *libvirt.Libvirt, found map[uuid.UUID]Domain, d libvirt.Domain, s State) error {
	got := Domain{UUID: uuid.UUID(d.UUID), Name: d.Name, ID: int(d.ID), State: s}
	if s == Unknown {
		var err error
		if got, err = c.describe(l, d); libvirt.IsNotFound(err) {
			return nil
		} else if err != nil {
			return err
		}
	}
	c.remember(d)
	found[got.UUID] = got
	return nil
}

func (c *Client) describe(l *libvirt.Libvirt, d libvirt.Domain) (Domain, error) {
	n, _, err := l.DomainGetState(d, 0)
	if err != nil {
		return Domain{}, err
	}
	c.remember(d)
	return Domain{UUID: uuid.UUID(d.UUID), Name: d.Name, ID: int(d.ID), State: toState(n)}, nil
}

// Lookup finds a domain by its name, or by its UUID where no domain has that
// text as its name.
func (c *Client) Lookup(ctx context.Context, nameOrUUID string) (Domain, error) {
	var out Domain
	err := c.read(ctx, &c.lines[0], func(l *libvirt.Libvirt) error {
		d, err := l.DomainLookupByName(nameOrUUID)
		if libvirt.IsNotFound(err) {
			if id, perr := uuid.Parse(nameOrUUID); perr == nil {
				d, err = l.DomainLookupByUUID(libvirt.UUID(id))
			}
		}
		if err == nil {
			out, err = c.describe(l, d)
		}
		return err
	})
	if err != nil {
		return Domain{}, fmt.Errorf("domain %q: %w", nameOrUUID, err)
	}
	return out, nil
}

// State returns the domain's state.
func (c *Client) State(ctx context.Context, vm uuid.UUID) (State, error) {
	var s State
	err := c.read(ctx, c.of(vm), func(l *libvirt.Libvirt) error {
		n, _, err := l.DomainGetState(c.handle(vm), 0)
		s = toState(n)
		return err
	})
	if err != nil {
		return Unknown, fmt.Errorf("state of %s: %w", vm, err)
	}
	return s, nil
}

// Paused reports whether libvirt says that the domain is paused.
func (c *Client) Paused(ctx context.Context, vm uuid.UUID) (bool, error) {
	s, err := c.State(ctx, vm)
	return s == Paused, err
}

// Pause stops all vCPUs and returns when libvirt says that they are stopped;
// a domain that is paused already is no error.
func (c *Client) Pause(ctx context.Context, vm uuid.UUID) error {
	if err := c.change(ctx, vm, Paused, (*libvirt.Libvirt).DomainSuspend); err != nil {
		return fmt.Errorf("pause %s: %w", vm, err)
	}
	return nil
}

// Resume lets the vCPUs of a paused domain run and returns when libvirt says
// that they do; a domain that runs already is no error.
func (c *Client) Resume(ctx context.Context, vm uuid.UUID) error {
	if err := c.change(ctx, vm, Running, (*libvirt.Libvirt).DomainResume); err != nil {
		return fmt.Errorf("resume %s: %w", vm, err)
	}
	return nil
}

// change asks for a state and checks that it has come about.
func (c *Client) change(ctx context.Context, vm uuid.UUID, want State, ask func(*libvirt.Libvirt, libvirt.Domain) error) error {
	return c.inTurn(ctx, vm, func(l *libvirt.Libvirt) error {
		d := c.handle(vm)
		failpoint.At(failpoint.Asking)
		asked := ask(l, d)
		failpoint.At(failpoint.Asked)
		if lost(asked) {
			return asked
		}
		n, _, err := l.DomainGetState(d, 0)
		switch {
		case err == nil && toState(n) == want:
			return nil // whatever was answered: the effect is there
		case asked != nil:
			return asked
		case err != nil:
			return err
		}
		return fmt.Errorf("libvirt reported success, but the domain is %s", toState(n))
	})
}

// XML returns the domain's live description, without secrets.
func (c *Client) XML(ctx context.Context, vm uuid.UUID) (string, error) {
	return c.xml(ctx, vm, 0)
}

func (c *Client) xml(ctx context.Context, vm uuid.UUID, flags libvirt.DomainXMLFlags) (string, error) {
	var out string
	err := c.read(ctx, c.of(vm), func(l *libvirt.Libvirt) (err error) {
		out, err = l.DomainGetXMLDesc(c.handle(vm), flags)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("describe %s: %w", vm, err)
	}
	return out, nil
}

// CID returns the guest's vsock address by libvirt's own <vsock> device, or 0
// where the domain has none. It is fixed while the domain is active.
func (c *Client) CID(ctx context.Context, vm uuid.UUID) (uint32, error) {
	text, err := c.XML(ctx, vm)
	if err != nil {
		return 0, err
	}
	return parseCID(text)
}

// parseCID reads only the one element; the rest of the description may be of
// any later libvirt's making.
func parseCID(text string) (uint32, error) {
	var d struct {
		CID struct {
			Address string `xml:"address,attr"`
		} `xml:"devices>vsock>cid"`
	}
	if err := xml.Unmarshal([]byte(text), &d); err != nil {
		return 0, fmt.Errorf("vsock address: %w", err)
	}
	if d.CID.Address == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(d.CID.Address, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("vsock address: %w", err)
	}
	return uint32(n), nil
}

// PortOpen reports whether the guest has its end of the port PortName open. It is
// QEMU's word, not that of anybody in the guest but its kernel.
func (c *Client) PortOpen(ctx context.Context, vm uuid.UUID) (bool, error) {
	text, err := c.XML(ctx, vm)
	if err != nil {
		return false, err
	}
	open, err := parsePort(text)
	if err != nil {
		return false, fmt.Errorf("port of %s: %w", vm, err)
	}
	return open, nil
}

// parsePort reads only the one element, as parseCID does.
func parsePort(text string) (open bool, err error) {
	var d struct {
		Targets []struct {
			Name  string `xml:"name,attr"`
			State string `xml:"state,attr"`
		} `xml:"devices>channel>target"`
	}
	if err := xml.Unmarshal([]byte(text), &d); err != nil {
		return false, fmt.Errorf("virtio-serial ports: %w", err)
	}
	for _, t := range d.Targets {
		if t.Name == PortName && t.State != "" {
			return t.State == "connected", nil
		}
	}
	return false, fmt.Errorf("no %s that runs", PortName)
}

// CPUTime returns the time that all vCPUs of an active domain have run since
// it started. Where QEMU runs them in one thread it is the process's time.
func (c *Client) CPUTime(ctx context.Context, vm uuid.UUID) (time.Duration, error) {
	var sum uint64
	err := c.read(ctx, c.of(vm), func(l *libvirt.Libvirt) error {
		d := c.handle(vm)
		_, _, _, n, total, err := l.DomainGetInfo(d)
		if err != nil {
			return err
		}
		sum = total
		vcpus, _, err := l.DomainGetVcpus(d, int32(n), 0)
		if err != nil {
			if lost(err) {
				return err
			}
			return nil
		}
		sum = 0
		for _, v := range vcpus {
			sum += v.CPUTime
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("CPU time of %s: %w", vm, err)
	}
	return time.Duration(sum), nil
}
