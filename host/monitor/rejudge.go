package monitor

import (
	"context"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/plugins/engine"
)

// rejudge hands an engine the batches on record from one index to another,
// both included: those that it did not judge when they came.
func (m *Monitor) rejudge(ctx context.Context, vm uuid.UUID, from, to uint64, submit func(*engine.Batch) error) error {
	frames := newAgain(vm)
	return m.reader(vm).Read(from, to+1, func(r *evidence.Record) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if b, ok := frames.batch(r); ok {
			return submit(&b)
		}
		return nil
	})
}
