package monitor_test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/vsockproto/prototest"
)

const ruled = `
version: 1
rules:
  - name: %s
    match: {engine: tsem}
    steps: [log]
    once_per: event
`

// ruleOf waits for an order for the violation of a path, and names its rule.
func (h *host) ruleOf(path string) (rule string) {
	h.t.Helper()
	h.eventually("an order over "+path, func() error {
		for _, f := range h.findings() {
			if f.Path != path {
				continue
			}
			for _, o := range h.orders() {
				if o.Finding == f.Id {
					rule = o.Rule
					return nil
				}
			}
		}
		return errors.New("there is none")
	})
	return rule
}

// hostFindings are those of no VM.
func (h *host) hostFindings() (out []*apipb.Finding) {
	h.t.Helper()
	s, err := h.api.Findings(h.t.Context(), &apipb.FindingsRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	defer s.Close()
	for s.Receive() {
		if f := s.Msg().Finding; f.Uuid == "" {
			out = append(out, f)
		}
	}
	return out
}

// TestPlaybookIsReloadedWholeOrNotAtAll: a signal or a call has it read anew; a
// broken one leaves the one before in force, with a finding.
func TestPlaybookIsReloadedWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	file := h.root + "/playbook.yaml"
	h.configure("playbook: " + file + "\n")
	h.write(file, fmt.Sprintf(ruled, "first"))
	h.start()
	a := prototest.NewAgent(nil)
	stop := h.connect(a)
	send(t, a, opened("/etc/passwd"))
	h.seal()
	send(t, a, opened("/one"))
	if rule := h.ruleOf("/one"); rule != "first" {
		t.Errorf("by rule %q", rule)
	}

	h.write(file, fmt.Sprintf(ruled, "second")+"  - name: broken\n    match: {}\n    steps: [dance]\n")
	if err := h.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	h.eventually("a finding", func() error {
		for _, f := range h.hostFindings() {
			if f.Rule == "monitor/playbook" && strings.Contains(f.Detail["error"], `10:13: rules[1].steps[0]: "dance"`) && f.Severity == "high" {
				return nil
			}
		}
		return fmt.Errorf("%v", h.hostFindings())
	})
	if _, err := h.api.ReloadPlaybook(t.Context(), &apipb.ReloadPlaybookRequest{}); err == nil || !strings.Contains(err.Error(), "dance") {
		t.Errorf("reload: %v", err)
	}
	send(t, a, opened("/two"))
	if rule := h.ruleOf("/two"); rule != "first" {
		t.Errorf("by rule %q of a broken playbook", rule)
	}

	h.write(file, fmt.Sprintf(ruled, "second"))
	r, err := h.api.ReloadPlaybook(t.Context(), &apipb.ReloadPlaybookRequest{})
	if err != nil || r.Playbook.File != file || r.Playbook.Rules != 1 {
		t.Errorf("reload: %v, %v", r, err)
	}
	if s, err := h.api.Status(t.Context(), &apipb.StatusRequest{}); err != nil || s.InForce.GetSha256() != r.Playbook.GetSha256() {
		t.Errorf("status: %v, %v", s, err)
	}
	send(t, a, opened("/three"))
	if rule := h.ruleOf("/three"); rule != "second" {
		t.Errorf("by rule %q", rule)
	}
	if err := stop(); err != nil && !errors.Is(err, t.Context().Err()) {
		t.Log(err)
	}
	h.write(file, fmt.Sprintf(ruled, "third"))
	if err := h.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	h.eventually("a signal's", func() error {
		s, err := h.api.Status(t.Context(), &apipb.StatusRequest{})
		if err == nil && s.InForce.Sha256 == r.Playbook.Sha256 {
			err = errors.New("the one before")
		}
		return err
	})
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.verify()
}

// TestDryRun: what a rule on trial would have ordered is on the VM's record, and
// is not ordered.
func TestDryRun(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.configure("playbook: " + h.root + "/playbook.yaml\n")
	h.write(h.root+"/playbook.yaml", fmt.Sprintf(ruled, "trial")+"    dry_run: true\n"+
		"  - {name: real, match: {engine: tsem}, steps: [log], once_per: event}\n")
	h.start()
	a := prototest.NewAgent(nil)
	stop := h.connect(a)
	send(t, a, opened("/etc/passwd"))
	h.seal()
	send(t, a, opened("/one"))
	if rule := h.ruleOf("/one"); rule != "real" {
		t.Errorf("by rule %q", rule)
	}
	_ = stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.verify()
	r := h.read()
	tried := 0
	for _, all := range r.decisions {
		for _, d := range all {
			for _, trial := range d.Dry {
				if trial.Rule != "trial" || len(trial.Steps) != 1 || d.Rule != "real" {
					t.Errorf("%+v", d)
				}
				tried++
			}
		}
	}
	if tried != 1 {
		t.Errorf("%d trials are on record", tried)
	}
}
