package session

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// TestPolicyBringsHooks: what a policy asks for is attached when the agent has
// answered it, what its kernel lacks is found, and a smaller one takes away.
func TestPolicyBringsHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		asked := append(vsockproto.StartTypes(), vsockproto.InodeMkdir, vsockproto.SockGraft, vsockproto.FileMprotect)
		slices.Sort(asked)
		m := w.manager(&Options{PolicyOf: func(uuid.UUID) []vsockproto.EventType { return asked }})
		a := prototest.NewAgent(&prototest.AgentOptions{Hooks: hooksOf(vsockproto.StartTypes(), vsockproto.InodeMkdir)})
		c := dial(t.Context(), m, a)
		<-a.Up()
		synctest.Wait()
		s, _ := m.StatusOf(vmID)
		if s.Policy != 2 || s.PolicyAcked != 2 || !slices.Equal(s.Wanted, asked) {
			t.Errorf("policy %d, acked %d, wanted %v", s.Policy, s.PolicyAcked, s.Wanted)
		}
		if got := attachedOf(s.Hooks); !slices.Equal(got, append(vsockproto.StartTypes(), vsockproto.InodeMkdir)) {
			t.Errorf("attached %v", got)
		}
		want(t, "findings", w.rules(), "lacking")
		if r := w.findings[0].Reason; r != "The guest's kernel, or its agent, does not have hooks that the policy asks for: file_mprotect, sock_graft." {
			t.Error(r)
		}

		small, _ := vsockproto.ParseProfile(vsockproto.MinimalProfile)
		if n, err := m.SetPolicy(vmID, small); n != 3 || err != nil {
			t.Errorf("policy %d, %v", n, err)
		}
		synctest.Wait()
		s, _ = m.StatusOf(vmID)
		left := []vsockproto.EventType{
			vsockproto.BprmCommittedCreds, vsockproto.FileOpen, vsockproto.TaskKill, // file_open: for the agent's books
			vsockproto.TaskNewtask, vsockproto.SchedProcessExit, vsockproto.TaskSnapshot,
		}
		if got := attachedOf(s.Hooks); s.PolicyAcked != 3 || !slices.Equal(got, left) {
			t.Errorf("acked %d, attached %v", s.PolicyAcked, got)
		}
		c.hangUp()
	})
}

// TestPolicyWaitsForAVMThatStands: nothing is sent to it, and its next sign of life
// has the policy follow.
func TestPolicyWaitsForAVMThatStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(nil)
		a := prototest.NewAgent(&prototest.AgentOptions{Silent: true})
		c := dial(t.Context(), m, a)
		<-a.Up()
		synctest.Wait()
		before, _ := m.StatusOf(vmID)
		w.setState(DomainPaused)
		small, _ := vsockproto.ParseProfile(vsockproto.MinimalProfile)
		n, err := m.SetPolicy(vmID, small)
		if err != nil || n != before.Policy+1 {
			t.Errorf("policy %d after %d, %v", n, before.Policy, err)
		}
		synctest.Wait()
		if s, _ := m.StatusOf(vmID); s.PolicyAcked != before.PolicyAcked {
			t.Errorf("acked %d while it stands", s.PolicyAcked)
		}
		w.setState(DomainRunning)
		if err := a.Heartbeat(); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if s, _ := m.StatusOf(vmID); s.PolicyAcked != n {
			t.Errorf("acked %d of %d", s.PolicyAcked, n)
		}
		c.hangUp()
	})
}

// hooksOf are an agent's: those attached, and others that its kernel has.
func hooksOf(attached []vsockproto.EventType, has ...vsockproto.EventType) (all []vsockproto.Hook) {
	for _, t := range attached {
		all = append(all, vsockproto.Hook{Type: t, Available: true, Attached: true, Tag: [8]byte{byte(t)}})
	}
	for _, t := range has {
		all = append(all, vsockproto.Hook{Type: t, Available: true})
	}
	return all
}

func attachedOf(hooks []vsockproto.Hook) (types []vsockproto.EventType) {
	for _, h := range hooks {
		if h.Attached {
			types = append(types, h.Type)
		}
	}
	return types
}

// TestFiltersAreHeld: a guest says of which policy its filters are, and how many
// records they left out. Nobody's filters are a finding.
func TestFiltersAreHeld(t *testing.T) {
	none, some := vsockproto.Policy{Number: 3}, vsockproto.Policy{Number: 4, Filters: []vsockproto.Filter{
		{Type: vsockproto.FileOpen, Class: vsockproto.Bulk, Path: "/var/log/"},
	}}
	for name, tc := range map[string]struct {
		policy vsockproto.Policy
		acked  uint64
		beats  []vsockproto.Filtering
		found  bool
	}{
		"no filters":                {none, 3, []vsockproto.Filtering{{}, {}, {}}, false},
		"those that were asked for": {some, 4, []vsockproto.Filtering{{Number: 4}, {Number: 4, Filtered: 9}, {Number: 4, Filtered: 12}}, false},
		"the last ones' last":       {none, 3, []vsockproto.Filtering{{Number: 2, Filtered: 7}, {Filtered: 8}, {Filtered: 8}}, false},
		"not answered yet":          {some, 3, []vsockproto.Filtering{{}, {}, {}}, false},
		"its own":                   {none, 3, []vsockproto.Filtering{{Number: 3}, {Number: 3, Filtered: 5}}, true},
		"others than those":         {some, 4, []vsockproto.Filtering{{Number: 5}, {Number: 5}}, true},
		"not those":                 {some, 4, []vsockproto.Filtering{{}, {}}, true},
		"without a name":            {none, 3, []vsockproto.Filtering{{}, {Filtered: 5}, {Filtered: 9}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			v := &vm{policy: tc.policy, sess: &kept{PolicyAcked: tc.acked}}
			found := false
			for _, b := range tc.beats {
				if f := v.filtered(b); f != nil {
					found = true
					if f.Rule != RuleFilters || f.Severity != engine.High {
						t.Errorf("%+v", f)
					}
				}
			}
			if found != tc.found {
				t.Errorf("found: %v", found)
			}
		})
	}
}
