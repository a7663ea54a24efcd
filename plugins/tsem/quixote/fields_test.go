package quixote

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/outguard/outguard/plugins/engine/enginetest"
	"github.com/outguard/outguard/plugins/tsem"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// structures are those of testdata/fields.txt, by their names.
func structures(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("testdata/fields.txt")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		if name, fields, is := strings.Cut(line, "="); is && line[0] != '#' {
			all[strings.TrimSpace(name)] = strings.Fields(fields)
		}
	}
	return all
}

// compare lists how what is exported differs from the structure of that name. Sampled:
// all that a record can tell it tells.
func compare(all map[string][]string, name, at string, got map[string]any, sampled bool) (bad []string) {
	left := maps.Clone(got)
	for _, field := range all[name] {
		optional := field[0] == '?' && (!sampled || field[1] == '-')
		key, of, nested := strings.Cut(strings.TrimLeft(field, "?-+"), ":")
		v, is := left[key]
		delete(left, key)
		if !is {
			if !optional {
				bad = append(bad, at+"."+key+" is missing")
			}
			continue
		}
		inner, isMap := v.(map[string]any)
		if _, isText := v.(string); nested != isMap || !nested && !isText {
			bad = append(bad, fmt.Sprintf("%s.%s is %T", at, key, v))
		}
		if nested && isMap {
			bad = append(bad, compare(all, of, at+"."+key, inner, sampled)...)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(left)) {
		bad = append(bad, at+"."+key+" is not known")
	}
	return bad
}

// exportOf is the export of one record of a process that is known.
func exportOf(t *testing.T, e *vsockproto.Event) map[string]any {
	t.Helper()
	g := enginetest.NewGuest(vm)
	of := g.Event(g.Running("/usr/sbin/httpd"), e.Type)
	e.Header, e.Subject = of.Header, of.Subject
	if e.Type == vsockproto.BprmCommittedCreds {
		e.ExecID++
	}
	g.Add(e)
	var line []byte
	if err := tsem.NewExporter().Batch(g.Batch(), func(err error) { t.Error(err) }, func(x *tsem.Exported) error {
		line, _ = AppendEvent(nil, x)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(line, &out); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	if got := out["event"].(map[string]any)["type"]; got != e.Type.String() {
		t.Fatalf("the last event is %v, want %s", got, e.Type)
	}
	return out
}

// Each of TSEM's types is exported with the fields that section 6.1 has of it, and
// none that is not known here.
func TestFields(t *testing.T) {
	all := structures(t)
	if n := len(EventTypes()); n != 88 {
		t.Errorf("%d types", n)
	}
	for _, name := range EventTypes() {
		typ, err := vsockproto.ParseEventType(name)
		if err != nil || all[name] == nil && !strings.HasPrefix(name, "tun_") {
			t.Errorf("%s: %v, fields %v", name, err, all[name])
			continue
		}
		x := exportOf(t, prototest.Sample(typ))
		bad := compare(all, "EVENT", "event", x["event"].(map[string]any), true)
		bad = append(bad, compare(all, "COE", "COE", x["COE"].(map[string]any), true)...)
		bad = append(bad, compare(all, name, name, x[name].(map[string]any), true)...)
		if len(x) != 4 || len(bad) > 0 {
			t.Errorf("%d parts; %s", len(x), strings.Join(bad, "; "))
		}
	}
}

// A record that tells less, as those of earlier agents do, has no field made up for it.
func TestFieldsNotTold(t *testing.T) {
	all := structures(t)
	quota := prototest.Sample(vsockproto.Quotactl)
	quota.Value, quota.Args[3] = vsockproto.Tail{}, 0
	got := strings.Join(compare(all, "quotactl", "", exportOf(t, quota)["quotactl"].(map[string]any), false), "; ")
	if got != ".sb.fstype is missing; .sb.s_flags is missing" {
		t.Errorf("a file system without its type and flags: %s", got)
	}
	for name, want := range map[vsockproto.EventType]string{
		vsockproto.NetlinkSend:   "uid gid nsid_set nsid",
		vsockproto.KeyAlloc:      "cred",
		vsockproto.KeyPermission: "creds",
		vsockproto.TaskPrlimit:   "fsuid fsgid capeff",
		vsockproto.FileIoctl:     "",
		vsockproto.Settime:       "",
		vsockproto.Quotactl:      "",
		vsockproto.InodeMkdir:    "",
	} {
		e := prototest.Sample(name)
		e.Cred, e.Owner, e.File = vsockproto.Tail{}, vsockproto.Tail{}, vsockproto.File{}
		if name == vsockproto.FileIoctl {
			e.File = vsockproto.File{Mode: 0o100644, Magic: 0xef53, PathKind: vsockproto.PathRoot}
		}
		clear(e.Args[4:])
		var missing []string
		for _, bad := range compare(all, name.String(), "", exportOf(t, e)[name.String()].(map[string]any), false) {
			field, rest, _ := strings.Cut(bad, " ")
			if rest != "is missing" {
				t.Error(name, bad)
			}
			missing = append(missing, field[strings.LastIndex(field, ".")+1:])
		}
		if got := strings.Join(missing, " "); got != want {
			t.Errorf("%s: %q missing, want %q", name, got, want)
		}
	}
}

// What is exported is what the record says, in the form that TSEM gives it.
func TestFieldValues(t *testing.T) {
	of := func(typ vsockproto.EventType, change func(*vsockproto.Event)) (at func(path string) any) {
		e := prototest.Sample(typ)
		change(e)
		x := exportOf(t, e)[typ.String()]
		return func(path string) any {
			v := x
			for _, key := range strings.Split(path, ".") {
				m, _ := v.(map[string]any)
				v = m[key]
			}
			return v
		}
	}
	zero := strings.Repeat("0", 64)
	nothing := "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	nice := of(vsockproto.TaskSetnice, func(e *vsockproto.Event) { e.Args[0] = 1<<32 - 5 })
	clock := of(vsockproto.Settime, func(e *vsockproto.Event) { e.Args = [8]uint64{1<<64 - 1, 7, 1<<32 - 60, 1, 1, 1} })
	node := of(vsockproto.InodeMknod, func(e *vsockproto.Event) {
		e.Args = [8]uint64{0o20600, 1<<20 | 3, 5, 6, 0o40755}
		e.File = vsockproto.File{Dev: 8<<20 | 1, Magic: 0xef53, FSID: [32]byte{'v', 'd', 'a'}, PathKind: vsockproto.PathVolume}
	})
	key := of(vsockproto.KeyPermission, func(e *vsockproto.Event) { e.Args = [8]uint64{9, 33, 44, 0x3f0b0000, 1, 2, 4} })
	asked := of(vsockproto.FileIoctl, func(e *vsockproto.Event) { e.File.Digested, e.File.Digest = vsockproto.DigestAbsent, [32]byte{} })
	pipe := of(vsockproto.FileIoctl, func(e *vsockproto.Event) {
		e.File.Digested, e.File.Digest, e.File.Mode = vsockproto.DigestAbsent, [32]byte{}, 0o10600
	})
	pair := of(vsockproto.SocketSocketpair, func(e *vsockproto.Event) {
		e.Socket2.Owned, e.Socket2.Owner, e.Socket2.OwnerExecID = vsockproto.OwnerLabelled, e.Socket.Owner, e.Socket.OwnerExecID
	})
	sent := of(vsockproto.NetlinkSend, func(e *vsockproto.Event) { e.Args = [8]uint64{700, 2, 0, 18, 33, 44, 0, 1<<32 - 1} })
	for _, c := range []struct {
		at   func(string) any
		path string
		want any
	}{
		{nice, "nice", "-5"},
		{clock, "ts.seconds", "-1"}, {clock, "tz.minuteswest", "-60"},
		{node, "mode", "020600"}, {node, "dev.major", "1"}, {node, "dev.minor", "3"}, {node, "dentry.inode", nil},
		{node, "dentry.path.dev.major", "8"}, {node, "dentry.path.type", "volume"},
		{node, "dir.uid", "5"}, {node, "dir.mode", "040755"}, {node, "dir.s_magic", "0xef53"}, {node, "dir.s_id", "vda"},
		{key, "key_refs.flags", "4"}, {key, "key_refs.uid", "33"}, {key, "perm", "2"}, {key, "creds.fsgid", "48"}, {key, "creds.capeff", "0x2ff"},
		{asked, "file.digest", nil}, {pipe, "file.digest", nothing},
		{pair, "sockb.owner", pair("socka.owner")}, {pair, "sock", nil},
		{sent, "uid", "33"}, {sent, "nsid_set", "0"}, {sent, "nsid", "0"},
		{of(vsockproto.TaskPrlimit, func(*vsockproto.Event) {}), "tcred.fsuid", "47"},
	} {
		if got := c.at(c.path); got != c.want {
			t.Errorf("%s is %v, want %v", c.path, got, c.want)
		}
	}
	if owner := pair("sockb.owner"); owner == zero {
		t.Error("the second socket is nobody's")
	}
}

// Who made a System V object, and who gets a message, is the program that did when it
// did.
func TestFieldOwners(t *testing.T) {
	g := enginetest.NewGuest(vm)
	server := g.Running("/usr/sbin/httpd")
	e := *prototest.Sample(vsockproto.MsgQueueMsgrcv)
	known := g.Event(server, e.Type)
	e.Header, e.Subject = known.Header, known.Subject
	e.Owner.Data = vsockproto.AppendTask(nil, known.Task, known.ExecID)
	e.Receiver.Data = vsockproto.AppendTask(nil, known.Task, known.ExecID)
	g.Add(&e)
	var seen *tsem.Exported
	if err := tsem.NewExporter().Batch(g.Batch(), func(err error) { t.Error(err) }, func(x *tsem.Exported) error {
		if x.Record.Type != e.Type {
			return nil
		}
		seen = x
		if id := tsem.ID(x.TaskID); x.Maker != id || x.Receiver != id {
			t.Errorf("made by %x for %x, want %x", x.Maker, x.Receiver, id)
		}
		if x.TTD == 0 {
			t.Error("the program never began")
		}
		return nil
	}); err != nil || seen == nil {
		t.Fatal(seen, err)
	}
}
