package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// crowd is simulated agents at the sockets of the real monitor, beside the real
// guests. The first are prototest's abusers: their domains are real and run, as
// far as a BIOS without a disk does; the others have nothing but their enrolment.
type crowd struct {
	fleet *prototest.Fleet // of those that behave
	names []string         // of all
	sent  []uint64         // by those that behave
	made  []string         // domains
	stop  func() error     // ends the abuse and the sending
	leave func()           // and the connections
}

const (
	crowdUsage = "crowd start N|stop|whole|leave"
	crowdXML   = `<domain type='qemu'><name>%s</name><uuid>%s</uuid><memory unit='MiB'>16</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><on_poweroff>destroy</on_poweroff>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><memballoon model='none'/></devices></domain>`
)

func (w *world) crowdDo(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 0, crowdUsage)
	switch {
	case args[0] == "start" && len(args) == 2:
		n, err := strconv.Atoi(args[1])
		ts.Check(err)
		c := &crowd{}
		w.crowd = c
		ctx, cancel := bounded()
		defer cancel()
		ts.Check(c.start(ctx, w, n))
	case args[0] == "stop" && len(args) == 1:
		ts.Check(w.crowd.stop())
	case args[0] == "whole" && len(args) == 1:
		ctx, cancel := bounded()
		defer cancel()
		ts.Check(w.crowd.whole(ctx, w))
	case args[0] == "leave" && len(args) == 1:
		w.crowd.end()
		w.crowd = nil
	default:
		usage(ts, false, crowdUsage)
	}
}

func (c *crowd) start(starting context.Context, w *world, n int) error {
	abuses := prototest.Abuses()
	for i := range n {
		name := fmt.Sprintf("%s-crowd-%d-watched", w.site.Prefix, i)
		if i < len(abuses) {
			name = fmt.Sprintf("%s-crowd-%s-watched", w.site.Prefix, abuses[i].Name)
		}
		id := uuid.New()
		if i < len(abuses) {
			if err := c.domain(starting, name, id); err != nil {
				return err
			}
		}
		if err := enrolled(w, name, id); err != nil {
			return err
		}
		c.names = append(c.names, name)
	}
	if err := c.awaitSockets(w); err != nil {
		return err
	}
	c.fleet, c.sent = prototest.NewFleet(n-len(abuses), nil), make([]uint64, n-len(abuses))
	ctx, stop := context.WithCancel(context.Background())
	connected, leave := context.WithCancel(context.Background())
	var busy, there sync.WaitGroup
	c.stop = sync.OnceValue(func() error { stop(); return ended(&busy) })
	c.leave = sync.OnceFunc(func() { leave(); there.Wait() })
	there.Go(func() {
		c.fleet.Run(connected, func(i int) (net.Conn, error) { return c.dial(w, len(abuses)+i) })
	})
	if err := c.fleet.Up(starting); err != nil {
		return err
	}
	for i, abuse := range abuses {
		busy.Go(func() { _ = abuse.Do(ctx, func() (net.Conn, error) { return c.dial(w, i) }) }) // the script looks for what is found of it
	}
	for i, a := range c.fleet.Agents {
		busy.Go(func() {
			for ctx.Err() == nil && a.Send(connected, prototest.Sample(vsockproto.FileOpen)) == nil {
				c.sent[i]++
				time.Sleep(500 * time.Millisecond)
			}
		})
	}
	return nil
}

// ended waits for all of w, whose last record may wait for credit.
func ended(w *sync.WaitGroup) error {
	all := make(chan struct{})
	go func() { w.Wait(); close(all) }()
	select {
	case <-all:
		return nil
	case <-time.After(longest):
		return fmt.Errorf("after %s some of the crowd still send: they have no credit, or the monitor does not read", longest)
	}
}

func (c *crowd) dial(w *world, i int) (net.Conn, error) { return net.Dial("unix", c.socket(w, i)) }

func (c *crowd) socket(w *world, i int) string {
	return filepath.Join(w.layout.Run, "vsock", c.names[i]+".sock_6820")
}

// domain makes one that runs, and has nothing in it.
func (c *crowd) domain(ctx context.Context, name string, id uuid.UUID) error {
	away(ctx, name) // what a run that was killed left
	define := exec.CommandContext(ctx, "virsh", "-q", "define", "/dev/stdin")
	define.Stdin = strings.NewReader(fmt.Sprintf(crowdXML, name, id))
	for _, cmd := range []*exec.Cmd{define, exec.CommandContext(ctx, "virsh", "-q", "start", name)} {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
		}
		if cmd == define {
			c.made = append(c.made, name)
		}
	}
	return nil
}

