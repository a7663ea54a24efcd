package scenario

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// acted holds the record against what `outguard-poke acted` printed, which is so many
// lines at least: of each as many events as it says hold what it says, or stand in that
// order.
func (w *world) acted(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && (len(args) == 2 || len(args) == 3), "acted NAME FILE [LINES]")
	g := w.known(ts, args[0])
	least, err := strconv.Atoi(append(args, "50")[2])
	ts.Check(err)
	said := saidActs(ts, ts.ReadFile(args[1]))
	if len(said) < least {
		ts.Fatalf("%d lines:\n%s", len(said), ts.ReadFile(args[1]))
	}
	ctx, cancel := bounded()
	defer cancel()
	var wrong []string
	if !poll(3*time.Minute, func() bool {
		text, err := w.install.CLI(ctx, "events", "--vm", g.Name, "--json")
		ts.Check(err)
		wrong = append(miscounted(said, text), disordered(ts.ReadFile(args[1]), text)...)
		return len(wrong) == 0
	}) {
		ts.Fatalf("%d of %d lines are not as the record has it:\n%s", len(wrong), len(said), strings.Join(wrong, "\n"))
	}
	ts.Logf("%d lines", len(said))
}

// act is how many events of a type are to hold all parts; least: or more.
type act struct {
	n     int
	least bool
	event string
	parts []string
}

// saidActs reads "N & TYPE & PART..." lines.
func saidActs(ts *testscript.TestScript, text string) (said []act) {
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), " & ")
		if len(f) < 3 || f[0] == "before" {
			continue
		}
		a := act{n: 1, least: f[0] == "+", event: f[1], parts: f[2:]}
		if !a.least {
			n, err := strconv.Atoi(f[0])
			ts.Check(err)
			a.n = n
		}
		said = append(said, a)
	}
	return said
}

// disordered are the "before" lines of said of which text has it the other way, or
// lacks one of both.
func disordered(said, text string) (wrong []string) {
	for line := range strings.Lines(said) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), " & ")
		if f[0] != "before" || len(f) != 7 {
			continue
		}
		first, second := lineOf(text, f[1], f[2:4]), lineOf(text, f[4], f[5:])
		if first < 0 || second < 0 || first >= second {
			wrong = append(wrong, fmt.Sprintf("%s: lines %d and %d", strings.TrimSpace(line), first, second))
		}
	}
	return wrong
}

// lineOf is where the first event of a type stands that holds all parts, -1 if
// there is none.
func lineOf(text, event string, parts []string) int {
	n := 0
	for line := range strings.Lines(text) {
		if strings.Contains(line, `"type":"`+event+`"`) && !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			return n
		}
		n++
	}
	return -1
}

// miscounted are the lines of which text, an event a line, has another number of
// events, each with an event of its type that holds most of its parts.
func miscounted(said []act, text string) (wrong []string) {
	of := map[string][]string{}
	for line := range strings.Lines(text) {
		_, rest, _ := strings.Cut(line, `"type":"`)
		name, _, _ := strings.Cut(rest, `"`)
		of[name] = append(of[name], line)
	}
	for _, a := range said {
		n, most, nearest := 0, 0, "none"
		for _, line := range of[a.event] {
			held := 0
			for _, p := range a.parts {
				if strings.Contains(line, p) {
					held++
				}
			}
			if held == len(a.parts) {
				n++
			} else if held > most {
				most, nearest = held, line
			}
		}
		if n != a.n && !(a.least && n > 0) {
			wrong = append(wrong, fmt.Sprintf("%s %s: %d instead of %d; the nearest other: %s", a.event, strings.Join(a.parts, " "), n, a.n, nearest))
		}
	}
	return wrong
}
