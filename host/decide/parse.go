package decide

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/outguard/outguard/plugins/engine"
)

// Bounds of a playbook file.
const (
	MaxBytes = 1 << 20
	MaxRules = 1000
	maxText  = 256
)

// fileRule and the others are a playbook as it is written.
type fileMatch struct {
	Engine    string `yaml:"engine"`
	Rule      string `yaml:"rule"`
	Severity  string `yaml:"severity"`
	Technique string `yaml:"technique"`
	VM        string `yaml:"vm"`
}

type fileRule struct {
	Name     string     `yaml:"name"`
	Match    *fileMatch `yaml:"match"`
	Steps    []string   `yaml:"steps"`
	OncePer  string     `yaml:"once_per"`
	Cooldown string     `yaml:"cooldown"`
}

type file struct {
	Version int        `yaml:"version"`
	Rules   []fileRule `yaml:"rules"`
}

// Parse reads and validates a playbook. Its errors say line:column; all the
// bad values of a file that can be read are reported at once.
func Parse(text []byte) (*Playbook, error) {
	tree, err := parsePlain(text)
	if err != nil {
		return nil, err
	}
	var f file
	if err := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()).Decode(&f); err != nil && !errors.Is(err, io.EOF) {
		return nil, syntax(err)
	}
	c := &checker{tree: tree}
	p := c.playbook(&f)
	if len(c.errs) > 0 {
		return nil, errors.Join(c.errs...)
	}
	return p, nil
}

// Plain refuses YAML of more than MaxBytes, that is not UTF-8, or that has
// anchors, aliases, tags or several documents: what no file here has a use for,
// and what the library that decodes it can panic over.
func Plain(text []byte) error {
	_, err := parsePlain(text)
	return err
}

func parsePlain(text []byte) (*ast.File, error) {
	if len(text) > MaxBytes {
		return nil, fmt.Errorf("it is larger than %d bytes", MaxBytes)
	}
	if !utf8.Valid(text) {
		return nil, errors.New("it is not UTF-8")
	}
	tree, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, syntax(err)
	}
	return tree, plain(tree)
}

// plain refuses what a playbook has no use for and what makes small files
// large: anchors, aliases and several documents.
func plain(tree *ast.File) error {
	if len(tree.Docs) > 1 {
		return errors.New("1:1: one document is expected")
	}
	w := &plainWalk{}
	for _, d := range tree.Docs {
		if d.Body != nil {
			ast.Walk(w, d.Body)
		}
	}
	return w.err
}

type plainWalk struct{ err error }

func (w *plainWalk) Visit(n ast.Node) ast.Visitor {
	switch n.Type() {
	case ast.AnchorType, ast.AliasType, ast.MergeKeyType, ast.TagType:
		if w.err == nil {
			w.err = fmt.Errorf("%s: anchors, aliases and tags are not used here", position(n))
		}
		return nil
	}
	return w
}

// syntax gives the library's errors the form of this package's.
func syntax(err error) error {
	var ye yaml.Error
	if !errors.As(err, &ye) || ye.GetToken() == nil || ye.GetToken().Position == nil {
		return err
	}
	p := ye.GetToken().Position
	return fmt.Errorf("%d:%d: %s", p.Line, p.Column, ye.GetMessage())
}

func position(n ast.Node) string {
	if n == nil || n.GetToken() == nil || n.GetToken().Position == nil {
		return "1:1"
	}
	p := n.GetToken().Position
	return fmt.Sprintf("%d:%d", p.Line, p.Column)
}

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
	p := &Playbook{}
	seen := map[string]bool{}
	for i := range f.Rules {
		at := fmt.Sprintf("$.rules[%d]", i)
		r := c.rule(at, &f.Rules[i])
		if seen[r.Name] {
			c.bad(at+".name", "%q names an earlier rule", r.Name)
		}
		seen[r.Name] = true
		p.Rules = append(p.Rules, r)
	}
	return p
}

func (c *checker) rule(at string, f *fileRule) Rule {
	r := Rule{Name: f.Name, OncePer: Once(f.OncePer)}
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
		d, err := time.ParseDuration(f.Cooldown)
		if err != nil || d < 0 {
			c.bad(at+".cooldown", "%q is no duration such as 30s or 10m", f.Cooldown)
		}
		r.Cooldown = d
	}
	r.Steps = c.steps(at+".steps", f.Steps)
	return r
}

var severities = map[string]engine.Severity{
	"": 0, "info": engine.Info, "low": engine.Low, "medium": engine.Medium, "high": engine.High, "critical": engine.Severest,
}

func (c *checker) match(at string, f *fileMatch) Match {
	for _, v := range [...][2]string{{".engine", f.Engine}, {".rule", f.Rule}, {".technique", f.Technique}, {".vm", f.VM}} {
		c.text(at+v[0], v[1])
	}
	s, ok := severities[f.Severity]
	if !ok {
		c.bad(at+".severity", "%q is none of info, low, medium, high, critical", f.Severity)
	}
	return Match{Engine: f.Engine, Rule: f.Rule, Severity: s, Technique: f.Technique, VM: f.VM}
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
