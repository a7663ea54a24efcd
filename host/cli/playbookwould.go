package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/host/decide"
)

// tested is one line of --json.
type tested struct {
	Rec     string           `json:"rec"` // decision
	At      string           `json:"at"`
	VM      string           `json:"vm"`
	UUID    uuid.UUID        `json:"uuid"`
	Finding string           `json:"finding"`
	Found   string           `json:"found"` // the finding's rule
	Rule    string           `json:"rule"`
	Steps   []decide.Step    `json:"steps"`
	Alerts  []string         `json:"alerts"`
	Held    string           `json:"held"`
	Dropped []decide.Dropped `json:"dropped"`
	Dry     []decide.Trial   `json:"dry"`
	Did     *did             `json:"did"` // in fact; null: not on record
}

type did struct {
	Rule  string        `json:"rule"`
	Steps []decide.Step `json:"steps"`
	Held  string        `json:"held"`
}

func (t *policyTest) take(m *met) error {
	if m.finding == nil {
		t.replay.Runs(m.vm, m.at)
		return nil
	}
	f := m.finding
	if f.VM == uuid.Nil {
		return nil // of the host: no playbook is asked
	}
	d := t.replay.Find(f, t.names[m.vm])
	tries := slices.ContainsFunc(d.Dry, func(x decide.Trial) bool { return len(x.Steps) > 0 })
	if !t.all && len(d.Steps) == 0 && len(d.Dropped) == 0 && !tries {
		return nil
	}
	name := t.names[m.vm]
	if name == "" {
		name = m.vm.String()
	}
	if t.a.json {
		line := tested{
			Rec: "decision", At: api.FormatTime(f.At), VM: name, UUID: m.vm, Finding: f.ID, Found: f.Rule, Rule: d.Rule,
			Steps: notNil(d.Steps), Alerts: notNil(d.Alerts), Held: d.Held, Dropped: notNil(d.Dropped), Dry: notNil(d.Dry),
		}
		if m.did != nil {
			line.Did = &did{m.did.Rule, notNil(m.did.Steps), m.did.Held}
		}
		return t.a.printJSON(line)
	}
	t.a.printf("%s %s %s [%s]: %s\n", f.At.Local().Format("2006-01-02 15:04:05.000"), quote(name), quote(f.Rule), quote(f.ID), safe.Text(would(&d)))
	if m.did != nil {
		t.a.printf("    then: %s\n", safe.Text(would(m.did)))
	}
	return nil
}

func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// would is a decision in words.
func would(d *decide.Decision) string {
	var parts []string
	if d.Rule != "" {
		parts = append(parts, d.Rule+": "+outcome(d.Steps, d.Held, d.Dropped))
	}
	for _, x := range d.Dry {
		parts = append(parts, x.Rule+" (dry run): "+outcome(x.Steps, x.Held, x.Dropped))
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, "; ")
}

func outcome(steps []decide.Step, held string, dropped []decide.Dropped) string {
	if held != "" {
		return "held back, " + held
	}
	var words []string
	for _, s := range steps {
		words = append(words, string(s))
	}
	text := strings.Join(words, ", ")
	for _, x := range dropped {
		text += fmt.Sprintf("; no %s, %s", x.Step, x.Why)
	}
	return text
}

// sum prints what each rule would have done in all.
func (t *policyTest) sum() error {
	total := t.replay.Total()
	if t.a.json {
		type rule struct {
			Rule string `json:"rule"`
			decide.Summary
		}
		rules := []rule{}
		for i := range t.playbook.Rules {
			name := t.playbook.Rules[i].Name
			rules = append(rules, rule{name, t.replay.Rule(name)})
		}
		return t.a.printJSON(struct {
			Rec string `json:"rec"` // summary
			decide.Summary
			Rules []rule `json:"rules"`
		}{"summary", total, rules})
	}
	t.a.printf("\n%d findings\n", total.Findings)
	table := t.a.table("RULE", "FINDINGS", "ACTS", "HELD BACK", "LIMITED", "WOULD ORDER")
	for i := range t.playbook.Rules {
		r := &t.playbook.Rules[i]
		s, name := t.replay.Rule(r.Name), r.Name
		if r.DryRun || t.playbook.DryRun {
			name += " (dry run)"
		}
		table.row(name, fmt.Sprint(s.Findings), fmt.Sprint(s.Acted), fmt.Sprint(s.Held), fmt.Sprint(s.Dropped), steps(s.Steps))
	}
	table.flush()
	return nil
}

func steps(n map[decide.Step]uint64) string {
	var out []string
	for _, s := range decide.AllSteps {
		if n[s] > 0 {
			out = append(out, fmt.Sprintf("%d %s", n[s], s))
		}
	}
	return strings.Join(out, ", ")
}
