package vsockproto_test

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// vector reads an annotated hex file: bytes up to a semicolon, comments behind
// it, and lines that begin with # are comments as a whole.
func vector(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for n, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		digits, _, _ := strings.Cut(line, ";")
		part, err := hex.DecodeString(strings.Join(strings.Fields(digits), ""))
		if err != nil {
			t.Fatalf("%s:%d: %v", path, n+1, err)
		}
		b = append(b, part...)
	}
	return b
}

// codec is a pair of functions with their types taken away.
type codec struct {
	parse  func(b []byte) (any, error)
	append func(v any) []byte
}

func codecOf[T any](parse func([]byte) (T, error), app func([]byte, *T) []byte) codec {
	return codec{
		parse:  func(b []byte) (any, error) { return parse(b) },
		append: func(v any) []byte { x := v.(T); return app(nil, &x) },
	}
}

var codecs = map[string]codec{
	"frame-header": codecOf(
		func(b []byte) (vsockproto.FrameHeader, error) {
			return vsockproto.ParseFrameHeader(b, vsockproto.MaxFrame)
		},
		func(b []byte, h *vsockproto.FrameHeader) []byte {
			return vsockproto.AppendFrame(b, h.Type, h.Sequence, int(h.Length)-vsockproto.FrameHeaderSize)
		}),
	"hello":       codecOf(vsockproto.ParseHello, vsockproto.AppendHello),
	"challenge":   codecOf(vsockproto.ParseChallenge, vsockproto.AppendChallenge),
	"proof":       codecOf(vsockproto.ParseProof, vsockproto.AppendProof),
	"hello-ack":   codecOf(vsockproto.ParseHelloAck, vsockproto.AppendHelloAck),
	"heartbeat":   codecOf(parseHeartbeat, vsockproto.AppendHeartbeat),
	"bye":         codecOf(vsockproto.ParseBye, vsockproto.AppendBye),
	"ack":         codecOf(vsockproto.ParseAck, vsockproto.AppendAck),
	"policy":      codecOf(vsockproto.ParsePolicy, vsockproto.AppendPolicy),
	"policy-ack":  codecOf(vsockproto.ParsePolicyAck, vsockproto.AppendPolicyAck),
	"canary":      codecOf(vsockproto.ParseCanary, vsockproto.AppendCanary),
	"canary-ack":  codecOf(vsockproto.ParseCanaryAck, vsockproto.AppendCanaryAck),
	"command":     codecOf(vsockproto.ParseCommand, vsockproto.AppendCommand),
	"command-ack": codecOf(vsockproto.ParseCommandAck, vsockproto.AppendCommandAck),
	"reject":      codecOf(vsockproto.ParseReject, vsockproto.AppendReject),
	"events": codecOf(vsockproto.ParseEvents, func(b []byte, e *vsockproto.Events) []byte {
		return append(vsockproto.AppendEventsHeader(b, int(e.Count)), e.Records...)
	}),
	"record": codecOf(parseRecord, func(b []byte, e *vsockproto.Event) []byte {
		b, err := e.Append(b)
		if err != nil {
			return []byte(err.Error())
		}
		return b
	}),
}

func parseHeartbeat(b []byte) (vsockproto.Heartbeat, error) {
	var h vsockproto.Heartbeat
	err := vsockproto.ParseHeartbeat(b, &h)
	return h, err
}

func parseRecord(b []byte) (vsockproto.Event, error) {
	var e vsockproto.Event
	rest, err := e.Parse(b)
	if err == nil && len(rest) > 0 {
		return vsockproto.Event{}, vsockproto.ErrTrailing
	}
	return e, err
}

var counters = []vsockproto.Counter{
	{CPU: 0, Class: vsockproto.Critical, Watermark: 10},
	{CPU: 1, Class: vsockproto.Bulk, Watermark: 4000, Lost: 17},
}

// upTo is the bytes from..to, as they stand in the vectors.
func upTo[T [16]byte | [32]byte](from byte) (v T) {
	for i := range len(v) {
		reflect.ValueOf(&v).Elem().Index(i).SetUint(uint64(from) + uint64(i))
	}
	return v
}

var (
	hello = vsockproto.Hello{
		MinVersion: 1, MaxVersion: 1, Flags: vsockproto.HelloResume,
		BootID: upTo[[16]byte](0), Nonce: upTo[[32]byte](32), Resume: upTo[[16]byte](64),
		BootNs: 5_000_000_000, RealNs: 1_700_000_000_000_000_000, CPUs: 2,
		Kernel: "6.1.0-18-amd64", Build: "outguard-agent 0.1",
		Hooks: []vsockproto.Hook{
			{Type: vsockproto.FileOpen, Available: true, Attached: true, Tag: [8]byte{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}},
			{Type: vsockproto.TaskKill, Available: true},
		},
	}
	filtering = vsockproto.Policy{Number: 4, Hooks: []vsockproto.EventType{vsockproto.FileOpen, vsockproto.SocketCreate}, Filters: []vsockproto.Filter{
		{Type: vsockproto.FileOpen, Class: vsockproto.Bulk, Path: "/var/log/"},
		{Class: vsockproto.Bulk, Conditions: vsockproto.FilterUID | vsockproto.FilterCgroup | vsockproto.FilterProgram, UID: 33, Cgroup: 4711, Program: upTo[[32]byte](32)},
	}}
	challenge = vsockproto.Challenge{Nonce: upTo[[32]byte](128), Session: upTo[[16]byte](64), Secret: vsockproto.SecretSession}
	account   = vsockproto.Heartbeat{BootNs: 6_000_000_000, RealNs: 1_700_000_001_000_000_000, Counters: counters,
		Totals: vsockproto.Totals{MarkedNs: 5_990_000_000, Starts: 1000, Unrecorded: 5, Unhooked: 2}}
)

