package api

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

// maxPattern bounds EventsRequest.path, in bytes.
const maxPattern = 4096

// eventFilter is the part of an EventsRequest that looks at single events.
type eventFilter struct {
	pid       uint32
	path      string
	cgroup    string
	program   string // a path; what has no slash is its last element
	container string
	types     []vsockproto.EventType
	since     time.Time // of events that are handed on; those before may be needed
}

func newEventFilter(r *apipb.EventsRequest) (eventFilter, error) {
	f := eventFilter{pid: r.Pid, path: r.Path, cgroup: r.Cgroup, program: r.Program, container: r.Container}
	if f.program != "" && !strings.Contains(f.program, "/") {
		f.program = "*/" + f.program
	}
	if n := max(len(f.path), len(f.cgroup), len(f.program), len(f.container)); n > maxPattern {
		return eventFilter{}, invalid("", "path pattern of %d bytes, limit %d", n, maxPattern)
	}
	if len(r.Types) > vsockproto.MaxHooks {
		return eventFilter{}, invalid("", "%d types, limit %d", len(r.Types), vsockproto.MaxHooks)
	}
	for _, name := range r.Types {
		t, err := vsockproto.ParseEventType(name)
		if err != nil {
			return eventFilter{}, invalid("hook names are like file_open, bprm_committed_creds", "type %q is not known", name)
		}
		f.types = append(f.types, t)
	}
	return f, nil
}

func (f *eventFilter) match(e *vsockproto.Event) bool {
	if f.pid != 0 && f.pid != e.PID && f.pid != e.TGID {
		return false
	}
	if len(f.types) > 0 && !slices.Contains(f.types, e.Type) {
		return false
	}
	return f.path == "" ||
		glob(f.path, e.Path.Data) || glob(f.path, e.Path2.Data) || glob(f.path, e.Filename.Data) || glob(f.path, unixPath(e))
}

// all reports whether the filter takes every event, those that do not decode
// included.
func (f *eventFilter) all() bool {
	return f.pid == 0 && f.path == "" && len(f.types) == 0 && !f.tracks()
}

// glob matches all of s: * is any run of bytes, ? any one. It goes back to the
// last star only, so its time is bounded by len(pattern)·len(s).
func glob(pattern string, s []byte) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

func parseSince(s string) (time.Time, error) { return parseTime("since", s) }

func parseTime(what, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, invalid("give it as in 2006-01-02T15:04:05Z", "%s %q is no time", what, s)
	}
	return t, nil
}

var severityNames = [...]string{
	engine.Info: "info", engine.Low: "low", engine.Medium: "medium", engine.High: "high", engine.Severest: "critical",
}

// SeverityName is the word for s in the API: info, low, medium, high, critical.
func SeverityName(s engine.Severity) string {
	if s > 0 && int(s) < len(severityNames) {
		return severityNames[s]
	}
	return "unknown"
}

// ParseSeverity is the inverse of SeverityName.
func ParseSeverity(name string) (engine.Severity, error) {
	for i, s := range severityNames {
		if i > 0 && s == name {
			return engine.Severity(i), nil
		}
	}
	return 0, errors.New("severity " + name + ": not one of info, low, medium, high, critical")
}
