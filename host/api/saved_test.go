package api

import (
	"testing"

	"github.com/outguard/outguard/host/api/apipb"
)

func TestStateOf(t *testing.T) {
	for _, c := range []struct {
		step, state string
		ok          bool
	}{
		{"save", "", true}, {"save", "before-1", true}, {"revert", "before-1", true}, {"isolate", "", true},
		{"revert", "", false}, {"save", "../x", false}, {"save", "-x", false}, {"revert", "a b", false}, {"isolate", "x", false},
	} {
		got, err := stateOf(&apipb.ContainRequest{Step: c.step, State: c.state})
		if (err == nil) != c.ok || c.ok && c.state != "" && got != c.state || c.ok && c.step == "save" && !stateName.MatchString(got) {
			t.Errorf("%s %q: %q, %v", c.step, c.state, got, err)
		}
	}
}
