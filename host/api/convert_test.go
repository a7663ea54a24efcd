package api_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestEventOf pins what the API says of one event of each type, and of one of
// an unknown type, in testdata/events.jsonl.
func TestEventOf(t *testing.T) {
	b := &engine.Batch{VM: web, Session: uuid.UUID{15: 9}, Index: 7, Received: at}
	var got []byte
	for _, typ := range append(vsockproto.EventTypes(), 900) {
		e := full(typ)
		raw, err := e.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		var parsed vsockproto.Event
		if _, err := parsed.Parse(raw); err != nil {
			t.Fatal(err)
		}
		got = append(api.AppendJSON(got, api.EventOf(b, &parsed)), '\n')
	}
	golden := filepath.Join("testdata", "events.jsonl")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("go test -run TestEventOf -update, if that is meant:\n%s", d)
	}
}

// full is an event whose every field says something.
func full(typ vsockproto.EventType) *vsockproto.Event {
	e := &vsockproto.Event{
		Header: vsockproto.Header{Type: typ, Class: vsockproto.Bulk, CPU: 3, Sequence: 11, BootNs: 5e9},
		Subject: vsockproto.Subject{
			Task: vsockproto.Task{PID: 101, TGID: 100, StartNs: 1}, LeaderStartNs: 2, ParentTGID: 99, ExecID: 4,
			ParentStartNs: 5, CgroupID: 6, MntNS: 7, PidNS: 8, UserNS: 9, NetNS: 10, UID: 11, EUID: 12, SUID: 13,
			GID: 14, EGID: 15, SGID: 16, FSUID: 17, FSGID: 18, CapEff: 0x1ffffffffff, Securebits: 19, KernelThread: true,
		},
		File: vsockproto.File{
			Inode: 20, Generation: 21, Dev: 8<<20 | 1, Flags: 22, UID: 23, GID: 24, Mode: 0o100755,
			PathKind: vsockproto.PathNamespace, Digested: vsockproto.DigestSHA256, Magic: 0xef53, Links: 1, Size: 25,
			UUID: [16]byte{1, 2}, Digest: [32]byte{3, 4},
		},
		Path:     vsockproto.Tail{Data: []byte("/tmp/x\x1b"), Flags: vsockproto.TailUnlinked | vsockproto.TailTruncated},
		Argv:     vsockproto.Tail{Data: []byte("sh\x00-c\x00\x00cut"), Flags: vsockproto.TailTruncated},
		Filename: vsockproto.Tail{Data: []byte("./x")},
		Argc:     5, Envc: 6, SecureExec: true,
		HasFile: true, ReqProt: 1, Prot: 5, MapFlags: 2,
		Socket: vsockproto.Socket{
			Family: 2, Type: 1, Protocol: 6, Kernel: true, Owned: vsockproto.OwnerLabelled, Cookie: 30,
			Owner: vsockproto.Task{PID: 31, TGID: 31, StartNs: 32}, OwnerExecID: 33,
		},
		Backlog: 128,
		Signal:  9, Target: vsockproto.Task{PID: 40, TGID: 40, StartNs: 41}, TargetExecID: 42,
		CloneFlags: 0x11, Child: vsockproto.Task{PID: 50, TGID: 50, StartNs: 51}, ChildLeaderStartNs: 51, ChildExecID: 4,
		ExitCode: 256, GroupDead: true,
		Cgroup: vsockproto.Cgroup{ID: 60, Level: 2}, ThreadGroup: true,
		Unknown: []byte("12345678"),
	}
	for i := range e.Args {
		e.Args[i] = uint64(60 + i)
	}
	e.Name, e.Value = vsockproto.Tail{Data: []byte("user.\x1b")}, vsockproto.Tail{Data: []byte("v\x00")}
	e.File2 = vsockproto.File{Inode: 70, Mode: 0o100600, PathKind: vsockproto.PathVolume, Magic: 0xef53}
	e.Path2, e.Socket2 = vsockproto.Tail{Data: []byte("/tmp/y")}, vsockproto.Socket{Family: 1, Type: 1, Cookie: 71}
	e.IPC = vsockproto.IPC{Key: 72, ID: 73, UID: 74, GID: 75, CUID: 76, CGID: 77, Mode: 0o600}
	copy(e.Comm[:], "sh\n")
	copy(e.File.FSID[:], "sda1")
	e.Address = vsockproto.Address{Family: 2, Length: 16, Port: [2]byte{0x11, 0x5c}, Addr4: [4]byte{192, 0, 2, 1}}
	return e
}

func TestAddresses(t *testing.T) {
	for _, tc := range []struct {
		addr vsockproto.Address
		raw  string
		want string
	}{
		{vsockproto.Address{Family: 2, Port: [2]byte{0, 80}, Addr4: [4]byte{192, 0, 2, 1}}, "", "192.0.2.1:80"},
		{vsockproto.Address{Family: 10, Port: [2]byte{1, 0}, Addr6: [16]byte{0x20, 1, 0xd, 0xb8, 15: 1}}, "", "[2001:db8::1]:256"},
		{vsockproto.Address{Family: 1}, "/run/x.sock\x00\x00", "/run/x.sock"},
		{vsockproto.Address{Family: 1}, "\x00abstract\x1b", `\x00abstract\x1b`},
		{vsockproto.Address{Family: 16}, "\x10\x00", "1000"},
	} {
		e := &vsockproto.Event{Header: vsockproto.Header{Type: vsockproto.SocketConnect}, Address: tc.addr}
		e.RawAddr.Data = []byte(tc.raw)
		if got := api.EventOf(&engine.Batch{}, e).Address.Text; got != tc.want {
			t.Errorf("%+v %q: %s, want %s", tc.addr, tc.raw, got, tc.want)
		}
	}
}

func TestTimes(t *testing.T) {
	if got := api.FormatTime(at.In(time.FixedZone("", 3600))); got != "2026-01-02T03:04:05.000000006Z" {
		t.Error(got)
	}
	back, err := api.ParseTime("2026-01-02T03:04:05.000000006Z")
	if err != nil || !back.Equal(at) {
		t.Error(back, err)
	}
	if none, err := api.ParseTime(api.FormatTime(time.Time{})); err != nil || !none.IsZero() {
		t.Error(none, err)
	}
}
