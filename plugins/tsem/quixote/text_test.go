package quixote

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/outguard/outguard/plugins/tsem"
)

// TestMutated: 4000 vectors, each broken in one to three places, and what
// Quixote's own code made of them: pid, tnum and point, or "reject".
func TestMutated(t *testing.T) {
	p, mapper, n := NewParser(Text), tsem.NewMapper(), 0
	for line := range bytes.Lines(gunzip(t, "mutated.txt.gz")) {
		want, event, _ := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte("\t"))
		got := "reject"
		if e, err := p.Parse(event); err == nil {
			if c, err := mapper.Map(&e.Event); err == nil {
				got = fmt.Sprintf("%d %d %x", e.PID, e.TaskNumber, c.Point)
			}
		}
		if got != string(want) {
			t.Errorf("%q: %s, want %s", event, got, want)
		}
		n++
	}
	if n != 4000 {
		t.Errorf("%d lines", n)
	}
}

// naive finds structures and keys as SPEC 6.2 words it: one search of the text
// after another.
type naive string

func (n naive) extract(name string) (naive, bool) {
	at := strings.Index(string(n), `"`+name+`": {`)
	if at < 0 {
		return "", false
	}
	start := at + len(name) + 4
	for end, level := start+1, 1; end < len(n); end++ {
		switch n[end] {
		case '{':
			level++
		case '}':
			level--
		}
		if level == 0 {
			return n[start : end+1], end+1 < len(n)
		}
	}
	return "", false
}

func (n naive) text(key string) (string, bool) {
	name := `"` + key + `": `
	for from := 0; ; {
		at := strings.Index(string(n[from:]), name)
		if at < 0 {
			return "", false
		}
		at += from
		from = at + len(name)
		if inside := n[1:max(at, 1)]; strings.Count(string(inside), "{") > strings.Count(string(inside), "}") {
			continue
		}
		if from >= len(n) || n[from] != '"' && n[from] != '{' {
			return "", false
		}
		return n.value(from + 1)
	}
}

func (n naive) value(start int) (string, bool) {
	for end := start; end < len(n); end++ {
		if n[end] != '"' || n[end-1] == '\\' {
			continue
		}
		if end == start {
			return `"`, true
		}
		var b strings.Builder
		for i := start; i < end; i++ {
			if n[i] == '\\' {
				i++
			}
			b.WriteByte(n[i])
		}
		return b.String(), true
	}
	return "", false
}

// The index finds what the searches find, in the line and in structures of it.
func FuzzText(f *testing.F) {
	for _, v := range vectors(f)[:8] {
		f.Add([]byte(v.Event), "file", "uid")
	}
	f.Add([]byte(`{"a": {"b": {"k": "1"}, "k": "\\"}, "k": {"x"}, "a": {}}}`), "a", "k")
	f.Add([]byte(`{"": {"k": ""}, ": {": {}}`), "", ": {")
	f.Fuzz(func(t *testing.T, line []byte, name, key string) {
		line, err := frame(line)
		if err != nil || strings.ContainsAny(name+key, "{}\":\x00") {
			return
		}
		var scan text
		f, n := scan.scan(line), naive(line)
		for range 3 {
			next, err := f.extract(name)
			want, ok := n.extract(name)
			if (err == nil) != ok || ok && string(line[next.start:next.end]) != string(want) {
				t.Fatalf("structure %q of %q: %v, want %q, %v", name, n, err, want, ok)
			}
			if !ok {
				return
			}
			f, n = next, want
			got, err := f.text(key)
			text, ok := n.text(key)
			if (err == nil) != ok || string(got) != text {
				t.Fatalf("key %q of %q: %q, %v, want %q, %v", key, n, got, err, text, ok)
			}
		}
	})
}

func TestNumber(t *testing.T) {
	for _, c := range []struct {
		text string
		want int64
		ok   bool
	}{
		{"0", 0, true}, {"12abc", 12, true}, {"junk", 0, true}, {`"`, 0, true}, {"", 0, true}, {"010", 8, true}, {"08", 0, true},
		{"0x1F", 31, true}, {"0X1f", 31, true}, {"0x", 0, true}, {"0xg", 0, true}, {"0b11", 0, true}, {"1e3", 1, true},
		{" \t\n\v\f\r7", 7, true}, {"+5", 5, true}, {"-5", -5, true}, {"- 5", 0, true}, {"--5", 0, true}, {"-0x10", -16, true},
		{"9223372036854775807", math.MaxInt64, true}, {"9223372036854775808", 0, false}, {"0x8000000000000000", 0, false},
		{"-9223372036854775808", math.MinInt64, true}, {"-9223372036854775809", 0, false}, {"99999999999999999999z", 0, false},
		{"0777777777777777777777", math.MaxInt64, true}, {"01000000000000000000000", 0, false}, {"１", 0, true},
	} {
		if n, ok := strtoll([]byte(c.text)); n != c.want || ok != c.ok {
			t.Errorf("%q: %d, %v, want %d, %v", c.text, n, ok, c.want, c.ok)
		}
	}
}

// Numbers that both dialects accept are the same.
func FuzzNumber(f *testing.F) {
	for _, s := range []string{"0", "0x7f", "0100755", "18446744073709551615", "-1", " 1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseNumber([]byte(s))
		c, ok := strtoll([]byte(s))
		if err == nil && n < 1<<63 && (!ok || uint64(c) != n) {
			t.Errorf("%q: %d, but as in C %d, %v", s, n, c, ok)
		}
		if decimal, err := strconv.ParseInt(s, 0, 64); err == nil && !strings.ContainsAny(s, "_bBoO") && (!ok || c != decimal) {
			t.Errorf("%q: %d, %v, want %d", s, c, ok, decimal)
		}
	})
}