// meaning is what each vector says. Records are those of prototest.Sample, with
// their type's number as the sequence.
func meaning(t *testing.T, name string) any {
	key := upTo[[32]byte](1)
	h, c := vsockproto.AppendHello(nil, &hello), vsockproto.AppendChallenge(nil, &challenge)
	switch name {
	case "frame-header":
		return vsockproto.FrameHeader{Length: 48, Type: vsockproto.FrameEvents, Sequence: 7}
	case "hello":
		return hello
	case "challenge":
		return challenge
	case "proof":
		return vsockproto.Proof{MAC: vsockproto.AgentProof(&key, h, c)}
	case "hello-ack":
		return vsockproto.HelloAck{Version: 1, HeartbeatMs: 1000, Next: 42, Credit: 4 << 20, PolicyNumber: 3, MAC: vsockproto.HostProof(&key, h, c)}
	case "heartbeat":
		return account
	case "bye":
		return vsockproto.Bye{Heartbeat: account, Reason: "shutdown"}
	case "ack":
		return vsockproto.Ack{Sequence: 99, Credit: 8 << 20, Withheld: true}
	case "policy":
		return vsockproto.Policy{Number: 3, Hooks: []vsockproto.EventType{vsockproto.BprmCommittedCreds, vsockproto.TaskNewtask}}
	case "policy-filters":
		return filtering
	case "heartbeat-filters":
		h := account
		h.Filtering = vsockproto.Filtering{Number: 4, Filtered: 1234}
		return h
	case "policy-ack":
		return vsockproto.PolicyAck{Number: 3}
	case "canary":
		return vsockproto.Canary{Nonce: upTo[[16]byte](64)}
	case "canary-ack":
		return vsockproto.CanaryAck{Nonce: upTo[[16]byte](64), BootNs: 6_000_000_000}
	case "command":
		return vsockproto.Command{Number: 7, Kind: vsockproto.CommandKillTree, TGID: 4711, StartNs: 5_000_000_000}
	case "command-ack":
		return vsockproto.CommandAck{Number: 7, BootNs: 6_000_000_000, Tasks: 3}
	case "reject":
		return vsockproto.Reject{Code: vsockproto.RejectBusy, Reason: "the VM has a live session"}
	}
	typ := vsockproto.EventType(999)
	kind, earlier := strings.CutSuffix(strings.TrimPrefix(name, "record-"), "-earlier")
	if kind != "unknown" {
		var err error
		if typ, err = vsockproto.ParseEventType(kind); err != nil {
			t.Fatal(err)
		}
	}
	e := prototest.Sample(typ)
	e.Sequence = uint64(typ)
	if earlier { // of an agent that tells less
		e.Cred, e.Owner, e.Receiver = vsockproto.Tail{}, vsockproto.Tail{}, vsockproto.Tail{}
	}
	if _, err := e.Append(nil); err != nil { // sets the length
		t.Fatal(err)
	}
	return *e
}

func TestVectors(t *testing.T) {
	paths, err := filepath.Glob("testdata/vectors/*.hex")
	if err != nil || len(paths) != 44 {
		t.Fatalf("%d vectors: %v", len(paths), err)
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".hex")
		kind := strings.TrimSuffix(name, "-filters")
		if strings.HasPrefix(name, "record-") {
			kind = "record"
		}
		t.Run(name, func(t *testing.T) {
			b := vector(t, path)
			if name == "session-secret" {
				key := upTo[[32]byte](1)
				s := vsockproto.SessionSecret(&key, vsockproto.AppendHello(nil, &hello), vsockproto.AppendChallenge(nil, &challenge))
				if !bytes.Equal(s[:], b) {
					t.Fatalf("got %x", s)
				}
				return
			}
			c := codecs[kind]
			got, err := c.parse(b)
			if err != nil {
				t.Fatal(err)
			}
			if m := meaning(t, name); !reflect.DeepEqual(got, m) {
				t.Fatalf("the bytes mean\n%+v, not\n%+v", got, m)
			}
			if back := c.append(got); !bytes.Equal(back, b) {
				t.Fatalf("appended again\n% x, not\n% x", back, b)
			}
		})
	}
}

// TestEveryPrefixIsRefused cuts each vector short, everywhere.
func TestEveryPrefixIsRefused(t *testing.T) {
	for kind, c := range codecs {
		paths, _ := filepath.Glob("testdata/vectors/" + kind + "*.hex")
		for _, path := range paths {
			name := strings.TrimSuffix(filepath.Base(path), ".hex")
			if name != kind && name != kind+"-filters" && kind != "record" {
				continue
			}
			b := vector(t, path)
			for n := range b {
				v, err := c.parse(b[:n])
				if err == nil {
					t.Errorf("%s: %d of %d bytes are taken", name, n, len(b))
				}
				if !reflect.ValueOf(v).IsZero() {
					t.Errorf("%s: %d of %d bytes leave %+v", name, n, len(b), v)
				}
			}
		}
	}
}
