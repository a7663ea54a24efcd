package decide

import (
	"cmp"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
)

// Match is what a finding must be; zero fields match all.
type Match struct {
	Host      bool // of the host's own, and of no VM
	Engine    string
	Rule      string
	Severity  engine.Severity // at least
	Technique string
	VM        string
	Label     string // one of the playbook's, which names VMs
	Container string // its name where the engine tells it, else its cgroup's id
	Program   string // path of the program that acted
	Repeated  Repeated
}

// Repeated asks for so many findings of one VM within a time; zero asks for
// none before.
type Repeated struct {
	Times  int
	Within time.Duration
}

// Details of a finding by which an engine names what acted. They are as
// printable text; a finding that lacks one matches no glob over it.
const (
	detailProgram   = "program"
	detailContainer = "container"
	detailCgroup    = "cgroup"
)

// holds reports whether a finding is what a rule is about; how often it came is
// not asked here.
func (m *Match) holds(f *engine.Finding, name string, labels map[string][]string) bool {
	return m.Host == (f.VM == uuid.Nil) && f.Severity >= m.Severity &&
		(m.Engine == "" || glob(m.Engine, f.Engine)) &&
		(m.Rule == "" || glob(m.Rule, f.Rule)) &&
		(m.Technique == "" || glob(m.Technique, f.Technique)) &&
		(m.VM == "" || isVM(m.VM, f, name)) &&
		(m.Label == "" || slices.ContainsFunc(labels[m.Label], func(vm string) bool { return isVM(vm, f, name) })) &&
		(m.Container == "" || named(m.Container, cmp.Or(f.Detail[detailContainer], f.Detail[detailCgroup]))) &&
		(m.Program == "" || named(m.Program, f.Detail[detailProgram]))
}

func isVM(pattern string, f *engine.Finding, name string) bool {
	return glob(pattern, name) || glob(pattern, f.VM.String())
}

// named matches what may be unknown, which even * does not stand for.
func named(pattern, s string) bool { return s != "" && glob(pattern, s) }

// glob matches with * for any text and ? for one byte, in time bounded by the
// product of both lengths.
func glob(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
