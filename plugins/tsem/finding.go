package tsem

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/lineage"
	"github.com/outguard/outguard/vsockproto"
)

// Rules of this engine's findings.
const (
	RuleViolation   = "tsem/violation"   // a sealed model does not know the event; the task is untrusted from now on
	RuleUntrusted   = "tsem/untrusted"   // and another one, of a task that is untrusted already
	RuleUndecodable = "tsem/undecodable" // bytes that are no record
	RuleSuppressed  = "tsem/suppressed"  // how many findings of one second were kept back
	RuleFull        = "tsem/full"        // the model learns no more
	RuleLeft        = "tsem/left"        // a task has left its container
	RuleWorkloads   = "tsem/workloads"   // there are more kinds of container than can have a model of their own
)

func hexOf(v ID) string { return hex.EncodeToString(v[:]) }

func refOf(b *engine.Batch, r *vsockproto.Event) engine.Ref {
	return engine.Ref{Session: b.Session, Index: b.Index, CPU: r.CPU, Class: uint8(r.Class), Sequence: r.Sequence}
}

// about is a finding with what every finding of an event has.
func about(b *engine.Batch, r *vsockproto.Event) engine.Finding {
	ref := refOf(b, r)
	return engine.Finding{
		BootNs: r.BootNs, Ref: &ref, Event: r.Type.String(), PID: r.PID,
		Comm: comm(r), Path: string(r.Path.Data),
	}
}

func comm(r *vsockproto.Event) string {
	name, _, _ := bytes.Cut(r.Comm[:], []byte{0})
	return string(name)
}

func (v *vm) firstOf(w *workload, b *engine.Batch, r *vsockproto.Event, who lineage.Identity, c *Coefficients) engine.Finding {
	f := about(b, r)
	f.Rule, f.Severity, f.Technique = RuleViolation, engine.High, technique(r)
	f.Reason = fmt.Sprintf("%s %s, which %s has not seen.", v.actor(r, who), deed(r, v.tree), w.words())
	f.Detail = v.detail(w, r, who, c)
	return f
}

func (v *vm) again(w *workload, b *engine.Batch, r *vsockproto.Event, who lineage.Identity, c *Coefficients) engine.Finding {
	f := about(b, r)
	f.Rule, f.Severity, f.Technique = RuleUntrusted, engine.Medium, technique(r)
	f.Reason = fmt.Sprintf("%s %s, which %s has not seen; it was untrusted already.", v.actor(r, who), deed(r, v.tree), w.words())
	f.Detail = v.detail(w, r, who, c)
	if ref, has := v.first(who.Task.Mark); has {
		f.Detail["first"] = fmt.Sprintf("%s/%d cpu %d class %d sequence %d", ref.Session, ref.Index, ref.CPU, ref.Class, ref.Sequence)
	}
	f.Detail["untrusted"] = strconv.FormatUint(who.Task.Mark, 10)
	return f
}

// actor says who did it: the program, its pid, and what made it. Of an exec it
// is the program that the new one came from.
func (v *vm) actor(r *vsockproto.Event, who lineage.Identity) string {
	from := parentProgram(v.tree.Ancestry(who.Task), who.Program)
	if r.Type == vsockproto.BprmCommittedCreds {
		return cmp.Or(from, "a program of unknown history")
	}
	name := quote(comm(r))
	if p := who.Program.Path; p != "" {
		name = quote(p)
	}
	if from != "" {
		return fmt.Sprintf("%s (pid %d, from %s)", name, r.TGID, from)
	}
	return fmt.Sprintf("%s (pid %d)", name, r.TGID)
}

// parentProgram is the quoted path of the nearest ancestor that runs another
// program.
func parentProgram(chain []*lineage.Task, not *lineage.Program) string {
	for _, t := range chain {
		if p := t.Program(); p != not && p.Path != "" {
			return quote(p.Path)
		}
	}
	return ""
}

// deed says in words what was done.
func deed(r *vsockproto.Event, tree *lineage.Tree) string {
	path := quote(string(r.Path.Data))
	switch r.Type {
	case vsockproto.BprmCommittedCreds:
		return fmt.Sprintf("ran %s (pid %d)", path, r.TGID)
	case vsockproto.FileOpen:
		return openWord(r.File.Flags) + " " + path
	case vsockproto.MmapFile:
		if !r.HasFile {
			return "made anonymous memory executable"
		}
		if r.Prot&protExec != 0 {
			return "mapped " + path + " as code"
		}
		return "mapped " + path
	case vsockproto.SocketCreate:
		return fmt.Sprintf("made a socket of family %d, type %d, protocol %d", r.Socket.Family, r.Socket.Type, r.Socket.Protocol)
	case vsockproto.SocketBind:
		return "bound a socket to " + addressText(r)
	case vsockproto.SocketConnect:
		return "connected to " + addressText(r)
	case vsockproto.SocketListen:
		return "listened on a socket"
	case vsockproto.SocketAccept:
		return "accepted on " + addressText(r)
	case vsockproto.TaskKill:
		return killText(r, tree)
	}
	return "did " + r.Type.String()
}

func openWord(flags uint32) string {
	switch flags & accMode {
	case 0:
		return "opened"
	case 1:
		return "opened for writing"
	}
	return "opened for reading and writing"
}

func killText(r *vsockproto.Event, tree *lineage.Tree) string {
	text := fmt.Sprintf("sent signal %d to pid %d", r.Signal, r.Target.TGID)
	if p := tree.Resolve(r.Target, r.TargetExecID).Program; p.Path != "" {
		text += " (" + quote(p.Path) + ")"
	}
	return text
}