// enrolled writes what `outguard enroll` would, for a domain whose guest is here.
func enrolled(w *world, name string, id uuid.UUID) error {
	dir := filepath.Join(w.layout.State, "enroll")
	base := filepath.Join(w.layout.Run, "vsock", name)
	text, err := json.Marshal(map[string]any{
		"version": 1, "uuid": id, "name": name, "transport": "vhost-user", "cid": 42, "vhost": base + ".vhost", "socket": base + ".sock",
		"key_file": "/dev/null", "key": fmt.Sprintf("%x", prototest.Key), "enrolled": time.Now().UTC(),
	})
	if err != nil {
		return err
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	tmp, owner := filepath.Join(filepath.Dir(dir), id.String()), fi.Sys().(*syscall.Stat_t)
	return errors.Join(os.WriteFile(tmp, text, 0o600), os.Chown(tmp, int(owner.Uid), int(owner.Gid)), os.Rename(tmp, filepath.Join(dir, id.String()+".json")))
}

func (c *crowd) awaitSockets(w *world) error {
	for end := time.Now().Add(longest); ; time.Sleep(100 * time.Millisecond) {
		missing := ""
		for i := range c.names {
			if _, err := os.Stat(c.socket(w, i)); err != nil {
				missing = c.names[i]
			}
		}
		if missing == "" || time.Now().After(end) {
			if missing != "" {
				return fmt.Errorf("the monitor listens for no agent of %s", missing)
			}
			return nil
		}
	}
}

// account is what the monitor has of a VM's records.
type account struct{ Received, Lost, Missing uint64 }

// whole fails unless the monitor has all that the well-behaved have sent. They go
// on answering canaries: each is asked about until it has answered none meanwhile.
func (c *crowd) whole(ctx context.Context, w *world) error {
	wrong := map[string]error{}
	for i := range c.fleet.Agents {
		wrong[c.name(i)] = nil
	}
	for len(wrong) > 0 {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(slices.Collect(maps.Values(wrong)), err)...)
		}
		if err := c.settle(ctx, w, wrong); err != nil {
			return err
		}
	}
	return nil
}

// settle asks once, and takes those out of wrong of whom all is there.
func (c *crowd) settle(ctx context.Context, w *world, wrong map[string]error) error {
	sung := make([]uint64, len(c.sent))
	for i, a := range c.fleet.Agents {
		sung[i] = a.Sung()
	}
	have, err := accounts(ctx, w)
	if err != nil {
		return err
	}
	for i := range c.fleet.Agents {
		name, sent := c.name(i), c.sent[i]+sung[i]
		if got := have[name]; got == (account{Received: sent}) {
			delete(wrong, name)
		} else if _, asked := wrong[name]; asked {
			wrong[name] = fmt.Errorf("%s: %+v, and %d were sent", name, got, sent)
		}
	}
	return nil
}

// name is that of the i-th that behaves.
func (c *crowd) name(i int) string { return c.names[len(c.names)-len(c.sent)+i] }

// accounts are all VMs', by name, over both classes.
func accounts(ctx context.Context, w *world) (map[string]account, error) {
	text, err := w.install.CLI(ctx, "vms", "--json")
	if err != nil {
		return nil, err
	}
	have := map[string]account{}
	for line := range strings.Lines(text) {
		var v struct {
			Name    string
			Classes []account
		}
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			return nil, err
		}
		var sum account
		for _, a := range v.Classes {
			sum = account{sum.Received + a.Received, sum.Lost + a.Lost, sum.Missing + a.Missing}
		}
		have[v.Name] = sum
	}
	return have, nil
}

// end takes everything away, also of a crowd that did not come to its start.
func (c *crowd) end() {
	ctx, cancel := bounded()
	defer cancel()
	if c.stop != nil {
		_ = c.stop() // the script has heard of it
		c.leave()
	}
	for _, name := range c.made {
		away(ctx, name)
	}
}

// away takes a domain away, if it is there.
func away(ctx context.Context, name string) {
	_ = exec.CommandContext(ctx, "virsh", "-q", "destroy", name).Run()
	_ = exec.CommandContext(ctx, "virsh", "-q", "undefine", name).Run()
}
