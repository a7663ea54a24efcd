// Command outguard speaks to the monitor of this host, and reads what it keeps.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/outguard/outguard/host/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
