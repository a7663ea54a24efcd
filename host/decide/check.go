package decide

import (
	"fmt"
	"maps"
	"net/url"
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
	p := &Playbook{DryRun: f.DryRun, Labels: c.labels(f.Labels), Limits: c.limits(&f.Limits), Alerts: c.targets(f.Alerts)}
	seen := map[string]bool{}
	for i := range f.Rules {
		at := fmt.Sprintf("$.rules[%d]", i)
		r := c.rule(at, &f.Rules[i])
		if seen[r.Name] {
			c.bad(at+".name", "%q names an earlier rule", r.Name)
		}
		seen[r.Name] = true
		c.alert(at, &f.Rules[i], &r, p)
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
		if r.OncePer = PerRun; r.Match.Host {
			r.OncePer = PerEvent
		}
	case PerRun, PerSession, PerVM, PerEvent:
	default:
		c.bad(at+".once_per", "%q is none of run, session, vm, event", f.OncePer)
	}
	if f.Cooldown != "" {
		r.Cooldown = c.duration(at+".cooldown", f.Cooldown)
	}
	r.Steps = c.steps(at+".steps", f.Steps)
	r.State = c.state(at+".state", f.State, r.Steps)
	if i := slices.IndexFunc(r.Steps, func(s Step) bool { return s != Log && s != Alert }); r.Match.Host && i >= 0 {
		c.bad(fmt.Sprintf("%s.steps[%d]", at, i), "%s is of a VM, and a finding of the host's own is of none: log and alert are left", r.Steps[i])
	}
	return r
}

// state takes what a rule's revert goes back to.
func (c *checker) state(at, name string, steps []Step) string {
	switch {
	case name == "":
	case !slices.Contains(steps, Revert):
		c.bad(at, "needs the step revert")
	case len(name) > maxState || strings.ContainsFunc(name, func(r rune) bool { return !plainName(r) || r == '.' || r == '_' }):
		c.bad(at, "%q is no saved state's name: letters, digits and dashes are, %d at most", name, maxState)
	}
	return name
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
		Host:   f.Host,
		Engine: f.Engine, Rule: f.Rule, Severity: s, Technique: f.Technique, VM: f.VM,
		Label: f.Label, Container: f.Container, Program: f.Program,
	}
	for _, v := range [...][2]string{{".vm", f.VM}, {".label", f.Label}, {".container", f.Container}, {".program", f.Program}} {
		if f.Host && v[1] != "" {
			c.bad(at+v[0], "a finding of the host's own is of no VM")
		}
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
	c.limit("$.limits.alert", &f.Alert, &l.Alert)
	c.limit("$.limits.capture", &f.Capture, &l.Capture)
	c.limit("$.limits.revert", &f.Revert, &l.Revert)
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

// alert takes whom a rule's alert tells: who is named, else all.
func (c *checker) alert(at string, f *fileRule, r *Rule, p *Playbook) {
	if !slices.Contains(r.Steps, Alert) {
		if len(f.Alert) > 0 {
			c.bad(at+".alert", "needs the step alert")
		}
		return
	}
	for i, name := range f.Alert {
		if _, ok := p.Target(name); !ok {
			c.bad(fmt.Sprintf("%s.alert[%d]", at, i), "%q is none of the alerts of this playbook", name)
		}
		if slices.Contains(r.Alerts, name) {
			c.bad(fmt.Sprintf("%s.alert[%d]", at, i), "%q stands there twice", name)
		}
		r.Alerts = append(r.Alerts, name)
	}
	if len(f.Alert) > 0 {
		return
	}
	for _, t := range p.Alerts {
		r.Alerts = append(r.Alerts, t.Name)
	}
	if len(r.Alerts) == 0 {
		c.bad(at+".steps", "alert needs whom to tell: name a webhook or a command under alerts")
	}
}

// Bounds of alerts.
const (
	MaxTargets = 16
	maxTimeout = 5 * time.Minute
	maxGather  = time.Hour
	maxArgs    = 64
)

func (c *checker) targets(all []fileTarget) (out []Target) {
	if len(all) > MaxTargets {
		c.bad("$.alerts", "at most %d", MaxTargets)
		return nil
	}
	seen := map[string]bool{}
	for i := range all {
		at := fmt.Sprintf("$.alerts[%d]", i)
		t := c.target(at, &all[i])
		if seen[t.Name] {
			c.bad(at+".name", "%q names an earlier one", t.Name)
		}
		seen[t.Name] = true
		out = append(out, t)
	}
	return out
}

func (c *checker) target(at string, f *fileTarget) Target {
	t := Target{Name: f.Name, Webhook: f.Webhook, Token: f.Token, Command: f.Command, Timeout: 10 * time.Second, Gather: 2 * time.Second}
	if t.Name == "" || len(t.Name) > 64 || strings.ContainsFunc(t.Name, func(r rune) bool { return !plainName(r) }) {
		c.bad(at+".name", "%q is no name: letters, digits and ._- are, 64 at most", t.Name)
	}
	switch {
	case (t.Webhook == "") == (len(t.Command) == 0):
		c.bad(at, "either a webhook or a command is expected")
	case t.Webhook != "":
		c.webhook(at, t.Webhook)
	default:
		c.command(at+".command", t.Command)
	}
	if t.Token != "" && (t.Token[0] != '/' || t.Webhook == "") {
		c.bad(at+".token_file", "%q is no absolute path beside a webhook", t.Token)
	}
	if f.Timeout != "" {
		if t.Timeout = c.duration(at+".timeout", f.Timeout); t.Timeout <= 0 || t.Timeout > maxTimeout {
			c.bad(at+".timeout", "%s is not between 0 and %s", f.Timeout, short(maxTimeout))
		}
	}
	if f.Gather != "" {
		if t.Gather = c.duration(at+".gather", f.Gather); t.Gather > maxGather {
			c.bad(at+".gather", "%s is more than %s", f.Gather, short(maxGather))
		}
	}
	return t
}

func (c *checker) webhook(at, text string) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || len(text) > 2048:
		c.bad(at+".webhook", "no URL such as https://host/path") // its text is often a secret
	case u.User != nil:
		c.bad(at+".webhook", "user and password do not belong into a URL: use token_file")
	}
}

