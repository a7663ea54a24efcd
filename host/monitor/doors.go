package monitor

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/listen"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

// doors are the places where guests connect.
type doors struct {
	m      *Monitor
	hybrid *listen.HybridListener
	serial *listen.SerialListener
	vsock  *listen.VsockListener // nil: off
	cids   *cids

	mu    sync.Mutex
	open  map[uuid.UUID]string // hybrid sockets, by the names that they have
	ports map[uuid.UUID]string // sockets of virtio-serial ports
}

// cidSource knows the CID that a running domain has: libvirt.
type cidSource interface {
	CID(ctx context.Context, vm uuid.UUID) (uint32, error)
}

func newDoors(m *Monitor) *doors {
	return &doors{m: m, open: map[uuid.UUID]string{}, ports: map[uuid.UUID]string{}, cids: newCIDs(m.domains.list, m.libvirt)}
}

// prepare makes the listeners, and the sockets of what is enrolled already.
func (d *doors) prepare(context.Context) error {
	o := listen.Options{Refused: d.refused, Log: d.m.log}
	gid, err := d.group()
	if err != nil {
		return err
	}
	d.hybrid = listen.NewHybrid(d.m.cfg.Listen.HybridDir, d.serve, &listen.HybridOptions{Options: o, Group: gid})
	d.serial = listen.NewSerial(d.serve, &o)
	if d.m.cfg.Listen.Vsock == "on" || (d.m.cfg.Listen.Vsock == "auto" && hostVsock()) {
		d.vsock = listen.NewVsock(vsockproto.Port, d.cids, d.serve, &o)
	}
	d.update(d.m.domains.list())
	return nil
}

// hostVsock reports whether this kernel gives guests a vsock of its own.
func hostVsock() bool {
	_, err := os.Stat("/dev/vhost-vsock")
	return err == nil
}

// group is the configured one, else that of a directory that is there already,
// 0 for none.
func (d *doors) group() (int, error) {
	name := d.m.cfg.Listen.HybridGroup
	if name == "" {
		return dirGroup(d.m.cfg.Listen.HybridDir), nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("listen.hybrid_group: %w", err)
	}
	return strconv.Atoi(g.Gid)
}

// run takes connections until ctx ends.
func (d *doors) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.hybrid.Run(ctx) })
	g.Go(func() error { return d.serial.Run(ctx) })
	if d.vsock != nil {
		g.Go(func() error { return d.vsock.Run(ctx) })
	}
	return g.Wait()
}

// update gives every enrolled domain its socket, and takes it from those that
// are no longer.
func (d *doors) update(list []watched) {
	d.cids.drop(list)
	d.mu.Lock()
	defer d.mu.Unlock()
	want := map[uuid.UUID]domain.Transport{}
	for _, w := range list {
		if w.Enrolment == nil {
			continue
		}
		want[w.UUID] = w.Enrolment.Transport
		switch e := w.Enrolment; {
		case e.Transport == domain.VhostUser && d.open[w.UUID] != socketName(e):
			d.add(e)
		case e.Transport == domain.Serial && d.ports[w.UUID] != e.Socket:
			d.addPort(e)
		}
	}
	for vm := range d.open {
		if want[vm] != domain.VhostUser {
			d.hybrid.Remove(vm)
			delete(d.open, vm)
		}
	}
	for vm := range d.ports {
		if want[vm] != domain.Serial {
			d.serial.Remove(vm)
			delete(d.ports, vm)
		}
	}
}

// addPort is tried again with the next update, as add is.
func (d *doors) addPort(e *domain.Enrolment) {
	if err := d.serial.Add(e.UUID, e.Name, e.Socket); err != nil {
		d.m.log.Error("guest's port", "vm", e.Name, "error", err)
		return
	}
	d.ports[e.UUID] = e.Socket
}

// add is tried again with the next update where it does not work; it is logged
// each time, since the guest cannot be heard meanwhile.
func (d *doors) add(e *domain.Enrolment) {
	name := socketName(e)
	if have, want := d.hybrid.Path(name), e.Listen(); have != want {
		d.m.log.Error("enrolled for a socket elsewhere: set listen.hybrid_dir, or enroll again", "vm", e.Name, "enrolled", want, "listening", have)
	}
	if err := d.hybrid.Add(e.UUID, name); err != nil {
		d.m.log.Error("guest's socket", "vm", e.Name, "error", err)
		return
	}
	d.open[e.UUID] = name
}

// socketName is what enrolling called the socket: the domain's name, or its
// UUID where the name makes no file name.
func socketName(e *domain.Enrolment) string {
	return strings.TrimSuffix(filepath.Base(e.Socket), ".sock")
}

