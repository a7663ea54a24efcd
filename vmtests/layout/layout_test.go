package layout

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const modulePath = "github.com/outguard/outguard"

// rule forbids imports and says why. Folders are below the module's root and
// mean everything under them.
type rule struct {
	from   string
	except []string // folders under from that the rule does not bind
	not    []string // what may not be imported: a folder of this module, or a path
	only   []string // where set: what alone may be imported; "std" is the standard library
	unless []string // what not does not mean
	tests  []string // nor does it for tests
	why    string
}

var rules = []rule{
	{from: "vsockproto", except: []string{"vsockproto/link", "vsockproto/prototest"}, only: []string{"std"},
		why: "the contract of bytes is read by the guest, the host and other implementations: it drags nothing along"},
	{from: "vsockproto", not: []string{"host", "guest", "plugins"},
		why: "both sides stand on the protocol, so it can stand on neither"},
	{from: "guest", not: []string{"host", "plugins"},
		why: "the guest is the attacker's ground: nothing of the host's mind belongs there"},
	{from: "host", not: []string{"guest"},
		why: "the host knows the guest by its bytes alone"},
	{from: "host", except: []string{"host/cli"}, not: []string{"plugins"}, unless: []string{"plugins/engine", "plugins/lineage"},
		why: "engines are processes: one that crashes, hangs or is replaced takes no part of the monitor along"},
	{from: "plugins", not: []string{"host"},
		why: "an engine judges events and carries nothing out; whoever writes one needs no monitor"},
	{from: "plugins/engine", not: []string{"plugins/tsem", "plugins/rules", "plugins/ioc", "plugins/anomaly"},
		why: "the contract knows none of those who keep it"},
	{from: "plugins/lineage", not: []string{"plugins/tsem", "plugins/rules", "plugins/ioc", "plugins/anomaly"},
		why: "engines stand on lineage, not the other way round"},
	{from: "plugins/tsem", not: []string{"plugins/rules", "plugins/ioc", "plugins/anomaly"}, why: "engines never import each other"},
	{from: "plugins/rules", not: []string{"plugins/tsem", "plugins/ioc", "plugins/anomaly"}, why: "engines never import each other"},
	{from: "plugins/ioc", not: []string{"plugins/tsem", "plugins/rules", "plugins/anomaly"}, why: "engines never import each other"},
	{from: "plugins/anomaly", not: []string{"plugins/tsem", "plugins/rules", "plugins/ioc"}, why: "engines never import each other"},
	{from: "host", except: []string{"host/domain"}, not: []string{"github.com/digitalocean/go-libvirt"},
		why: "one room speaks to libvirt, so that there is one place for its errors, timeouts and reconnects"},
	{from: "host", except: []string{"host/monitor", "host/cmd", "host/cli"}, not: []string{"host/monitor"},
		why: "parts meet in the monitor; a part that imports it cannot be used without the rest"},
	{from: "host", except: []string{"host/fulldisk"}, not: []string{"host/fulldisk"}, tests: []string{"host/fulldisk"},
		why: "what fills a disk is for tests"},
	{from: "host/failpoint", only: []string{"std"},
		why: "every part calls it, so it stands on none"},
	{from: "host/fdstore", not: []string{"host", "plugins", "vsockproto"}, unless: []string{"host/fdstore"},
		why: "what a service manager keeps is no part's affair"},
	{from: "host/bolt", not: []string{"host", "plugins", "vsockproto"}, unless: []string{"host/bolt"},
		why: "whoever keeps a file in bbolt stands on it"},
	{from: "host/decide", not: []string{"os", "net", "os/exec", "io/fs"},
		why: "a decision is a function of findings and policy, and can be repeated from the record"},
	{from: ".", except: []string{"vmtests"}, not: []string{"vmtests"},
		why: "tests of the whole stand outside it"},
	{from: "vmtests", not: []string{"host", "guest", "plugins"},
		why: "scenarios drive the product through its binaries, as its users do"},
}

