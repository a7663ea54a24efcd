package monitor

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

// Parts stop in the reverse of the order in which they started, each after the
// ones behind it have ended.
func TestStagesOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []string
		part := func(name string) stage {
			return stage{
				name:  name,
				ready: func(context.Context) error { seen = append(seen, "ready "+name); return nil },
				run: func(ctx context.Context) error {
					<-ctx.Done()
					seen = append(seen, "end "+name)
					return ctx.Err()
				},
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- stages{part("a"), part("b"), part("c")}.run(ctx, slog.New(slog.DiscardHandler)) }()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		want := []string{"ready a", "ready b", "ready c", "end c", "end b", "end a"}
		if !slices.Equal(seen, want) {
			t.Errorf("got %q, want %q", seen, want)
		}
	})
}

// A part that ends by itself stops the rest, and its error is the monitor's.
func TestStagesFailure(t *testing.T) {
	broken := errors.New("broken")
	stopped := false
	err := stages{
		{name: "a", run: func(ctx context.Context) error { <-ctx.Done(); stopped = true; return nil }},
		{name: "b", run: func(context.Context) error { return broken }},
	}.run(t.Context(), slog.New(slog.DiscardHandler))
	if !errors.Is(err, broken) || !stopped {
		t.Errorf("got %v, first part stopped: %v", err, stopped)
	}
}

// A part that cannot start stops what had started, and names itself.
func TestStagesNotReady(t *testing.T) {
	broken := errors.New("no room")
	stopped := false
	err := stages{
		{name: "a", run: func(ctx context.Context) error { <-ctx.Done(); stopped = true; return nil }},
		{name: "b", ready: func(context.Context) error { return broken }, run: func(context.Context) error { t.Error("b ran"); return nil }},
	}.run(t.Context(), slog.New(slog.DiscardHandler))
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "b: ") || !stopped {
		t.Errorf("got %v, first part stopped: %v", err, stopped)
	}
}
