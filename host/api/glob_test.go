package api

import (
	"path"
	"strings"
	"testing"
)

func TestGlob(t *testing.T) {
	for _, tc := range []struct {
		pattern, s string
		want       bool
	}{
		{"/etc/passwd", "/etc/passwd", true},
		{"/etc/passwd", "/etc/passwd2", false},
		{"/etc/*", "/etc/ssl/certs", true},
		{"*", "", true},
		{"?", "", false},
		{"/tmp/?.so", "/tmp/a.so", true},
		{"*.so*", "/lib/libc.so.6", true},
		{"**a*b", "xaxb", true},
		{"[ab]", "[ab]", true},
		{`\*`, `\anything`, true},
		{"", "", true},
		{"", "x", false},
	} {
		if got := glob(tc.pattern, []byte(tc.s)); got != tc.want {
			t.Errorf("glob(%q, %q) = %v", tc.pattern, tc.s, got)
		}
	}
	long := strings.Repeat("a", 4000)
	if glob(strings.Repeat("a*", 2000)+"b", []byte(long)) {
		t.Error("matched")
	}
}

// FuzzGlob holds glob against path.Match, which agrees where there is no slash
// and none of path.Match's other signs.
func FuzzGlob(f *testing.F) {
	f.Add("a*b?c", "aXXbYc")
	f.Add("***", "")
	f.Add("*a*a*a*", "aaaa")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 100 || len(s) > 100 || strings.ContainsAny(pattern+s, "/\\[]") || !ascii(pattern+s) {
			t.Skip()
		}
		want, err := path.Match(pattern, s)
		if err != nil {
			t.Skip()
		}
		if got := glob(pattern, []byte(s)); got != want {
			t.Errorf("glob(%q, %q) = %v", pattern, s, got)
		}
	})
}

func ascii(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r > 0x7e }) < 0
}
