package api

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/outguard/outguard/host/api/safe"
)

// sanitize makes every string in m printable, so that no answer of a backend
// fails to encode over a guest's bytes, or carries them to a terminal.
func sanitize(m proto.Message) { sanitizeMessage(m.ProtoReflect()) }

func sanitizeMessage(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			// The only map is Finding.detail, which FindingOf makes.
		case f.IsList():
			sanitizeList(f, v.List())
		case f.Kind() == protoreflect.MessageKind:
			sanitizeMessage(v.Message())
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, protoreflect.ValueOfString(safe.Text(v.String())))
		}
		return true
	})
}

func sanitizeList(f protoreflect.FieldDescriptor, l protoreflect.List) {
	for i := range l.Len() {
		switch f.Kind() {
		case protoreflect.MessageKind:
			sanitizeMessage(l.Get(i).Message())
		case protoreflect.StringKind:
			l.Set(i, protoreflect.ValueOfString(safe.Text(l.Get(i).String())))
		}
	}
}
