package domain

import (
	"context"
	"fmt"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
)

// EventKind is what happened to a domain.
type EventKind uint8

// The kinds. Resync stands for every event that may have been missed: it
// comes first after each connection, names no domain, and asks the watcher to
// look at List again.
const (
	Resync EventKind = iota + 1
	Defined
	Undefined
	Started
	Stopped
	Shutdown // the guest has ended; QEMU's Stopped follows
	SuspendedEvent
	ResumedEvent
	CrashedEvent
	Asleep // the guest put itself to sleep
	Rebooted
)

var kindNames = [...]string{"", "resync", "defined", "undefined", "started", "stopped", "shutdown", "suspended", "resumed", "crashed", "asleep", "rebooted"}

func (k EventKind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return ""
}

// Event is one change in a domain's life.
type Event struct {
	VM     uuid.UUID // zero for Resync
	Name   string
	Kind   EventKind
	Reason string    // libvirt's word for why, "" where it gives none
	At     time.Time // when it arrived here
}

// Watch calls handle for every change in any domain's life, from one
// goroutine, until ctx ends or the client is closed; it returns ctx's error or
// ErrClosed. It has a connection of its own, which it makes again whenever it was
// lost, waiting 100 ms at first and 5 s at most; every new one begins with Resync.
// handle should not block for long: events wait in memory behind it, and so does
// Close.
func (c *Client) Watch(ctx context.Context, handle func(Event)) error {
	if err := c.begin(); err != nil {
		return err
	}
	defer c.pending.Done()
	watch, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(c.life, stop)()
	const least, most = 100 * time.Millisecond, 5 * time.Second
	said := ""
	for wait := least; watch.Err() == nil; wait = min(2*wait, most) {
		began := time.Now()
		err := c.watchOnce(watch, handle)
		if watch.Err() != nil {
			break
		}
		if time.Since(began) > most {
			wait, said = least, ""
		}
		if text := fmt.Sprint(err); text != said { // once for each way to fail
			c.log.Warn("watching domains was interrupted; trying again", "error", err)
			said = text
		}
		select {
		case <-watch.Done():
		case <-time.After(wait):
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return ErrClosed
}

// watchOnce watches over one connection, and hangs up.
//
// It never takes a subscription back: the connection's end does that. libvirtd
// (9.0.0) crashes where a connection ends while it takes one back there, and the
// library does so unasked, at its context's end, and tells nobody when it is done.
func (c *Client) watchOnce(ctx context.Context, handle func(Event)) error {
	var n line
	conn, err := c.connect(&n)
	if err != nil {
		return err
	}
	// A libvirtd that does not answer the first calls is not waited for.
	raw := conn.raw
	defer context.AfterFunc(ctx, func() { time.AfterFunc(leaveWithin, func() { _ = raw.Close() }) })()
	var life <-chan libvirt.DomainEventLifecycleMsg
	var boots <-chan any
	defer func() {
		n.hangUp()
		for life != nil || boots != nil { // the library needs its channels emptied to let go of them
			select {
			case _, ok := <-life:
				if !ok {
					life = nil
				}
			case _, ok := <-boots:
				if !ok {
					boots = nil
				}
			}
		}
	}()
	if boots, err = conn.SubscribeEvents(context.Background(), libvirt.DomainEventIDReboot, nil); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	if life, err = conn.LifecycleEvents(context.Background()); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	handle(Event{Kind: Resync, At: time.Now()})
	for {
		select {
		case m, ok := <-life:
			if !ok {
				life = nil
				return fmt.Errorf("watch: %w", ErrUnreachable)
			}
			handle(c.lifecycle(m))
		case m, ok := <-boots:
			if !ok {
				boots = nil
				return fmt.Errorf("watch: %w", ErrUnreachable)
			}
			if r, ok := m.(*libvirt.DomainEventCallbackRebootMsg); ok {
				handle(c.event(r.Msg.Dom, Rebooted, ""))
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *Client) event(d libvirt.Domain, kind EventKind, reason string) Event {
	c.remember(d)
	return Event{VM: uuid.UUID(d.UUID), Name: d.Name, Kind: kind, Reason: reason, At: time.Now()}
}

// lifeWords are libvirt's kinds of lifecycle event, in its order, each with
// the words for its details, in theirs.
var lifeWords = [...]struct {
	kind    EventKind
	details []string
}{
	{Defined, []string{"added", "updated", "renamed", "from snapshot"}},
	{Undefined, []string{"removed", "renamed"}},
	{Started, []string{"booted", "migrated", "restored", "from snapshot", "wakeup", "recreated"}},
	{SuspendedEvent, []string{"paused", "migrated", "io error", "watchdog", "restored", "from snapshot", "api error", "postcopy", "postcopy failed"}},
	{ResumedEvent, []string{"unpaused", "migrated", "from snapshot", "postcopy", "postcopy failed"}},
	{Stopped, []string{"shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from snapshot", "recreated"}},
	{Shutdown, []string{"finished", "by the guest", "by the host"}},
	{Asleep, []string{"memory", "disk"}},
	{CrashedEvent, []string{"panicked", "crashloaded"}},
}

func (c *Client) lifecycle(m libvirt.DomainEventLifecycleMsg) Event {
	kind, reason := words(m.Event, m.Detail)
	return c.event(m.Dom, kind, reason)
}

func words(event, detail int32) (EventKind, string) {
	if event < 0 || int(event) >= len(lifeWords) {
		return 0, fmt.Sprintf("event %d detail %d", event, detail)
	}
	w := lifeWords[event]
	if detail < 0 || int(detail) >= len(w.details) {
		return w.kind, fmt.Sprintf("detail %d", detail)
	}
	return w.kind, w.details[detail]
}
