package safe_test

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/outguard/outguard/host/api/safe"
)

func TestTextAndQuote(t *testing.T) {
	for _, tc := range []struct{ in, text, quote string }{
		{"", "", ""},
		{"/bin/sh", "/bin/sh", "/bin/sh"},
		{"größe 日本 é", "größe 日本 é", "größe 日本 é"},
		{`back\slash`, `back\slash`, `back\\slash`},
		{"\x1b]0;owned\x07", `\x1b]0;owned\a`, `\x1b]0;owned\a`},
		{"a\nb\tc\r", `a\nb\tc\r`, `a\nb\tc\r`},
		{"del\x7f", `del\x7f`, `del\x7f`},
		{"c1\u009b31m", `c1\u009b31m`, `c1\u009b31m`},
		{"rlo\u202etxt.exe", `rlo\u202etxt.exe`, `rlo\u202etxt.exe`},
		{"isolate\u2066\u2069", `isolate\u2066\u2069`, `isolate\u2066\u2069`},
		{"zero\u200bwidth\ufeff", `zero\u200bwidth\ufeff`, `zero\u200bwidth\ufeff`},
		{"line\u2028sep", `line\u2028sep`, `line\u2028sep`},
		{"nbsp\u00a0", `nbsp\u00a0`, `nbsp\u00a0`},
		{"tag\U000e0041", `tag\U000e0041`, `tag\U000e0041`},
		{"bad\xff\xc3", `bad\xff\xc3`, `bad\xff\xc3`},
		{"raw C1 \x9b", `raw C1 \x9b`, `raw C1 \x9b`},
		{"replacement \ufffd itself", "replacement \ufffd itself", "replacement \ufffd itself"},
		{"nul\x00", `nul\x00`, `nul\x00`},
	} {
		if got := safe.Text(tc.in); got != tc.text {
			t.Errorf("Text(%q) = %q, want %q", tc.in, got, tc.text)
		}
		if got := safe.Quote(tc.in); got != tc.quote {
			t.Errorf("Quote(%q) = %q, want %q", tc.in, got, tc.quote)
		}
	}
}

func TestUnquoteRefuses(t *testing.T) {
	for _, s := range []string{`\`, `\q`, `\x1`, `\u12`, `\U11000000`} {
		if b, err := safe.Unquote(s); err == nil {
			t.Errorf("Unquote(%q) = %q", s, b)
		}
	}
}

func TestJSON(t *testing.T) {
	in := "a\x7f\u009b\u202e\u2028\U000e0041é\""
	b, err := json.Marshal(map[string]string{"k": in})
	if err != nil {
		t.Fatal(err)
	}
	got := string(safe.JSON(nil, b))
	want := `{"k":"a\u007f\u009b\u202e\u2028\udb40\udc41é\""}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestAppendString(t *testing.T) {
	in := "<a&b>\"\\\n\t\r\x00\x7f\u009b\u202e\U000e0041é\xff"
	want := `"<a&b>\"\\\n\t\u000d\u0000\u007f\u009b\u202e\udb40\udc41é\ufffd"`
	if got := string(safe.AppendString(nil, in)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestNothingToDoAllocatesNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { safe.Text("/usr/bin/größe"); safe.Quote("/usr/bin/größe") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// harmless holds that a terminal does nothing with s but show it.
func harmless(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) < 0
}

func FuzzSafe(f *testing.F) {
	for _, s := range []string{"", "/bin/sh", "\x1b[31m", "\u202e", "\xff\xfe", `\x1b`, "\\", "é\u009b", "\xe2\x80", "\ufffd", "a\x00b\U0010ffff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		text, quoted := safe.Text(string(b)), safe.Quote(b)
		if !harmless(text) || !harmless(quoted) {
			t.Fatalf("Text %q, Quote %q", text, quoted)
		}
		if again := safe.Text(text); again != text {
			t.Fatalf("Text(%q) = %q", text, again)
		}
		if again := safe.Text(quoted); again != quoted {
			t.Fatalf("Text of Quote %q = %q", quoted, again)
		}
		back, err := safe.Unquote(quoted)
		if err != nil || !bytes.Equal(back, b) {
			t.Fatalf("Unquote(%q) = %q, %v, want %q", quoted, back, err, b)
		}
		checkJSON(t, string(b))
	})
}

// checkJSON holds that JSON's escapes change nothing that JSON says.
func checkJSON(t *testing.T, s string) {
	t.Helper()
	plain, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	out := safe.JSON(nil, plain)
	var want, got string
	if err := json.Unmarshal(plain, &want); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &got); err != nil || got != want || !harmless(string(out)) {
		t.Fatalf("JSON %q says %q, %v, want %q", out, got, err, want)
	}
	out = safe.AppendString(nil, s)
	if err := json.Unmarshal(out, &got); err != nil || got != want || !harmless(string(out)) {
		t.Fatalf("string %q says %q, %v, want %q", out, got, err, want)
	}
}
