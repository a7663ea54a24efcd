package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"
	"google.golang.org/protobuf/proto"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/safe"
)

// printf writes text whose values are safe by construction or by quote.
func (a *app) printf(format string, args ...any) { _, _ = fmt.Fprintf(a.out, format, args...) }

// print writes m as JSON where that is asked for, else as human says it.
func (a *app) print(m proto.Message, human func()) {
	if a.json {
		_, _ = a.out.Write(append(api.AppendJSON(nil, m), '\n'))
		return
	}
	human()
}

// printJSON writes what is no message of the API.
func (a *app) printJSON(v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	_, _ = a.out.Write(safe.JSON(nil, b.Bytes()))
	return nil
}

// printAll writes messages a line each, or as one table.
func printAll[M proto.Message](a *app, all []M, none string, head []string, row func(M) []string) {
	if a.json {
		for _, m := range all {
			a.print(m, nil)
		}
		return
	}
	if len(all) == 0 {
		_, _ = fmt.Fprintln(a.err, none)
		return
	}
	t := a.table(head...)
	for _, m := range all {
		t.row(row(m)...)
	}
	t.flush()
}

// table aligns columns. Cells are made safe here.
type table struct{ w *tabwriter.Writer }

func (a *app) table(head ...string) table {
	t := table{tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)}
	t.row(head...)
	return t
}

func (t table) row(cells ...string) {
	for i, c := range cells {
		if c == "" {
			c = "-"
		}
		cells[i] = safe.Text(c)
	}
	_, _ = fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

func (t table) flush() { _ = t.w.Flush() }

// fact writes one line of a description.
func (a *app) fact(name, value string) {
	if value == "" {
		value = "-"
	}
	a.printf("%-14s %s\n", safe.Text(name)+":", safe.Text(value))
}

// clock is a time of the API for people: local, with milliseconds.
func clock(s string) string {
	t, err := api.ParseTime(s)
	if err != nil || t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05.000")
}

// between is the time from one instant of the API to another, "" if it lacks one.
func between(from, to string) string {
	a, err1 := api.ParseTime(from)
	b, err2 := api.ParseTime(to)
	if err1 != nil || err2 != nil || a.IsZero() || b.IsZero() {
		return ""
	}
	return duration(b.Sub(a))
}

func duration(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	}
	return fmt.Sprintf("%.1fms", float64(d)/float64(time.Millisecond))
}

// size is a number of bytes for people.
func size(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

// quote is guest text as one word: as it is where a shell would take it so,
// else in double quotes.
func quote(s string) string {
	s = safe.Text(s)
	if s != "" && strings.IndexFunc(s, notPlain) < 0 {
		return s
	}
	return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`
}

func notPlain(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_./:@%+=,-", r)
}

func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}

// progress shows how far long work is, on a terminal alone: a line that is
// written over.
type progress struct {
	a     *app
	tty   bool
	drawn bool
}

func (a *app) progress() *progress {
	f, ok := a.err.(*os.File)
	return &progress{a: a, tty: ok && term.IsTerminal(int(f.Fd()))}
}

func (p *progress) show(step string, done, total uint64) {
	if total > 0 {
		p.say(fmt.Sprintf("%s: %3d%% of %s", step, done*100/total, size(total)))
	} else {
		p.say(fmt.Sprintf("%s: %s", step, size(done)))
	}
}

func (p *progress) say(text string) {
	if !p.tty {
		return
	}
	p.drawn = true
	_, _ = fmt.Fprintf(p.a.err, "\r\x1b[K%s", safe.Text(text))
}

func (p *progress) end() {
	if p.drawn {
		_, _ = fmt.Fprint(p.a.err, "\r\x1b[K")
	}
}

// quoteSentence is text of ours with a guest's or a file's in it.
func quoteSentence(s string) string { return safe.Text(s) }

// vmName is the name of an answer's domain: its UUID where libvirt no longer
// knows it, "host" for what is of no domain.
func vmName(m interface {
	GetVm() string
	GetUuid() string
}) string {
	switch {
	case m.GetVm() != "":
		return safe.Text(m.GetVm())
	case m.GetUuid() != "":
		return safe.Text(m.GetUuid())
	}
	return "host"
}
