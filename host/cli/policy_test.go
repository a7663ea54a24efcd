package cli

import (
	"testing"

	"github.com/outguard/outguard/host/api/apipb"
)

func TestFilterState(t *testing.T) {
	for want, s := range map[string]*apipb.Session{
		"7 records since the boot, by 1 filters of policy 3, in force": {Filters: []string{"bulk uid=3"}, Filtered: 7, FiltersPolicy: 3},
		"0 records since the boot, by 1 filters, not in force yet":     {Filters: []string{"bulk uid=3"}},
		"7 records since the boot, by 0 filters":                       {Filtered: 7},
		"9 records since the boot, by 0 filters of policy 4, in force": {Filtered: 9, FiltersPolicy: 4},
	} {
		if got := filterState(s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
