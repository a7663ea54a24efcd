// Outguard-soak is `make soak`.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/outguard/outguard/vmtests/soak"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run returns 1 where something was not as it should be, 2 for arguments that
// make no sense.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("outguard-soak", flag.ContinueOnError)
	flags.SetOutput(stderr)
	length := flags.Duration("for", 20*time.Minute, "how long faults are injected")
	seed := flags.Uint64("seed", 0, "the order of faults is made of it; 0: of the time")
	only := flags.String("only", "", "the one kind of fault to inject, as the table names it")
	transport := flags.String("transport", soak.Vsock, "how the guest reaches the host: serial (a virtio-serial port) or vsock")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	clone, err := filepath.Abs(".")
	if err == nil {
		err = soak.Run(ctx, soak.Options{Clone: clone, For: *length, Seed: *seed, Only: *only, Out: stdout, Transport: *transport})
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	fmt.Fprintln(stdout, "soak: ok")
	return 0
}
