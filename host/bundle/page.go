package bundle

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/outguard/outguard/plugins/engine"
)

// Page is what the page for people tells beside the timeline and the manifest.
// Text in it may be the guest's: the page shows it as text and nothing else.
type Page struct {
	// Findings are those around the incident; Spec.Finding says which it is
	// about.
	Findings  []engine.Finding
	More      int // findings beside these
	Decisions []Decision
	Orders    []Ordered
	Tree      *Tree   // written as tree.txt and tree.json as well
	Events    []Event // what the incident's processes did, before and after
	Facts     []Fact  // of the machine
	CPUs      []CPU
	Screen    []byte   // PNG; nil without a display
	Missing   []string // what is not in the bundle, and why
}

// Decision is what the playbook said of a finding.
type Decision struct {
	At      time.Time `json:"at"`
	Finding string    `json:"finding"`
	Rule    string    `json:"rule"` // "": none matched
	Steps   []string  `json:"steps,omitempty"`
	Held    string    `json:"held,omitempty"`    // why the rule held back
	Dropped []string  `json:"dropped,omitempty"` // steps that a limit took, with the reason
	Trials  []string  `json:"trials,omitempty"`  // what rules on trial would have done
}

// Ordered is an order and what came of it.
type Ordered struct {
	Given  time.Time
	What   string // kind, and its target
	Asked  string
	Status string // "": it has no result yet
	Effect time.Time
	Text   string // error or detail
}

// Event is one line of what happened in the guest.
type Event struct {
	At      time.Time // on the host's clock, when its frame arrived
	BootNs  uint64
	Type    string
	PID     uint32
	Comm    string
	What    []Fact
	Subject bool // the event that the finding is about
}

//go:embed page/page.html
var pageText string

//go:embed page/page.css
var pageStyle string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"runs": runs, "clean": Clean, "clock": clock, "stamp": stamp, "span": span, "boot": boot, "size": sizeText,
	"severity": severityName, "facts": detailFacts, "short": short, "kind": stepKind, "status": statusKind, "join": strings.Join,
	"indent": func(n int) int { return min(n, 24) }, "hex": func(h Hex64) string { return fmt.Sprintf("%016x", uint64(h)) },
}).Parse(pageText))

// pageView is what the template sees.
type pageView struct {
	*Page
	Style    template.HTML
	Policy   string
	Manifest *Manifest
	Timeline *Timeline
	About    *engine.Finding  // nil: a capture that a person asked for
	Unseen   []engine.Finding // engines'
	Own      []engine.Finding // the monitor's
	Incident []Process
	Beside   []Process
	Screen   template.URL
}

// html writes the page: one file that needs nothing else and runs nothing. Its
// policy allows its own style, by digest, and pictures inside it.
func (p *Page) html(m *Manifest, t *Timeline) ([]byte, error) {
	sum := sha256.Sum256([]byte(pageStyle))
	v := &pageView{
		Page: p, Manifest: m, Timeline: t,
		Style: template.HTML("<style>" + pageStyle + "</style>"), // ours, and what the digest is of
		Policy: fmt.Sprintf("default-src 'none'; style-src 'sha256-%s'; img-src data:; base-uri 'none'; form-action 'none'",
			base64.StdEncoding.EncodeToString(sum[:])),
	}
	for i := range p.Findings {
		f := &p.Findings[i]
		if m.Finding != "" && f.ID == m.Finding {
			v.About = f
		}
		if f.Engine == "monitor" {
			v.Own = append(v.Own, *f)
		} else {
			v.Unseen = append(v.Unseen, *f)
		}
	}
	if p.Tree != nil {
		v.Incident, v.Beside = p.Tree.split()
	}
	if len(p.Screen) > 0 {
		v.Screen = template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(p.Screen)) // encoded by us
	}
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, v); err != nil {
		return nil, fmt.Errorf("page: %w", err)
	}
	return b.Bytes(), nil
}

// split parts the incident's processes from the others. An ancestor is always of
// the incident, so that the depths fit.
func (t *Tree) split() (incident, beside []Process) {
	for _, p := range t.Processes {
		if p.Part {
			incident = append(incident, p)
		} else {
			beside = append(beside, p)
		}
	}
	return incident, beside
}

// run is a piece of text: as it is, or the name of a character that is not shown.
type run struct {
	Text    string
	Escape  bool // the name of a character that would act, hide or turn text around
	Foreign bool // beyond ASCII: it may only look like what it seems to be
}

// maxRuns bounds what the page shows of one text, bytes.
const maxRuns = 1024

// runs takes text apart so that what is in it is seen, whoever wrote it: whatever
// is not printable by its name. A mark that changes the letter before it counts
// as foreign.
func runs(s string) []run {
	var out []run
	add := func(text string, escape, foreign bool) {
		if n := len(out); n > 0 && out[n-1].Escape == escape && out[n-1].Foreign == foreign {
			out[n-1].Text += text
			return
		}
		out = append(out, run{text, escape, foreign})
	}
	cut := len(s) - maxRuns
	for s = s[:min(len(s), maxRuns)]; s != ""; {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			add(fmt.Sprintf(`\x%02x`, s[0]), true, false)
		case !strconv.IsPrint(r):
			q := strconv.QuoteRuneToASCII(r)
			add(q[1:len(q)-1], true, false)
		default:
			add(s[:n], false, r > 0x7e)
		}
		s = s[n:]
	}
	if cut > 0 {
		add(fmt.Sprintf("%d bytes more", cut), true, false)
	}
	return out
}

func stamp(at time.Time) string {
	if at.IsZero() {
		return "unknown"
	}
	return at.UTC().Format("2006-01-02 15:04:05.000 UTC")
}

// short is what tells a digest from others at a glance.
func short(s string) string { return s[:min(len(s), 16)] }

func sizeText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for ; v >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

var severities = map[engine.Severity]string{
	engine.Info: "info", engine.Low: "low", engine.Medium: "medium", engine.High: "high", engine.Severest: "critical",
}

func severityName(s engine.Severity) string { return cmp.Or(severities[s], "unknown") }

// detailFacts are a finding's details in the order of their names.
func detailFacts(d map[string]string) (out []Fact) {
	for _, k := range slices.Sorted(maps.Keys(d)) {
		out = append(out, Fact{k, d[k]})
	}
	return out
}

// stepKind is what a step looks like: one of the page's own words.
func stepKind(what string) string {
	switch what {
	case StepEvent, StepFinding, StepPaused, StepCaptured:
		return what
	}
	return "plain"
}

func statusKind(status string) string {
	switch status {
	case "done", "failed", "skipped", "asked":
		return status
	}
	return "open"
}
