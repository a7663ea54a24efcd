package evidence

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata anew")

// goldenKey is a key of no host, so that signatures can be pinned.
const goldenKey = "PRIVATE+KEY+vector.example+914b4787+AQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n"

// TestVector pins every byte of a stream that was opened, written and closed:
// the format is what other programs and later versions read.
func TestVector(t *testing.T) {
	key, err := parseKey([]byte(goldenKey))
	if err != nil {
		t.Fatal(err)
	}
	now := func() time.Time { return at0.Add(1234567 * time.Nanosecond) }
	s := testStore(t, t.TempDir(), key, Options{Now: now})
	st := testStream(t, s)
	for _, r := range []Record{
		{Kind: KindOpen, Payload: []byte(`{"peer":"vsock"}`)},
		{Kind: KindFrame, Critical: true, Payload: []byte("a frame's bytes")},
		{Kind: KindNote},
	} {
		add := st.Append
		if r.Critical {
			add = st.AppendCritical
		}
		if _, err := add(r.Kind, at0, r.Payload); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(st.Dir(), segmentName(0, false)))
	if err != nil {
		t.Fatal(err)
	}
	got := annotate(b)
	path := filepath.Join("testdata", "segment.hex")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// annotate writes a plain segment as hex with a name at each field.
func annotate(b []byte) string {
	var out strings.Builder
	field := func(name string, n int) {
		fmt.Fprintf(&out, "%-8s", name)
		for i := 0; i < n; i += 24 {
			if i > 0 {
				fmt.Fprintf(&out, "%8s", "")
			}
			line := b[i:min(i+24, n)]
			text := bytes.Map(func(r rune) rune {
				if r < ' ' || r > '~' {
					return '.'
				}
				return r
			}, bytes.ToValidUTF8(line, []byte(".")))
			fmt.Fprintf(&out, " % x", line)
			if name == "payload" {
				fmt.Fprintf(&out, "%*s |%s|", 3*(24-len(line)), "", text)
			}
			out.WriteByte('\n')
		}
		if n == 0 {
			out.WriteByte('\n')
		}
		b = b[n:]
	}
	for i, name := range []string{"magic", "stream", "first", "chain"} {
		field(name, []int{8, 16, 8, 32}[i])
	}
	for len(b) > 0 {
		length := int(le.Uint32(b))
		fmt.Fprintf(&out, "\n# %s\n", Kind(le.Uint16(b[4:])))
		for i, name := range []string{"length", "kind", "flags", "index", "time", "payload", "check"} {
			field(name, []int{4, 2, 2, 8, 8, length - recordOverhead, 8}[i])
		}
	}
	return out.String()
}
