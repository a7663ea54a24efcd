package bundle

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Steps of a timeline that every violation has, in their usual order. Others
// are free to choose.
const (
	StepEvent    = "event"    // the hook fired
	StepReceived = "received" // the frame's last byte arrived on the host
	StepRecorded = "recorded" // in evidence
	StepFinding  = "finding"
	StepDecision = "decision"
	StepOrdered  = "ordered" // the order's journal entry is on disk
	StepPaused   = "paused"  // the vCPUs stand still
	StepCaptured = "captured"
	StepBundled  = "bundled"
)

// Timeline is what happened around one violation, on the host's clock.
type Timeline struct {
	VM       uuid.UUID `json:"vm"`
	VMName   string    `json:"vm_name"`
	Finding  string    `json:"finding"` // "" for a capture that a person asked for
	Order    string    `json:"order"`
	Received time.Time `json:"received,omitzero"` // when the event's frame arrived on the host
	Hook     time.Time `json:"hook,omitzero"`     // when the hook fired; zero where the clocks' relation is unknown
	Entries  []Step    `json:"entries"`
}

// Step is one thing that happened.
type Step struct {
	At   time.Time `json:"at"` // zero where unknown
	What string    `json:"what"`
	Text string    `json:"text,omitempty"` // the host's own words
	// Guest holds what the guest said, as name and value: values are quoted
	// wherever they are shown.
	Guest []Fact `json:"guest,omitempty"`

	SinceReceived *time.Duration `json:"since_received_ns,omitempty"` // set by Sort
	SinceHook     *time.Duration `json:"since_hook_ns,omitempty"`     // set by Sort
}

// Fact is a name of the host's and a value that may be the guest's.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Add appends a step.
func (t *Timeline) Add(at time.Time, what, text string, guest ...Fact) {
	t.Entries = append(t.Entries, Step{At: at, What: what, Text: text, Guest: guest})
}

// Sort puts the steps in the order of their times and sets what has passed
// since the frame arrived and since the hook fired.
func (t *Timeline) Sort() {
	slices.SortStableFunc(t.Entries, func(a, b Step) int { return a.At.Compare(b.At) })
	for i := range t.Entries {
		e := &t.Entries[i]
		e.SinceReceived = since(t.Received, e.At)
		e.SinceHook = since(t.Hook, e.At)
	}
}

func since(from, at time.Time) *time.Duration {
	if from.IsZero() || at.IsZero() {
		return nil
	}
	d := at.Sub(from)
	return &d
}

// JSON is the timeline for programs, ended by a newline.
func (t *Timeline) JSON() ([]byte, error) {
	b, err := plainJSON(t)
	if err != nil {
		return nil, fmt.Errorf("timeline: %w", err)
	}
	return b, nil
}

// plainJSON is v as JSON in which every character that is not printable stands
// as \uXXXX: it may be read with a pager.
func plainJSON(v any) ([]byte, error) {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, len(text)+1)
	for _, r := range string(text) {
		switch {
		case r == '\n' || strconv.IsPrint(r):
			out = utf8.AppendRune(out, r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return append(out, '\n'), nil
}

// WriteText writes the timeline for people.
func (t *Timeline) WriteText(w io.Writer) error {
	what := "Finding " + t.Finding + " in"
	if t.Finding == "" {
		what = "Capture by order " + t.Order + " of"
	}
	fmt.Fprintf(w, "%s %s (%s)\n", Clean(what), Clean(t.VMName), t.VM)
	if len(t.Entries) > 0 {
		fmt.Fprintf(w, "Times are the host's, UTC, on %s.\n", t.day())
	}
	if t.Finding != "" && t.Hook.IsZero() {
		fmt.Fprintln(w, "When the hook fired is not known on the host's clock.")
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "TIME\tSINCE FRAME\tSINCE HOOK\tWHAT")
	for i := range t.Entries {
		e := &t.Entries[i]
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", clock(e.At), span(e.SinceReceived), span(e.SinceHook), Clean(e.What), e.line())
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("timeline: %w", err)
	}
	return nil
}

// Text is what WriteText writes.
func (t *Timeline) Text() string {
	var b strings.Builder
	t.WriteText(&b) // a Builder never fails
	return b.String()
}

func (t *Timeline) day() string {
	for _, e := range t.Entries {
		if !e.At.IsZero() {
			return e.At.UTC().Format(time.DateOnly)
		}
	}
	return "an unknown day"
}

func (e *Step) line() string {
	words := []string{}
	if e.Text != "" {
		words = append(words, Clean(e.Text))
	}
	for _, f := range e.Guest {
		words = append(words, Clean(f.Name)+"="+strconv.Quote(f.Value))
	}
	return strings.Join(words, " ")
}

func clock(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return at.UTC().Format("15:04:05.000000")
}

// span writes a duration with three or four digits that count.
func span(d *time.Duration) string {
	if d == nil {
		return "-"
	}
	sign, v := "+", *d
	if v < 0 {
		sign, v = "-", -v
	}
	switch {
	case v < time.Millisecond:
		return fmt.Sprintf("%s%.0f us", sign, float64(v)/float64(time.Microsecond))
	case v < time.Second:
		return fmt.Sprintf("%s%.2f ms", sign, float64(v)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%s%.3f s", sign, v.Seconds())
}

// Clean makes text safe for a terminal: whatever is not printable, or is not
// UTF-8, is written as an escape.
func Clean(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) < 0 {
		return s
	}
	quoted := strconv.Quote(s)
	return strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(quoted[1 : len(quoted)-1])
}
