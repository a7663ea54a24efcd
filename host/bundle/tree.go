package bundle

import (
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
)

// Tree says who made whom in the VM, as the record tells it: the incident's
// processes with all their ancestors and descendants, and what ran beside them.
type Tree struct {
	From   uint64   `json:"from"` // index of the first record that was read for it
	Next   uint64   `json:"next"` // one past the last
	Gaps   []string `json:"gaps,omitempty"`
	Hidden int      `json:"hidden"` // processes for which there was no room here
	// Processes are in the order of a walk: each after its parent, before its
	// parent's next child.
	Processes []Process `json:"processes"`
}

// Process is one process, or the one thread that a finding is about. Text is the
// guest's.
type Process struct {
	PID      uint32   `json:"pid"`
	TGID     uint32   `json:"tgid"`
	StartNs  uint64   `json:"start_ns"` // ns since boot
	Parent   int      `json:"parent"`   // its place among Processes, -1: not known
	Depth    int      `json:"depth"`
	Skipped  uint32   `json:"skipped,omitempty"` // ancestors between it and Parent that are forgotten
	Origin   string   `json:"origin"`            // "exec", "fork": it runs its parent's program, "snapshot": it ran before the agent did, or "unknown"
	Path     string   `json:"path"`
	Argv     []string `json:"argv"`
	SHA256   string   `json:"sha256,omitempty"`
	Comm     string   `json:"comm,omitempty"` // as its last record had it
	UID      *uint32  `json:"uid,omitempty"`  // effective, as its last record had it
	ExitNs   uint64   `json:"exit_ns,omitempty"`
	Where    string   `json:"where,omitempty"`    // its container; "": the machine
	Findings []string `json:"findings,omitempty"` // ids
	Subject  bool     `json:"subject"`            // what the bundle is about happened in it
	Part     bool     `json:"part"`               // it is the subject, its ancestor or its descendant, or was found
}

// JSON is the tree for programs, ended by a newline.
func (t *Tree) JSON() ([]byte, error) {
	b, err := plainJSON(t)
	if err != nil {
		return nil, fmt.Errorf("process tree: %w", err)
	}
	return b, nil
}

// WriteText writes the tree for people: the incident's processes first, then all
// of them.
func (t *Tree) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Processes out of records %d to %d. Times are since the guest's boot.\n", t.From, t.Next)
	for _, g := range t.Gaps {
		fmt.Fprintln(&b, Clean(g))
	}
	fmt.Fprint(&b, "> the one that this is about   * of the incident   + ended\n\nThe incident:\n\n")
	for i := range t.Processes {
		if p := &t.Processes[i]; p.Part {
			p.write(&b)
		}
	}
	fmt.Fprint(&b, "\nEverything:\n\n")
	for i := range t.Processes {
		t.Processes[i].write(&b)
	}
	if t.Hidden > 0 {
		fmt.Fprintf(&b, "%d more that had no room here\n", t.Hidden)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("process tree: %w", err)
	}
	return nil
}

// Text is what WriteText writes.
func (t *Tree) Text() string {
	var b strings.Builder
	t.WriteText(&b) // a Builder never fails
	return b.String()
}

// maxIndent bounds how far to the right a guest can have a line begin.
const maxIndent = 40

func (p *Process) write(b *strings.Builder) {
	b.WriteString(p.sign())
	for range min(p.Depth, maxIndent) {
		b.WriteString("  ")
	}
	fmt.Fprintf(b, "%d %s", p.PID, quoted(p.name()))
	if as := p.As(); as != "" {
		b.WriteString(" as " + quoted(as))
	}
	if len(p.Argv) > 1 {
		for _, arg := range p.Argv[1:] {
			b.WriteString(" " + quoted(arg))
		}
	}
	for _, f := range p.facts() {
		b.WriteString("  " + f.Name + " " + quoted(f.Value))
	}
	b.WriteByte('\n')
}

func (p *Process) sign() string {
	switch {
	case p.Subject:
		return "> "
	case p.Part:
		return "* "
	case p.ExitNs != 0:
		return "+ "
	}
	return "  "
}

func (p *Process) name() string {
	switch {
	case p.Path != "":
		return p.Path
	case p.Comm != "":
		return p.Comm
	}
	return "?"
}

// As is what a process calls itself where that is not what its file is called: its
// first argument, or its comm.
func (p *Process) As() string {
	as := p.Comm
	if len(p.Argv) > 0 {
		as = p.Argv[0]
	}
	if p.Path == "" || as == p.Path || path.Base(as) == path.Base(p.Path) || as == path.Base(p.Path)[:min(len(path.Base(p.Path)), 15)] {
		return ""
	}
	return as
}

// facts are what is to be said of a process behind its command line.
func (p *Process) facts() []Fact {
	out := []Fact{{"began", boot(p.StartNs)}}
	if p.ExitNs != 0 {
		out = append(out, Fact{"ended", boot(p.ExitNs)})
	}
	if p.UID != nil {
		out = append(out, Fact{"uid", strconv.FormatUint(uint64(*p.UID), 10)})
	}
	if p.Where != "" {
		out = append(out, Fact{"in", p.Where})
	}
	if p.Origin == "unknown" {
		out = append(out, Fact{"history", "unknown"})
	}
	if p.Skipped > 0 {
		out = append(out, Fact{"ancestors-forgotten", strconv.FormatUint(uint64(p.Skipped), 10)})
	}
	return out
}

// boot is a time since boot in seconds.
func boot(ns uint64) string { return fmt.Sprintf("%d.%06d", ns/1e9, ns%1e9/1e3) }

// quoted puts quotes around what would not read as one word.
func quoted(s string) string {
	if s == "" || strings.ContainsAny(s, " \"'\\$`") || Clean(s) != s {
		return strconv.Quote(s)
	}
	return s
}
