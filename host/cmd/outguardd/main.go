// Command outguardd is the monitor on a host.
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
	"syscall"

	"github.com/outguard/outguard/host/monitor"
	"github.com/outguard/outguard/host/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

const usage = `usage: outguardd [--config FILE] [--check] [--version]

outguardd watches the enrolled domains of this host. It runs in the foreground
and logs to standard error; SIGTERM stops it in order, SIGHUP has it read its
playbook anew.

`

// run returns 0 after a stop in order, 1 on an error, 2 on wrong usage.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("outguardd", flag.ContinueOnError)
	fs.SetOutput(stderr)
	config := fs.String("config", monitor.DefaultConfigPath, "configuration `file`")
	check := fs.Bool("check", false, "validate configuration and playbook, then exit")
	show := fs.Bool("version", false, "print the version, then exit")
	fs.Usage = func() { fmt.Fprint(stderr, usage); fs.PrintDefaults() }
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil || fs.NArg() > 0 {
		if fs.NArg() > 0 {
			fmt.Fprintf(stderr, "outguardd: unexpected argument %q\n", fs.Arg(0))
		}
		return 2
	}
	if *show {
		fmt.Fprintln(stdout, "outguardd", version.String())
		return 0
	}
	c, err := monitor.LoadConfig(*config)
	if err == nil && *check {
		err = monitor.Check(c)
	}
	if err != nil {
		fmt.Fprintln(stderr, "outguardd:", err)
		return 1
	}
	if *check {
		if _, err := os.Stat(*config); errors.Is(err, os.ErrNotExist) {
			fmt.Fprintf(stdout, "there is no %s: the defaults are ok\n", *config)
			return 0
		}
		fmt.Fprintln(stdout, *config+": ok")
		return 0
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: c.LogLevel()}))
	m := monitor.New(c, version.String(), log)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	m.Reloads(hangups)
	if err := m.Run(ctx); err != nil {
		log.Error("monitor stopped", "error", err)
		return 1
	}
	log.Info("stopped")
	return 0
}
