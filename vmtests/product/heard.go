package product

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/outguard/outguard/vmtests/service"
)

// hearing is how long what a guest has done may be on its way, lateness after how
// much of it there is another mark.
const hearing, lateness = 3 * time.Minute, 20 * time.Second

// Visit makes the normal traffic of a guest's web service, and returns when all of
// it is judged.
func (p *Install) Visit(ctx context.Context, name string, port, rounds int) error {
	began := time.Now()
	if err := service.Visit(ctx, port, rounds); err != nil {
		return err
	}
	return p.Heard(ctx, name, service.Page, began, service.Pages*rounds, func(ctx context.Context) error { return service.Front(ctx, port) })
}

// Heard returns when what a guest has done so far is on record and judged. mark
// has the guest open the file at path once, which it has done so often already
// since a time. It is called three times: an open's record comes after those of
// all that was done before it; one of before that time may have been late, and be
// counted for the last; and the second's shows that the first's batch is with the
// engines. An open that is not on record after a while may have been lost, and there
// is another.
func (p *Install) Heard(ctx context.Context, name, path string, since time.Time, often int, mark func(context.Context) error) error {
	end := time.Now().Add(hearing)
	for n := 1; n <= 3; {
		if err := mark(ctx); err != nil {
			return err
		}
		err := p.awaitOpens(ctx, name, path, since, often+n)
		switch {
		case err == nil:
			n++
		case ctx.Err() != nil, time.Now().After(end):
			return err
		}
	}
	return p.awaitJudged(ctx)
}

func (p *Install) awaitOpens(ctx context.Context, name, path string, since time.Time, want int) error {
	type open struct{}
	return p.await(ctx, lateness, func(ctx context.Context) error {
		got, err := ask[open](ctx, p, "events", "--vm", name, "--type", "file_open", "--path", path,
			"--since", since.UTC().Format(time.RFC3339Nano), "--limit", strconv.Itoa(want))
		if err == nil && len(got) < want {
			err = fmt.Errorf("of %d opens of %s in %s the record has %d", want, path, name, len(got))
		}
		return err
	})
}

// awaitJudged waits until no engine has a batch to judge.
func (p *Install) awaitJudged(ctx context.Context) error {
	type status struct {
		Engines []struct {
			Name   string
			Behind uint64
		}
	}
	return p.await(ctx, hearing, func(ctx context.Context) error {
		s, err := one[status](ask[status](ctx, p, "status"))
		for _, e := range s.Engines {
			if e.Behind > 0 {
				err = errors.Join(err, fmt.Errorf("engine %s has %d batches to judge", e.Name, e.Behind))
			}
		}
		return err
	})
}

// await asks until nothing is wrong, and returns what was at the end.
func (p *Install) await(ctx context.Context, within time.Duration, wrong func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := wrong(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s: %w", within, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