func addressText(r *vsockproto.Event) string {
	a := &r.Address
	port := binary.BigEndian.Uint16(a.Port[:])
	switch uint32(a.Family) {
	case afInet:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr4), port).String()
	case afInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr6), port).String()
	case afUnix:
		var t translator
		return "unix socket " + quote(string(t.name(r.RawAddr.Data)))
	}
	return fmt.Sprintf("an address of family %d", a.Family)
}

// technique is the ATT&CK technique that such an event belongs to, where one
// can be told from the event alone.
func technique(r *vsockproto.Event) string {
	const sigKill, sigTerm, sigStop, sockRaw, sockPacket, afPacket = 9, 15, 19, 3, 10, 17
	switch r.Type {
	case vsockproto.BprmCommittedCreds:
		return "T1059" // Command and Scripting Interpreter
	case vsockproto.SocketConnect:
		if f := uint32(r.Address.Family); f == afInet || f == afInet6 {
			return "T1071" // Application Layer Protocol
		}
	case vsockproto.MmapFile:
		if r.HasFile && r.Prot&protExec != 0 {
			return "T1129" // Shared Modules
		}
	case vsockproto.SocketCreate:
		if kind := r.Socket.Type & 0xf; r.Socket.Family == afPacket || kind == sockRaw || kind == sockPacket {
			return "T1040" // Network Sniffing
		}
	case vsockproto.TaskKill:
		if r.Signal == sigKill || r.Signal == sigTerm || r.Signal == sigStop {
			return "T1489" // Service Stop
		}
	}
	return ""
}

func (v *vm) detail(w *workload, r *vsockproto.Event, who lineage.Identity, c *Coefficients) map[string]string {
	parent := who.ParentID()
	d := map[string]string{
		"point": hexOf(c.Point), "coe": hexOf(c.COE), "cell": hexOf(c.CELL),
		"task_id": hexOf(who.ID()), "p_task_id": hexOf(parent), "origin": who.Program.Origin.String(),
		"uid": strconv.FormatUint(uint64(r.UID), 10), "euid": strconv.FormatUint(uint64(r.EUID), 10),
		"cgroup": strconv.FormatUint(r.CgroupID, 10),
	}
	set := func(key, value string) {
		if value != "" {
			d[key] = value
		}
	}
	set("workload", w.name)
	set("group", w.group)
	v.whereabouts(r, who, set)
	set("program", printable(who.Program.Path))
	set("argv", printable(strings.TrimRight(strings.ReplaceAll(who.Program.Argv, "\x00", " "), " ")))
	set("ancestry", ancestry(v.tree.Ancestry(who.Task)))
	if r.File.Digested == vsockproto.DigestSHA256 {
		d["digest"] = hexOf(r.File.Digest)
	}
	if r.Type == vsockproto.SocketBind || r.Type == vsockproto.SocketConnect || r.Type == vsockproto.SocketAccept {
		d["address"] = addressText(r)
	}
	return d
}

// ancestry lists programs from the task up to the first one: one name for
// tasks in a row that run the same.
func ancestry(chain []*lineage.Task) string {
	const most = 16
	var names []string
	var last *lineage.Program
	for _, t := range chain {
		if p := t.Program(); p != last && len(names) < most {
			name := printable(p.Path)
			if name == "" {
				name = p.Origin.String()
			}
			names = append(names, fmt.Sprintf("%s(%d)", name, t.TGID))
			last = p
		}
	}
	return strings.Join(names, " < ")
}

const maxShown = 256 // bytes of one guest string in a text for people

// quote quotes a guest's string for a sentence.
func quote(s string) string { return strconv.QuoteToASCII(s[:min(len(s), maxShown)]) }

// printable is the same without quotes.
func printable(s string) string {
	q := strconv.QuoteToASCII(s)
	return q[1 : len(q)-1]
}

func undecodable(b *engine.Batch, n int, rest []byte, err error) engine.Finding {
	return engine.Finding{
		Rule: RuleUndecodable, Severity: engine.High, Ref: &engine.Ref{Session: b.Session, Index: b.Index},
		Reason: fmt.Sprintf("Record %d of a batch cannot be decoded: %v.", n+1, err),
		Detail: map[string]string{"record": strconv.Itoa(n + 1), "offset": strconv.Itoa(len(b.Records) - len(rest))},
	}
}

func miscounted(b *engine.Batch, n int) engine.Finding {
	return engine.Finding{
		Rule: RuleUndecodable, Severity: engine.High, Ref: &engine.Ref{Session: b.Session, Index: b.Index},
		Reason: fmt.Sprintf("A batch of %d records holds %d.", b.Count, n),
	}
}

func unmappable(b *engine.Batch, r *vsockproto.Event, err error) engine.Finding {
	f := about(b, r)
	f.Rule, f.Severity = RuleUndecodable, engine.High
	f.Reason = fmt.Sprintf("An event has no point: %v.", err)
	return f
}

func modelFull(w *workload, b *engine.Batch, r *vsockproto.Event, err error) engine.Finding {
	f := about(b, r)
	f.Rule, f.Severity = RuleFull, engine.High
	f.Reason = fmt.Sprintf("%s learns no more points: %v.", upper(w.words()), err)
	if w.name != "" {
		f.Detail = map[string]string{"workload": w.name}
	}
	return f
}

func suppressed(b *engine.Batch, rule string, severity engine.Severity, n uint64) engine.Finding {
	return engine.Finding{
		Rule: RuleSuppressed, Severity: severity, Ref: &engine.Ref{Session: b.Session, Index: b.Index},
		Reason: fmt.Sprintf("%d more findings of %s in one second before this are not listed one by one.", n, rule),
		Detail: map[string]string{"rule": rule, "suppressed": strconv.FormatUint(n, 10)},
	}
}