// parts of the host meet in the monitor. What stands beside a part is what it
// may import of the others, and what its tests may.
var parts = map[string]struct{ unless, tests []string }{
	"host/listen":     {},
	"host/session":    {tests: []string{"host/evidence"}}, // that a quota holds is seen on a real record
	"host/pipeline":   {tests: []string{"host/engines"}},  // that nothing is lost on the way is seen with real engines
	"host/engines":    {},
	"host/decide":     {},
	"host/alert":      {},
	"host/respond":    {tests: []string{"host/domain"}}, // that an order came about is seen on a real domain
	"host/domain":     {},
	"host/evidence":   {},
	"host/bundle":     {unless: []string{"host/evidence"}}, // a bundle is a range of the record, and verified as one
	"host/api":        {},
	"host/metrics":    {},
	"host/introspect": {},
}

func partRules() (all []rule) {
	names := slices.Sorted(maps.Keys(parts))
	for name, p := range parts {
		all = append(all, rule{
			from: name, unless: p.unless, tests: p.tests,
			not: slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name }),
			why: "parts of the host meet through interfaces that the consumer declares",
		})
	}
	return all
}

// TestEveryPartIsNamed: a room of the host is a part, or one of those that
// bring parts together.
func TestEveryPartIsNamed(t *testing.T) {
	not := []string{"monitor", "cli", "cmd", "version", "deploy", "failpoint", "fulldisk", "fdstore", "bolt"}
	entries, err := os.ReadDir(filepath.Join(root(t), "host"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, ok := parts["host/"+e.Name()]; !ok && !slices.Contains(not, e.Name()) {
			t.Errorf("host/%s is no part that the import rules know", e.Name())
		}
	}
}

func TestImports(t *testing.T) {
	pkgs := packages(t)
	for _, r := range slices.Concat(rules, partRules()) {
		for _, p := range pkgs {
			if !under(p.dir, r.from) || slices.ContainsFunc(r.except, func(e string) bool { return under(p.dir, e) }) {
				continue
			}
			for _, imp := range p.imports {
				if !r.allows(imp) {
					t.Errorf("%s imports %s: %s", p.dir, imp, r.why)
				}
			}
			for _, imp := range p.testImports {
				// A test may use any library, but is a part of its room as well.
				if local, ok := strings.CutPrefix(imp, modulePath+"/"); ok && !r.allows(imp) && !slices.ContainsFunc(r.tests, func(d string) bool { return under(local, d) }) {
					t.Errorf("%s: a test imports %s: %s", p.dir, imp, r.why)
				}
			}
		}
	}
}

func (r rule) allows(imp string) bool {
	local, isLocal := strings.CutPrefix(imp, modulePath+"/")
	if !isLocal {
		local = imp
	}
	if len(r.only) > 0 {
		std := !isLocal && !strings.Contains(strings.Split(imp, "/")[0], ".")
		return std && slices.Contains(r.only, "std") || isLocal && under(local, r.from)
	}
	if slices.ContainsFunc(r.unless, func(u string) bool { return under(local, u) }) {
		return true
	}
	return !slices.ContainsFunc(r.not, func(n string) bool {
		if !isLocal && !strings.Contains(n, ".") {
			return imp == n // of the standard library: this package alone
		}
		return under(local, n)
	})
}

// TestRulesBite holds that each kind of rule refuses something.
func TestRulesBite(t *testing.T) {
	for _, test := range []struct {
		rule    rule
		imp     string
		allowed bool
	}{
		{rule{only: []string{"std"}, from: "vsockproto"}, "encoding/binary", true},
		{rule{only: []string{"std"}, from: "vsockproto"}, "golang.org/x/sys/unix", false},
		{rule{only: []string{"std"}, from: "vsockproto"}, modulePath + "/plugins/engine", false},
		{rule{not: []string{"host"}}, modulePath + "/host/domain", false},
		{rule{not: []string{"host"}}, modulePath + "/hostess", true},
		{rule{not: []string{"net"}}, "net/netip", true},
		{rule{not: []string{"net"}}, "net", false},
		{rule{not: []string{"github.com/digitalocean/go-libvirt"}}, "github.com/digitalocean/go-libvirt/socket", false},
		{rule{not: []string{"plugins"}, unless: []string{"plugins/engine"}}, modulePath + "/plugins/engine/enginepb", true},
		{rule{not: []string{"plugins"}, unless: []string{"plugins/engine"}}, modulePath + "/plugins/tsem", false},
	} {
		if got := test.rule.allows(test.imp); got != test.allowed {
			t.Errorf("%+v of %s: %v, want %v", test.rule, test.imp, got, test.allowed)
		}
	}
}

// topLevel is all that may stand in the first screen of the repository.
var topLevel = map[string]string{
	"vsockproto": "the wire protocol", "guest": "the agent", "host": "the monitor", "plugins": "the engines", "vmtests": "real guests",
	"docs":   "what is too long for a package's doc",
	"go.mod": "", "go.sum": "", "Makefile": "", "README.md": "", "ARCHITECTURE.md": "", "CONTRIBUTING.md": "", "CHANGELOG.md": "",
	"SECURITY.md": "", "LICENSE": "", "LICENSE.GPL-2.0": "", "NOTICE": "", "staticcheck.conf": "", "buf.yaml": "",
	".ci": "", ".git": "", ".gitignore": "", ".gitattributes": "", ".golangci.yml": "", ".editorconfig": "",
	"bin": "built, not committed", ".cache": "made, not committed",
}

func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir(root(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, ok := topLevel[e.Name()]; !ok {
			t.Errorf("%s stands at the top, where the parts of the system stand; a new part is added to topLevel with its noun", e.Name())
		}
	}
}

func TestNoAttic(t *testing.T) {
	for _, p := range packages(t) {
		for _, part := range strings.Split(p.dir, "/") {
			if slices.Contains([]string{"pkg", "internal", "util", "utils", "common", "helpers", "misc"}, part) {
				t.Errorf("%s: a package is one noun, and %q is none", p.dir, part)
			}
		}
	}
}

func TestEveryPackageSaysItsJob(t *testing.T) {
	for _, p := range packages(t) {
		want := "Package " + p.name + " "
		if p.name == "main" {
			want = "" // any
		}
		if p.generated {
			continue
		}
		if p.doc == "" || !strings.HasPrefix(p.doc, want) {
			t.Errorf("%s: its package doc is %q, want a sentence that begins with %q", p.dir, firstLine(p.doc), want)
		}
	}
}

// pkg is one folder with Go files.
type pkg struct {
	dir, name, doc string
	imports        []string // of all files, whatever their build tags
	testImports    []string
	generated      bool // every file of it
}

// packages parses what is on disk rather than asking the go command: a file
// left out by build tags is bound by the rules too.
func packages(t *testing.T) []pkg {
	t.Helper()
	dir, byDir := root(t), map[string]*pkg{}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && file != dir || d.Name() == "testdata" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(file, ".go") {
			return nil
		}
		rel, err := filepath.Rel(dir, filepath.Dir(file))
		if err != nil {
			return err
		}
		p := byDir[rel]
		if p == nil {
			p = &pkg{dir: filepath.ToSlash(rel), generated: true}
			byDir[rel] = p
		}
		return p.add(file)
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(byDir) < 5 {
		t.Fatalf("found %d packages under %s: the search is broken", len(byDir), dir)
	}
	var all []pkg
	for _, p := range byDir {
		all = append(all, *p)
	}
	slices.SortFunc(all, func(a, b pkg) int { return strings.Compare(a.dir, b.dir) })
	return all
}

func (p *pkg) add(file string) error {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		return err
	}
	test := strings.HasSuffix(file, "_test.go")
	for _, i := range f.Imports {
		s, err := strconv.Unquote(i.Path.Value)
		switch {
		case err != nil:
			return fmt.Errorf("%s: import %s: %w", file, i.Path.Value, err)
		case test:
			p.testImports = append(p.testImports, s)
		default:
			p.imports = append(p.imports, s)
		}
	}
	if test {
		return nil
	}
	p.name, p.generated = f.Name.Name, p.generated && ast.IsGenerated(f)
	if f.Doc != nil && p.doc == "" {
		p.doc = f.Doc.Text()
	}
	return nil
}

// under tells whether dir is parent or stands below it.
func under(dir, parent string) bool {
	return parent == "." || dir == parent || strings.HasPrefix(dir, path.Clean(parent)+"/")
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// root is the module's, two folders above this package.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatal(err)
	}
	return dir
}
