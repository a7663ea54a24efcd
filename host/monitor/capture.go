package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/host/bundle"
	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/respond"
	"github.com/outguard/outguard/plugins/engine"
)

const (
	// lead is how much of the record before the finding's event a bundle holds.
	lead = 2 * time.Minute
	// capturing is where a capture's parts are written before they are bundled.
	capturing = ".capture-"
)

// capturer makes bundles of paused VMs for respond, which stand for the first part
// of it alone: see taken.
type capturer struct {
	m *Monitor

	mu       sync.Mutex
	watching map[*watcher]bool    // who waits for a capture
	promised map[uuid.UUID]func() // by order: gives its room on the disk back
}

// watcher is told of a VM's captures: one may be packed while the next is taken.
type watcher struct {
	vm   uuid.UUID
	news chan *apipb.Progress // the newest that it has not been told
}

func newCapturer(m *Monitor) *capturer {
	return &capturer{m: m, watching: map[*watcher]bool{}, promised: map[uuid.UUID]func(){}}
}

// watch has tell told of the progress of vm's captures until the returned
// function is called.
func (c *capturer) watch(vm uuid.UUID, tell func(*apipb.Progress)) (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &watcher{vm, make(chan *apipb.Progress, 1)}
	c.watching[w] = true
	told := make(chan struct{})
	go func() {
		defer close(told)
		for p := range w.news {
			tell(p)
		}
	}()
	return func() {
		c.mu.Lock()
		delete(c.watching, w)
		close(w.news)
		c.mu.Unlock()
		<-told
	}
}

// tell leaves each watcher the newest: who does not read holds up no capture, of this VM
// or another.
func (c *capturer) tell(vm uuid.UUID, step string, done, total uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := range c.watching {
		if w.vm != vm {
			continue
		}
		select {
		case <-w.news:
		default:
		}
		w.news <- &apipb.Progress{Step: step, Done: done, Total: total}
	}
}

// Take takes memory and disks into a directory of the order's. The room that was
// promised for them is until they are packed.
func (c *capturer) Take(ctx context.Context, o respond.Order) (time.Time, error) {
	if err := os.RemoveAll(c.dir(o)); err != nil { // of an attempt before
		return time.Time{}, err
	}
	need, err := c.m.libvirt.CaptureBytes(ctx, o.VM)
	if err != nil {
		return time.Time{}, err
	}
	done, err := c.m.shelf.promise(o.ID, need)
	if err != nil {
		return time.Time{}, err
	}
	shot, err := c.take(ctx, o)
	if err != nil {
		done()
		return time.Time{}, err
	}
	c.mu.Lock()
	c.promised[o.ID] = done
	c.mu.Unlock()
	return shot.Finished, nil
}

