package layout

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

var (
	citedTest     = regexp.MustCompile("`([a-z/]+): ((?:Test|Fuzz)[A-Za-z0-9]+)`")
	citedScenario = regexp.MustCompile("scenario `([0-9a-z-]+)`")
)

// TestThreatsCiteWhatIsThere: a test or scenario that docs/THREATS.md names is
// there under that name.
func TestThreatsCiteWhatIsThere(t *testing.T) {
	dir := root(t)
	text, err := os.ReadFile(filepath.Join(dir, "docs", "THREATS.md"))
	if err != nil {
		t.Fatal(err)
	}
	cited := citedTest.FindAllStringSubmatch(string(text), -1)
	if len(cited) == 0 {
		t.Fatal("docs/THREATS.md names no test")
	}
	for _, c := range cited {
		if !hasTest(t, filepath.Join(dir, c[1]), c[2]) {
			t.Errorf("docs/THREATS.md: %s has no %s", c[1], c[2])
		}
	}
	for _, c := range citedScenario.FindAllStringSubmatch(string(text), -1) {
		if _, err := os.Stat(filepath.Join(dir, "vmtests", "scenario", "testdata", c[1]+".txtar")); err != nil {
			t.Errorf("docs/THREATS.md: scenario %s: %v", c[1], err)
		}
	}
}

func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`(?m)^func ` + name + `\(`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if declared.Match(text) {
			return true
		}
	}
	return false
}
