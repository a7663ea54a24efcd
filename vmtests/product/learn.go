package product

import (
	"context"
	"errors"
	"fmt"
)

// Learn opens a domain's model, makes normal traffic until the model has seen
// nothing new for two rounds, and seals it.
func (p *Install) Learn(ctx context.Context, name string, port int) (Model, error) {
	if _, err := p.CLI(ctx, "model", "learn", name); err != nil {
		return Model{}, err
	}
	quiet, before := 0, uint64(0)
	for round := 0; quiet < 2; round++ {
		if round == 20 {
			return Model{}, fmt.Errorf("the model still grows after %d rounds of the same traffic: %d points", round, before)
		}
		if err := p.Visit(ctx, name, port, 2); err != nil {
			return Model{}, err
		}
		m, err := p.Model(ctx, name)
		if err != nil {
			return Model{}, err
		}
		if quiet++; m.Points != before || m.Points == 0 {
			quiet = 0
		}
		before = m.Points
	}
	if _, err := p.CLI(ctx, "model", "seal", name); err != nil {
		return Model{}, err
	}
	m, err := p.Model(ctx, name)
	if err == nil && !m.Sealed {
		err = errors.New("the model says that it is not sealed")
	}
	return m, err
}

// Captured returns the last capture of a domain that is done, if none of its orders
// is under way, and an error as soon as one has failed.
func (p *Install) Captured(ctx context.Context, name string) (last Order, ok bool, err error) {
	all, err := p.Orders(ctx, name)
	if err != nil {
		return Order{}, false, err
	}
	under := false
	for _, o := range all {
		if o.State == "failed" {
			return Order{}, false, fmt.Errorf("order %s, %s: %s", o.ID, o.Step, o.Error)
		}
		if o.Step == "capture" && o.State == "done" {
			last, ok = o, true
		}
		under = under || o.State == "pending" || o.State == "waiting"
	}
	return last, ok && !under, nil
}
