package scenario

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// steady holds the record against what `outguard-poke steady` printed: each open and
// each execution, or those of one TYPE, is there once.
func (w *world) steady(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && (len(args) == 2 || len(args) == 3), "steady NAME FILE [TYPE]")
	g, only := w.known(ts, args[0]), append(args, "")[2]
	ctx, cancel := bounded()
	defer cancel()
	held := 0
	for line := range strings.Lines(ts.ReadFile(args[1])) {
		f := strings.Fields(line)
		if len(f) != 3 || only != "" && f[0] != only {
			continue
		}
		n, err := strconv.Atoi(f[2])
		ts.Check(err)
		var wrong string
		if !poll(2*time.Minute, func() bool {
			text, err := w.install.CLI(ctx, "events", "--vm", g.Name, "--type", f[0], "--json")
			ts.Check(err)
			wrong = notOnce(text, f[1], n)
			return wrong == ""
		}) {
			ts.Fatalf("%s of %d: %s", f[0], n, wrong)
		}
		ts.Logf("%s: %d, each once", f[0], n)
		held++
	}
	if held == 0 {
		ts.Fatalf("%s says nothing of %s", args[1], only)
	}
}

// notOnce names what of prefix0 … prefix(n-1) is not in one event of text, as a path
// or an argument.
func notOnce(text, prefix string, n int) string {
	named := regexp.MustCompile(`(?:"file":\{"path":|"argv":\["/bin/true",)"` + regexp.QuoteMeta(prefix) + `(\d+)"`)
	times := make([]int, n)
	for _, m := range named.FindAllStringSubmatch(text, -1) {
		if i, err := strconv.Atoi(m[1]); err == nil && i < n {
			times[i]++
		}
	}
	var wrong []string
	for i, k := range times {
		if k != 1 {
			wrong = append(wrong, fmt.Sprintf("%s%d %d times", prefix, i, k))
		}
	}
	return strings.Join(wrong[:min(len(wrong), 20)], ", ")
}