func (c *capturer) take(ctx context.Context, o respond.Order) (*domain.Snapshot, error) {
	dir := c.dir(o)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	shot, err := c.m.libvirt.Capture(ctx, o.VM, dir, &domain.CaptureOptions{Progress: func(p domain.Progress) {
		c.tell(o.VM, p.Part, p.Done, p.Total)
	}})
	if err == nil {
		shot.Claims = c.agent(o.VM)
		err = keepTaken(dir, shot)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return shot, nil
}

// Pack packs what was taken with the record.
func (c *capturer) Pack(ctx context.Context, o respond.Order) (string, error) {
	defer c.release(o.ID)
	whole, err := c.m.shelf.of(o.ID)
	if err != nil {
		return "", err
	}
	if whole != nil { // by an earlier process
		return c.packed(ctx, o, whole.dir)
	}
	shot, err := c.taken(o)
	if err == nil && shot == nil {
		err = fmt.Errorf("nothing was taken: %w", fs.ErrNotExist)
	}
	if err != nil {
		return "", err
	}
	path, err := c.pack(ctx, o, shot)
	if err != nil {
		return "", fmt.Errorf("%w; memory and disks stay in %s", err, c.dir(o)) // there is no second copy
	}
	return c.packed(ctx, o, path)
}

// packed comes to the end of a capture whose bundle is whole.
func (c *capturer) packed(ctx context.Context, o respond.Order, path string) (string, error) {
	left, err := bundle.Partial(c.m.bundleDir(), o.ID.String())
	for _, dir := range append(left, c.dir(o)) { // its parts are in the bundle
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		c.m.log.Warn("what is left of a capture", "order", o.ID, "error", err)
	}
	return c.inForm(ctx, o, path)
}

// release gives back what was promised of the disk.
func (c *capturer) release(order uuid.UUID) {
	c.mu.Lock()
	done := c.promised[order]
	delete(c.promised, order)
	c.mu.Unlock()
	if done != nil {
		done()
	}
}

func (c *capturer) pack(ctx context.Context, o respond.Order, shot *domain.Snapshot) (string, error) {
	spec, err := c.spec(o, shot)
	if err != nil {
		return "", err
	}
	return bundle.Create(ctx, c.m.bundleDir(), spec, c.m.store.Key())
}

// Captured finds the bundle that an earlier process finished for the order, or
// else what it took for one. One that is to be an archive yet is not finished: the
// VM's next orders do not wait for that.
func (c *capturer) Captured(ctx context.Context, o respond.Order) (string, time.Time, error) {
	whole, err := c.m.shelf.of(o.ID)
	switch {
	case err != nil:
		return "", time.Time{}, err
	case whole != nil && !c.formed(whole.dir):
		return "", whole.manifest.Created, nil
	case whole != nil:
		path, err := c.packed(ctx, o, whole.dir)
		return path, time.Time{}, err
	}
	partial, err := bundle.Partial(c.m.bundleDir(), "")
	if err != nil {
		return "", time.Time{}, err
	}
	shot, err := readTaken(c.dir(o), partial)
	if err != nil || shot == nil {
		return "", time.Time{}, err
	}
	return "", shot.Finished, nil
}

// taken is what was taken for an order by this process, or found by it.
func (c *capturer) taken(o respond.Order) (*domain.Snapshot, error) {
	return readTaken(c.dir(o), nil)
}

// spec says what the bundle of an order holds.
func (c *capturer) spec(o respond.Order, shot *domain.Snapshot) (*bundle.Spec, error) {
	finding, err := c.finding(o)
	if err != nil {
		return nil, err
	}
	stream, err := c.m.store.Stream(o.VM)
	if err != nil {
		return nil, err
	}
	from, err := c.first(o)
	if err != nil {
		return nil, err
	}
	head, err := stream.SignHead()
	if err != nil {
		return nil, err
	}
	after, err := c.after(o, finding)
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname()
	entries := c.group(o)
	s := &bundle.Spec{
		Host: host, VM: o.VM, VMName: o.Name, Finding: o.Finding, Order: o.ID.String(), Received: o.Received,
		Stream: stream.Dir(), From: from, To: head.Records, Timeline: timelineOf(o, finding, after, entries, shot, time.Now()),
		Progress: func(part string, done, total int64) { c.tell(o.VM, "pack "+part, uint64(done), uint64(total)) },
	}
	told := c.story(o, finding, from)
	s.Page = told.page(o, c.orders(o))
	s.Parts = append(parts(shot), bundle.Part{Path: bundle.EventsPart, Data: told.lines(o.Name)})
	s.Parts = append(s.Parts, c.machine(o, shot, s.Page)...)
	for name, v := range map[string]any{
		bundle.FindingPart: finding, bundle.FindingsPart: told.findings, bundle.DecisionsPart: told.decided, bundle.OrdersPart: entries, "capture.json": files(shot),
	} {
		text, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return nil, err
		}
		s.Parts = append(s.Parts, bundle.Part{Path: name, Data: append(safe.JSON(nil, text), '\n')})
	}
	return s, nil
}

// story reads what the record tells around the order's finding, or the capture.
func (c *capturer) story(o respond.Order, f *engine.Finding, from uint64) *story {
	st, _ := c.m.sessions.StatusOf(o.VM)
	session, since := st.Session, st.Since
	if f != nil && f.Ref != nil && f.Ref.Session != session {
		session, since = f.Ref.Session, time.Time{} // when it began nobody knows here
	}
	s := tell(c.m.reader(o.VM), o.VM, session, f, from, since)
	if s.broken != nil {
		c.m.log.Error("what a bundle tells of the record", "order", o.ID, "error", s.broken)
	}
	return s
}

