// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/outguard/outguard/vsockproto"
)

type recorder struct {
	hooks []vsockproto.EventType
	tids  []uint32
	err   error
}

func (r *recorder) SetCanary(tid uint32) error {
	r.tids = append(r.tids, tid)
	return r.err
}

func (r *recorder) SetPolicy(p vsockproto.Policy) error {
	if r.err == nil {
		r.hooks = p.Hooks
	}
	return r.err
}

func TestApply(t *testing.T) {
	r := &recorder{}
	c := New(r)
	want := []vsockproto.EventType{vsockproto.FileOpen, vsockproto.TaskKill}
	if ack := c.Apply(vsockproto.Policy{Number: 7, Hooks: want}); ack != (vsockproto.PolicyAck{Number: 7}) {
		t.Fatalf("Apply = %+v", ack)
	}
	if !slices.Equal(r.hooks, want) {
		t.Fatalf("hooks = %v, want %v", r.hooks, want)
	}
	if ack := c.Apply(vsockproto.Policy{Number: 7, Hooks: want}); ack.Reason != "" {
		t.Fatalf("the same policy again: %+v", ack)
	}
}

func TestApplyRefuses(t *testing.T) {
	tests := map[string]struct {
		policy vsockproto.Policy
		err    error
		reason string
	}{
		"an older policy":  {policy: vsockproto.Policy{Number: 4}, reason: "older"},
		"an unknown hook":  {policy: vsockproto.Policy{Number: 6, Hooks: []vsockproto.EventType{999}}, reason: "event(999)"},
		"a kernel's error": {policy: vsockproto.Policy{Number: 6}, err: errors.New("no such map"), reason: "no such map"},
		"an error without end": {
			policy: vsockproto.Policy{Number: 6}, err: errors.New(strings.Repeat("x", 1000)), reason: "xxx",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := &recorder{}
			c := New(r)
			before := []vsockproto.EventType{vsockproto.FileOpen}
			c.Apply(vsockproto.Policy{Number: 5, Hooks: before})
			r.err = tc.err
			ack := c.Apply(tc.policy)
			if ack.Number != tc.policy.Number || !strings.Contains(ack.Reason, tc.reason) {
				t.Errorf("Apply = %+v, want a reason with %q", ack, tc.reason)
			}
			if len(ack.Reason) > vsockproto.MaxText {
				t.Errorf("reason of %d bytes, limit %d", len(ack.Reason), vsockproto.MaxText)
			}
			if !slices.Equal(r.hooks, before) {
				t.Errorf("hooks = %v, want those before, %v", r.hooks, before)
			}
		})
	}
}

func TestBeginStartsNumbersAnew(t *testing.T) {
	c := New(&recorder{})
	c.Apply(vsockproto.Policy{Number: 5})
	c.Begin()
	if ack := c.Apply(vsockproto.Policy{Number: 1}); ack.Reason != "" {
		t.Errorf("policy 1 of a new session: %+v", ack)
	}
}

// TestCanary does what a canary asks for; whether the hooks see it is tested on
// a guest.
func TestCanary(t *testing.T) {
	r := &recorder{}
	q := vsockproto.Canary{Nonce: [16]byte{1, 15: 2}}
	for range 2 { // nothing of the first is in the way of the second
		if ack := New(r).Canary(q); ack != (vsockproto.CanaryAck{Nonce: q.Nonce}) {
			t.Errorf("Canary = %+v", ack)
		}
	}
	if len(r.tids) != 4 || r.tids[0] == 0 || r.tids[1] != 0 {
		t.Errorf("threads that sang: %v", r.tids)
	}
	r.err = errors.New("no such map")
	if ack := New(r).Canary(q); !strings.Contains(ack.Reason, "no such map") {
		t.Errorf("Canary = %+v", ack)
	}
}