// names are the places, for people.
func (d *doors) names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, name := range d.open {
		out = append(out, d.hybrid.Path(name))
	}
	for _, path := range d.ports {
		out = append(out, path)
	}
	slices.Sort(out)
	if d.vsock != nil {
		out = append(out, fmt.Sprintf("vsock port %d", vsockproto.Port))
	}
	return out
}

func (d *doors) serve(ctx context.Context, conn net.Conn, vm uuid.UUID, transport string) {
	result := "accepted"
	if err := d.m.sessions.Serve(ctx, conn, vm, transport); err != nil {
		result = "refused"
		d.m.log.Info("connection ended", "vm", d.m.domains.name(vm), "transport", transport, "error", err)
	}
	d.m.metrics.Connection(result)
}

// refused turns a connection that was not taken into a finding.
func (d *doors) refused(r listen.Refusal) {
	d.m.metrics.Connection(r.Rule)
	d.m.judge.found(engine.Finding{
		VM: r.VM, Rule: r.Rule, Severity: engine.Medium, Reason: r.Reason,
		Detail: map[string]string{"transport": r.Transport, "peer": r.Peer, "before": strconv.Itoa(r.Before)},
	})
}

// cids finds domains by their CIDs. It asks libvirt once for each run of a
// domain, in which the CID does not change.
type cids struct {
	list   func() []watched
	source cidSource
	asking chan struct{} // held by who asks libvirt: after a start of the monitor all agents come at once

	mu    sync.Mutex
	known map[uuid.UUID]cidOfRun
}

type cidOfRun struct {
	run int // libvirt's id of the domain while it runs
	cid uint32
}

func newCIDs(list func() []watched, source cidSource) *cids {
	return &cids{list: list, source: source, asking: make(chan struct{}, 1), known: map[uuid.UUID]cidOfRun{}}
}

// speaks reports whether a domain can be the one that connects.
func (w *watched) speaks() bool {
	return w.Enrolment != nil && w.Enrolment.Transport == domain.KernelVsock && w.State.Active()
}

// DomainByCID finds the running domain that libvirt gave the CID.
func (c *cids) DomainByCID(ctx context.Context, cid uint32) (uuid.UUID, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	list := c.list()
	c.drop(list)
	if vm, ok := c.remembered(list, cid); ok {
		return vm, nil
	}
	select {
	case c.asking <- struct{}{}:
		defer func() { <-c.asking }()
	case <-ctx.Done():
		return uuid.Nil, fmt.Errorf("CID %d: %w", cid, ctx.Err())
	}
	var last error
	failed := 0
	for _, w := range list {
		if !w.speaks() {
			continue
		}
		have, err := c.of(ctx, w.UUID, w.ID)
		if err == nil && have == cid {
			return w.UUID, nil
		}
		if err != nil {
			last, failed = err, failed+1
		}
	}
	err := fmt.Errorf("CID %d: %w", cid, listen.ErrStranger)
	if failed > 0 {
		err = fmt.Errorf("%w; libvirt did not say it of %d domains: %w", err, failed, last)
	}
	return uuid.Nil, err
}

// remembered finds the domain without libvirt.
func (c *cids) remembered(list []watched, cid uint32) (uuid.UUID, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range list {
		if known, ok := c.known[w.UUID]; ok && known.cid == cid && known.run == w.ID && w.speaks() {
			return w.UUID, true
		}
	}
	return uuid.Nil, false
}

// of is a domain's CID. Of a run whose id is not known yet it is not kept.
func (c *cids) of(ctx context.Context, vm uuid.UUID, run int) (uint32, error) {
	c.mu.Lock()
	known, ok := c.known[vm]
	c.mu.Unlock()
	if ok && known.run == run {
		return known.cid, nil
	}
	cid, err := c.source.CID(ctx, vm)
	if err != nil || run < 0 {
		return cid, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known[vm] = cidOfRun{run, cid}
	return cid, nil
}

// drop forgets the CIDs of runs that are over: libvirt may give them to another
// domain, and a daemon of libvirt's that began anew counts its ids from one.
func (c *cids) drop(list []watched) {
	c.mu.Lock()
	defer c.mu.Unlock()
	runs := map[uuid.UUID]int{}
	for _, w := range list {
		if w.speaks() {
			runs[w.UUID] = w.ID
		}
	}
	for vm, known := range c.known {
		if run, ok := runs[vm]; !ok || run != known.run {
			delete(c.known, vm)
		}
	}
}

func dirGroup(path string) int {
	if st, err := os.Stat(path); err == nil {
		return groupOf(st)
	}
	return 0
}

func groupOf(st os.FileInfo) int {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(sys.Gid)
	}
	return 0
}
