package demo

import (
	"strings"
	"testing"
)

func TestReadTimeline(t *testing.T) {
	for _, test := range []struct {
		name, entries, err string
		paused, captured   float64
	}{
		{"whole", `{"what":"finding","since_received_ns":300000},{"what":"decision","since_received_ns":500000},
			{"what":"paused","since_received_ns":16570268},{"what":"paused","since_received_ns":99},{"what":"captured","since_received_ns":2380289467}`,
			"", 16.570268, 2380.289467},
		{"no pause", `{"what":"finding","since_received_ns":1},{"what":"decision","since_received_ns":1},{"what":"captured","since_received_ns":1}`,
			`"paused"`, 0, 0},
		{"a pause at an unknown time", `{"what":"finding","since_received_ns":1},{"what":"decision","since_received_ns":1},{"what":"paused"},{"what":"captured","since_received_ns":1}`,
			`"paused"`, 0, 0},
	} {
		d := &Demo{}
		err := d.readTimeline([]byte(`{"timeline":{"entries":[` + test.entries + `]}}`))
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: %v, want an error with %s", test.name, err, test.err)
			}
			continue
		}
		if err != nil || d.result.PausedMs != test.paused || d.result.CapturedMs != test.captured {
			t.Errorf("%s: %+v, %v", test.name, d.result, err)
		}
	}
	for _, text := range []string{"", "{}"} {
		if err := (&Demo{}).readTimeline([]byte(text)); err == nil {
			t.Errorf("%q: no timeline, and no error", text)
		}
	}
}
