// Outguard-demo is `make demo` and `make demo-clean`.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/outguard/outguard/vmtests/demo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run returns 10 + the number of the step that did not work.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var err error
	switch {
	case len(args) == 1 && args[0] == "run":
		err = (&demo.Demo{Bin: "bin", Out: stdout}).Run(ctx)
	case len(args) == 1 && args[0] == "clean":
		err = demo.Clean(ctx, stdout)
	default:
		fmt.Fprintln(stderr, "usage: outguard-demo run|clean")
		return 2
	}
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "demo: %v\n", err)
	var step *demo.StepError
	if errors.As(err, &step) {
		fmt.Fprintln(stderr, "demo: what was made is left for a look; make demo-clean removes it")
		return 10 + step.Number
	}
	return 1
}
