package tsem

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write golden files anew")

// filled is a model with something of everything.
func filled(t testing.TB) *Model {
	t.Helper()
	m := NewModel(0)
	m.SetBase(ID{0xba})
	m.SetAggregate(ID{0xa9})
	for _, path := range []string{"/a", "/b"} {
		if err := m.AddPseudonym(Pseudonym([]byte(path))); err != nil {
			t.Fatal(err)
		}
	}
	for n := range byte(4) {
		if n == 3 {
			m.Seal()
		}
		if _, err := m.Update(ID{n, 31: 1}); err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			m.Annotate(&Note{
				Received: time.Unix(1767323045, 678e6), BootNs: 5e9, PID: 700 + uint32(n),
				Program: "/bin/x\x1b \"y\"", What: "file_open root /tmp/\xff\u202e flags 0",
			})
		}
	}
	_, _ = m.Update(ID{1, 31: 1})
	m.Touch()
	return m
}

// The format is pinned: a file of it is read for as long as there is version 1.
func TestModelFile(t *testing.T) {
	m := filled(t)
	got := m.AppendText(nil)
	const golden = "testdata/model.txt"
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
		t.Errorf("(-want +got):\n%s", d)
	}
	read, rest, err := ParseModel(append(got, "and more"...), 0)
	if err != nil || string(rest) != "and more" {
		t.Fatalf("rest %q, error %v", rest, err)
	}
	if read.Measurement() != m.Measurement() || read.State() != m.State() || !read.Sealed() || read.Version() != 1 || read.Valid() != 3 {
		t.Errorf("read it is %+v", read)
	}
	if again := read.AppendText(nil); !bytes.Equal(again, want) {
		t.Errorf("written again it differs:\n%s", again)
	}
}

func TestBrokenModelFiles(t *testing.T) {
	whole := string(filled(t).AppendText(nil))
	for name, c := range map[string]struct{ old, new string }{
		"another version":        {"outguard-model 1", "outguard-model 2"},
		"no mapping":             {"mapping quixote\n", ""},
		"a mapping of its own":   {"mapping quixote", "mapping mine"},
		"a number with a zero":   {"version 1", "version 01"},
		"upper case":             {"base ba", "base BA"},
		"a blank at the end":     {"sealed\n", "sealed \n"},
		"a blank line":           {"sealed\n", "\nsealed\n"},
		"a carriage return":      {"sealed\n", "sealed\r\n"},
		"no end":                 {"end\n", ""},
		"half an end":            {"end\n", "end"},
		"out of order":           {"sealed\n", "base ba\n"},
		"sealed twice":           {"sealed\n", "sealed\nsealed\n"},
		"neither valid nor not":  {" valid 1\n", " true 1\n"},
		"a point twice":          {"point 01", "point 00"},
		"a negative count":       {" valid 1\n", " valid -1\n"},
		"a pid out of range":     {" 701 ", " 4294967296 "},
		"quoted in another way":  {`\x1b`, `\u001b`},
		"quoted with backquotes": {`"/bin/x\x1b \"y\""`, "`/bin/x`"},
		"one text":               {` "file_open root /tmp/\xff\u202e flags 0"`, ""},
		"something behind":       {"flags 0\"", "flags 0\" x"},
	} {
		broken := strings.Replace(whole, c.old, c.new, 1)
		if broken == whole {
			t.Fatalf("%s: nothing to replace", name)
		}
		if m, _, err := ParseModel([]byte(broken), 0); err == nil {
			t.Errorf("%s: taken, %+v", name, m)
		} else if !strings.Contains(err.Error(), "model line ") {
			t.Errorf("%s: %v names no line", name, err)
		}
	}
	if _, _, err := ParseModel([]byte(whole), 2); !errors.Is(err, ErrFull) {
		t.Errorf("more points than there is room for: %v", err)
	}
}

// FuzzParseModel: what is read is written the same.
func FuzzParseModel(f *testing.F) {
	f.Add(filled(f).AppendText(nil))
	f.Add(NewModel(0).AppendText(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, rest, err := ParseModel(b, 1000)
		if err != nil {
			return
		}
		if again := m.AppendText(nil); !bytes.Equal(again, b[:len(b)-len(rest)]) {
			t.Errorf("%q was read from %q", again, b)
		}
	})
}
