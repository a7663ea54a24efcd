package monitor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/host/bundle"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/lineage"
	"github.com/outguard/outguard/vsockproto"
)

// How many events the page has before the subject's and after it.
const (
	rowsBefore = 40
	rowsAfter  = 120
)

// rows are the events of the incident's processes next to the subject's, but for
// what the first process does.
func (s *story) rows(part map[lineage.Key]bool) []bundle.Event {
	of := func(all []kept) []kept {
		return slices.DeleteFunc(all, func(k kept) bool { return !k.subject && (!part[k.task] || k.task.PID == 1 || k.session != s.session) })
	}
	before, after := of(s.before.list()), of(slices.Clone(s.after))
	before = before[max(0, len(before)-rowsBefore-1):]
	after = after[:min(len(after), rowsAfter)]
	var out []bundle.Event
	var e vsockproto.Event
	for _, k := range append(before, after...) {
		if _, err := e.Parse(k.record); err == nil {
			out = append(out, bundle.Event{
				At: k.received, BootNs: e.BootNs, Type: e.Type.String(), PID: e.PID, Comm: commOf(&e), Subject: k.subject, What: whatOf(&e),
			})
		}
	}
	return out
}

// whatOf says what an event is about, in the guest's own bytes.
func whatOf(e *vsockproto.Event) (out []bundle.Fact) {
	add := func(name, value string) {
		if value != "" {
			out = append(out, bundle.Fact{Name: name, Value: value})
		}
	}
	add("path", string(e.Path.Data))
	for i, arg := range argvOf(string(e.Argv.Data)) {
		add(fmt.Sprintf("argv[%d]", i), arg)
	}
	switch e.Type {
	case vsockproto.TaskKill:
		add("signal", fmt.Sprint(e.Signal))
		add("to pid", fmt.Sprint(e.Target.PID))
	case vsockproto.TaskNewtask:
		add("child", fmt.Sprint(e.Child.PID))
	case vsockproto.SchedProcessExit:
		add("status", exitStatus(e.ExitCode))
	case vsockproto.FileOpen:
		add("flags", fmt.Sprintf("%#o", e.File.Flags))
	case vsockproto.SocketCreate:
		add("family", fmt.Sprint(e.Socket.Family))
		add("type", fmt.Sprint(e.Socket.Type))
	}
	add("address", addressOf(e))
	add("to", string(e.Path2.Data))
	add("name", string(e.Name.Data))
	add("value", string(e.Value.Data))
	return out
}

// exitStatus reads a status as wait(2) gives it.
func exitStatus(code uint32) string {
	if signal := code & 0x7f; signal != 0 {
		return fmt.Sprintf("killed by signal %d", signal)
	}
	return fmt.Sprint(code >> 8 & 0xff)
}

func addressOf(e *vsockproto.Event) string {
	a := api.EventOf(&engine.Batch{}, e).Address
	if a == nil {
		return ""
	}
	text, err := safe.Unquote(a.Text)
	if err != nil {
		return strings.ToValidUTF8(a.Text, "")
	}
	return string(text)
}
