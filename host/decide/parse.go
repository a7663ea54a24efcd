package decide

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// Bounds of a playbook file.
const (
	MaxBytes = 1 << 20
	MaxRules = 1000
	maxText  = 256
	maxState = 64 // of a saved state's name
)

// file and the others are a playbook as it is written.
type file struct {
	Version int                 `yaml:"version"`
	DryRun  bool                `yaml:"dry_run"`
	Labels  map[string][]string `yaml:"labels"`
	Limits  fileLimits          `yaml:"limits"`
	Alerts  []fileTarget        `yaml:"alerts"`
	Rules   []fileRule          `yaml:"rules"`
}

type fileTarget struct {
	Name    string   `yaml:"name"`
	Webhook string   `yaml:"webhook"`
	Token   string   `yaml:"token_file"`
	Command []string `yaml:"command"`
	Timeout string   `yaml:"timeout"`
	Gather  string   `yaml:"gather"`
}

type fileLimits struct {
	Alert   fileLimit `yaml:"alert"`
	Capture fileLimit `yaml:"capture"`
	Revert  fileLimit `yaml:"revert"`
}

type fileLimit struct {
	VM    string `yaml:"vm"`
	Total string `yaml:"total"`
}

type fileRule struct {
	Name     string     `yaml:"name"`
	Match    *fileMatch `yaml:"match"`
	Steps    []string   `yaml:"steps"`
	Alert    []string   `yaml:"alert"`
	State    string     `yaml:"state"`
	OncePer  string     `yaml:"once_per"`
	Cooldown string     `yaml:"cooldown"`
	DryRun   bool       `yaml:"dry_run"`
}

type fileMatch struct {
	Host      bool          `yaml:"host"`
	Engine    string        `yaml:"engine"`
	Rule      string        `yaml:"rule"`
	Severity  string        `yaml:"severity"`
	Technique string        `yaml:"technique"`
	VM        string        `yaml:"vm"`
	Label     string        `yaml:"label"`
	Container string        `yaml:"container"`
	Program   string        `yaml:"program"`
	Repeated  *fileRepeated `yaml:"repeated"`
}

type fileRepeated struct {
	Times  int    `yaml:"times"`
	Within string `yaml:"within"`
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
