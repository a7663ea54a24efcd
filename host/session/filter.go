package session

import (
	"fmt"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

// patience is how many heartbeats may go on telling of the filters before: one was
// made while the policy came into force.
const patience = 2

// filtered holds what a heartbeat says of filters against the policy that the agent
// has answered. A guest that leaves out what nobody asked it to is found. Called
// with v.mu held.
func (v *vm) filtered(now vsockproto.Filtering) *engine.Finding {
	before := v.filtering
	v.filtering = now
	if v.sess.PolicyAcked != v.policy.Number {
		v.misfits = 0
		return nil
	}
	want := uint64(0)
	if len(v.policy.Filters) > 0 {
		want = v.policy.Number
	}
	if now.Number == want && (want != 0 || now.Filtered == before.Filtered || before.Number != 0) {
		v.misfits = 0
		return nil
	}
	if v.misfits++; v.misfits < patience {
		return nil
	}
	v.misfits = 0
	f := finding(RuleFilters, fmt.Sprintf("The guest's kernel leaves out records by the filters of policy %d, %d of them so far; policy %d is in force, which has %s.",
		now.Number, now.Filtered, v.policy.Number, counted(len(v.policy.Filters))))
	return &f
}

func counted(filters int) string {
	switch filters {
	case 0:
		return "none"
	case 1:
		return "one"
	}
	return fmt.Sprint(filters)
}
