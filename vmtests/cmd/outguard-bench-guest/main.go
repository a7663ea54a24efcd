// Outguard-bench-guest measures what the agent costs a guest, on each stock
// kernel, and prints one line for each number. With -doc it writes the table
// into a document as well, between its two marks.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"github.com/outguard/outguard/vmtests/cost"
	"github.com/outguard/outguard/vmtests/image"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench-guest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("outguard-bench-guest", flag.ContinueOnError)
	flags.SetOutput(stderr)
	kernels := flags.String("kernels", strings.Join(image.Kernels, ","), "which to measure on")
	profiles := flags.String("profiles", strings.Join(cost.Columns[1:], ","), "which to measure with; one of your own as hooks joined by +")
	operations := flags.String("operations", "", "which to measure, and beside them the agent's start and memory alone: of "+strings.Join(cost.Operations(), ","))
	doc := flags.String("doc", "", "a document to write the table into")
	clone := flags.String("clone", ".", "the repository, where make build has been")
	sample := flags.Bool("sample", false, "measure nothing: tell where the CPU is while the agent starts, and in the course of each of -operations")
	quick := flags.Bool("quick", false, "few rounds, to see that it works")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := filepath.Abs(*clone)
	if err != nil {
		return err
	}
	var only []string
	if *operations != "" {
		only = strings.Split(*operations, ",")
	}
	for _, o := range only {
		if !slices.Contains(cost.Operations(), o) {
			return fmt.Errorf("operation %q: want some of %s", o, strings.Join(cost.Operations(), ","))
		}
	}
	if *doc != "" && (len(only) > 0 || *sample) {
		return errors.New("-doc takes all that is measured: leave -operations and -sample out")
	}
	var all []*cost.Result
	for _, line := range strings.Split(*kernels, ",") {
		r, err := cost.Measure(ctx, line, cost.Options{Clone: dir, Out: stderr, Quick: *quick, Profiles: strings.Split(*profiles, ","), Only: only, Sample: *sample})
		if err != nil {
			return fmt.Errorf("measure: %w", err)
		}
		if err := cost.Lines(stdout, r); err != nil {
			return err
		}
		all = append(all, r)
	}
	if *doc == "" {
		return nil
	}
	text, err := os.ReadFile(*doc)
	if err != nil {
		return err
	}
	text, err = cost.Insert(text, cost.Table(all))
	if err != nil {
		return fmt.Errorf("%s: %w", *doc, err)
	}
	return os.WriteFile(*doc, text, 0o644)
}
