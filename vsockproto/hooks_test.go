package vsockproto_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// Each profile has all that the one before it has, and what it is called for.
func TestProfiles(t *testing.T) {
	var before []vsockproto.EventType
	for i, name := range vsockproto.ProfileNames() {
		types, err := vsockproto.ParseProfile(name)
		if err != nil {
			t.Fatal(err)
		}
		if want := []int{5, 13, 92, 103}[i]; len(types) != want || !slices.IsSorted(types) {
			t.Errorf("%s: %d types, want %d, ascending: %v", name, len(types), want, types)
		}
		for _, typ := range before {
			if !slices.Contains(types, typ) {
				t.Errorf("%s lacks %s", name, typ)
			}
		}
		before = types
	}
	if _, err := vsockproto.ParseProfile("all"); err == nil {
		t.Error("a profile that there is not")
	}
}

// A record that was parsed holds nothing of the one before, whatever that was.
func TestParseLeavesNothing(t *testing.T) {
	events, _ := samples(t)
	var e vsockproto.Event
	for _, one := range events {
		for _, two := range events {
			for _, from := range []*vsockproto.Event{one, two} {
				b, err := from.Append(nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := e.Parse(b); err != nil {
					t.Fatal(err)
				}
				if back, _ := e.Append(nil); !bytes.Equal(back, b) {
					t.Fatalf("%s after %s: % x", two.Type, one.Type, back)
				}
			}
		}
	}
}

// An argument without a name has to be zero.
func TestUnnamedArgument(t *testing.T) {
	e := prototest.Sample(vsockproto.TaskSetnice)
	e.Sequence = 1
	b, err := e.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] = 1
	if _, err := e.Parse(b); err == nil {
		t.Error("taken")
	}
}

// A program without a name by which to find it.
func TestFileless(t *testing.T) {
	e := prototest.Sample(vsockproto.BprmCommittedCreds)
	if got := e.Fileless(); got != "" {
		t.Errorf("a linked file is %q", got)
	}
	e.File.Links = 0
	if got := e.Fileless(); got != "deleted" {
		t.Errorf("a file without links is %q", got)
	}
	e.Path = vsockproto.Tail{Data: []byte("/memfd:x"), Flags: vsockproto.TailUnreachable | vsockproto.TailUnlinked}
	if got := e.Fileless(); got != "memfd" {
		t.Errorf("a memfd is %q", got)
	}
}

// A tail that has a layout of its own has that and no other.
func TestTailsOfOneSize(t *testing.T) {
	for _, c := range []struct {
		of   vsockproto.EventType
		tail func(*vsockproto.Event) *vsockproto.Tail
	}{
		{vsockproto.TaskPrlimit, func(e *vsockproto.Event) *vsockproto.Tail { return &e.Cred }},
		{vsockproto.ShmShmat, func(e *vsockproto.Event) *vsockproto.Tail { return &e.Owner }},
		{vsockproto.MsgQueueMsgrcv, func(e *vsockproto.Event) *vsockproto.Tail { return &e.Receiver }},
	} {
		for what, change := range map[string]func(*vsockproto.Tail){
			"shorter":  func(tail *vsockproto.Tail) { tail.Data = tail.Data[8:] },
			"longer":   func(tail *vsockproto.Tail) { tail.Data = append(bytes.Clone(tail.Data), make([]byte, 8)...) },
			"flagged":  func(tail *vsockproto.Tail) { tail.Flags = vsockproto.TailTruncated },
			"not zero": func(tail *vsockproto.Tail) { tail.Data = bytes.Clone(tail.Data); tail.Data[len(tail.Data)-1] = 1 },
		} {
			e := prototest.Sample(c.of)
			e.Sequence = 1
			change(c.tail(e))
			b, err := e.Append(nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := e.Parse(b); err == nil {
				t.Errorf("%s: one that is %s is taken", c.of, what)
			}
		}
	}
	e := prototest.Sample(vsockproto.TaskPrlimit)
	if c, is := e.Creds(); !is || c.UID != 41 || c.FSGID != 48 || c.CapEff != 0x2ff || c.Securebits != 3 {
		t.Errorf("credentials %+v, %v", c, is)
	}
	e = prototest.Sample(vsockproto.MsgQueueMsgrcv)
	if task, id, is := e.Maker(); !is || task.PID != 78 || id != 5 {
		t.Errorf("made by %+v, %d, %v", task, id, is)
	}
	if task, id, is := e.Receives(); !is || task.StartNs != 3_200 || id != 6 {
		t.Errorf("for %+v, %d, %v", task, id, is)
	}
}
