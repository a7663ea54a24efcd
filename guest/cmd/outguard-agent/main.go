// SPDX-License-Identifier: Apache-2.0

// Outguard-agent forwards what the kernel of this virtual machine sees to the
// host. It has no configuration of its own beyond where its key and its channel
// are; what it reports is the host's to say.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/guest/control"
	"github.com/outguard/outguard/guest/sensor"
	"github.com/outguard/outguard/guest/uplink"
	"github.com/outguard/outguard/vsockproto/link"
)

const defaultKey = "/sys/firmware/qemu_fw_cfg/by_name/opt/outguard/key/raw"

// version is set by the linker.
var version = "development"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole program: 0 after an orderly end, 1 after a failure, 2 for
// arguments that make no sense.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("outguard-agent", flag.ContinueOnError)
	flags.SetOutput(stderr)
	key := flags.String("key", defaultKey, "file with the 32 bytes of the key that outguard enroll made")
	channel := flags.String("channel", "vsock:2:6820", "the way to the host: vsock:CID:PORT, serial:NAME (a virtio-serial port) or unix:PATH")
	show := flags.Bool("version", false, "say which version this is, and end")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "outguard-agent: unexpected argument %q\n", flags.Arg(0))
		return 2
	case *show:
		fmt.Fprintf(stdout, "outguard-agent %s %s\n", version, runtime.Version())
		return 0
	}
	dial, err := uplink.Dialer(*channel)
	if err != nil {
		fmt.Fprintln(stderr, "outguard-agent:", err)
		return 2
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	if err := serve(ctx, *key, dial, log); err != nil {
		fmt.Fprintln(stderr, "outguard-agent:", err)
		return 1
	}
	return 0
}

func serve(ctx context.Context, keyFile string, dial uplink.DialFunc, log *slog.Logger) (err error) {
	began := time.Now()
	settle()
	key, err := readKey(keyFile)
	if err != nil {
		return err
	}
	s, err := sensor.Open(&sensor.Options{Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	runtime.GC()         // gives up the kernel's types, which were needed to load
	debug.FreeOSMemory() // and what they took
	me, err := introduce(s)
	if err != nil {
		return err
	}
	log.Info("attached", "version", version, "taken_over", s.Resumed(), "hooks", attached(s.Hooks()), "ms", time.Since(began).Milliseconds())

	agent := link.NewAgent(key, &link.AgentOptions{
		Hold:    512 << 10, // two frames of the largest size, several of ours
		Frames:  sensor.MaxFrames,
		Journal: s.Journal(),
		// vhost-device-vsock 0.3.0 does not always tell a guest that the other end
		// of a connection has gone.
		Patience: 15 * time.Second,
	})
	if err := restore(agent, s); err != nil {
		return err
	}
	return uplink.New(uplink.Config{
		Link:     agent,
		Source:   s,
		Policies: control.New(s),
		Dial:     dial,
		Hello:    me.hello,
		Clock:    clock,
		Save:     func(st link.State) error { return s.Save(packState(st)) },
	}, &uplink.Options{Log: log, Stale: s.Resumed()}).Run(ctx)
}

// settle makes the runtime small. Its goroutines take turns on one processor: with
// a second one to give them, the runtime wakes another thread each time that one
// of them has something to do, to look for more, and that costs the guest more
// than what there is to do. What the kernel holds up in a system call does not
// stop the others: the runtime takes the processor away from it.
func settle() {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(16 << 20) // rather collect than grow while the programs are loaded
}
