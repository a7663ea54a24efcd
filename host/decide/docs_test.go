package decide

import (
	"os"
	"strings"
	"testing"
)

// TestPlaybookDocs: the block in docs/PLAYBOOK.md is the built-in playbook.
func TestPlaybookDocs(t *testing.T) {
	doc, err := os.ReadFile("../../docs/PLAYBOOK.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(doc), "```yaml\n")
	block, _, ok := strings.Cut(block, "```")
	if !ok || block != DefaultText() {
		t.Errorf("docs/PLAYBOOK.md has\n%s\nthe program\n%s", block, DefaultText())
	}
}
