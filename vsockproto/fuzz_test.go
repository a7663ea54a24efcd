package vsockproto_test

import (
	"bytes"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/outguard/outguard/vsockproto"
)

// fuzz holds a codec to its promise: what Parse takes, Append gives back byte
// for byte, and what it refuses leaves nothing.
func fuzz(f *testing.F, kind string) {
	paths, _ := filepath.Glob("testdata/vectors/*.hex")
	for _, path := range paths {
		if name := strings.TrimSuffix(filepath.Base(path), ".hex"); name == kind || strings.HasPrefix(name, kind+"-") {
			f.Add(vector(f, path))
		}
	}
	c := codecs[kind]
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := c.parse(b)
		if err != nil {
			if !reflect.ValueOf(v).IsZero() {
				t.Fatalf("refused (%v), and left %+v", err, v)
			}
			return
		}
		if kind == "frame-header" {
			b = b[:vsockproto.FrameHeaderSize]
		}
		if back := c.append(v); !bytes.Equal(back, b) {
			t.Fatalf("%+v\nparsed from % x\n  appended as % x", v, b, back)
		}
	})
}

func FuzzFrameHeader(f *testing.F) { fuzz(f, "frame-header") }
func FuzzHello(f *testing.F)       { fuzz(f, "hello") }
func FuzzChallenge(f *testing.F)   { fuzz(f, "challenge") }
func FuzzProof(f *testing.F)       { fuzz(f, "proof") }
func FuzzHelloAck(f *testing.F)    { fuzz(f, "hello-ack") }
func FuzzHeartbeat(f *testing.F)   { fuzz(f, "heartbeat") }
func FuzzBye(f *testing.F)         { fuzz(f, "bye") }
func FuzzAck(f *testing.F)         { fuzz(f, "ack") }
func FuzzPolicy(f *testing.F)      { fuzz(f, "policy") }
func FuzzPolicyAck(f *testing.F)   { fuzz(f, "policy-ack") }
func FuzzCanary(f *testing.F)      { fuzz(f, "canary") }
func FuzzCanaryAck(f *testing.F)   { fuzz(f, "canary-ack") }
func FuzzCommand(f *testing.F)     { fuzz(f, "command") }
func FuzzCommandAck(f *testing.F)  { fuzz(f, "command-ack") }
func FuzzReject(f *testing.F)      { fuzz(f, "reject") }
func FuzzRecord(f *testing.F)      { fuzz(f, "record") }

func FuzzEvents(f *testing.F) {
	f.Add(append(vsockproto.AppendEventsHeader(nil, 1), vector(f, "testdata/vectors/record-task_kill.hex")...))
	fuzz(f, "events")
}

// FuzzEventType reads any text as the name of an event, and of a profile.
func FuzzEventType(f *testing.F) {
	f.Add("file_open")
	f.Add("tsem-full")
	f.Fuzz(func(t *testing.T, name string) {
		if e, err := vsockproto.ParseEventType(name); err == nil && e.String() != name {
			t.Errorf("%q is %s", name, e)
		}
		if types, err := vsockproto.ParseProfile(name); err == nil && !slices.IsSorted(types) {
			t.Errorf("%q is %v", name, types)
		}
	})
}
