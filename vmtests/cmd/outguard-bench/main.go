// Outguard-bench runs every benchmark of the module and prints one line for
// each number.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"github.com/outguard/outguard/vmtests/bench"
	"github.com/outguard/outguard/vmtests/soak"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("outguard-bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	bin := flags.String("bin", "bin", "where the binaries were built")
	time := flags.String("benchtime", "1s", "how long each benchmark runs, as go test takes it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	fi, err := os.Stat(filepath.Join(*bin, "outguard-agent"))
	if err != nil {
		return fmt.Errorf("agent: %w (make build makes it)", err)
	}
	fmt.Fprintf(stdout, "bench agent/binary %.2f MB\n", float64(fi.Size())/1e6)

	r, err := bench.AgentResident(ctx, *bin)
	if err != nil {
		return fmt.Errorf("agent in a guest: %w", err)
	}
	fmt.Fprintf(stdout, "bench agent/resident %.1f MB\nbench agent/resident-peak %.1f MB\n", float64(r.Now)*1024/1e6, float64(r.Peak)*1024/1e6)

	silences, err := soak.Detect(ctx, soak.Options{Clone: filepath.Dir(*bin), Out: stderr})
	if err != nil {
		return fmt.Errorf("silences of a guest: %w", err)
	}
	for _, s := range silences {
		fmt.Fprintf(stdout, "bench silence/%s %.2f s\n", s.Name, s.After.Seconds())
	}

	packages := flags.Args()
	if len(packages) == 0 {
		packages = []string{"./..."}
	}
	// One package after the other: they would disturb each other's figures.
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-p=1", "-run=^$", "-bench=.", "-benchmem", "-benchtime=" + *time}, packages...)...)
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	n, err := bench.Filter(stdout, out)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return err
	}
	if n == 0 {
		return errors.New("no benchmark printed a number")
	}
	return nil
}
