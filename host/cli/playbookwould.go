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

// decision is a decision in --json.
type decision struct {
	Rule    string           `json:"rule"`
	Steps   []decide.Step    `json:"steps"`
	Alerts  []string         `json:"alerts"`
	Held    string           `json:"held"`
	Dropped []decide.Dropped `json:"dropped"`
	Dry     []decide.Trial   `json:"dry"`
}

func decisionOf(d *decide.Decision) decision {
	return decision{d.Rule, notNil(d.Steps), notNil(d.Alerts), d.Held, notNil(d.Dropped), notNil(d.Dry)}
}

// tested is one line of --json.
type tested struct {
	Rec     string    `json:"rec"` // decision
	At      string    `json:"at"`
	VM      string    `json:"vm"`
	UUID    uuid.UUID `json:"uuid"`
	Finding string    `json:"finding"`
	Found   string    `json:"found"` // the finding's rule
	decision
	Did *decision `json:"did"` // in fact; null: not on record
}

// shown reports whether a decision is printed: it orders something, would have,
// or a limit kept it from that.
func (t *policyTest) shown(d *decide.Decision) bool {
	return t.all || len(d.Steps) > 0 || len(d.Dropped) > 0 ||
		slices.ContainsFunc(d.Dry, func(x decide.Trial) bool { return len(x.Steps) > 0 })
}

func (t *policyTest) nameOf(vm uuid.UUID) string {
	if name := t.names[vm]; name != "" {
		return name
	}
	if vm == uuid.Nil {
		return "host" // its own record
	}
	return vm.String()
}

func (t *policyTest) take(m *met) error {
	if m.finding == nil {
		t.replay.Runs(m.vm, m.at)
		return nil
	}
	f := m.finding
	d := t.replay.Find(f, t.names[m.vm])
	if !t.shown(&d) {
		return nil
	}
	if t.a.json {
		line := tested{
			Rec: "decision", At: api.FormatTime(f.At), VM: t.nameOf(m.vm), UUID: m.vm, Finding: f.ID, Found: f.Rule, decision: decisionOf(&d),
		}
		if m.did != nil {
			did := decisionOf(m.did)
			line.Did = &did
		}
		return t.a.printJSON(line)
	}
	t.a.printf("%s %s %s [%s]: %s\n", f.At.Local().Format("2006-01-02 15:04:05.000"), quote(t.nameOf(m.vm)), quote(f.Rule), quote(f.ID), safe.Text(would(&d)))
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
