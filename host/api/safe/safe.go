// Package safe makes text that a guest chose harmless to show. A guest may name
// a file "\x1b]0;…" to write on the operator's terminal, or hide the end of a
// path behind a bidirectional mark: neither leaves this package as such.
//
// What is printable is what strconv.IsPrint says: letters, marks, numbers,
// punctuation, symbols and the ASCII space. So control characters (C0, DEL, C1),
// format characters (bidirectional and zero-width marks among them), line and
// paragraph separators and bytes that are no UTF-8 are not.
package safe

import (
	"fmt"
	"strconv"
	"unicode/utf8"
)

// Text returns s with all that is not printable as Go escapes (\n, \x1b,
// \u202e). A backslash stays, so that Text of its own result changes nothing:
// it is for showing, and Quote is for keeping.
func Text(s string) string {
	if clean(s) {
		return s
	}
	return string(appendEscaped(make([]byte, 0, len(s)+16), s, false))
}

// Quote returns guest bytes as printable text that says all of them: as Text,
// and the backslash as \\. Unquote gives the bytes back.
func Quote[T ~string | ~[]byte](guest T) string {
	s := string(guest)
	if clean(s) && !hasBackslash(s) {
		return s
	}
	return string(appendEscaped(make([]byte, 0, len(s)+16), s, true))
}

// Unquote returns the bytes that Quote was given.
func Unquote(s string) ([]byte, error) {
	out := make([]byte, 0, len(s))
	for rest := s; rest != ""; {
		if rest[0] != '\\' {
			out, rest = append(out, rest[0]), rest[1:]
			continue
		}
		r, multibyte, tail, err := strconv.UnquoteChar(rest, 0)
		if err != nil {
			return nil, fmt.Errorf("unquote %q: %w", s, err)
		}
		if multibyte {
			out = utf8.AppendRune(out, r)
		} else {
			out = append(out, byte(r))
		}
		rest = tail
	}
	return out, nil
}

// AppendString appends s to dst as a JSON string in which every character that
// is not printable stands as \uXXXX. Bytes that are no UTF-8 become U+FFFD.
func AppendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r == '\n':
			dst = append(dst, `\n`...)
		case r == '\t':
			dst = append(dst, `\t`...)
		default:
			dst = appendRune(dst, r, s[:n])
		}
		s = s[n:]
	}
	return append(dst, '"')
}

// JSON appends src, a JSON text, to dst with every character that is not
// printable as \uXXXX. Such characters stand only inside JSON's strings, where
// the escape means the same; JSON's own white space stays.
func JSON(dst, src []byte) []byte {
	for len(src) > 0 {
		if src[0] == '\n' || src[0] == '\t' || src[0] == '\r' {
			dst, src = append(dst, src[0]), src[1:]
			continue
		}
		r, n := utf8.DecodeRune(src)
		dst = appendRune(dst, r, string(src[:n]))
		src = src[n:]
	}
	return dst
}

// appendRune appends r, which stood as text, or its escape in JSON.
func appendRune(dst []byte, r rune, text string) []byte {
	switch {
	case r == utf8.RuneError && len(text) == 1:
		return append(dst, `\ufffd`...)
	case strconv.IsPrint(r):
		return append(dst, text...)
	case r > 0xffff:
		r -= 0x10000
		return fmt.Appendf(dst, `\u%04x\u%04x`, 0xd800+(r>>10), 0xdc00+(r&0x3ff))
	}
	return fmt.Appendf(dst, `\u%04x`, r)
}

func clean(s string) bool {
	for i, r := range s {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				return false
			}
		}
		if !strconv.IsPrint(r) {
			return false
		}
	}
	return true
}

func hasBackslash(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' {
			return true
		}
	}
	return false
}

// appendEscaped keeps printable characters and has strconv name the others.
func appendEscaped(b []byte, s string, backslash bool) []byte {
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			b = fmt.Appendf(b, `\x%02x`, s[0])
		case r == '\\' && backslash:
			b = append(b, `\\`...)
		case strconv.IsPrint(r):
			b = append(b, s[:n]...)
		default:
			q := strconv.AppendQuoteRune(nil, r)
			b = append(b, q[1:len(q)-1]...)
		}
		s = s[n:]
	}
	return b
}
