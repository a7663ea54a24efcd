package scenario

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// hooks holds the record against what outguard-hooks printed: of each hook that
// it made run there is an event that holds what the line says.
func (w *world) hooks(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "hooks NAME FILE")
	g := w.known(ts, args[0])
	said := saidHooks(ts.ReadFile(args[1]))
	if len(said) < 80 {
		ts.Fatalf("%s tells of %d hooks:\n%s", args[1], len(said), ts.ReadFile(args[1]))
	}
	ctx, cancel := bounded()
	defer cancel()
	var missing []string
	if !poll(3*time.Minute, func() bool {
		text, err := w.install.CLI(ctx, "events", "--vm", g.Name, "--json")
		ts.Check(err)
		missing = unrecorded(said, text)
		return len(missing) == 0
	}) {
		ts.Fatalf("%d of %d hooks have no event that fits:\n%s", len(missing), len(said), strings.Join(missing, "\n"))
	}
	ts.Logf("%d hooks", len(said))
}

// saidHook is a hook and parts of its event.
type saidHook struct {
	name  string
	parts []string
}

func saidHooks(text string) (said []saidHook) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) > 0 && f[0] != "skip" && !strings.HasSuffix(f[0], ":") {
			said = append(said, saidHook{f[0], f[1:]})
		}
	}
	return said
}

// unrecorded lists those of which no event of text, one a line, holds all parts,
// each with an event of its type, if there is one.
func unrecorded(said []saidHook, text string) (missing []string) {
	of := map[string][]string{}
	for line := range strings.Lines(text) {
		_, rest, _ := strings.Cut(line, `"type":"`)
		name, _, _ := strings.Cut(rest, `"`)
		of[name] = append(of[name], line)
	}
	for _, s := range said {
		fits := func(line string) bool {
			return !slices.ContainsFunc(s.parts, func(p string) bool { return !strings.Contains(line, p) })
		}
		if events := of[s.name]; !slices.ContainsFunc(events, fits) {
			last := "no event"
			if len(events) > 0 {
				last = events[len(events)-1]
			}
			missing = append(missing, fmt.Sprintf("%s %s: %d events, such as %s", s.name, strings.Join(s.parts, " "), len(events), last))
		}
	}
	return missing
}
