package monitor

import (
	"strings"
	"testing"
	"time"

	"github.com/outguard/outguard/host/bundle"
	"github.com/outguard/outguard/plugins/engine"
)

func TestTellFinding(t *testing.T) {
	at := time.Date(2026, 11, 23, 17, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		f    engine.Finding
		want []string
	}{
		{engine.Finding{Engine: "tsem", Rule: "tsem/violation", Event: "file_open", PID: 7, Comm: "sh", Path: "/tmp/\u202ea", Reason: `"/bin/sh" opened "/tmp/a".`},
			[]string{`event     file_open by pid 7 comm="sh" path="/tmp/\u202ea"`, `finding   tsem/violation: "/bin/sh" opened "/tmp/a".`}},
		{engine.Finding{Engine: "monitor", Rule: "session/gap", Event: "task_kill", PID: 7, Comm: "sh", Reason: "two\x1b[2J lines\nhere"},
			[]string{`event     task_kill by pid 7 comm="sh"` + "\n", `finding   monitor session/gap: two\x1b[2J lines\nhere`}},
	} {
		line := &bundle.Timeline{}
		test.f.At, test.f.Hook, test.f.Received = at, at, at
		tellFinding(line, &test.f)
		for _, want := range test.want {
			if text := line.Text(); !strings.Contains(text, want) {
				t.Errorf("%s lacks %s", text, want)
			}
		}
	}
}