func (c *checker) command(at string, args []string) {
	if len(args) > maxArgs {
		c.bad(at, "at most %d arguments", maxArgs)
		return
	}
	if args[0] == "" || args[0][0] != '/' {
		c.bad(at+"[0]", "%q is no absolute path; the arguments stand beside it, as in [/bin/x, -v]", args[0])
	}
	for i, a := range args {
		if len(a) > 4096 || strings.ContainsRune(a, 0) {
			c.bad(fmt.Sprintf("%s[%d]", at, i), "longer than 4096 bytes, or with a zero byte")
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
		if !slices.Contains(AllSteps, s) {
			c.bad(here, "%q is none of %s", name, stepList())
		}
		if seen[s] {
			c.bad(here, "%q stands there twice", name)
		}
		switch {
		case s == Capture && !seen[Pause]:
			c.bad(here, "capture must follow pause: memory and disks of a running VM are no pair")
		case (s == Kill || s == KillTree || s == Freeze) && (seen[Pause] || seen[Revert] || seen[Reset]):
			c.bad(here, "%s must come before pause, revert and reset: the guest has to do it", s)
		case s == Kill && seen[KillTree], s == KillTree && seen[Kill]:
			c.bad(here, "kill and kill-tree end the same process")
		case s == Capture && (seen[Reset] || seen[Revert]):
			c.bad(here, "capture must come before revert and reset, which end what was in memory")
		case s == Reset && seen[Revert], s == Revert && seen[Reset]:
			c.bad(here, "revert and reset each give the VM another beginning")
		case (s == Resume || s == Destroy) && i != len(names)-1:
			c.bad(here, "%s must come last", s)
		}
		seen[s] = true
		out = append(out, s)
	}
	return out
}

func stepList() string {
	names := make([]string, len(AllSteps))
	for i, s := range AllSteps {
		names[i] = string(s)
	}
	return strings.Join(names, ", ")
}
