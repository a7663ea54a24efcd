package monitor

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The block in docs/CONFIG.md is the defaults, all of them and no others.
func TestConfigDocs(t *testing.T) {
	doc, err := os.ReadFile("../../docs/CONFIG.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(doc), "```yaml\n")
	block, _, ok := strings.Cut(block, "```")
	if !ok {
		t.Fatal("docs/CONFIG.md has no yaml block")
	}
	got, err := ParseConfig([]byte(block))
	if err != nil {
		t.Fatal(err)
	}
	want, err := ParseConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("defaults (-) and docs/CONFIG.md (+):\n%s", d)
	}
}
