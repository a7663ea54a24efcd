package cli

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestDocs holds docs/CLI.md against the commands.
func TestDocs(t *testing.T) {
	var got bytes.Buffer
	writeDocs(&got)
	file := filepath.Join("..", "..", "docs", "CLI.md")
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got.String()); d != "" {
		t.Errorf("docs/CLI.md is not what the commands say (-update writes it anew):\n%s", d)
	}
}

// Every command says what it does, and every flag as well.
func TestEveryCommandIsDescribed(t *testing.T) {
	var check func(c *cobra.Command)
	check = func(c *cobra.Command) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short %q", c.CommandPath(), c.Short)
		}
		if c.RunE == nil && c.Run == nil {
			t.Errorf("%s does nothing", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			check(sub)
		}
	}
	check((&app{}).root())
}

const docsHead = `# The command line

` + "`outguard`" + ` speaks to the monitor of this host over /run/outguard/api.sock, and reads what it keeps. This page is made from
the commands themselves: ` + "`go test ./host/cli -run TestDocs -update`" + `.

Exit codes, for scripts: 0 all went well; 1 an error; 2 wrong usage; 3 verification failed, a model file was refused, or
` + "`--exit-code`" + ` found something. Results go to standard output, messages to standard error; a message names the next
thing to do.

With ` + "`--json`" + ` each command prints one object a line. Names are those of
[host/api/apipb/outguard.proto](../host/api/apipb/outguard.proto), 64-bit numbers are numbers, times are RFC 3339 in UTC
with nanoseconds, and every plain field is present. The same JSON comes over the socket:

    curl --unix-socket /run/outguard/api.sock -H 'Content-Type: application/json' -d '{}' \
      http://outguard/outguard.v1.Outguard/ListVMs
    curl --unix-socket /run/outguard/api.sock http://outguard/metrics

Text that a guest chose (paths, arguments, names of commands) may hold any bytes. It is printed, in JSON as well, with
what is not printable as Go escapes (` + "`\\n`, `\\x1b`, `\\u202e`" + `) and a backslash as ` + "`\\\\`" + `, so that nothing in it acts on a terminal
and nothing of it is lost. Times for people are local, with milliseconds.

` + "`outguard completion bash`" + ` (or zsh, fish, powershell) prints the shell's completion, which knows the names of the domains.
`

// writeDocs writes docs/CLI.md.
func writeDocs(w io.Writer) {
	root := (&app{}).root()
	root.InitDefaultHelpCmd()
	_, _ = io.WriteString(w, docsHead)
	_, _ = fmt.Fprintf(w, "\nFor every command:\n\n%s", indent(flagText(root.PersistentFlags())))
	for _, g := range root.Groups() {
		_, _ = fmt.Fprintf(w, "\n## %s\n", strings.TrimSuffix(g.Title, ":"))
		for _, c := range root.Commands() {
			if c.GroupID == g.ID && c.Name() != "help" {
				writeCommand(w, c)
			}
		}
	}
}

func writeCommand(w io.Writer, c *cobra.Command) {
	if c.HasSubCommands() {
		defer func() {
			for _, sub := range c.Commands() {
				writeCommand(w, sub)
			}
		}()
		if _, does := c.Annotations[runs]; !does {
			return
		}
	}
	_, _ = fmt.Fprintf(w, "\n### %s\n\n%s.\n", c.UseLine(), c.Short)
	if c.Long != "" {
		_, _ = fmt.Fprintf(w, "\n%s\n", c.Long)
	}
	if c.Example != "" {
		_, _ = fmt.Fprintf(w, "\n%s\n", indent(strings.ReplaceAll(strings.TrimLeft(c.Example, " "), "\n  ", "\n")))
	}
	if text := flagText(c.LocalNonPersistentFlags()); text != "" {
		_, _ = fmt.Fprintf(w, "\n%s", indent(text))
	}
}

func flagText(f *pflag.FlagSet) string {
	shown := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.VisitAll(func(one *pflag.Flag) {
		if one.Name != "help" {
			shown.AddFlag(one)
		}
	})
	return shown.FlagUsages()
}

// indent makes a block of code.
func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("    " + strings.TrimPrefix(line, "  "))
	}
	return b.String()
}

// TestIncidentIsRunnable: what docs/INCIDENT.md has a responder type are commands
// that there are, with flags that they have.
func TestIncidentIsRunnable(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "INCIDENT.md"))
	if err != nil {
		t.Fatal(err)
	}
	said := regexp.MustCompile("(?m)^outguard (.*)$|`outguard ([a-z][^`]*)`").FindAllStringSubmatch(string(text), -1)
	if len(said) < 20 {
		t.Fatalf("%d commands", len(said))
	}
	for _, m := range said {
		words := strings.Fields(strings.ReplaceAll(m[1]+m[2], "'", ""))
		cmd, rest, err := (&app{}).root().Find(words)
		if err != nil || !cmd.HasParent() {
			t.Errorf("%s: no such command: %v", words, err)
			continue
		}
		if err := cmd.ParseFlags(rest); err != nil {
			t.Errorf("%s: %v", words, err)
		}
	}
}
