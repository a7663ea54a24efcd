package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/alert"
	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/respond"
)

// alerter tells targets of the playbook in force of an order's finding.
type alerter struct {
	m      *Monitor
	sender *alert.Sender
}

func newAlerter(m *Monitor) *alerter { return &alerter{m, alert.New()} }

// notice is what a target is told, as one JSON object.
type notice struct {
	ID      uuid.UUID       `json:"id"` // the order's: an alert may come twice, with the same one
	Host    string          `json:"host"`
	VM      string          `json:"vm"`    // "": of the host's own
	UUID    string          `json:"uuid"`  // ""
	Rule    string          `json:"rule"`  // the playbook's
	Count   uint64          `json:"count"` // findings that it is about: of this VM, that this rule met since it acted
	Reason  string          `json:"reason"`
	Decided time.Time       `json:"decided"`
	Finding json.RawMessage `json:"finding"` // as outguard findings --json has it
}

// noTarget is an alert to somebody whom the playbook in force does not name.
type noTarget string

func (n noTarget) Error() string {
	return fmt.Sprintf("%q is none of the alerts of the playbook in force", string(n))
}
func (noTarget) Permanent() bool { return true }

// Alert waits for what else is found, unless that time is over, and tells o's
// target once.
func (a *alerter) Alert(ctx context.Context, o respond.Order) (string, error) {
	t, ok := a.m.judge.inForce().Target(o.Target)
	if !ok {
		return "", noTarget(o.Target)
	}
	select {
	case <-time.After(time.Until(o.Given.Add(t.Gather))):
	case <-ctx.Done():
		return "", ctx.Err()
	}
	body, err := a.notice(o)
	if err != nil {
		return "", err
	}
	return a.sender.Send(ctx, alert.Target{Name: t.Name, Webhook: t.Webhook, Token: t.Token, Command: t.Command, Timeout: t.Timeout}, body)
}

func (a *alerter) notice(o respond.Order) ([]byte, error) {
	f, err := a.m.captures.finding(o)
	if err != nil {
		return nil, err
	}
	n := notice{
		ID: o.ID, Host: hostname(), VM: o.Name, Rule: o.Rule, Count: a.m.judge.met(o.VM, o.Rule),
		Reason: o.Reason, Decided: o.Decided.UTC(), Finding: json.RawMessage("null"),
	}
	if o.VM != uuid.Nil {
		n.UUID = o.VM.String()
	}
	if f != nil {
		n.Finding = api.AppendJSON(nil, api.FindingOf(f))
	}
	body, err := json.Marshal(n)
	if err != nil {
		return nil, err
	}
	return append(body, '\n'), nil
}

// met counts the findings of a VM that a rule met since it acted, that one too.
func (j *judge) met(vm uuid.UUID, rule string) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.history.Last(vm, rule).Held + 1
}
