package vsockproto_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

var nonce = upTo[[16]byte](64)

// TestCanaryRecords: what a canary makes is taken, and says which it was.
func TestCanaryRecords(t *testing.T) {
	events := prototest.CanaryEvents(nonce)
	if len(events) != len(vsockproto.CanaryTypes()) {
		t.Fatalf("%d events", len(events))
	}
	for _, e := range events {
		c, err := e.CanaryOf()
		if err != nil || c.Named && c.Nonce != nonce {
			t.Errorf("%s: %+v, %v", e.Type, c, err)
		}
	}
}

// TestNothingHidesBehindACanary: whatever else is flagged is refused.
func TestNothingHidesBehindACanary(t *testing.T) {
	name := vsockproto.CanaryName(nonce)
	spoil := map[string]func(e *vsockproto.Event){
		"another path":        func(e *vsockproto.Event) { e.Path.Data = []byte("/etc/shadow") },
		"a longer path":       func(e *vsockproto.Event) { e.Path.Data = []byte("/memfd:" + name + "0") },
		"a shorter path":      func(e *vsockproto.Event) { e.Path.Data = []byte("/memfd:" + name[:len(name)-1]) },
		"no hex":              func(e *vsockproto.Event) { e.Path.Data = []byte("/memfd:" + name[:len(name)-1] + "g") },
		"capitals":            func(e *vsockproto.Event) { e.Path.Data = bytes.ToUpper([]byte("/memfd:" + name)) },
		"a file with a name":  func(e *vsockproto.Event) { e.File.Links = 1 },
		"another address":     func(e *vsockproto.Event) { e.RawAddr.Data = []byte("\x00" + name[1:]) },
		"a path for a socket": func(e *vsockproto.Event) { e.RawAddr.Data = []byte(name) },
		"another family":      func(e *vsockproto.Event) { e.Address.Family, e.Socket.Family = 2, 2 },
		"a possible protocol": func(e *vsockproto.Event) { e.Socket.Protocol = 0 },
		"a signal":            func(e *vsockproto.Event) { e.Signal = 9 },
		"another target":      func(e *vsockproto.Event) { e.Target.TGID++ },
		"another option":      func(e *vsockproto.Event) { e.Args[0] ^= 1 },
		"more arguments":      func(e *vsockproto.Event) { e.Args[3] = 1 },
		"a real mount":        func(e *vsockproto.Event) { e.Args[0] = 0 },
	}
	for what, f := range spoil {
		refused := 0
		for _, e := range prototest.CanaryEvents(nonce) {
			f(e)
			if _, err := e.CanaryOf(); errors.Is(err, vsockproto.ErrInvalid) {
				refused++
			}
		}
		if refused == 0 {
			t.Errorf("%s: taken", what)
		}
	}
	for _, typ := range vsockproto.EventTypes() {
		e := prototest.Sample(typ)
		if _, err := e.CanaryOf(); err == nil && typ != vsockproto.SocketListen {
			t.Errorf("any %s is taken", typ)
		}
	}
}

func TestDropCanaries(t *testing.T) {
	var plain, mixed []byte
	add := func(to []byte, e *vsockproto.Event) []byte {
		e.Sequence = 1
		b, err := e.Append(to)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	canaries := prototest.CanaryEvents(nonce)
	for i, typ := range vsockproto.EventTypes() {
		if i < len(canaries) {
			mixed = add(mixed, canaries[i])
		}
		mixed = add(mixed, prototest.Sample(typ))
		plain = add(plain, prototest.Sample(typ))
	}
	mixed = add(mixed, canaries[0])
	got, n := vsockproto.DropCanaries(bytes.Clone(mixed))
	if n != len(canaries)+1 || !bytes.Equal(got, plain) {
		t.Errorf("%d dropped, %d bytes left of %d, want %d", n, len(got), len(mixed), len(plain))
	}
	if got, n := vsockproto.DropCanaries(bytes.Clone(plain)); n != 0 || !bytes.Equal(got, plain) {
		t.Errorf("%d dropped of none", n)
	}
	broken := append(bytes.Clone(mixed), 1, 2, 3)
	if got, _ := vsockproto.DropCanaries(broken); !bytes.HasSuffix(got, []byte{1, 2, 3}) {
		t.Error("what is not well-formed is lost")
	}
	if n := testing.AllocsPerRun(100, func() { vsockproto.DropCanaries(plain) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzDropCanaries(f *testing.F) {
	e := prototest.CanaryEvents(nonce)[0]
	e.Sequence = 1
	b, _ := e.Append(nil)
	f.Add(b)
	f.Add(append(vector(f, "testdata/vectors/record-task_kill.hex"), b...))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		rest, n := vsockproto.DropCanaries(b)
		if n == 0 && !bytes.Equal(rest, before) {
			t.Fatal("nothing dropped, and something else is left")
		}
		if again, n := vsockproto.DropCanaries(rest); n != 0 || len(again) != len(rest) {
			t.Fatal("canaries are left")
		}
	})
}
