package cost

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/outguard/outguard/vsockproto"
)

// perSecond is how many instructions a CPU is taken to do in a second: one for
// each of its nanoseconds, as under -icount.
const perSecond = 1e9

// more is how much more an operation takes than with no agent, all told, and for
// the task alone.
func (r *Result) more(op, column string) (all, task float64) {
	off, on := r.Costs[op][Off], r.Costs[op][column]
	return on.Total - off.Total, on.Task - off.Task
}

// each is that for each of its records, if it has any.
func (r *Result) each(op, column string) (all, task float64, ok bool) {
	events := r.Costs[op][column].Events
	if events < 0.5 {
		return 0, 0, false
	}
	all, task = r.more(op, column)
	return all / events, task / events, true
}

// share is how much more an operation takes, in percent.
func (r *Result) share(op, column string) (all, task float64) {
	off := r.Costs[op][Off]
	all, task = r.more(op, column)
	return 100 * all / off.Total, 100 * task / off.Task
}

// Lines prints a result, one line for each number.
func Lines(w io.Writer, r *Result) error {
	var b strings.Builder
	line := func(name string, value float64, unit string) {
		fmt.Fprintf(&b, "bench guest/%s/%s %.4g %s\n", r.Kernel, name, value, unit)
	}
	for _, op := range ops {
		for _, c := range r.columns(op.name) {
			v, ok := r.Costs[op.name][c]
			if !ok {
				continue
			}
			at := op.name + "/" + c
			fmt.Fprintf(&b, "bench guest/%s/%s %.0f instructions\n", r.Kernel, at, v.Total)
			if c == Off {
				continue
			}
			all, task := r.share(op.name, c)
			line(at+"/more", all, "%")
			line(at+"/task-more", task, "%")
			line(at+"/events", v.Events, "events")
			line(at+"/lost", float64(v.Lost), "events")
			if all, task, ok := r.each(op.name, c); ok {
				line(at+"/event-task", task, "instructions")
				line(at+"/event", all, "instructions")
			}
		}
	}
	for _, op := range ops {
		d, ok := r.Delivered[op.name]
		if !ok {
			continue
		}
		for _, t := range op.of {
			line(op.name+"/record/"+t.String(), d.Types[t], "B/event")
		}
		line(op.name+"/wire", d.Wire, "B/event")
	}
	for _, p := range r.Programs {
		line("program/"+p.Op+"/"+p.Name, p.Instructions, "instructions")
	}
	line("ready", r.Ready/1e6, "Minstructions")
	if r.Flood.Sent > 0 { // else it was some operations alone
		line("wire", r.Delivered[flood].Wire, "B/event")
		line("record", r.Delivered[flood].Types[vsockproto.FileOpen], "B/event")
		line("deliver", perSecond/r.Flood.Instructions, "events/s")
		line("flood-lost", float64(r.Flood.Lost), "events")
	}
	if r.Resident > 0 {
		line("resident", megabytes(r.Resident), "MB")
		line("resident-peak", megabytes(r.Peak), "MB")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// columns are those that an operation was measured in, Columns' first.
func (r *Result) columns(op string) []string {
	all := slices.Clone(Columns)
	for _, c := range slices.Sorted(maps.Keys(r.Costs[op])) {
		if !slices.Contains(all, c) {
			all = append(all, c)
		}
	}
	return all
}

func megabytes(kib int) float64 { return float64(kib) * 1024 / 1e6 }

// Table is the results in Markdown.
func Table(all []*Result) string {
	var b strings.Builder
	for _, r := range all {
		fmt.Fprintf(&b, "\n### %s (%s)\n\n", r.Kernel, r.Release)
		fmt.Fprintf(&b, "| operation | %s | events | more, task | more, all | an event, task | an event, all |\n", strings.Join(Columns, " | "))
		fmt.Fprintf(&b, "|---|%s---:|---:|---:|---:|---:|\n", strings.Repeat("---:|", len(Columns)))
		for _, op := range ops {
			if _, ok := r.Costs[op.name]; ok {
				b.WriteString(r.row(op))
			}
		}
		fmt.Fprintf(&b, "\n%s\n", r.rounds())
		b.WriteString("\nWhat a record of each takes, in bytes, and on the wire, frames included, for each record of the operation:\n\n| operation | records | on the wire |\n|---|---|---:|\n")
		for _, op := range ops {
			if d, ok := r.Delivered[op.name]; ok {
				fmt.Fprintf(&b, "| %s | %s | %.0f |\n", op.text, d.records(op.of), d.Wire)
			}
		}
		if len(r.Programs) > 0 {
			b.WriteString("\nWhat the kernel says that each program takes, its looking at the clock included:\n\n| operation | program | runs | instructions |\n|---|---|---:|---:|\n")
		}
		for _, p := range r.Programs {
			fmt.Fprintf(&b, "| %s | %s | %.2g | %s |\n", p.Op, p.Name, p.Runs, thousands(p.Instructions))
		}
		fmt.Fprintf(&b, "\nThe agent had attached its programs after %.0f million instructions. It holds %.1f MB of memory, and held %.1f MB when it "+
			"loaded those of `tsem-full`. One CPU of a thousand million instructions a "+
			"second delivers %.0f of them a second to the host, the opens themselves among what it does; %d of %d were lost.\n",
			r.Ready/1e6, megabytes(r.Resident), megabytes(r.Peak), perSecond/r.Flood.Instructions, r.Flood.Lost, r.Flood.Sent)
	}
	return b.String()
}

// rounds says of how many rounds the table's figures are the least.
func (r *Result) rounds() string {
	if r.Quick {
		return fmt.Sprintf("With `-quick`: the least of %d rounds of half as many, and of %d short ones.", quickRounds, shortRounds)
	}
	of := map[int][]string{}
	for _, op := range ops {
		of[op.rounds] = append(of[op.rounds], op.name)
	}
	most := slices.MaxFunc(slices.Collect(maps.Keys(of)), func(a, b int) int { return len(of[a]) - len(of[b]) })
	text := fmt.Sprintf("The least of %d rounds", most)
	for _, n := range slices.Sorted(maps.Keys(of)) {
		if n != most {
			text += fmt.Sprintf(" (%s: %d)", strings.Join(of[n], ", "), n)
		}
	}
	return text + fmt.Sprintf(", and of %d short ones.", shortRounds)
}

// records names records and how long they are.
func (d Delivery) records(of []vsockproto.EventType) string {
	var all []string
	for _, t := range of {
		all = append(all, fmt.Sprintf("%s %.0f", t, d.Types[t]))
	}
	return strings.Join(all, ", ")
}

func (r *Result) row(op op) string {
	const of = vsockproto.DefaultProfile
	cells := []string{op.text}
	for _, c := range Columns {
		cells = append(cells, thousands(r.Costs[op.name][c].Total))
	}
	all, task := r.share(op.name, of)
	cells = append(cells, fmt.Sprintf("%.3g", r.Costs[op.name][of].Events), fmt.Sprintf("%+.1f %%", task), fmt.Sprintf("%+.1f %%", all))
	if all, task, ok := r.each(op.name, of); ok {
		cells = append(cells, thousands(task), thousands(all))
	} else {
		cells = append(cells, "", "")
	}
	return "| " + strings.Join(cells, " | ") + " |\n"
}

// thousands writes a number as people read it: 12,345.
func thousands(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	sign := ""
	if strings.HasPrefix(s, "-") {
		sign, s = "-", s[1:]
	}
	var parts []string
	for len(s) > 3 {
		parts = append(parts, s[len(s)-3:])
		s = s[:len(s)-3]
	}
	parts = append(parts, s)
	slices.Reverse(parts)
	return sign + strings.Join(parts, ",")
}

// The marks between which a document has the table.
const (
	beginMark = "<!-- make bench-guest begins -->\n"
	endMark   = "<!-- make bench-guest ends -->\n"
)

var errNoMarks = errors.New("no marks for the table: " + strings.TrimSpace(beginMark) + " and " + strings.TrimSpace(endMark))

// Insert puts a table between the marks of a document, in place of what stands there.
func Insert(doc []byte, table string) ([]byte, error) {
	before, rest, ok := bytes.Cut(doc, []byte(beginMark))
	_, after, ok2 := bytes.Cut(rest, []byte(endMark))
	if !ok || !ok2 {
		return nil, errNoMarks
	}
	return slices.Concat(before, []byte(beginMark), []byte(table), []byte("\n"), []byte(endMark), after), nil
}
