// Package pipeline hands every batch of a VM to every engine, in the VM's
// order, and measures how long verdicts take.
//
// It has no queue and no goroutine of its own: each engine has its bounded
// queue for each VM, and Submit blocks the one VM whose queue is full. Nothing
// is dropped here, and no batch waits for a timer.
package pipeline

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/outguard/outguard/plugins/engine"
)

// Engine is one engine as the pipeline needs it; engines.Supervisor is one.
type Engine interface {
	Name() string
	// TrySubmit takes the batch, copying it, if there is room for it now.
	TrySubmit(b *engine.Batch) bool
	// Submit waits for room.
	Submit(ctx context.Context, b *engine.Batch) error
}

// Pipeline is a set of engines. Add them all before the first Submit.
type Pipeline struct {
	engines []Engine

	mu      sync.Mutex // guards latency
	latency map[string]*Histogram
}

// New makes a pipeline of these engines.
func New(engines ...Engine) *Pipeline {
	return &Pipeline{engines: engines, latency: map[string]*Histogram{}}
}

// Add adds one engine more.
func (p *Pipeline) Add(e Engine) { p.engines = append(p.engines, e) }

// Submit hands b to every engine. The caller submits the batches of one VM
// from one goroutine, after evidence has them; b.Records is the caller's again
// when Submit returns. An engine that has no room delays no other engine, only
// this VM's next batch. The error is the context's.
func (p *Pipeline) Submit(ctx context.Context, b *engine.Batch) error {
	var full []Engine
	for _, e := range p.engines {
		if !e.TrySubmit(b) {
			full = append(full, e)
		}
	}
	var errs []error
	for _, e := range full {
		errs = append(errs, e.Submit(ctx, b))
	}
	return errors.Join(errs...)
}

// Latency is the histogram of arrival to verdict of the engine of that name.
func (p *Pipeline) Latency(name string) *Histogram {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.latency[name]
	if h == nil {
		h = new(Histogram)
		p.latency[name] = h
	}
	return h
}

// Judged is for engines.Options.Judged of the engine of that name: it measures
// each batch from Received to its verdict.
func (p *Pipeline) Judged(name string) func(b *engine.Batch, verdict time.Time) {
	h := p.Latency(name)
	return func(b *engine.Batch, verdict time.Time) { h.Observe(verdict.Sub(b.Received)) }
}
