// SPDX-License-Identifier: Apache-2.0

// Package control does what the host sends down: it puts policies into force,
// which say what event types are reported and what of them is left out, answers canaries, and does what
// commands ask for.
package control

import (
	"fmt"
	"sync"

	"github.com/outguard/outguard/vsockproto"
)

// programs is what control steers.
type programs interface {
	SetPolicy(vsockproto.Policy) error
	SetCanary(tid uint32) error
}

// Control applies policies, in the order of their numbers.
type Control struct {
	programs programs

	mu      sync.Mutex // guards what follows
	inForce uint64
	set     bool // a policy of this session is in force
}

// New makes a control over p. Until the first policy p stays as it is.
func New(p programs) *Control { return &Control{programs: p} }

// Begin forgets the policies of an earlier session: numbers start anew. What
// they put into force stays until the next one.
func (c *Control) Begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inForce, c.set = 0, false
}

// Apply puts p into force as a whole, or not at all, and returns the answer
// for the host. The same policy may come again after a reconnect.
func (c *Control) Apply(p vsockproto.Policy) vsockproto.PolicyAck {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.apply(p); err != nil {
		return vsockproto.PolicyAck{Number: p.Number, Reason: clip(err.Error())}
	}
	c.inForce, c.set = p.Number, true
	return vsockproto.PolicyAck{Number: p.Number}
}

func (c *Control) apply(p vsockproto.Policy) error {
	if c.set && p.Number < c.inForce {
		return fmt.Errorf("policy %d is older than %d, which is in force", p.Number, c.inForce)
	}
	for _, t := range p.Hooks {
		if !t.Known() {
			return fmt.Errorf("this agent does not know %s", t)
		}
	}
	return c.programs.SetPolicy(p)
}

func clip(s string) string { return s[:min(len(s), vsockproto.MaxText)] }