// line is an event with places to fill.
func line(process, file, tail string) string {
	const head = `{"export": {"type": "event"}, "event": {"pid": "7", "tnum": "9", "process": "` + "%s" + `", "type": "file_open", "task_id": "` +
		`600153c1dc756d80f14729c67d3c13afe4ad2959ef68b255a547d384f92e787f"}, "COE": {"uid": "0", "euid": "0", "suid": "0", "gid": "0", ` +
		`"egid": "0", "sgid": "0", "fsuid": "0", "fsgid": "0", "capeff": "0x0"}, "file_open": {"file": {%s}}%s}`
	return fmt.Sprintf(head, process, file, tail)
}

func fileText(path string) string {
	return `"flags": "0", "inode": {"uid": "0", "gid": "0", "mode": "0100755", "s_magic": "0xef53", "s_id": "vda", "s_uuid": ` +
		`"feadbeaffeadbeaffeadbeaffeadbeaf"}, "path": {` + path + `}, "digest": "` + strings.Repeat("ab", 32) + `"`
}

// What of a line counts, where a reader of JSON would see something else.
func TestOddLines(t *testing.T) {
	plain := fileText(`"type": "root", "pathname": "/a"`)
	p := NewParser(Text)
	path := func(l string) string {
		e, err := p.Parse([]byte(l))
		if err != nil {
			return "reject"
		}
		return fmt.Sprintf("%s %s %s %d", e.File.PathType, e.File.Path, hex.EncodeToString(e.File.Owner[:2]), e.File.Instance)
	}
	owner := `"owner": "` + strings.Repeat("0F", 32) + `"`
	for _, c := range []struct{ name, line, want string }{
		{"plain", line("sh", plain, ""), "root /a 0000 0"},
		{"something follows", line("sh", plain, `, "x": "y"`), "root /a 0000 0"},
		{"blank behind", line("sh", plain, "") + " ", "reject"},
		{"carriage return behind", line("sh", plain, "") + "\r", "reject"},
		{"blank before", " " + line("sh", plain, ""), "reject"},
		{"the line ends at a NUL", line("sh", plain, "") + "\x00junk", "root /a 0000 0"},
		{"an earlier structure of that name", line("sh", plain, "")[:1] + `"file": {` + fileText(`"type": "chroot", "pathname": "/b"`) + `}, ` + line("sh", plain, "")[1:], "chroot /b 0000 0"},
		{"an escaped structure in a name", line(`\"file\": {}`, plain, ""), "root /a 0000 0"},
		{"a brace in a process name closes the event", line("a}", plain, ""), "reject"},
		{"a key in a structure is not the outer one's", line("sh", fileText(`"x": {"type": "chroot"}, "type": "root", "pathname": "/a"`), ""), "root /a 0000 0"},
		{"a brace opens a value", line("sh", fileText(`"type": {root", "x": "}", "pathname": "/a"`), ""), "root /a 0000 0"},
		{"a number is no value", line("sh", fileText(`"type": 5, "type": "root", "pathname": "/a"`), ""), "reject"},
		{"empty", line("sh", fileText(`"type": "", "pathname": ""`), ""), `" " 0000 0`},
		{"a value that ends in a backslash goes on", line("sh", fileText(`"pathname": "/e\\", "type": "root"`), ""), `root /e\",  0000 0`},
		{"a last value that ends in one is never closed", line("sh", fileText(`"type": "root", "pathname": "/e\\"`), ""), "reject"},
		{"any escape is what it escapes", line("sh", fileText(`"type": "r\oot", "pathname": "/\n\u0041\\"b"`), ""), `root /nu0041\"b 0000 0`},
		{"instance without owner", line("sh", fileText(`"instance": "0", "type": "root", "pathname": "/a"`), ""), "reject"},
		{"owner alone is not read", line("sh", fileText(`"owner": "zz", "type": "root", "pathname": "/a"`), ""), "root /a 0000 0"},
		{"a negative instance", line("sh", fileText(`"instance": "-1", `+owner+`, "type": "root", "pathname": "/a"`), ""), "root /a 0f0f 18446744073709551615"},
		{"a device out of range", line("sh", fileText(`"dev": {"major": "4294967296", "minor": "0"}, "type": "root", "pathname": "/a"`), ""), "reject"},
		{"a device that is text", line("sh", fileText(`"dev": "x", "type": "root", "pathname": "/a"`), ""), "reject"},
		{"a device that is a number is none", line("sh", fileText(`"dev": 5, "type": "root", "pathname": "/a"`), ""), "root /a 0000 0"},
	} {
		if got := path(c.line); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// FuzzParse: no line breaks either dialect, and an event has a point.
func FuzzParse(f *testing.F) {
	for i, v := range vectors(f) {
		if i%10 == 0 {
			f.Add([]byte(v.Event))
		}
	}
	for _, l := range []string{"", "{}", "{", `{"event": {}}`, "\x00", strings.Repeat(`{"a": `, 99) + "{}"} {
		f.Add([]byte(l))
	}
	quixote, strict, mapper := NewParser(Text), NewParser(Strict), tsem.NewMapper()
	f.Fuzz(func(t *testing.T, line []byte) {
		for _, p := range []*Parser{quixote, strict} {
			e, err := p.Parse(line)
			if (e == nil) != (err != nil) {
				t.Fatalf("event %v, error %v", e, err)
			}
			if err == nil {
				_, _ = mapper.Map(&e.Event)
			}
			_, _, _ = p.Aggregate(line)
		}
	})
}
