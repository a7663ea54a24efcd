package cli

import (
	"fmt"
	"strings"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
)

// eventLine is an event for people.
func eventLine(e *apipb.Event) string {
	return fmt.Sprintf("%s  %-12s %8d  %-20s %7d %-15s  %s%s",
		clock(e.Received), vmName(e), e.Index, safe.Text(e.Type),
		e.GetSubject().GetTgid(), quote(e.GetSubject().GetComm()), summary(e), containerSummary(e.GetSubject()))
}

// containerSummary says in which container, where its cgroup shows that.
func containerSummary(s *apipb.Subject) string {
	if s.GetContainer() == "" {
		return ""
	}
	return "  {" + safe.Text(s.Runtime) + "/" + safe.Text(s.Container) + "}"
}

// summary says what was done, in a word or two.
func summary(e *apipb.Event) string {
	switch {
	case e.Error != "":
		return "does not decode: " + safe.Text(e.Error)
	case e.Exec != nil:
		return execSummary(e)
	case e.Call != nil:
		return callSummary(e)
	case e.Mmap != nil:
		return protection(e.Mmap.Prot) + " " + fileSummary(e.File)
	case e.File != nil:
		return fileSummary(e.File)
	case e.Address != nil:
		return familyName(e.Address.Family) + " " + quote(e.Address.Text)
	case e.Socket != nil:
		return socketSummary(e)
	case e.Signal != nil:
		return fmt.Sprintf("signal %d to pid %d", e.Signal.Number, e.Signal.GetTarget().GetTgid())
	case e.Cgroup != nil:
		return cgroupSummary(e.Cgroup)
	case e.Newtask != nil:
		c := e.Newtask.GetChild()
		if c.GetPid() != c.GetTgid() {
			return fmt.Sprintf("thread %d", c.GetPid())
		}
		return fmt.Sprintf("child %d", c.GetTgid())
	case e.Exit != nil:
		return exitSummary(e.Exit)
	case len(e.Unknown) > 0:
		return fmt.Sprintf("%d bytes that this version does not know", len(e.Unknown))
	}
	return ""
}

func cgroupSummary(c *apipb.Cgroup) string {
	switch {
	case c.Moved != nil:
		return fmt.Sprintf("pid %d into cgroup %d", c.Moved.Tgid, c.Id)
	case c.Path == "":
		return fmt.Sprintf("cgroup %d", c.Id)
	}
	return fmt.Sprintf("cgroup %d %s", c.Id, quote(c.Path))
}

func execSummary(e *apipb.Event) string {
	var argv []string
	for _, w := range e.Exec.Argv {
		argv = append(argv, quote(w))
	}
	if e.Exec.ArgvTruncated {
		argv = append(argv, "…")
	}
	s := pathSummary(e.File)
	if len(argv) > 0 {
		s += " [" + strings.Join(argv, " ") + "]"
	}
	if e.Exec.Secure {
		s += " (secure)"
	}
	if e.Exec.Fileless != "" {
		s += " (" + safe.Text(e.Exec.Fileless) + ")"
	}
	return s + digestSummary(e.File)
}

// callSummary is what a hook was asked about, and with what.
func callSummary(e *apipb.Event) string {
	var words []string
	add := func(s string) { words = append(words, s) }
	c := e.Call
	if c.Target != nil {
		add(fmt.Sprintf("pid %d", c.Target.Tgid))
	}
	if e.File != nil {
		add(fileSummary(e.File))
	}
	if c.File != nil {
		add("and " + fileSummary(c.File))
	}
	switch {
	case e.Address != nil:
		add(familyName(e.Address.Family) + " " + quote(e.Address.Text))
	case e.Socket != nil:
		add(socketSummary(e))
	}
	if c.Ipc != nil {
		add(fmt.Sprintf("id %d", c.Ipc.Id))
	}
	if c.Name != "" {
		add(quote(c.Name))
	}
	if c.Value != "" {
		add(quote(c.Value))
	}
	for _, a := range c.Args {
		add(fmt.Sprintf("%s=%d", safe.Text(a.Name), a.Value))
	}
	return strings.Join(words, " ")
}

func fileSummary(f *apipb.File) string {
	if f == nil {
		return "anonymous"
	}
	return pathSummary(f) + digestSummary(f)
}

func pathSummary(f *apipb.File) string {
	s := "(no path)"
	if f.GetPath() != "" {
		s = quote(f.Path)
	}
	if len(f.GetPathFlags()) > 0 {
		s += " (" + safe.Text(strings.Join(f.PathFlags, ", ")) + ")"
	}
	return s
}

func digestSummary(f *apipb.File) string {
	d := f.GetDigest()
	if d == "" {
		return ""
	}
	return " sha256:" + safe.Text(d[:min(len(d), 12)])
}

func protection(p uint32) string {
	b := []byte("---")
	for i, c := range []byte("rwx") {
		if p&(1<<i) != 0 {
			b[i] = c
		}
	}
	return string(b)
}

var families = map[uint32]string{1: "unix", 2: "inet", 10: "inet6", 16: "netlink", 17: "packet", 38: "alg", 40: "vsock"}

func familyName(f uint32) string {
	if s, ok := families[f]; ok {
		return s
	}
	return fmt.Sprintf("family %d", f)
}

var socketTypes = map[uint32]string{1: "stream", 2: "dgram", 3: "raw", 5: "seqpacket"}

func socketSummary(e *apipb.Event) string {
	kind, ok := socketTypes[e.Socket.Type&0xf]
	if !ok {
		kind = fmt.Sprintf("type %d", e.Socket.Type)
	}
	s := familyName(e.Socket.Family) + " " + kind
	if e.Socket.Backlog > 0 {
		s += fmt.Sprintf(" backlog %d", e.Socket.Backlog)
	}
	return s
}

// exitSummary reads a wait status.
func exitSummary(x *apipb.Exit) string {
	s := fmt.Sprintf("exit %d", x.Code>>8&0xff)
	if sig := x.Code & 0x7f; sig != 0 {
		s = fmt.Sprintf("killed by signal %d", sig)
	}
	if !x.GroupDead {
		s += " (thread)"
	}
	return s
}
