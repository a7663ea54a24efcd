package decide

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"github.com/outguard/outguard/plugins/engine"
)

// checker collects what is wrong with the values of a file.
type checker struct {
	tree *ast.File
	errs []error
}

// bad reports a value by its place; where it is missing, by its parent's.
func (c *checker) bad(path, format string, args ...any) {
	where := "1:1"
	for at := path; at != ""; at = parent(at) {
		p, err := yaml.PathString(at)
		if err != nil {
			continue
		}
		if n, err := p.FilterFile(c.tree); err == nil && n != nil {
			where = position(n)
			break
		}
	}
	c.errs = append(c.errs, fmt.Errorf("%s: %s: %s", where, strings.TrimPrefix(path, "$."), fmt.Sprintf(format, args...)))
}

func parent(path string) string {
	return path[:max(0, strings.LastIndexAny(path, ".["))]
}

func (c *checker) playbook(f *file) *Playbook {
	if f.Version != 1 {
		c.bad("$.version", "must be 1")
	}
	if len(f.Rules) > MaxRules {
		c.bad("$.rules", "at most %d rules", MaxRules)
		return nil
	}
	p := &Playbook{DryRun: f.DryRun, Labels: c.labels(f.Labels), Limits: c.limits(&f.Limits)}
	seen := map[string]bool{}
	for i := range f.Rules {
		at := fmt.Sprintf("$.rules[%d]", i)
		r := c.rule(at, &f.Rules[i])
		if seen[r.Name] {
			c.bad(at+".name", "%q names an earlier rule", r.Name)
		}
		seen[r.Name] = true
		if l := r.Match.Label; l != "" && f.Labels[l] == nil {
			c.bad(at+".match.label", "%q is none of the labels of this playbook", l)
		}
		p.Rules = append(p.Rules, r)
	}
	return p
}

func (c *checker) rule(at string, f *fileRule) Rule {
	r := Rule{Name: f.Name, OncePer: Once(f.OncePer), DryRun: f.DryRun}
	if r.Name == "" {
		c.bad(at+".name", "is missing")
	}
	c.text(at+".name", r.Name)
	if f.Match == nil {
		c.bad(at+".match", "is missing; {} matches every finding")
	} else {
		r.Match = c.match(at+".match", f.Match)
	}
	switch r.OncePer {
	case "":
		r.OncePer = PerRun
	case PerRun, PerSession, PerVM, PerEvent:
	default:
		c.bad(at+".once_per", "%q is none of run, session, vm, event", f.OncePer)
	}
	if f.Cooldown != "" {
		r.Cooldown = c.duration(at+".cooldown", f.Cooldown)
	}
	r.Steps = c.steps(at+".steps", f.Steps)
	return r
}

var severities = map[string]engine.Severity{
	"": 0, "info": engine.Info, "low": engine.Low, "medium": engine.Medium, "high": engine.High, "critical": engine.Severest,
}

func (c *checker) match(at string, f *fileMatch) Match {
	for _, v := range [...][2]string{{".engine", f.Engine}, {".rule", f.Rule}, {".technique", f.Technique}, {".vm", f.VM},
		{".label", f.Label}, {".container", f.Container}, {".program", f.Program}} {
		c.text(at+v[0], v[1])
	}
	s, ok := severities[f.Severity]
	if !ok {
		c.bad(at+".severity", "%q is none of info, low, medium, high, critical", f.Severity)
	}
	m := Match{
		Engine: f.Engine, Rule: f.Rule, Severity: s, Technique: f.Technique, VM: f.VM,
		Label: f.Label, Container: f.Container, Program: f.Program,
	}
	if r := f.Repeated; r != nil {
		m.Repeated = Repeated{Times: r.Times, Within: c.duration(at+".repeated.within", r.Within)}
		if r.Times < 2 || r.Times > MaxTimes {
			c.bad(at+".repeated.times", "%d is not between 2 and %d", r.Times, MaxTimes)
		}
		if m.Repeated.Within > MaxWindow {
			c.bad(at+".repeated.within", "%s is more than %s", r.Within, short(MaxWindow))
		}
	}
	return m
}

func (c *checker) duration(at, text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		c.bad(at, "%q is no duration such as 30s or 10m", text)
		return 0
	}
	return d
}

// labels holds the names and the globs of labels to what a line can show.
func (c *checker) labels(all map[string][]string) map[string][]string {
	if len(all) > MaxRules {
		c.bad("$.labels", "at most %d labels", MaxRules)
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if name == "" || strings.ContainsFunc(name, func(r rune) bool { return !plainName(r) }) {
			c.bad("$.labels", "%q is no label: letters, digits and ._- are", name)
			continue
		}
		if len(all[name]) == 0 || len(all[name]) > MaxRules {
			c.bad("$.labels", "%q has %d globs over VMs, 1 to %d are expected", name, len(all[name]), MaxRules)
		}
		for i, vm := range all[name] {
			c.text(fmt.Sprintf("$.labels.'%s'[%d]", name, i), vm)
		}
	}
	return all
}

func plainName(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r)
}

func (c *checker) limits(f *fileLimits) Limits {
	l := DefaultLimits()
	c.limit("$.limits.capture", &f.Capture, &l.Capture)
	return l
}

func (c *checker) limit(at string, f *fileLimit, to *Limit) {
	c.budget(at+".vm", f.VM, &to.VM)
	c.budget(at+".total", f.Total, &to.Total)
}

// budget reads "4/1h".
func (c *checker) budget(at, text string, to *Budget) {
	if text == "" {
		return
	}
	count, per, _ := strings.Cut(text, "/")
	n, err1 := strconv.Atoi(count)
	d, err2 := time.ParseDuration(per)
	if err1 != nil || err2 != nil || n < 0 || n > MaxPer || d <= 0 || d > MaxWindow {
		c.bad(at, "%q is no limit such as 4/1h, with at most %d in at most %s", text, MaxPer, short(MaxWindow))
		return
	}
	*to = Budget{n, d}
}

// short is a duration without the units that are zero.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// text holds names and globs to what a line of a log can show.
func (c *checker) text(at, s string) {
	if len(s) > maxText {
		c.bad(at, "longer than %d bytes", maxText)
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f {
			c.bad(at, "has a control character")
			return
		}
	}
}

func (c *checker) steps(at string, names []string) []Step {
	if len(names) == 0 {
		c.bad(at, "is empty; use [log] to do nothing more")
	}
	var out []Step
	seen := map[Step]bool{}
	for i, name := range names {
		here, s := fmt.Sprintf("%s[%d]", at, i), Step(name)
		switch s {
		case Log, Pause, Capture, Resume:
		default:
			c.bad(here, "%q is none of log, pause, capture, resume", name)
		}
		if seen[s] {
			c.bad(here, "%q stands there twice", name)
		}
		if s == Capture && !seen[Pause] {
			c.bad(here, "capture must follow pause: memory and disks of a running VM are no pair")
		}
		if s == Resume && i != len(names)-1 {
			c.bad(here, "resume must come last")
		}
		seen[s] = true
		out = append(out, s)
	}
	return out
}