// maxOrders bounds the orders on a bundle's page.
const maxOrders = 100

// orders returns the VM's orders of the bundle's time, in their order.
func (c *capturer) orders(o respond.Order) []respond.Entry {
	var out []respond.Entry
	err := c.m.journal.Entries(func(e respond.Entry) bool {
		if e.Order.VM == o.VM {
			out = append([]respond.Entry{e}, out...)
		}
		return !e.Order.Given.Before(o.Given.Add(-lead)) && len(out) < maxOrders
	})
	if err != nil {
		c.m.log.Error("orders of a bundle", "order", o.ID, "error", err)
	}
	return out
}

// parts moves the capture's files to their places in the bundle.
func parts(shot *domain.Snapshot) []bundle.Part {
	var out []bundle.Part
	for _, f := range shot.Files {
		out = append(out, bundle.Part{Path: partPath(f), Source: f.Path})
	}
	return out
}

func partPath(f domain.File) string {
	switch f.Kind {
	case "memory":
		return bundle.MemoryPart
	case "disk":
		return bundle.DisksPart + "/" + strings.TrimPrefix(filepath.Base(f.Path), "disk-")
	case "xml":
		return bundle.DomainPart
	}
	return filepath.Base(f.Path)
}

// files is the capture's own account, with the paths that its files have in
// the bundle.
func files(shot *domain.Snapshot) *domain.Snapshot {
	s := *shot
	s.Files = append([]domain.File{}, shot.Files...)
	for i := range s.Files {
		s.Files[i].Path = partPath(s.Files[i])
	}
	return &s
}

// finding reads the order's finding from the record; nil for a manual order.
func (c *capturer) finding(o respond.Order) (*engine.Finding, error) {
	if o.Finding == "" {
		return nil, nil
	}
	var found *engine.Finding
	err := c.m.reader(o.VM).ReadTime(o.Found.Add(-time.Second), o.Given.Add(time.Second), func(r *evidence.Record) error {
		if r.Kind != evidence.KindFinding {
			return nil
		}
		f, err := unmarshal[engine.Finding](r)
		if err != nil || f.ID != o.Finding {
			return err
		}
		found = &f
		return evidence.ErrStop
	})
	if err == nil && found == nil {
		err = fmt.Errorf("finding %s is not on record: %w", o.Finding, fs.ErrNotExist)
	}
	return found, err
}

// maxAfter is how many findings a timeline tells beside its own.
const maxAfter = 20

// after reads what else was found of the VM from the order's finding until now:
// what the intruder did before the vCPUs stood.
func (c *capturer) after(o respond.Order, f *engine.Finding) ([]engine.Finding, error) {
	if f == nil {
		return nil, nil
	}
	var out []engine.Finding
	err := c.m.reader(o.VM).ReadTime(f.At, time.Now(), func(r *evidence.Record) error {
		if r.Kind != evidence.KindFinding {
			return nil
		}
		g, err := unmarshal[engine.Finding](r)
		if err != nil || g.ID == f.ID {
			return err
		}
		if out = append(out, g); len(out) == maxAfter {
			return evidence.ErrStop
		}
		return nil
	})
	return out, err
}

// first is the index of the first record that belongs into the bundle.
func (c *capturer) first(o respond.Order) (uint64, error) {
	about := o.Received
	if about.IsZero() {
		about = o.Given
	}
	reader := c.m.reader(o.VM)
	first, next, err := reader.Bounds()
	if err != nil {
		return 0, err
	}
	from := next
	err = reader.ReadTime(about.Add(-lead), time.Now().Add(time.Hour), func(r *evidence.Record) error {
		from = r.Index
		return evidence.ErrStop
	})
	return max(first, from), err
}

// group returns the orders of o's request so far, in their order, o without a
// result; those after it may have one.
func (c *capturer) group(o respond.Order) []respond.Entry {
	var out []respond.Entry
	err := c.m.journal.Entries(func(e respond.Entry) bool {
		if e.Order.Group == o.Group {
			out = append([]respond.Entry{e}, out...)
		}
		return !e.Order.Given.Before(o.Given.Add(-time.Minute))
	})
	if err != nil {
		c.m.log.Error("orders of a bundle", "order", o.ID, "error", err)
	}
	return out
}
