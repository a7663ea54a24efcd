package api_test

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
)

func TestAppendJSON(t *testing.T) {
	got := string(api.AppendJSON(nil, &apipb.Finding{
		Id: "f1", BootNs: 1 << 60, Comm: `x\xff`, Reason: "\u202eodd\u009b\"", Detail: map[string]string{"b": "2", "a": "1"},
	}))
	want := `{"id":"f1","engine":"","vm":"","uuid":"","at":"","received":"","boot_ns":1152921504606846976,` +
		`"rule":"","severity":"","technique":"","reason":"\u202eodd\u009b\"","event":"","pid":0,` +
		`"comm":"x\\xff","path":"","detail":{"a":"1","b":"2"}}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Every message of the service can be written, filled and empty, as JSON that
// proto3's own reader takes back.
func TestAppendJSONOfEveryMessage(t *testing.T) {
	messages := apipb.File_outguard_proto.Messages()
	for i := range messages.Len() {
		for _, filled := range []bool{false, true} {
			m := newMessage(messages.Get(i))
			if filled {
				fill(m.ProtoReflect(), 0)
			}
			b := api.AppendJSON(nil, m)
			if !json.Valid(b) {
				t.Fatalf("%s: %s", messages.Get(i).Name(), b)
			}
			back := newMessage(messages.Get(i))
			if err := protojson.Unmarshal(b, back); err != nil {
				t.Fatalf("%s: %v: %s", messages.Get(i).Name(), err, b)
			}
			if !proto.Equal(m, back) {
				t.Errorf("%s: %s says %v, not %v", messages.Get(i).Name(), b, back, m)
			}
		}
	}
}

func newMessage(d protoreflect.MessageDescriptor) proto.Message {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err)
	}
	return t.New().Interface()
}

// fill sets every field to something.
func fill(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsMap():
			m.Mutable(f).Map().Set(protoreflect.ValueOfString("k").MapKey(), protoreflect.ValueOfString("v\u202e"))
		case f.IsList() && f.Kind() == protoreflect.MessageKind:
			fill(m.Mutable(f).List().AppendMutable().Message(), depth+1)
		case f.IsList():
			m.Mutable(f).List().Append(scalar(f))
			m.Mutable(f).List().Append(scalar(f))
		case f.Kind() == protoreflect.MessageKind:
			fill(m.Mutable(f).Message(), depth+1)
		default:
			m.Set(f, scalar(f))
		}
	}
}

func scalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("text\u202e\x7f\\")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte{0xff, 0, 0xfe})
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1<<32 - 1)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1<<64 - 1)
	}
	panic(f.FullName())
}

// What the guest chose never reaches the caller raw, in no field of any event.
func TestEventsAreHarmless(t *testing.T) {
	b := newBackend()
	e := exec(1, "/tmp/\x1b[2J\u202e\xff", "a\nb", "\u009b")
	copy(e.Comm[:], "c\x07\x1b")
	copy(e.File.FSID[:], "s\x9b")
	e.Filename.Data = []byte("./\u2066")
	b.Add(batch(t, web, 1, e))
	c, _ := serve(t, b, nil)
	s, err := c.Events(t.Context(), &apipb.EventsRequest{})
	if err != nil || !s.Receive() {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	line := string(api.AppendJSON(nil, s.Msg()))
	for _, want := range []string{
		`"path":"/tmp/\\x1b[2J\\u202e\\xff"`, `"comm":"c\\a\\x1b"`, `"argv":["a\\nb","\\u009b"]`,
		`"fs_id":"s\\x9b"`, `"filename":"./\\u2066"`,
	} {
		if !strings.Contains(line, want) {
			t.Errorf("no %s in %s", want, line)
		}
	}
	if i := strings.IndexFunc(line, func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 {
		t.Errorf("at %d: %q", i, line)
	}
}
